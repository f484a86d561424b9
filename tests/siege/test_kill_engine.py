"""The same with real machines: whoever is killed when, the engine holds what callers were promised, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine_fixture import data_folder
from tests.siege.siege_world import ROLES, Line, Service, new_builder, wait_until
from tests.siege.test_confine import inside, mounts
from tests.siege.test_kill import SEED, kill_all

from millstream.capacity.containers.driver import ContainersDriver
from millstream.model.records import Observed

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(engine_host: None, image_cache: Path) -> Iterator[tuple[Service, ContainersDriver]]:
    before = os.environ.get("MILLSTREAM_IMAGE_CACHE")
    os.environ["MILLSTREAM_IMAGE_CACHE"] = str(image_cache)
    running = Service(data_folder("siege"), capacity="containers")
    driver = ContainersDriver(running.data, image_cache=image_cache)
    try:
        yield running.start(), driver
    finally:
        running.end()
        driver.purge()
        shutil.rmtree(running.data)
        if before is None:
            del os.environ["MILLSTREAM_IMAGE_CACHE"]


def held(driver: ContainersDriver) -> dict[str, Observed]:
    return {machine: sighting.observed for machine, sighting in driver.survey().sightings.items()}


def test_killed_at_any_moment(world: tuple[Service, ContainersDriver]) -> None:
    running, driver = world
    chance = random.Random(SEED + 3)
    promised: dict[str, str] = {}
    for number in range(6):
        name = f"k{number}"
        answer = running.call("CreateImageBuilder", new_builder(name))
        assert answer.status == 200, answer
        promised[name] = "RUNNING"
        time.sleep(chance.uniform(0, 0.4))
        if number % 2:
            assert running.call("DeleteImageBuilder", {"Name": f"k{number - 1}"}).status in {200, 400}
            wait_until(
                lambda gone=f"k{number - 1}": (  # type: ignore[misc]
                    running.states().get(gone, "DELETING") == "DELETING"
                    or running.call("DeleteImageBuilder", {"Name": gone}).status == 200
                ),
                30,
                "a delete to be taken",
            )
            promised.pop(f"k{number - 1}")
        time.sleep(chance.uniform(0, 0.2))
        victim = chance.choice((*ROLES, "serve", "reconcile", "all"))
        if victim == "all":
            kill_all(running)
            running.start()
        elif victim == "serve":
            assert running.process is not None
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait(10)
            running.start()
        else:
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(running.roles()[victim], signal.SIGKILL)
        wait_until(running.answers, 30, f"seed {SEED}: an answer after {victim} was killed")
    wait_until(lambda: running.states() == promised, 60, f"seed {SEED}: {running.states()} to become {promised}")
    # One machine for each builder, each ready; nothing else: no container, no folder.
    wait_until(lambda: held(driver) == dict.fromkeys(running.known(), Observed.READY), 30, "held to equal known")
    assert len(running.known()) == len(promised) == 3


def test_the_engine_is_out_of_reach(world: tuple[Service, ContainersDriver]) -> None:
    """With the real one: its socket, its storage and the machines' folders; nothing of them is held by the roles."""
    running, driver = world
    if not running.states():
        running.create("within")
    assert driver.engine.socket is not None
    dial = f"socket.socket(socket.AF_UNIX).connect({str(driver.engine.socket)!r})"
    roles = running.roles()
    assert inside(roles["reconcile"], dial) == "done"
    # Started anew beside running machines, it must not take their mounts along.
    for role in ("api", "edge"):
        os.kill(roles[role], signal.SIGKILL)
    wait_until(lambda: len(running.roles()) == len(ROLES) and running.answers(), 20, "both to be back")
    for role in ("api", "edge"):
        pid = running.roles()[role]
        assert inside(pid, dial) in {"FileNotFoundError 2", "PermissionError 13"}
        assert not any("overlay" in point or "netns" in point for point in mounts(pid) if point != "/")
        listed = inside(pid, f"raise OSError(len(os.listdir({str(running.data / 'engine')!r})), '')")
        assert listed == "OSError 0"


class Stream:
    """A viewer by hand: a ticket, a cookie, a WebSocket."""

    def __init__(self, running: Service, name: str) -> None:
        url = running.call("CreateImageBuilderStreamingURL", {"Name": name}).document["StreamingURL"]
        address, _, ticket = url.partition("?ticket=")
        path = address.partition(str(running.edge_port))[2]
        head = f"Host: 127.0.0.1:{running.edge_port}\r\nOrigin: http://127.0.0.1:{running.edge_port}\r\n"
        line = Line(running.edge_port)
        entered = line.send(
            f"POST {path}enter HTTP/1.1\r\n{head}Content-Length: {len(ticket)}\r\n\r\n{ticket}".encode()
        )
        line.close()
        assert entered.status == 204, entered
        self.cookie = entered.headers["set-cookie"].partition(";")[0]
        self.socket = socket.create_connection(("127.0.0.1", running.edge_port), 10)
        self.socket.sendall(
            f"GET {path}rfb HTTP/1.1\r\n{head}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nCookie: {self.cookie}\r\n\r\n".encode()
        )
        self.held = b""
        while b"\r\n\r\n" not in self.held:
            self.held += self.socket.recv(4096)
        assert self.held.startswith(b"HTTP/1.1 101 ")
        assert b"Python" not in self.held  # versions are nobody's business
        self.held = self.held.partition(b"\r\n\r\n")[2]

    def send(self, data: bytes) -> None:
        self.socket.sendall(struct.pack(">BB4x", 0x82, 0x80 | len(data)) + data)

    def receive(self, count: int) -> bytes:
        """So many bytes of the display, however framed."""
        got = b""
        while len(got) < count:
            while len(self.held) < 2 or len(self.held) < 2 + (self.held[1] & 127):
                more = self.socket.recv(4096)
                assert more, "the stream ended"
                self.held += more
            size = self.held[1] & 127
            assert size < 126
            got, self.held = got + self.held[2 : 2 + size], self.held[2 + size :]
        return got


def test_a_stream_survives_api_and_reconcile(world: tuple[Service, ContainersDriver]) -> None:
    """A person works on while programs' door and reconciler die and come back; the machine was not touched."""
    running, _ = world
    name = next(iter(running.states()), "watched")
    if not running.states():
        running.create(name)
    stream = Stream(running, name)
    assert stream.receive(12) == b"RFB 003.008\n"
    edge = running.roles()["edge"]
    for role in ("api", "reconcile"):
        os.kill(running.roles()[role], signal.SIGKILL)
    stream.send(b"RFB 003.008\n")
    types = stream.receive(2)
    assert types[0] >= 1
    wait_until(lambda: len(running.roles()) == len(ROLES) and running.answers(), 20, "both to be back")
    stream.send(b"\x01")
    assert stream.receive(4) == b"\0\0\0\0"
    assert running.roles()["edge"] == edge
    stream.socket.close()


def test_nothing_is_left(world: tuple[Service, ContainersDriver]) -> None:
    running, driver = world
    machines = running.known()
    for name in running.states():
        assert running.call("DeleteImageBuilder", {"Name": name}).status == 200
        if random.Random(SEED).random() < 0.5:
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(running.roles()["reconcile"], signal.SIGKILL)
    wait_until(lambda: not running.states() and not running.known(), 60, "all to be gone")
    assert held(driver) == {}
    assert list((running.data / "machines").iterdir()) == []
    # The engine's own watcher of a container ends a moment after it.
    wait_until(lambda: not any(_runs(machine) for machine in machines), 10, "no process of a machine to be left")


def _runs(machine: str) -> list[str]:
    """Command lines that name the machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return [line for line in found if machine in line]
