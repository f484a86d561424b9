"""`demo`: the main job, told by doing it: an unmodified client, the public API, and a look at what is left."""

from __future__ import annotations

import os
import secrets
import select
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli.here import Here, Trouble, command, seconds, talk
from millstream.model.codes import INTERRUPTED, NO

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.store.steps import Step
    from millstream.store.store import Store
    from millstream.wiring import Settings

LOOK_S: Final = 0.02
LIMIT_S: Final = 180.0


@command(
    name="demo",
    params=[
        click.Option(["--instance-type"], default="stream.standard.medium", show_default=True, metavar="TYPE"),
        click.Option(["--image"], metavar="NAME", help="Default: the configured base image."),
        click.Option(["--hold"], is_flag=True, help="Wait for Enter before deleting. Default on a terminal."),
        click.Option(["--no-hold"], is_flag=True, help="Look at the desktop itself, then delete. Default elsewhere."),
    ],
    examples=["millstream demo", "millstream demo --no-hold --json"],
)
def demo_command(here: Here, *, instance_type: str, image: str | None, hold: bool, no_hold: bool) -> int:
    """Tell the main job as a story: a desktop from nothing to nothing.

    Creates an image builder, waits for it, opens its desktop, deletes it and proves that nothing is left, with the
    times of each step and the engine's share of them. It uses the public API alone, through an unmodified client.
    Whatever happens, Ctrl-C included, it deletes what it made.
    """
    service = here.service()
    if not service:
        raise Trouble("service.not-running", why=f"no service runs on {here.data}")
    settings = here.serving_settings()
    store = here.store()
    held = (hold or (sys.stdin.isatty() and sys.stdout.isatty())) and not no_hold and not here.as_json
    story = Story(here, store, client(settings, store, str(service["api"])))
    story.hold = held and service.get("capacity") != "simulated"
    story.desktop = service.get("capacity") != "simulated"
    import botocore.exceptions

    try:
        return story.tell(instance_type, image or settings.image, settings)
    except botocore.exceptions.ClientError as error:
        said = error.response["Error"]
        code = "access.denied" if said["Code"] == "AccessDeniedException" else "resource.failed"
        raise Trouble(
            code, what=f"{error.operation_name} was refused", why=f"{said['Code']}: {said['Message']}"
        ) from None
    except botocore.exceptions.HTTPClientError as error:
        raise Trouble("service.no-answer", why=str(error)) from None


def client(settings: Settings, store: Store, url: str) -> Any:
    """Botocore as anyone would use it, with the root key. No proxy: the service is on this host."""
    import botocore.config
    import botocore.session

    from millstream import wiring

    key = wiring.root_key(store, settings.account)
    return botocore.session.Session().create_client(
        "appstream",
        region_name=settings.region,
        endpoint_url=url,
        aws_access_key_id=key.key_id,
        aws_secret_access_key=key.secret.reveal(),
        verify=settings.tls_certificate or None,
        config=botocore.config.Config(proxies={}),
    )


class Story:
    """One telling. `hold`: a person opens the desktop; `desktop`: there is one."""

    def __init__(self, here: Here, store: Store, appstream: Any) -> None:
        self.here = here
        self.store = store
        self.appstream = appstream
        self.name = f"demo-{secrets.token_hex(2)}"
        self.arn = ""
        self.hold = False
        self.desktop = True
        self.began = time.monotonic()
        self.began_at = time.time()
        self.asked = False
        self.lines: list[dict[str, Any]] = []

    def say(self, what: str, told: str = "", *, under: bool = False, at: float | None = None, **facts: Any) -> None:
        """One line of the story; `at`: when it was, in seconds since the epoch, if that is not now."""
        at_s = time.monotonic() - self.began if at is None else max(0.0, at - self.began_at)
        self.lines.append({"at_s": round(at_s, 3), "what": what, "told": told, **facts})
        if not self.here.as_json:
            unit = " s" if len(self.lines) == 1 else "  "
            text = f"{'  ' if under else ''}{what}"
            print(f"{at_s:7.2f}{unit}  {text:<38} {told}".rstrip(), flush=True)

    def tell(self, instance_type: str, image: str, settings: Settings) -> int:
        problem, interrupted = "", False
        self.began, self.began_at = time.monotonic(), time.time()
        try:
            problem = self._create(instance_type, image) or self._look(settings)
        except KeyboardInterrupt:
            interrupted = True
            talk("\n  Interrupted: deleting what was made.")
        finally:
            deleted = self._delete()
        left = self._left()
        body = {
            "ok": not problem and deleted and left["clean"],
            "name": self.name,
            "resource": self.arn,
            "problem": problem or ("interrupted" if interrupted else None),
            "wall_s": round(time.monotonic() - self.began, 3),
            "story": self.lines,
            "left": left,
        }
        lines = [
            f"Rows {left['rows']}, machines {left['machines']}. "
            + ("Nothing left." if left["clean"] else "Something is left: millstream survey")
        ]
        self.here.answer("demo", body, lines)
        if interrupted:
            return INTERRUPTED
        if problem:
            raise Trouble(
                "resource.failed", what=f"the demo did not come to a desktop: {problem}", why="it was deleted again"
            )
        return 0 if body["ok"] else NO

    def _create(self, instance_type: str, image: str) -> str:
        """Until RUNNING. What went wrong, if anything."""
        self.say(f"CreateImageBuilder {self.name}", f"{instance_type}, {image}", call="CreateImageBuilder")
        self.asked = True
        made = self.appstream.create_image_builder(Name=self.name, ImageName=image, InstanceType=instance_type)
        self.arn = made["ImageBuilder"]["Arn"]
        accepted_s = time.monotonic() - self.began
        builder = self._until(lambda found: found is None or found["State"] in {"RUNNING", "FAILED"})
        if builder is None:
            return "it disappeared"
        if builder["State"] == "FAILED":
            errors = builder.get("ImageBuilderErrors") or [{}]
            return f"{errors[0].get('ErrorCode')}: {errors[0].get('ErrorMessage')}"
        taken = self._steps()
        if "acquire" in taken:
            step = taken["acquire"]
            self.say(
                "machine created",
                f"{seconds(accepted_s)} to accept, {_split(step)}",
                under=True,
                at=step.ended,
                accepted_s=round(accepted_s, 3),
                **_facts(step),
            )
        address = builder.get("NetworkAccessConfiguration", {}).get("EniPrivateIpAddress", "")
        both = [taken[name] for name in ("start", "desktop") if name in taken]
        wall_s = sum(step.ended - step.started for step in both)
        self.say(
            "RUNNING" + (f" at {address}" if address else ""),
            f"agent and display {seconds(wall_s)}",
            under=True,
            at=both[-1].ended if both else None,
            address=address,
            wall_s=round(wall_s, 3),
        )
        return ""

    def _look(self, settings: Settings) -> str:
        """Open its desktop. What went wrong, if anything."""
        answer = self.appstream.create_image_builder_streaming_url(Name=self.name, Validity=3600)
        url = answer["StreamingURL"]
        if not self.desktop:
            self.say("CreateImageBuilderStreamingURL", "answered; a simulated machine has no desktop to open")
            return ""
        if self.hold:
            self.say(f"Open {url}", "the desktop; valid for 60 minutes")
            return self._held()
        from millstream.cli.viewer import NoPicture, view

        try:
            picture = view(url, tls=_trust(settings))
        except NoPicture as error:
            return str(error)
        self.say(
            "desktop seen through the edge",
            f"{picture.width}x{picture.height}, first byte after {seconds(picture.first_byte_s)}, "
            f"first picture after {seconds(picture.picture_s)}",
            first_byte_s=round(picture.first_byte_s, 3),
            picture_s=round(picture.picture_s, 3),
        )
        return ""

    def _held(self) -> str:
        """Until Enter here, saying when the first key arrives there."""
        talk("  Waiting for your first key in it. Press Enter here to delete it.")
        machine_id = self.store.read().one("machine_of", arn=self.arn)["machine_id"]
        typed = False
        while True:
            if select.select([sys.stdin], [], [], 0.1)[0]:
                sys.stdin.readline()
                return ""
            row = self.store.read().one("viewing", machine_id=machine_id)
            if not typed and row is not None and row["last_input"]:
                typed = True
                self.say("your first key arrived in it", under=True)

    def _delete(self) -> bool:
        """Delete what was made and wait until the API says not found. Whether it did."""
        if not self.asked:
            return True
        self.say(f"DeleteImageBuilder {self.name}", call="DeleteImageBuilder")
        errors = self.appstream.exceptions
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                self.appstream.delete_image_builder(Name=self.name)
            except errors.ResourceNotFoundException:
                return True
            except (errors.OperationNotPermittedException, errors.ConcurrentModificationException):
                if time.monotonic() > until:  # it moves, and can't be deleted in between
                    raise
                time.sleep(LOOK_S)
            else:
                break
        self._until(lambda found: found is None)
        step = self._steps().get("release")
        facts = _facts(step) if step is not None else {}
        told = _split(step) if step is not None else ""
        self.say("gone: machine, volume, address, sockets", told, under=True, **facts)
        return True

    def _until(self, done: Callable[[dict[str, Any] | None], bool]) -> dict[str, Any] | None:
        """Describe until `done`; the last answer, None for not found. Raises Trouble when time runs out."""
        until = time.monotonic() + LIMIT_S
        while True:
            try:
                found = self.appstream.describe_image_builders(Names=[self.name])["ImageBuilders"][0]
            except self.appstream.exceptions.ResourceNotFoundException:
                found = None
            if done(found):
                return found  # type: ignore[no-any-return]  # botocore's documents are untyped
            if time.monotonic() > until:
                raise Trouble(
                    "wait.time-out",
                    what=f"{self.name} was still {found['State'] if found else 'gone'} after {seconds(LIMIT_S)}",
                    why=str((found or {}).get("ImageBuilderErrors") or "no error was reported"),
                    next_step=f"millstream explain {self.name}",
                )
            time.sleep(LOOK_S)

    def _steps(self) -> dict[str, Step]:
        from millstream.store import steps

        return {step.step: step for _, step in steps.of(self.store.read(), self.arn)}

    def _left(self) -> dict[str, Any]:
        """What both sides hold now. Other people's resources don't count against the demo."""
        from millstream.cli.survey import persistent

        driver = self.here.driver()
        try:
            sides, differing = persistent(self.store, driver)
        finally:
            driver.close()
        others = [side for side in sides.values() if side.owner is not None and side.owner != self.arn]
        ours = [side for side in sides.values() if side.owner == self.arn or side.machine_id in differing]
        return {
            "clean": not ours,
            "rows": sum(side.state is not None for side in sides.values()),
            "machines": sum(side.held is not None for side in sides.values()),
            "of_others": len(others),
        }


def _split(step: Step) -> str:
    verb = "make" if step.step == "acquire" else "release"
    return f"{seconds(step.ended - step.started)} to {verb}, of which the engine {seconds(step.engine_s)}"


def _facts(step: Step) -> dict[str, float]:
    return {"wall_s": round(step.ended - step.started, 6), "engine_s": step.engine_s}


def _trust(settings: Settings) -> Any:
    if not settings.tls_certificate:
        return None
    import ssl

    return ssl.create_default_context(cafile=os.fspath(settings.tls_certificate))
