"""Engines for tests: an embedded Podman in a throw-away data folder, and a Docker Engine of Debian's started here.

The base image is built once into a cache folder (`MILLSTREAM_IMAGE_CACHE`, else `.setup/cache` of the checkout).
Everything else is taken from the host when the session ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from millstream import agent
from millstream.capacity.containers.driver import ContainersDriver
from millstream.capacity.containers.host import prepare_host
from millstream.capacity.containers.image import build_base_image
from millstream.capacity.driver import CapacityError, Driver
from millstream.model.records import MachineSpec, Observed, Sighting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHECKOUT = Path(__file__).resolve().parent.parent
READY_LIMIT_S = 30.0
T = TypeVar("T")


@pytest.fixture(scope="session")
def image_cache() -> Path:
    return Path(os.environ.get("MILLSTREAM_IMAGE_CACHE") or CHECKOUT / ".setup" / "cache").resolve()


@pytest.fixture(scope="session")
def engine_host() -> None:
    """Skips where no engine can run."""
    if os.geteuid() != 0 or not shutil.which("podman"):
        pytest.skip("needs root and podman")
    prepare_host()


def data_folder(prefix: str) -> Path:
    """A folder with a short path: sockets lie in it. Podman opens it for traversal, so it isn't pytest's 0700 one."""
    return Path(tempfile.mkdtemp(prefix=f"ms-{prefix}-", dir="/tmp"))


@pytest.fixture(scope="session")
def podman_driver(engine_host: None, image_cache: Path) -> Iterator[ContainersDriver]:
    """A driver with its embedded Podman and the base image, shared by the session."""
    data = data_folder("podman")
    driver = ContainersDriver(data, image_cache=image_cache)
    try:
        build_base_image(driver.engine, image_cache)
        yield driver
    finally:
        driver.purge()
        shutil.rmtree(data)


@pytest.fixture(scope="session")
def docker_url(engine_host: None, image_cache: Path) -> Iterator[str]:
    """The URL of a Docker Engine with userns-remap. Its storage is kept in the cache: an import takes half a minute."""
    dockerd = shutil.which("dockerd")
    if not dockerd:
        pytest.skip("needs dockerd (apt-get install docker.io)")
    root = image_cache / "docker"
    root.mkdir(parents=True, exist_ok=True)
    run = data_folder("docker")
    with (root / "lock").open("w") as lock, (run / "log").open("wb") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [
                dockerd,
                f"--data-root={root}",
                f"--exec-root={run}/exec",
                f"--pidfile={run}/pid",
                f"--host=unix://{run}/docker.sock",
                "--userns-remap=default",
                "--bridge=none",
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 60
            while subprocess.run(
                ["curl", "-sf", "--unix-socket", f"{run}/docker.sock", "http://d/_ping"],
                capture_output=True,
                check=False,
            ).returncode:
                assert process.poll() is None, (run / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, (run / "log").read_text()[-2000:]
                time.sleep(0.1)
            yield f"unix://{run}/docker.sock"
        finally:
            process.terminate()
            process.wait(60)
            shutil.rmtree(run)
            for mapped in run.parent.glob(f"{run.name}.*"):  # userns-remap makes a second one
                shutil.rmtree(mapped)


@pytest.fixture(scope="session")
def docker_driver(docker_url: str, image_cache: Path) -> Iterator[ContainersDriver]:
    data = data_folder("dockerdata")
    driver = ContainersDriver(data, docker_url)
    try:
        build_base_image(driver.engine, image_cache)
        yield driver
    finally:
        driver.purge()
        shutil.rmtree(data)


def machine_spec(**changes: object) -> MachineSpec:
    fields: dict[str, object] = {
        "id": uuid.uuid4().hex,
        "owner": "arn:aws:appstream:us-east-1:000000000000:image-builder/test",
        "image": "debian-12-desktop",
        "vcpus": 1.0,
        "memory_bytes": 1 << 30,
        "disk_bytes": 10 << 30,
        "internet": False,
        "administrator": True,
        "agent_version": agent.VERSION,
    }
    return MachineSpec(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def new_machine() -> Iterator[Callable[..., MachineSpec]]:
    """Makes specs; whatever was acquired with them is released at the test's end."""
    made: list[tuple[Driver, MachineSpec]] = []

    def make(driver: Driver, **changes: object) -> MachineSpec:
        spec = machine_spec(**changes)
        made.append((driver, spec))
        return spec

    yield make
    for driver, spec in made:
        gone(driver, spec.id)


def gone(driver: Driver, machine_id: str) -> None:
    until(
        lambda: driver.look(machine_id),
        lambda s: s.observed is Observed.ABSENT,
        before=lambda: driver.release(machine_id),
    )


def ready(driver: Driver, spec: MachineSpec) -> Sighting:
    return until(lambda: driver.look(spec.id), lambda sighting: sighting.observed is Observed.READY)


def until(
    look: Callable[[], T],
    holds: Callable[[T], bool],
    limit_s: float = READY_LIMIT_S,
    before: Callable[[], None] | None = None,
) -> T:
    """Look until it holds; what was seen last is told when it never does."""
    deadline = time.monotonic() + limit_s
    while True:
        if before:
            with contextlib.suppress(CapacityError):
                before()
        seen = look()
        if holds(seen):
            return seen
        assert time.monotonic() < deadline, f"still {seen!r} after {limit_s} s"
        time.sleep(0.02)


def inside(driver: ContainersDriver, machine_id: str, script: str, *, user: str = "0:0") -> str:
    """Run a shell script in a machine through the engine, as only tests may. Returns what it wrote, both streams."""
    with driver.engine.calls() as api:
        order = api.exec_create(f"ms-{machine_id}", ["/bin/sh", "-c", script], user=user)
        output = api.exec_start(order["Id"])
    return output.decode() if isinstance(output, bytes) else str(output)
