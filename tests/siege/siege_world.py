"""The whole service as its users run it, and what a test needs to press on it: callers, processes, rows, what is held."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cbor2
from tests.door.ways import Caller, Wire
from tests.ports import free_port

T = TypeVar("T")
TARGET = "PhotonAdminProxyService"
CBOR_PATH = f"/service/{TARGET}/operation/"
ROLES = ("api", "edge", "reconcile")


def wait_until(look: Callable[[], T], limit_s: float = 15.0, what: object = "") -> T:
    """What `look` first says that is true."""
    end = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {limit_s} s: {what or look}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Answer:
    """One answer, read whole. Status 0: the connection ended without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error's name, wherever its protocol puts it."""
        text = self.headers.get("x-amzn-errortype") or (self.document.get("__type", "") if self.body else "")
        return str(text).rpartition("#")[2].partition(":")[0]

    @property
    def document(self) -> dict[str, Any]:
        if self.headers.get("content-type") == "application/cbor":
            return cbor2.loads(self.body)  # type: ignore[no-any-return]
        return json.loads(self.body)  # type: ignore[no-any-return]

    def without_ids(self) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
        """What may be compared: all but the request's id and the time."""
        kept = tuple(sorted((n, v) for n, v in self.headers.items() if n not in {"x-amzn-requestid", "date"}))
        body = re.sub(rb"[0-9a-f]{8}-[0-9a-f-]{27}", b"<id>", self.body)
        return self.status, kept, re.sub(rb"\d{8}T\d{6}Z", b"<time>", body)


class Line:
    """One connection that sends bytes as they are and reads whole answers; made anew when it was closed."""

    def __init__(self, port: int, host: str = "127.0.0.1", limit_s: float = 20.0) -> None:
        self._at = (host, port)
        self._limit_s = limit_s
        self._socket: socket.socket | None = None
        self._held = b""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, data: bytes) -> Answer:
        """Raises OSError when nothing listens or answers in time."""
        for again in (True, False):
            if self._socket is None:
                self._socket, self._held, again = socket.create_connection(self._at, self._limit_s), b"", False  # noqa: PLW2901
            try:
                self._socket.sendall(data)
                answer = self._answer()
            except ConnectionError:
                answer = None
            if answer is not None:
                if answer.headers.get("connection") == "close":
                    self.close()
                return answer
            self.close()
            if not again:  # else an idle connection was closed: once more on a new one
                break
        return Answer(0, {}, b"")

    def send_and_finish(self, data: bytes) -> Answer:
        """Send what may be no whole request, enough to end it, and read what comes, if anything."""
        self._socket, self._held = socket.create_connection(self._at, self._limit_s), b""
        try:
            self._socket.sendall(data + b"\r\n\r\n" * 16)
            return self._answer() or Answer(0, {}, b"")
        except (ConnectionError, TimeoutError):
            return Answer(0, {}, b"")
        finally:
            self.close()

    def _answer(self) -> Answer | None:
        while b"\r\n\r\n" not in self._held:
            if not self._more():
                return None
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", 0))
        while len(self._held) < length:
            if not self._more():
                return None
        body, self._held = self._held[:length], self._held[length:]
        return Answer(int(start.split(" ")[1]), headers, body)

    def _more(self) -> bool:
        assert self._socket is not None
        got = self._socket.recv(262_144)
        self._held += got
        return bool(got)


class Service:
    """`millstream serve` in a data folder of its own."""

    def __init__(self, data: Path, *, prelude: str = "", **settings: str) -> None:
        """`prelude`: Python that its process runs first, to make a constant smaller."""
        self.prelude = prelude
        self.data = data
        self.port, self.edge_port = free_port(), free_port()
        self.settings = {"capacity": "simulated", "log_format": "json", "throttle_writes_per_s": "0"}
        self.settings |= {"throttle_reads_per_s": "0", "image_builders_max": "100000"} | settings
        self.listen = f"127.0.0.1:{self.port}"
        self.log = data / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.line = Line(self.port)

    def _flags(self) -> list[str]:
        return ["serve", "--data", str(self.data), "--listen", self.listen, "--edge", f"127.0.0.1:{self.edge_port}"]

    def start(self) -> Service:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MILLSTREAM_S")}
        environment |= {f"MILLSTREAM_{name.upper()}": value for name, value in self.settings.items()}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{self.prelude}\nfrom millstream.cli.main import main; main()", *self._flags()],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # so that a Ctrl-C at the test's terminal is not for it
            )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first == b"ready\n", self.log.read_text()[-2000:]
        self.line.close()
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.line.close()
        return code

    def end(self) -> None:
        """Whatever state it is in, none of its processes is left."""
        if self.process is None:
            return
        roles = list(self.roles().values())
        for pid in roles:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if self.process.poll() is None:
            self.stop()
        for pid in roles:
            wait_until(lambda pid=pid: not alive(pid), 30, f"role {pid} to end")  # type: ignore[misc]

    def roles(self) -> dict[str, int]:
        """The roles' processes by name, as the kernel knows them now."""
        assert self.process is not None
        try:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            names = {Path(f"/proc/{pid}/comm").read_text().strip(): int(pid) for pid in children}
        except FileNotFoundError:  # one ended meanwhile
            return {}
        return {role: names[f"ms-{role}"] for role in ROLES if f"ms-{role}" in names and alive(names[f"ms-{role}"])}

    # -- calling

    def root(self, now: float | None = None) -> Caller:
        row = self.rows("SELECT key_id, secret FROM access_key WHERE name = 'root'")[0]
        return Caller(row[0], row[1], now or time.time())

    def call(self, operation: str, document: dict[str, Any] | None = None, caller: Caller | None = None) -> Answer:
        wire = json_wire(self.listen, operation, json.dumps(document or {}).encode())
        return self.line.send((caller or self.root()).sign(wire).raw())

    def states(self) -> dict[str, str]:
        """What Describe shows, by name."""
        found: dict[str, str] = {}
        token: dict[str, Any] = {}
        while True:
            answer = self.call("DescribeImageBuilders", token)
            assert answer.status == 200, answer
            found |= {builder["Name"]: builder["State"] for builder in answer.document["ImageBuilders"]}
            if "NextToken" not in answer.document:
                return found
            token = {"NextToken": answer.document["NextToken"]}

    def create(self, name: str, *, until: str = "RUNNING") -> None:
        made = self.call("CreateImageBuilder", new_builder(name))
        assert made.status == 200, made
        wait_until(lambda: self.states().get(name) == until, 30, f"{name} to be {until}")

    def health(self, port: int | None = None) -> Answer:
        line = Line(port or self.port, limit_s=5)
        try:
            return line.send(f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port or self.port}\r\n\r\n".encode())
        except OSError:
            return Answer(0, {}, b"")
        finally:
            line.close()

    def answers(self) -> bool:
        """Whether a signed call is answered, a create would succeed, and the edge says so as well."""
        with contextlib.suppress(OSError):
            called = self.call("DescribeImageBuilders").status
            return called == self.health().status == self.health(self.edge_port).status == 200
        return False

    # -- looking inside

    def rows(self, sql: str, *values: object, db: str = "millstream.db") -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.data / db}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql, values).fetchall()

    def held(self) -> set[str]:
        """What the simulated driver holds."""
        return {row[0] for row in self.rows("SELECT id FROM held", db="simulated.db")}

    def known(self) -> set[str]:
        return {row[0] for row in self.rows("SELECT id FROM machine")}

    def wishes(self) -> list[tuple[Any, ...]]:
        """All that callers can change, to be compared: resources, tags, keys."""
        return [
            *self.rows("SELECT name, arn, machine_id, asked, json FROM image_builder ORDER BY id"),
            *self.rows("SELECT id, wanted, state FROM machine ORDER BY id"),
            *self.rows("SELECT arn, key, value FROM tag ORDER BY arn, key"),
            *self.rows("SELECT key_id, secret, revoked FROM access_key ORDER BY key_id"),
            *self.rows("SELECT nonce FROM ticket_used ORDER BY nonce"),
        ]

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines() if line.startswith("{")]


def alive(pid: int) -> bool:
    """Neither ended nor waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def memory_bytes(pid: int) -> int:
    """Resident and its own."""
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(kb) << 10 for kb in re.findall(r"^RssAnon:\s+(\d+) kB", text, re.MULTILINE))


def new_builder(name: str) -> dict[str, Any]:
    return {"Name": name, "InstanceType": "stream.standard.small", "ImageName": "debian-12-desktop"}


def json_wire(listen: str, operation: str, body: bytes) -> Wire:
    headers = (
        ("Host", listen),
        ("X-Amz-Target", f"{TARGET}.{operation}"),
        ("Content-Type", "application/x-amz-json-1.1"),
    )
    return Wire("POST", "/", headers, body)


def cbor_wire(listen: str, operation: str, body: bytes) -> Wire:
    headers = (("Host", listen), ("Smithy-Protocol", "rpc-v2-cbor"), ("Content-Type", "application/cbor"))
    return Wire("POST", CBOR_PATH + operation, headers, body)


@contextlib.contextmanager
def service(*, prelude: str = "", **settings: str) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="siege-") as folder:
        running = Service(Path(folder) / "data", prelude=prelude, **settings)
        running.data.mkdir(mode=0o700)
        try:
            yield running.start()
        finally:
            running.end()
