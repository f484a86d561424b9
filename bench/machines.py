"""Machines as containers: what the service adds to what the engine itself takes, on one engine, in turns.

A bare machine is ordered from the engine exactly as the driver orders one, by the same socket; only its labels and its
folder are others, so that the service takes no notice of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from bench import processes, signing
from bench.api import UNTHROTTLED
from bench.load import Clients, one_answer
from bench.table import Figure, median

if TYPE_CHECKING:
    from tests.edge.edge_client import WebSocket
    from tests.edge.edge_world import EdgeServer

    from bench.run import Options
    from millstream.capacity.containers.driver import ContainersDriver
    from millstream.model.identity import Key

LOOK_S: Final = 0.005  # between two looks of ours at whether it has happened
REMOVERS: Final = 16  # as many as the service works on at once
MACHINE_BYTES: Final = 160 << 20  # what a resting desktop takes, with room for its start
READY_LIMIT_S: Final = 300.0


@dataclass(slots=True)
class World:
    """The service with its engine, and the same engine without the service."""

    folder: Path
    key: Key
    port: int
    edge: EdgeServer
    driver: ContainersDriver
    looks: dict[str, bytes] = field(default_factory=dict)  # signed once: signing costs more than the answer

    # --- by the service ---

    def call(self, operation: str, **members: object) -> dict[str, Any]:
        answer = one_answer(self.port, signing.request(self.key, self.port, "json", operation, members))
        found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found

    def create(self, name: str) -> None:
        answer = self.call(
            "CreateImageBuilder", Name=name, InstanceType="stream.standard.small", ImageName="debian-12-desktop"
        )
        if "ImageBuilder" not in answer:
            raise RuntimeError(f"not created: {answer}")

    def state(self, name: str) -> str:
        """Empty: there is none of that name."""
        if name not in self.looks:
            members = {"Names": [name]}
            self.looks[name] = signing.request(self.key, self.port, "json", "DescribeImageBuilders", members)
        answer = one_answer(self.port, self.looks[name])
        if b"ResourceNotFoundException" in answer:
            return ""
        found = json.loads(answer.partition(b"\r\n\r\n")[2])["ImageBuilders"]
        if found[0]["State"] == "FAILED":
            raise RuntimeError(f"{name} failed: {found[0].get('ImageBuilderErrors')}")
        return str(found[0]["State"])

    def view(self, name: str) -> WebSocket:
        """The stream of a running one, as a browser opens it; its first bytes have come."""
        from tests.edge.edge_client import cookie, viewer

        url = str(self.call("CreateImageBuilderStreamingURL", Name=name)["StreamingURL"])
        machine_id, _, ticket = url.partition("/stream/")[2].partition("/?ticket=")
        stream = viewer(self.edge, machine_id, cookie(self.edge, machine_id, ticket))
        if not stream.frame().data:
            raise RuntimeError("the stream began with nothing")
        return stream

    # --- by the engine alone ---

    def bare_order(self) -> tuple[str, dict[str, Any], Path]:
        """A machine's name, order and folder."""
        from millstream.model.agent import AGENT_VERSION
        from millstream.model.instance_types import INSTANCE_TYPES
        from millstream.model.records import MachineSpec

        small = INSTANCE_TYPES["stream.standard.small"]
        machine_id = uuid.uuid4().hex
        spec = MachineSpec(
            id=machine_id,
            owner="bench",
            image="debian-12-desktop",
            vcpus=small.vcpus,
            memory_bytes=small.memory_bytes,
            disk_bytes=0,
            internet=False,
            administrator=True,
            agent_version=AGENT_VERSION,
        )
        driver = self.driver
        image = next(image for image in driver.images() if image.name == spec.image)
        order = driver._container(spec, image, driver._place_agent(AGENT_VERSION))  # noqa: SLF001 - the very same order
        inside = self.folder / "bare" / machine_id / "engine"
        order["Labels"] = {}
        order["HostConfig"]["Binds"][1] = f"{inside}:{order['HostConfig']['Binds'][1].split(':')[1]}:rw"
        return f"bare-{machine_id}", order, inside

    def bare_create(self, name: str, order: dict[str, Any], inside: Path) -> None:
        """Make and start what `bare_order` ordered."""
        inside.parent.mkdir(mode=0o700, parents=True)
        inside.mkdir()
        inside.chmod(0o777)
        with self.driver.engine.calls() as api:
            raw = cast("Any", api)
            answer = raw.post(raw._url("/containers/create"), params={"name": name}, json=order)  # noqa: SLF001 - as the driver
            raw._raise_for_status(answer)  # noqa: SLF001 - as the driver
            api.start(name)

    def bare_display(self, inside: Path) -> None:
        """Return when the display has said its first bytes."""
        import socket

        until = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                held = os.open(inside, os.O_PATH)
                try:
                    connection.connect(f"/proc/self/fd/{held}/rfb.sock")
                    connection.settimeout(2.0)
                    if connection.recv(12):
                        return
                finally:
                    os.close(held)
            time.sleep(LOOK_S)
        raise TimeoutError("a bare machine showed no display")

    def bare_remove(self, name: str) -> None:
        """Force-removed; asked again at once when the engine finds its own mounts busy."""
        from millstream.capacity.driver import CapacityError

        until = time.monotonic() + 60
        while True:
            try:
                with self.driver.engine.calls() as api:
                    api.remove_container(name, v=True, force=True)
                    return
            except CapacityError as error:
                if " 404" in str(error):
                    return
                if error.code != "engine.error" or time.monotonic() > until:
                    raise
                time.sleep(2 * LOOK_S)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """`millstream serve` with its embedded engine in a folder of its own; nothing of it is left afterwards."""
    from tests.edge.edge_world import EdgeServer, Rows, Sockets

    from millstream.capacity.containers.driver import ContainersDriver
    from millstream.capacity.containers.image import cache_folder
    from millstream.wiring.build import open_store, root_key
    from millstream.wiring.settings import Settings

    folder = Path(tempfile.mkdtemp(prefix="millstream-bench-"))
    data = folder / "data"
    store = open_store(Settings(data=data))
    key = root_key(store, "000000000000")
    store.close()
    cache = Path(os.environ.get("MILLSTREAM_IMAGE_CACHE") or cache_folder() or Path.cwd() / ".setup/cache")
    port, edge = processes.free_port(), processes.free_port()
    environment = {
        "MILLSTREAM_CAPACITY": "containers",
        "MILLSTREAM_IMAGE_CACHE": str(cache),
        "MILLSTREAM_IMAGE_BUILDERS_MAX": "1000",
        **UNTHROTTLED,
    }
    command = [processes.MILLSTREAM, "serve", "--data", str(data)]
    command += ["--listen", f"127.0.0.1:{port}", "--edge", f"127.0.0.1:{edge}"]
    driver = ContainersDriver(data, None, image_cache=cache)
    try:
        with processes.running(command, folder / "log", **environment) as process:
            made = World(folder, key, port, EdgeServer(Rows(), Sockets(), port=edge), driver)
            processes.await_port(port, process, 240)
            until = time.monotonic() + 240
            while not made.call("DescribeImages").get("Images"):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the service has no base image:\n{(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.05)
            driver.network.guard()
            driver.network.ensure(internet=False)
            yield made
    finally:
        driver.purge()
        shutil.rmtree(folder, ignore_errors=True)


def machines(options: Options) -> Iterator[Figure]:
    """One after the other: create to first display bytes, delete to nothing left."""
    rounds = 3 if options.quick else 15
    times: dict[str, list[float]] = {"our up": [], "our down": [], "bare up": [], "bare down": []}
    with world() as here:
        for at in range(rounds + 1):
            for ours in (True, False) if at % 2 else (False, True):
                up_s, down_s = _ours_once(here, f"one-{at}") if ours else _bare_once(here)
                if at:  # the first of each warms the engine up
                    times["our up" if ours else "bare up"].append(up_s)
                    times["our down" if ours else "bare down"].append(down_s)
    for name, way, wanted in (
        ("Create to first display bytes (through the edge)", "up", 1.25),
        ("Delete to nothing left", "down", 1.15),
    ):
        ours_s, bare_s = times[f"our {way}"], times[f"bare {way}"]
        yield Figure(
            name,
            f"{median(ours_s):.3f} s",
            f"{median(bare_s):.3f} s",
            median(ours_s) / median(bare_s),
            wanted,
            note=f"medians of {rounds} in turns; ours {min(ours_s):.3f} to {max(ours_s):.3f} s, "
            f"the engine alone {min(bare_s):.3f} to {max(bare_s):.3f} s",
        )


def _ours_once(here: World, name: str) -> tuple[float, float]:
    began = time.perf_counter()
    here.create(name)
    while here.state(name) != "RUNNING":
        time.sleep(LOOK_S)
    stream = here.view(name)
    up_s = time.perf_counter() - began
    stream.close()
    time.sleep(1.0)  # its desktop comes to rest
    began = time.perf_counter()
    here.call("DeleteImageBuilder", Name=name)
    while here.state(name):
        time.sleep(LOOK_S)
    return up_s, time.perf_counter() - began


def _bare_once(here: World) -> tuple[float, float]:
    name, order, inside = here.bare_order()
    began = time.perf_counter()
    here.bare_create(name, order, inside)
    here.bare_display(inside)
    up_s = time.perf_counter() - began
    time.sleep(1.0)
    began = time.perf_counter()
    here.bare_remove(name)
    return up_s, time.perf_counter() - began


def crowd(options: Options) -> Iterator[Figure]:
    """Many deleted at once, beside the engine's own best."""
    from millstream.capacity.containers.driver import memory_available

    count = min(8 if options.quick else 100, memory_available() // MACHINE_BYTES)
    with world() as here:
        bare = [here.bare_order() for _ in range(count)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda order: here.bare_create(*order), bare))
            list(pool.map(lambda order: here.bare_display(order[2]), bare))
        time.sleep(3)
        began = time.perf_counter()
        with ThreadPoolExecutor(REMOVERS) as pool:
            list(pool.map(lambda order: here.bare_remove(order[0]), bare))
        bare_s = time.perf_counter() - began
        names = [f"crowd-{at}" for at in range(count)]
        for name in names:
            here.create(name)
        for name in names:
            _until(lambda name=name: here.state(name) == "RUNNING")
        time.sleep(3)
        clients = Clients(here.port, min(count, 64))
        began = time.perf_counter()
        clients.run_stories(
            [[signing.request(here.key, here.port, "json", "DeleteImageBuilder", {"Name": name})] for name in names]
        )
        answered_s = time.perf_counter() - began
        _until(lambda: not here.call("DescribeImageBuilders").get("ImageBuilders"))
        ours_s = time.perf_counter() - began
        clients.close()
    yield Figure(
        f"{count} deleted at once",
        f"{ours_s:.2f} s",
        f"{bare_s:.2f} s",
        ours_s / bare_s,
        1.2,
        note=f"all {count} calls were answered in {answered_s:.2f} s; the engine alone: {REMOVERS} removals at once",
    )


def _until(true: Any) -> None:
    until = time.monotonic() + READY_LIMIT_S
    while not true():
        if time.monotonic() > until:
            raise TimeoutError("it did not come about")
        time.sleep(LOOK_S)


def key_press(options: Options) -> Iterator[Figure]:
    """Key press to changed pixels, through the edge and at the display directly."""
    from bench.edge_key_to_pixel import measure

    found = measure(60 if options.quick else 300)
    yield Figure(
        "Key press to changed pixels",
        f"{found['edge_p50_ms']:.2f} ms",
        f"{found['direct_p50_ms']:.2f} ms",
        found["ratio"],
        1.1,
        note=f"p95 {found['edge_p95_ms']:.2f} ms beside {found['direct_p95_ms']:.2f} ms; "
        f"the edge spends {found['edge_cpu_us_per_key']:.0f} µs a key",
    )
