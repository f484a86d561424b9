"""`image`: base images, built from Debian's packages on this host."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli.here import Group, Here, Trouble, command, moment, nearest, rfc3339, size, table, talk
from millstream.cli.progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from millstream.capacity.containers.engine import Engine
    from millstream.model.records import BaseImage
    from millstream.wiring import Settings

USUAL_S: Final = {"downloading packages": 20.0, "installing the desktop": 30.0, "giving the image to the engine": 10.0}

image_command = Group("image", help="Build, list and remove base images.")


def engine_of(settings: Settings) -> Engine:
    """The engine itself, for what operators do with it beside the service."""
    from millstream.capacity.containers.engine import Engine
    from millstream.capacity.containers.image import cache_folder

    if settings.capacity != "containers":
        raise Trouble(
            "usage.wrong",
            what=f"{settings.capacity} machines have no base images to build",
            why="the service on this data folder runs without an engine",
            next_step="serve --capacity containers",
        )
    return Engine(settings.data, settings.engine or None, cache_folder())


def cache_of(settings: Settings) -> Path:
    from millstream.capacity.containers.image import cache_folder

    return cache_folder() or settings.data / "images"


def ensure(settings: Settings, *, quiet: bool) -> None:
    """At the first start: build the base image when there is none, with progress. Fast when there is one."""
    from millstream.capacity.containers import image as containers

    engine = engine_of(settings)
    try:
        if settings.image != containers.NAME or any(
            image.name == containers.NAME for image in containers.list_images(engine)
        ):
            return
        talk("Millstream: the first start prepares the base image. That takes a minute, less when setup has built it.")
        _build(settings, engine, fresh=False, quiet=quiet)
    finally:
        engine.close()


def _build(settings: Settings, engine: Engine, *, fresh: bool, quiet: bool) -> BaseImage:
    from millstream.capacity.containers.image import build_base_image

    with Progress(quiet=quiet) as progress:

        def step(name: str, _since_s: float) -> None:
            if name == "done":
                progress.done()
            else:
                progress.step("base image", name, usual_s=USUAL_S.get(name))

        return build_base_image(engine, cache_of(settings), step, fresh=fresh)


def _shown(image: BaseImage) -> dict[str, Any]:
    return {
        "name": image.name,
        "reference": image.reference,
        "digest": image.digest,
        "created": rfc3339(image.created),
        "size_bytes": image.size_bytes,
        "description": image.description,
    }


@command(
    image_command,
    name="build",
    params=[click.Option(["--fresh"], is_flag=True, help="Build anew, with the versions that Debian has today.")],
    examples=["millstream image build", "millstream image build --fresh     with today's security updates"],
)
def image_build(here: Here, *, fresh: bool) -> None:
    """Build the base image, if it is not there yet.

    It is made from Debian's signed packages with mmdebstrap and kept in the data folder; nothing is pulled from a
    registry. A running service offers it within seconds.
    """
    settings = here.serving_settings()
    engine = engine_of(settings)
    try:
        made = _build(settings, engine, fresh=fresh, quiet=here.as_json)
    finally:
        engine.close()
    here.answer("image", _shown(made), [f"{made.name}  {size(made.size_bytes)}  {made.reference}"])


@command(image_command, name="list", examples=["millstream image list"])
def image_list(here: Here) -> None:
    """List the base images that machines can start from."""
    driver = here.driver()
    try:
        images = sorted(driver.images(), key=lambda image: image.name)
    finally:
        driver.close()
    lines = table(
        [
            (image.name, size(image.size_bytes), moment(image.created), image.reference, image.description)
            for image in images
        ],
        head=("NAME", "SIZE", "MADE", "REFERENCE", "WHAT"),
    )
    here.answer("images", {"images": [_shown(image) for image in images]}, lines)
    if not images and not here.as_json:
        print("none yet: millstream image build", file=sys.stderr)


@command(
    image_command,
    name="remove",
    params=[click.Argument(["name"])],
    examples=["millstream image remove debian-12-desktop"],
)
def image_remove(here: Here, *, name: str) -> None:
    """Remove a base image. Refused while machines that were made from it exist."""
    from millstream.capacity.containers.image import list_images, remove_image

    settings = here.serving_settings()
    engine = engine_of(settings)
    try:
        images = {image.name: image for image in list_images(engine)}
        if name not in images:
            meant = nearest(name, images)
            raise Trouble(
                "image.absent", what=f"there is no base image {name}", why=f"did you mean {meant}?" if meant else ""
            )
        users = _users(here, name)
        if users:
            raise Trouble("image.in-use", what=f"{name} is in use", why=", ".join(users))
        remove_image(engine, name)
    finally:
        engine.close()
    here.answer("image_removed", {"name": name}, [f"{name} is removed"])


def _users(here: Here, name: str) -> list[str]:
    """The image builders that were made from it."""
    from millstream.store import machines

    found: list[str] = []
    after = 0
    tx = here.store().read()
    while rows := tx.all("builders_after", after=after, most=1000):
        for row in rows:
            machine = machines.get(tx, row["machine_id"])
            if machine is not None and machine.machine.spec.image == name:
                found.append(row["name"])
        after = rows[-1]["id"]
    return found
