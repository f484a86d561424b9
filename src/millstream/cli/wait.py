"""`wait`: until a resource is in a state, or the service is ready; for scripts and CI."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli import health, names
from millstream.cli.here import Here, Trouble, command, nearest, seconds
from millstream.cli.progress import Progress

if TYPE_CHECKING:
    from millstream.cli.names import Named
    from millstream.store.store import Store

LOOK_S: Final = 0.05
GONE: Final = "gone"
# The timeline's steps that end in a state.
_WAY: Final = {"RUNNING": ("acquire", "start", "desktop"), "STOPPED": ("stop", "stopped"), GONE: ("release", "gone")}


def _states(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from millstream.lifecycle.machine import STATES

    return [state for state in (*STATES, GONE) if state.startswith(incomplete)]


@command(
    name="wait",
    params=[
        click.Argument(["resource"], required=False, shell_complete=names.complete),
        click.Argument(["state"], required=False, shell_complete=_states),
        click.Option(
            ["--ready"], is_flag=True, help="Wait until the service is ready instead: a create would succeed."
        ),
        click.Option(
            ["--timeout", "timeout_s"],
            type=click.FloatRange(min=0),
            default=300.0,
            show_default=True,
            metavar="SECONDS",
            help="Give up after so long, with exit code 7.",
        ),
    ],
    examples=[
        "millstream wait my-builder RUNNING",
        "millstream wait my-builder gone --timeout 60",
        "millstream wait --ready",
    ],
)
def wait_command(here: Here, *, resource: str | None, state: str | None, ready: bool, timeout_s: float) -> int:
    """Wait until a resource is in a state, or the service is ready.

    RESOURCE is a name, image-builder/NAME or an ARN; STATE is one of the API's, or gone. A state that does not exist
    is refused at once. When the resource fails instead, the exit code is 1.
    """
    if ready:
        if resource is not None:
            raise Trouble("usage.wrong", why="--ready waits for the service, so it takes no resource")
        return _ready(here, timeout_s)
    if resource is None or state is None:
        raise Trouble(
            "usage.wrong", why="a RESOURCE and a STATE are missing, or --ready", next_step="millstream wait --help"
        )
    return _resource(here, resource, known_state(state), timeout_s)


def known_state(text: str) -> str:
    """The state that is meant, in the API's spelling. Raises Trouble with the nearest one."""
    from millstream.lifecycle.machine import STATES

    for known in (*STATES, GONE):
        if text.upper() == known.upper():
            return known
    meant = nearest(text, (*STATES, GONE))
    raise Trouble(
        "usage.unknown",
        what=f"there is no state {text}",
        why=f"did you mean {meant}?" if meant else "it is none of the API's states, nor gone",
        next_step="millstream explain " + (meant if meant and meant != GONE else "RUNNING"),
    )


def _ready(here: Here, timeout_s: float) -> int:
    started = time.monotonic()
    with Progress(quiet=here.as_json) as progress:
        progress.step("service", "waiting until it is ready")
        while True:
            found = health.look(here)
            if found.ok:
                progress.done("ready")
                break
            if time.monotonic() - started >= timeout_s:
                raise Trouble(
                    "wait.time-out",
                    what=f"the service was not ready within {seconds(timeout_s)}",
                    why=f"{found.code}: {found.why}",
                    next_step=found.next or "millstream doctor",
                )
            progress.text(found.why)
            time.sleep(LOOK_S)
    wall_s = round(time.monotonic() - started, 3)
    here.answer("wait", {"ready": True, "wall_s": wall_s}, ["ready"])
    return 0


def _resource(here: Here, resource: str, state: str, timeout_s: float) -> int:
    started = time.monotonic()
    store = here.store()
    named = names.resolve(store.read(), resource, gone_too=state == GONE)
    with Progress(quiet=here.as_json) as progress:
        shown = ""
        while True:
            named = _again(store, named)
            at = named.row.machine.state if named.row is not None else GONE
            if at == state:
                progress.done(at)
                break
            _impossible(named, at, state)
            waited_s = time.monotonic() - started
            if not here.service():
                raise Trouble(
                    "service.not-running", what=f"{named.name} is {at}, and no service runs that would change it"
                )
            if waited_s >= timeout_s:
                raise Trouble(
                    "wait.time-out",
                    what=f"{named.name} was still {at}, not {state}, after {seconds(timeout_s)}",
                    why=_doing(named),
                    next_step=f"millstream explain {named.name}",
                )
            now = f"{at}, {_doing(named)}"
            if not shown:
                progress.step(named.name, now, usual_s=_usual_s(store, named, state))
            elif now != shown:
                progress.text(now)
            shown = now
            time.sleep(LOOK_S)
    body: dict[str, Any] = {
        "resource": named.arn,
        "state": state,
        "wall_s": round(time.monotonic() - started, 3),
    }
    here.answer("wait", body, [f"{named.name} {state}"])
    return 0


def _again(store: Store, named: Named) -> Named:
    from millstream.store import machines

    tx = store.read()
    found = [row for row in tx.all("builders_named", name=named.name) if row["arn"] == named.arn]
    return names.Named(named.arn, machines.get(tx, found[0]["machine_id"]) if found else None)


def _usual_s(store: Store, named: Named, state: str) -> float | None:
    """How long it usually takes until it is there: what each step on the way took lately. None: nobody knows yet."""
    from millstream.store import steps

    made = named.row is not None and named.row.machine.made
    tx = store.read()
    took = [steps.usual_s(tx, step) for step in _WAY.get(state, ()) if not (made and step == "acquire")]
    return sum(known) if (known := [one for one in took if one is not None]) else None


def _doing(named: Named) -> str:
    row = named.row
    if row is None:
        return "gone"
    if row.machine.error is not None:
        return f"{row.machine.error.code}: {row.machine.error.message}"
    from millstream.lifecycle.machine import SETTLED

    if row.waiting or row.working:
        return row.waiting or "its next step is being taken"
    return (
        "settled: nobody has asked for anything else" if row.machine.state in SETTLED else "waiting for its next step"
    )


def _impossible(named: Named, at: str, state: str) -> None:
    """Say at once what waiting can't bring. Raises Trouble."""
    if at == GONE:
        raise Trouble(
            "resource.absent", what=f"{named.name} is gone, so it will not be {state}", next_step="create it again"
        )
    if at == "FAILED" and state != GONE:
        raise Trouble("resource.failed", what=f"{named.name} is FAILED, not {state}", why=_doing(named))
    if at == "DELETING" and state != GONE:
        raise Trouble(
            "resource.failed", what=f"{named.name} is being deleted, so it will not be {state}", why=_doing(named)
        )
