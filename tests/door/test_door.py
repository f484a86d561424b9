"""The door over real sockets: what is whole gets through once and in order, what is not is refused at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import httptools
import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream.api.head import Chunks, Malformed, read_head
from millstream.api.http import Request, Response
from millstream.api.server import TICK_S, Door, Limits

QUICK = Limits(head_s=1.0, body_idle_s=1.0, request_s=2.0, idle_s=2.0, write_s=2.0, linger_s=0.2, grace_s=5.0)


class Running:
    """A door in a thread of its own, with an application that answers what it saw."""

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[Request] = []
        self.hold: asyncio.Event | None = None
        self.door: Door | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._main(limits, tls)), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _main(self, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        self.hold = asyncio.Event()
        self.door = Door(self.app, limits)
        await self.door.serve("127.0.0.1", 0, tls=tls, ready=self._ready.set, stop=self.stopping)

    def app(self, request: Request) -> Response | Awaitable[Response]:
        self.seen.append(request)
        if request.target == b"/fail":
            raise RuntimeError("a sentence with /etc/passwd in it")
        if request.target == b"/inject":
            return Response(200, [("X-A", "b\r\nX-C: d")])
        if request.target == b"/big":
            return Response(200, body=b"x" * 8_000_000)
        if request.target == b"/held":
            return self._held(request)
        if request.target == b"/later":
            return self._later(request)
        return self._echo(request)

    async def _held(self, request: Request) -> Response:
        assert self.hold is not None
        await self.hold.wait()
        return self._echo(request)

    async def _later(self, request: Request) -> Response:
        await asyncio.sleep(0.01)
        return self._echo(request)

    def _echo(self, request: Request) -> Response:
        said = {"target": request.target.decode("latin-1"), "length": len(request.body), "peer": request.peer}
        return Response(200, [("x-amzn-RequestId", "echo")], json.dumps(said).encode())

    @property
    def port(self) -> int:
        assert self.door is not None
        return self.door.address[1]

    def release(self) -> None:
        assert self.hold is not None
        self.loop.call_soon_threadsafe(self.hold.set)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.stopping.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def dial(self, timeout_s: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def say(self, *pieces: bytes, half_close: bool = False) -> bytes:
        """All that comes back until the door closes, or 10 s."""
        with self.dial() as connection:
            for piece in pieces:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def wait_for(condition: Callable[[], bool], limit_s: float = 10) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def door() -> Iterator[Running]:
    running = Running(QUICK)
    yield running
    running.stop()


@pytest.fixture
def own() -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(limits: Limits = QUICK, tls: ssl.SSLContext | None = None) -> Running:
        made.append(Running(limits, tls))
        return made[-1]

    yield make
    for running in made:
        running.stop()


HOST = b"Host: localhost\r\n"
CLOSE = b"Connection: close\r\n"


def post(*lines: bytes, body: bytes = b"", line: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: localhost", *lines, b"", b""]) + body


def status(raw: bytes) -> int:
    return int(raw.split(b" ", 2)[1]) if raw.startswith(b"HTTP/1.1 ") else 0


# -- what is refused

CHUNKED = b"Transfer-Encoding: chunked"
REFUSED: dict[str, tuple[int, bytes]] = {
    "length and coding": (400, post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")),
    "coding and length": (400, post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n")),
    "length and coding with underscore": (
        400,
        post(b"Content-Length: 5", b"Transfer_Encoding: chunked", body=b"0\r\n\r\n"),
    ),
    "length with underscore": (400, post(b"Content_Length: 5")),
    "unknown coding": (501, post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "gzip coding": (501, post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "identity coding": (501, post(b"Transfer-Encoding: identity")),
    "coding twice": (400, post(CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    "coding in HTTP/1.0": (400, post(CHUNKED, line=b"POST / HTTP/1.0", body=b"0\r\n\r\n")),
    "length twice": (400, post(b"Content-Length: 1", b"Content-Length: 1", body=b"a")),
    "length twice, unlike": (400, post(b"Content-Length: 1", b"content-length: 2", body=b"ab")),
    "length list": (400, post(b"Content-Length: 1, 1", body=b"a")),
    "length signed": (400, post(b"Content-Length: +1", body=b"a")),
    "length negative": (400, post(b"Content-Length: -1", body=b"a")),
    "length hexadecimal": (400, post(b"Content-Length: 0x1", body=b"a")),
    "length underscore": (400, post(b"Content-Length: 1_0", body=b"a")),
    "length empty": (400, post(b"Content-Length:", body=b"a")),
    "length in other digits": (400, post("Content-Length: \u0661".encode(), body=b"a")),
    "length huge": (400, post(b"Content-Length: " + b"9" * 5000)),
    "length over": (413, post(b"Content-Length: 1048577")),
    "length a gigabyte": (413, post(b"Content-Length: 1073741824")),
    "blank before colon": (400, post(b"Content-Length : 1", body=b"a")),
    "tab before colon": (400, post(b"X-A\t: 1")),
    "blank before name": (400, post(b" X-A: 1")),
    "folded line": (400, post(b"X-A: 1", b" 2")),
    "folded by tab": (400, post(b"X-A: 1", b"\t2")),
    "no colon": (400, post(b"X-A")),
    "no name": (400, post(b": x")),
    "bare LF in head": (400, post(b"X-A: 1\nX-B: 2")),
    "bare CR in value": (400, post(b"X-A: 1\rX-B: 2")),
    "bare LF everywhere": (400, b"POST / HTTP/1.1\nHost: localhost\n\n"),
    "NUL in value": (400, post(b"X-A: a\0b")),
    "control in value": (400, post(b"X-A: a\x01b")),
    "non-ASCII name": (400, post(b"X-\xe9: a")),
    "target with underscore": (400, post(b"X_Amz_Target: a")),
    "date with underscore": (400, post(b"x-amz_date: a")),
    "authorization twice": (400, post(b"Authorization: a", b"authorization: b")),
    "target twice": (400, post(b"X-Amz-Target: a", b"X-Amz-Target: a")),
    "date twice": (400, post(b"X-Amz-Date: a", b"X-Amz-Date: b")),
    "token twice": (400, post(b"X-Amz-Security-Token: a", b"X-Amz-Security-Token: b")),
    "host twice": (400, post(b"Host: localhost")),
    "host missing": (400, b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
    "gzip body": (415, post(b"Content-Encoding: gzip", b"Content-Length: 3", body=b"abc")),
    "expectation": (417, post(b"Expect: 200-ok")),
    "too many headers": (431, post(*(b"X-%d: a" % n for n in range(100)))),
    "long header": (431, post(b"X-A: " + b"a" * 33_000)),
    "endless head": (431, b"POST / HTTP/1.1\r\nX-A: " + b"a" * 60_000),
    "endless line": (400, b"A" * 40_000),
    "endless target": (431, b"GET /" + b"a" * 40_000),
    "lower-case method": (400, post(line=b"post / HTTP/1.1")),
    "absolute target": (400, post(line=b"POST http://localhost/ HTTP/1.1")),
    "fragment": (400, post(line=b"POST /a#b HTTP/1.1")),
    "CONNECT": (400, post(line=b"CONNECT localhost:1 HTTP/1.1")),
    "two blanks": (400, post(line=b"POST  / HTTP/1.1")),
    "blank in target": (400, post(line=b"POST /a b HTTP/1.1")),
    "non-ASCII target": (400, post(line=b"POST /\xff HTTP/1.1")),
    "no version": (400, post(line=b"POST /")),
    "HTTP/0.9": (505, post(line=b"POST / HTTP/0.9")),
    "HTTP/1.2": (505, post(line=b"POST / HTTP/1.2")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "RTSP": (400, post(line=b"DESCRIBE / RTSP/1.0")),
    "TLS greeting": (0, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "SSH greeting": (0, b"SSH-2.0-OpenSSH_9.2\r\n"),
    "RFB greeting": (400, b"RFB 003.008\n"),
    "zeros": (400, b"\0" * 100),
    "chunk negative": (400, post(CHUNKED, body=b"-1\r\na\r\n0\r\n\r\n")),
    "chunk 0x": (400, post(CHUNKED, body=b"0x1\r\na\r\n0\r\n\r\n")),
    "chunk plus": (400, post(CHUNKED, body=b"+1\r\na\r\n0\r\n\r\n")),
    "chunk underscore": (400, post(CHUNKED, body=b"1_0\r\na\r\n0\r\n\r\n")),
    "chunk empty size": (400, post(CHUNKED, body=b"\r\na\r\n0\r\n\r\n")),
    "chunk blank": (400, post(CHUNKED, body=b"1 \r\na\r\n0\r\n\r\n")),
    "chunk extension": (400, post(CHUNKED, body=b"1;a=b\r\na\r\n0\r\n\r\n")),
    "chunk bare LF": (400, post(CHUNKED, body=b"1\na\n0\n\n")),
    "chunk end bare LF": (400, post(CHUNKED, body=b"1\r\na\n0\r\n\r\n")),
    "chunk too long": (400, post(CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n")),
    "chunk size long": (400, post(CHUNKED, body=b"000000001\r\na\r\n0\r\n\r\n")),
    "chunk huge": (413, post(CHUNKED, body=b"ffffffff\r\na")),
    "chunk just over": (413, post(CHUNKED, body=b"100001\r\na")),
    "trailers": (400, post(CHUNKED, body=b"1\r\na\r\n0\r\nX-Amz-Target: y\r\n\r\n")),
    "foreign host": (421, b"POST / HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
    "foreign host with port": (421, b"POST / HTTP/1.1\r\nHost: evil.example:8400\r\n\r\n"),
    "rebound suffix": (421, b"POST / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n"),
    "rebound prefix": (421, b"POST / HTTP/1.1\r\nHost: evil-localhost\r\n\r\n"),
    "host of another address": (421, b"POST / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"),
    "host unspecified": (421, b"POST / HTTP/1.1\r\nHost: 0.0.0.0\r\n\r\n"),
    "host empty": (421, b"POST / HTTP/1.1\r\nHost:\r\n\r\n"),
    "host with a comma": (421, b"POST / HTTP/1.1\r\nHost: localhost, evil.example\r\n\r\n"),
    "host with userinfo": (421, b"POST / HTTP/1.1\r\nHost: localhost@evil.example\r\n\r\n"),
    "host with a bad port": (421, b"POST / HTTP/1.1\r\nHost: localhost:80x\r\n\r\n"),
    "host non-ASCII": (421, b"POST / HTTP/1.1\r\nHost: localhost\xe9\r\n\r\n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_once_and_closed(door: Running, name: str) -> None:
    expected, raw = REFUSED[name]
    before = len(door.seen)
    began = time.monotonic()
    # Whatever follows must not be taken for a second request.
    answer = door.say(raw + b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert time.monotonic() - began < 0.9, "it waited for a deadline"
    assert len(door.seen) == before
    assert status(answer) == expected
    if expected:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert answer.count(b"\r\nContent-Length: ") == 1
        assert b"Connection: close" in head
        assert b"x-amzn-RequestId: " in head
        assert len(answer) < 600
        assert json.loads(body)["message"]
        assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        post(b"Content-Length: 50", body=b"ab"),
        post(CHUNKED, body=b"5\r\nab"),
        post(CHUNKED, body=b"2\r\nab\r\n"),
        post(CHUNKED, body=b"2\r\nab\r\n0\r\n"),
        b"POST / HTTP/1.1\r\nHost: localhost",
    ],
)
def test_what_is_cut_short_never_arrives(door: Running, raw: bytes) -> None:
    before = len(door.seen)
    assert door.say(raw, half_close=True) == b""
    assert len(door.seen) == before


# -- what is let in

HONEST: dict[str, tuple[bytes, bytes]] = {
    "no body": (post(), b""),
    "a body": (post(b"Content-Length: 3", body=b"abc"), b"abc"),
    "zeros before the length": (post(b"Content-Length: 003", body=b"abc"), b"abc"),
    "the largest body": (post(b"Content-Length: 1048576", body=b"a" * 1_048_576), b"a" * 1_048_576),
    "chunks": (post(CHUNKED, body=b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"), b"abc0123456789"),
    "no chunk": (post(CHUNKED, body=b"0\r\n\r\n"), b""),
    "upgrade is ignored": (post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 1", body=b"a"), b"a"),
    "identity": (post(b"Content-Encoding: identity", b"Content-Length: 1", body=b"a"), b"a"),
    "underscore elsewhere": (post(b"X_Other: 1"), b""),
    "a header twice": (post(b"X-A: 1", b"X-A: 2"), b""),
    "an empty line before": (b"\r\n" + post(), b""),
    "other methods": (post(line=b"DELETE /x?y=%20 HTTP/1.1"), b""),
    "non-ASCII value": (post(b"X-A: \xe9\xff"), b""),
    "ninety-nine headers": (post(*(b"X-%d: a" % n for n in range(98))), b""),
}


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("name", HONEST)
def test_whole_requests_arrive_however_they_are_cut(door: Running, name: str, pieces: int) -> None:
    raw, body = HONEST[name]
    raw = raw.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) if b"Connection" not in raw else raw
    size = len(raw) // pieces + 1
    before = len(door.seen)
    with door.dial() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(raw), size):
            connection.sendall(raw[at : at + size])
            time.sleep(0.002)
        answer = connection.recv(65536)
    assert status(answer) == 200, answer
    assert len(door.seen) == before + 1
    request = door.seen[-1]
    assert request.body == body
    assert not any(b"_" in name for name, _ in request.headers)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8400", "127.0.0.1", "127.9.9.9:1", "[::1]:8400", "appstream2.localhost", "localhost."],
)
def test_loopback_names_are_known(door: Running, host: str) -> None:
    raw = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert status(door.say(raw)) == 200


def test_configured_names_are_known(own: Callable[..., Running]) -> None:
    door = own(replace(QUICK, hosts=frozenset({"api.example.com", ".apps.example.com"})))
    answers = {
        host: status(door.say(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()))
        for host in ("api.example.com", "a.apps.example.com:443", "apps.example.com", "x.api.example.com")
    }
    assert list(answers.values()) == [200, 200, 421, 421]


def test_pipelined_requests_are_answered_in_order(door: Running) -> None:
    """Those that answer at once don't overtake those that answer later."""
    targets = [random.Random(7).choice([b"/later", b"/n%d" % n]) for n in range(100)]
    raw = b"".join(post(b"Content-Length: 2", line=b"POST %b HTTP/1.1" % t, body=b"ab") for t in targets)
    answer = door.say(raw + post(CLOSE.strip(), line=b"GET /last HTTP/1.1"))
    bodies = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in answer.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert [b["target"].encode() for b in bodies] == [*targets, b"/last"]


def test_a_pipeline_behind_a_pending_answer_is_bounded(door: Running) -> None:
    assert door.hold is not None
    before = len(door.seen)
    with door.dial(1.0) as connection:
        connection.sendall(post(line=b"GET /held HTTP/1.1"))
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * 1024 * 1024:
                sent += connection.send(post(line=b"GET /more HTTP/1.1") * 1000)
        assert sent < 32 * 1024 * 1024, "the door reads without end"
        assert door.door is not None
        assert max(len(c._buffer) for c in door.door.connections) < 1024 * 1024
        assert len(door.seen) == before + 1
    door.release()


def test_half_closed_callers_get_their_answer(door: Running) -> None:
    for target in (b"/", b"/later"):
        assert status(door.say(post(line=b"GET %b HTTP/1.1" % target), half_close=True)) == 200


def test_expect_100_continue(door: Running) -> None:
    with door.dial() as connection:
        connection.sendall(post(b"Expect: 100-continue", b"Content-Length: 3", CLOSE.strip()))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert status(read_all(connection)) == 200
    refused = door.say(post(b"Expect: 100-continue", b"Content-Length: 9999999"))
    assert status(refused) == 413


def test_http_1_0(door: Running) -> None:
    answer = door.say(b"GET / HTTP/1.0\r\n\r\n")
    assert status(answer) == 200
    assert b"Connection: close" in answer
    with door.dial() as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            assert b"Connection: keep-alive" in connection.recv(65536)


def test_head_has_no_body(door: Running) -> None:
    answer = door.say(post(CLOSE.strip(), line=b"HEAD / HTTP/1.1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b""
    assert b"Content-Length: 0" not in head


def test_a_fault_of_ours_says_an_id_and_no_more(door: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        for target in (b"/fail", b"/inject"):
            answer = door.say(post(CLOSE.strip(), line=b"GET %b HTTP/1.1" % target))
            assert status(answer) == 500
            assert b"passwd" not in answer
            assert b"Traceback" not in answer
            assert b"X-C" not in answer
            request_id = answer.split(b"x-amzn-RequestId: ")[1].split(b"\r\n")[0].decode()
            assert request_id in caplog.text
    assert "passwd" in caplog.text


def test_a_real_client_keeps_its_connection(door: Running) -> None:
    client = HTTPConnection("127.0.0.1", door.port)
    sockets = set()
    for _ in range(3):
        client.request("POST", "/", body=b"{}")
        response: HTTPResponse = client.getresponse()
        assert json.loads(response.read())["peer"] == "127.0.0.1"
        sockets.add(id(client.sock))
    assert len(sockets) == 1
    client.close()


# -- slow, many, large


def test_a_declared_gigabyte_is_refused_unread(door: Running) -> None:
    with door.dial(0.5) as connection:
        connection.sendall(post(b"Content-Length: 1073741824"))
        began = time.monotonic()
        assert status(connection.recv(65536)) == 413
        assert time.monotonic() - began < 0.05


def test_who_sends_too_much_still_reads_why(door: Running) -> None:
    """A client that first sends all and then reads, as most do: no reset before the answer."""
    body = b"a" * 1_200_000
    assert status(door.say(post(b"Content-Length: %d" % len(body), body=body))) == 413


DRIPS: dict[str, tuple[bytes, bytes]] = {
    "silent": (b"", b""),
    "head": (b"POST / HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"a"),
    "body": (post(b"Content-Length: 1000"), b"a"),
    "chunks": (post(CHUNKED), b"1\r\na\r\n"),
    "half a body": (post(b"Content-Length: 1000", body=b"a" * 500), b""),
}


@pytest.mark.parametrize("name", DRIPS)
def test_who_drips_is_closed_in_time(door: Running, name: str) -> None:
    first, drip = DRIPS[name]
    with door.dial() as connection:
        connection.sendall(first)
        began = time.monotonic()
        connection.settimeout(0.05)
        while True:
            assert time.monotonic() - began < 4, "it is still open"
            with contextlib.suppress(TimeoutError):
                piece = connection.recv(1000)
                assert not piece or status(piece) == 408
                break
            connection.sendall(drip)


def test_an_idle_connection_is_closed(door: Running) -> None:
    with door.dial() as connection:
        connection.sendall(post())
        assert status(connection.recv(65536)) == 200
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert 1.5 < time.monotonic() - began < 4


def test_who_does_not_read_is_closed(door: Running) -> None:
    assert door.door is not None
    wait_for(lambda: not (door.door and door.door.connections))
    with door.dial() as connection:
        connection.sendall(post(line=b"GET /big HTTP/1.1") * 5)
        wait_for(lambda: bool(door.door and any(c._writing_paused for c in door.door.connections)))
        wait_for(lambda: not (door.door and door.door.connections), 5)


def test_a_thousand_slow_callers_hinder_nobody(own: Callable[..., Running]) -> None:
    door = own(replace(QUICK, head_s=6.0, body_idle_s=6.0, request_s=8.0))
    assert door.door is not None
    kinds = [first for first, _ in DRIPS.values()]
    slow = [door.dial() for _ in range(1000)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(kinds[number % len(kinds)])
        times = []
        for _ in range(100):
            began = time.monotonic()
            assert status(door.say(post(CLOSE.strip(), b"Content-Length: 2", body=b"{}"))) == 200
            times.append(time.monotonic() - began)
        assert sorted(times)[98] < 0.25
        wait_for(lambda: not (door.door and door.door.connections), 12)
    finally:
        for connection in slow:
            connection.close()


def test_past_the_cap_the_unfinished_make_room(own: Callable[..., Running]) -> None:
    door = own(replace(QUICK, connections_loopback_max=10))
    assert door.door is not None
    silent = [door.dial() for _ in range(30)]
    assert status(door.say(post(CLOSE.strip()))) == 200
    assert door.door.counters.connections_made_room >= 20
    assert len(door.door.connections) <= 10
    for connection in silent:
        connection.close()


def test_past_the_cap_the_answered_stay(own: Callable[..., Running]) -> None:
    door = own(replace(QUICK, connections_max=3))
    busy = [door.dial() for _ in range(3)]
    for connection in busy:
        connection.sendall(post(CLOSE.strip(), line=b"GET /held HTTP/1.1"))
    wait_for(lambda: len(door.seen) == 3)
    assert status(door.say(b"")) == 503
    door.release()
    assert [status(read_all(connection)) for connection in busy] == [200] * 3
    for connection in busy:
        connection.close()


def test_one_address_takes_its_own_places_only() -> None:
    """Sixty-four thousand strangers' ports are one stranger."""
    aborted: list[object] = []

    class Held:
        busy = False

        def __init__(self, peer: str) -> None:
            self.peer = peer

        def abort(self) -> None:
            aborted.append(self)

    door = Door(lambda _request: Response(200), Limits(connections_max=100, connections_per_address_max=5))
    others = [Held(f"10.0.0.{number}") for number in range(50)]
    flood = [Held("203.0.113.9") for _ in range(1000)]
    for held in [*others, *flood]:
        assert door.admit(held)  # type: ignore[arg-type] # only its address and whether it is busy count here
    assert len(door.connections) == 55
    assert aborted == flood[:-5]
    for held in [*others, *flood]:
        door.forget(held)  # type: ignore[arg-type]
    assert not door.connections
    assert not door.by_address


def test_large_bodies_have_a_common_bound(own: Callable[..., Running]) -> None:
    door = own(replace(QUICK, bodies_bytes_max=3_000_000))
    assert door.door is not None
    large = [door.dial() for _ in range(3)]
    for connection in large:
        connection.sendall(post(b"Content-Length: 1000001", body=b"a" * 1_000_000))
    wait_for(lambda: door.door is not None and door.door.bodies_bytes == 3_000_000)
    fourth = door.dial()
    fourth.sendall(post(b"Content-Length: 100001", body=b"a" * 100_000))
    assert status(read_all(fourth)) == 503
    assert status(door.say(post(b"Content-Length: 2", CLOSE.strip(), body=b"{}"))) == 200
    for connection in large:
        connection.sendall(b"a")
        assert status(connection.recv(65536)) == 200
    wait_for(lambda: door.door is not None and door.door.bodies_bytes == 0)
    for connection in (*large, fourth):
        connection.close()


# -- the end


def test_stopping_finishes_what_is_running(own: Callable[..., Running]) -> None:
    door = own()
    with door.dial() as running, door.dial() as idle:
        running.sendall(post(line=b"GET /held HTTP/1.1"))
        idle.sendall(post())
        assert status(idle.recv(65536)) == 200
        wait_for(lambda: len(door.seen) == 2)
        door.loop.call_soon_threadsafe(door.stopping.set)
        assert idle.recv(1) == b""
        door.release()
        answer = read_all(running)
    assert status(answer) == 200
    assert b"Connection: close" in answer
    door.stop()
    with pytest.raises(ConnectionRefusedError):
        door.dial()


def test_a_caller_who_leaves_does_not_undo_what_was_begun(own: Callable[..., Running]) -> None:
    door = own()
    finished: list[str] = []

    async def slow() -> Response:
        assert door.hold is not None
        await door.hold.wait()
        finished.append("yes")
        return Response(200)

    assert door.door is not None
    door.door.app = lambda _request: slow()
    with door.dial() as connection:
        connection.sendall(post())
        wait_for(lambda: door.door is not None and any(c.busy for c in door.door.connections))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # gone, not half-closed
    wait_for(lambda: not (door.door and door.door.connections))
    door.release()
    wait_for(lambda: finished == ["yes"])


def test_tls(own: Callable[..., Running], tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    wanted = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *wanted.split(), *names], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    door = own(tls=server)
    trusting = ssl.create_default_context(cafile=str(certificate))
    for raw, expected in ((post(CLOSE.strip()), 200), (post(b"Content-Length: 9999999"), 413)):
        with trusting.wrap_socket(door.dial(), server_hostname="localhost") as connection:
            connection.sendall(raw)
            answer = b""
            with contextlib.suppress(ssl.SSLError):
                while piece := connection.recv(65536):
                    answer += piece
            assert status(answer) == expected
    assert b"200 OK" not in door.say(post(CLOSE.strip())), "it answers without TLS"


# -- llhttp as the second reader


class Second:
    """What llhttp, strict, makes of the same bytes."""

    def __init__(self, raw: bytes) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.done = 0
        parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            parser.feed_data(raw)
        self.method: bytes = parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done += 1


LINES = (
    "Content-Length: 3|Content-Length: 0|Transfer-Encoding: chunked|X-A: b|X-A:|X-A:\tb \t|X_A: b|Expect: 100-continue|"
    "Connection: close|Content-Length:3| X|X-A : b|X|X-A|Content-Length: 3, 3|Transfer-Encoding: gzip|X-A: \xe9||"
    "Transfer-Encoding: CHUNKED|Host"
)
LINE = st.one_of(st.sampled_from(LINES.encode("latin-1").split(b"|")), st.binary(max_size=12))
REQUEST_LINES = (
    "POST / HTTP/1.1|GET /a?b=%20 HTTP/1.0|PUT /a//b HTTP/1.1|POST /\x7f HTTP/1.1|POST  / HTTP/1.1|FROB / HTTP/1.1|"
    'GET /[a]\\^`{} HTTP/1.1|GET /"<> HTTP/1.1|GET * HTTP/1.1'
)
REQUEST_LINE = st.sampled_from(REQUEST_LINES.encode("latin-1").split(b"|"))
BODY = st.sampled_from(
    [b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"1\r\na\r\n02\r\nbc\r\n0\r\n\r\n", b"0\r\n\r\n", b"3\r\nab"]
)


@settings(max_examples=2000, deadline=None)
@given(REQUEST_LINE, st.lists(LINE, max_size=5), BODY)
@example(b"POST / HTTP/1.1", [b"X-A: b"], b"")
def test_what_is_taken_is_read_alike_by_llhttp(line: bytes, lines: list[bytes], body: bytes) -> None:
    head_bytes = b"\r\n".join([line, b"Host: a", *lines])
    raw = head_bytes + b"\r\n\r\n" + body
    try:
        # As the door does it: the head ends at the first empty line.
        end = raw.find(b"\r\n\r\n")
        head = read_head(raw[:end], 100)
        rest = bytearray(raw[end + 4 :])
        if head.length is None:
            chunks = Chunks(1000)
            chunks.feed(rest)
            whole, ours = chunks.done, chunks.body
        else:
            whole, ours = len(rest) >= head.length, bytes(rest[: head.length])
            del rest[: head.length]
    except Malformed:
        return
    if not whole:
        return
    if head.method == b"FROB":  # llhttp knows the registered methods only; the application answers 405
        return
    second = Second(raw[: len(raw) - len(rest)])
    assert second.done == 1
    assert (second.method, second.target, second.body) == (head.method, head.target, ours)
    assert tuple(pair for pair in second.headers if b"_" not in pair[0]) == head.headers


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=10), st.randoms())
def test_chunks_come_together_however_they_are_cut(parts: list[bytes], rng: random.Random) -> None:
    raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    chunks = Chunks(1000)
    buffer = bytearray()
    at = 0
    while at < len(raw):
        step = rng.randint(1, 20)
        buffer += raw[at : at + step]
        at += step
        chunks.feed(buffer)
    assert chunks.done
    assert chunks.body == b"".join(parts)
    assert not buffer


def test_a_body_in_countless_chunks_is_refused() -> None:
    chunks = Chunks(1_000_000)
    with pytest.raises(Malformed):
        chunks.feed(bytearray(b"1\r\na\r\n" * 10_000))


# -- noise


def test_noise_never_makes_a_fault(own: Callable[..., Running]) -> None:
    """Random bytes and broken requests: an answer below 500 or a closed connection, and the door stands."""
    door = own(replace(QUICK, head_s=0.5, body_idle_s=0.5, request_s=0.5, linger_s=0.05))
    assert door.door is not None
    rng = random.Random(20)
    seeds = [raw for _, raw in REFUSED.values() if len(raw) < 4000] + [
        raw for raw, _ in HONEST.values() if len(raw) < 4000
    ]
    for number in range(1500):
        if number % 5 == 0:
            raw = rng.randbytes(rng.randint(1, 200))
        else:
            mutable = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(mutable))
                match rng.randint(0, 2):
                    case 0:
                        mutable[at] = rng.randrange(256)
                    case 1:
                        del mutable[at : at + rng.randint(1, 5)]
                    case _:
                        mutable[at:at] = rng.choice([b"\r\n", b"\n", b"\0", b" ", b":", b"\r\n\r\n", b"_", b"9" * 9])
                mutable = mutable or bytearray(b"x")
            raw = bytes(mutable)
        answer = door.say(raw, half_close=True)
        assert status(answer) in {0, 100, 200, 400, 413, 415, 417, 421, 431, 501, 505}, (raw, answer)
    assert door.door.counters.failures == 0
    assert status(door.say(post(CLOSE.strip()))) == 200


def test_the_defaults_keep_their_promises() -> None:
    """Figures that the documentation gives."""
    limits = Limits()
    assert limits.request_s + TICK_S + limits.linger_s < 30  # slow callers are gone in 30 s
    assert limits.head_s + TICK_S < 30
    assert (limits.head_bytes_max, limits.headers_max, limits.body_bytes_max) == (32 * 1024, 100, 1024 * 1024)
    assert limits.connections_loopback_max > 1200
    assert limits.connections_per_address_max < limits.connections_max / 10
    assert not limits.hosts
