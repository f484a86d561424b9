"""A world for the edge: rows that a test can change, a real Xvnc (or a display that misbehaves), and the real server."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.ports import free_port

from millstream.capacity.driver import CapacityError
from millstream.gateway.session import EdgeSettings, Target
from millstream.model import ticket as t
from millstream.model.records import Health

T = TypeVar("T")
KEY = b"k" * 32
ACCOUNT = "000000000000"
NEEDS_X = shutil.which("Xtigervnc") is not None


def wait_until(look: Callable[[], T], limit_s: float = 10.0, what: str = "") -> T:
    """What `look` first says that is true. A condition with a limit, never a sleep and a hope."""
    end = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {limit_s} s: {what or look}"
        time.sleep(0.02)


def new_id() -> str:
    return secrets.token_hex(16)


class Rows:
    """`Sessions` as a test writes them. Thread-safe enough: one writer."""

    def __init__(self) -> None:
        self.targets: dict[str, Target] = {}
        self.revoked: set[str] = set()
        self.used: set[str] = set()
        self.keys: tuple[bytes, ...] = (KEY,)
        self.told: list[tuple[str, int, float | None]] = []
        self.broken = False
        self.healthy = Health(ok=True)

    def add(self, name: str = "cad-2", **fields: object) -> str:
        machine_id = new_id()
        target = Target(machine_id, name, ACCOUNT, "RUNNING", "1", running=True)
        self.targets[machine_id] = dataclasses.replace(target, **fields)  # type: ignore[arg-type]
        return machine_id

    def change(self, machine_id: str, **fields: object) -> None:
        self.targets[machine_id] = dataclasses.replace(self.targets[machine_id], **fields)  # type: ignore[arg-type]

    def target(self, machine_id: str) -> Target | None:
        if self.broken:
            raise OSError("the disk is gone")
        return self.targets.get(machine_id)

    def key_alive(self, key_id: str) -> bool:
        return key_id not in self.revoked

    def ticket_keys(self) -> tuple[bytes, ...]:
        return self.keys

    def use_ticket(self, nonce: str, expires_at: int) -> bool:
        if nonce in self.used:
            return False
        self.used.add(nonce)
        return True

    def use_ticket_of(self, text: str, machine_id: str) -> None:
        """As if another browser had opened this link."""
        made = t.open_ticket(text, self.keys, now=0, machine_id=machine_id)
        assert self.use_ticket(made.nonce, made.expires_at)

    def seen(self, machine_id: str, viewers: int, last_input: float | None) -> None:
        self.told.append((machine_id, viewers, last_input))

    def health(self) -> Health:
        return self.healthy


def a_ticket(machine_id: str, life_s: float = 600, key: bytes = KEY, **fields: str) -> str:
    made = t.Ticket(machine_id, int(time.time() + life_s), "AKIATEST", ACCOUNT, secrets.token_hex(16))
    return t.mint(key, dataclasses.replace(made, **fields))  # type: ignore[arg-type]


class Sockets:
    """`Streams` by a table of socket paths. A machine without one doesn't answer."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}

    def open_stream(self, machine_id: str, kind: str) -> socket.socket:
        assert kind == "rfb"
        path = self.paths.get(machine_id)
        if path is None:
            raise CapacityError("nothing answers there", code="stream.no-display")
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise CapacityError("nothing answers there", code="stream.no-display") from error
        return connection


class EdgeServer:
    """The real edge in a thread with a loop of its own. `with EdgeServer(rows, sockets) as edge:`"""

    def __init__(
        self, rows: Rows, sockets: Sockets, *, port: int = 0, scheme: str = "http", **settings: object
    ) -> None:
        self.rows = rows
        self.sockets = sockets
        self.port = port or free_port()
        prefix = str(settings.pop("prefix", ""))
        self.url = f"{scheme}://127.0.0.1:{self.port}{prefix}"
        self.settings = EdgeSettings(port=self.port, **{"public_url": self.url, **settings})  # type: ignore[arg-type]
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None

    @property
    def origin(self) -> str:
        return "/".join(self.url.split("/")[:3])

    def link(self, machine_id: str, text: str | None = None) -> str:
        ticket = t.Ticket(machine_id, 0, "", "", "")
        return t.stream_url(self.url, ticket, text if text is not None else a_ticket(machine_id))

    def _run(self) -> None:
        async def main() -> None:
            from millstream.gateway.server import serve

            self._loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            await serve(self.settings, self.rows, self.sockets, self._ready.set, self._stop)

        import uvloop

        try:
            uvloop.run(main())
        except BaseException as error:
            self.error = error
            self._ready.set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        assert self.error is None, self.error
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the edge didn't stop"
        assert self.error is None, self.error


class Desktop:
    """A real Xvnc on a unix socket, with openbox and an xterm in a folder of its own. Gone with the `with`."""

    def __init__(self, *, programs: bool = True, title: str = "millstream") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ms-edge-"))
        self.socket = str(self.folder / "rfb.sock")
        self._programs = programs
        self._title = title
        self._running: list[subprocess.Popen[bytes]] = []
        self.display = ""

    def __enter__(self) -> Self:
        try:
            read, write = os.pipe()
            self._start(
                "Xtigervnc", "-displayfd", str(write), "-geometry", "1024x700", "-depth", "24", "-rfbport", "-1",
                "-rfbunixpath", self.socket, "-rfbunixmode", "0600", "-SecurityTypes", "None", "-AlwaysShared",
                "-nolisten", "tcp", "-nolisten", "local", "-s", "0", "-dpms", "-desktop", self._title, "-ac",
                pass_fds=(write,),
            )  # fmt: skip
            os.close(write)
            with os.fdopen(read) as told:
                self.display = ":" + told.readline().strip()
            wait_until(lambda: Path(self.socket).exists(), what="the display's socket")
            if self._programs:
                self._start("openbox")
                self._start(
                    "xterm",
                    "-fa",
                    "DejaVu Sans Mono",
                    "-fs",
                    "11",
                    "-geometry",
                    "80x24+40+40",
                    "-bg",
                    "#102030",
                    "-fg",
                    "#e0e0e0",
                )
                wait_until(lambda: b"xterm" in self.x("xwininfo", "-root", "-tree"), what="xterm's window")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, *command: str, pass_fds: tuple[int, ...] = ()) -> None:
        environment = {**os.environ, "DISPLAY": self.display, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        self._running.append(
            subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                pass_fds=pass_fds,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
            )
        )

    def x(self, *command: str, stdin: bytes | None = None) -> bytes:
        """A program on this display, until it ends."""
        environment = {**os.environ, "DISPLAY": self.display, "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            command, env=environment, input=stdin, capture_output=True, timeout=10, check=False
        ).stdout

    def put_clipboard(self, text: str) -> None:
        """What a program on this desktop copies. xclip stays behind as its owner, until another one copies."""
        environment = {**os.environ, "DISPLAY": self.display, "LC_ALL": "C.UTF-8"}
        owner = subprocess.Popen(
            ["xclip", "-selection", "clipboard", "-quiet"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert owner.stdin is not None
        owner.stdin.write(text.encode())
        owner.stdin.close()
        self._running.append(owner)

    def kill(self) -> None:
        self._running[0].kill()
        self._running[0].wait()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in reversed(self._running):
            program.terminate()
        for program in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(5)
            program.kill()
            program.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class BabblingDisplay:
    """A machine whose display says RFB's greeting and then sends as much as the edge will take."""

    def __init__(self, chunk: bytes = b"\0" * 65_536) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ms-babble-"))
        self.socket = str(self.folder / "rfb.sock")
        self.sent_bytes = 0
        self.received = bytearray()
        self.hung_up = 0  # connections that the edge has ended
        self._chunk = chunk
        self._listener = socket.socket(socket.AF_UNIX)
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._listener.bind(self.socket)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._chunk:
                self.sent_bytes += connection.send(self._chunk)

    def _hear(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                self.received += data
        self.hung_up += 1

    def __exit__(self, *_: object) -> None:
        for one in (*self._open, self._listener):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def certificate(folder: Path) -> ssl.SSLContext:
    """A server context with a certificate of its own for 127.0.0.1."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def edge_with(count: int = 1, **settings: object) -> Iterator[tuple[EdgeServer, list[str]]]:
    """For fixtures: an edge and `count` machines with one babbling display."""
    rows, sockets = Rows(), Sockets()
    with BabblingDisplay(b"") as display, EdgeServer(rows, sockets, **settings) as edge:  # type: ignore[arg-type]
        ids = [rows.add(f"m-{n}") for n in range(count)]
        for machine_id in ids:
            sockets.paths[machine_id] = display.socket
        yield edge, ids
