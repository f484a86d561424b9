"""The programs' door: HTTP/1.1 over asyncio. Whole requests in, answers out; it knows nothing of AWS.

A request is read, bounded in size, time and number, before the application sees any of it; a body cut short never
arrives there. One connection answers one request at a time, in order: what is pipelined behind waits unparsed, and
past a bound is left in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import resource
import time
import uuid
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

from millstream.api.head import Chunks, Head, Malformed, check_start, read_head
from millstream.api.http import App, Request, Response

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller, and all of them together, may take. Times in seconds, sizes in bytes."""

    head_bytes_max: int = 32 * 1024
    headers_max: int = 100
    body_bytes_max: int = 1024 * 1024
    # All unfinished bodies together. Small ones don't count, so that large ones can't shut them out.
    bodies_bytes_max: int = 64 * 1024 * 1024
    body_small_bytes: int = 16 * 1024
    head_s: float = 10.0  # from a connection's opening, or a request's first byte, to the end of its head
    body_idle_s: float = 20.0  # between two pieces of a body
    request_s: float = 28.0  # a whole request from its first byte: whoever drips is gone within 30 s
    idle_s: float = 75.0  # between two requests; longer than botocore (60 s) keeps a connection for reuse
    write_s: float = 30.0  # an answer that its caller doesn't read
    linger_s: float = 1.0  # from a refusal to the close, so that it can be read before the connection is reset
    grace_s: float = 10.0  # from `stop` to the end, for what is running
    connections_max: int = 4096
    connections_per_address_max: int = 256
    connections_loopback_max: int = 3072  # all programs of this host, or of a reverse proxy on it
    # Names in Host besides loopback's, the listening address and the one that was dialled; `.x` means all below x.
    hosts: frozenset[str] = frozenset()


@dataclass(slots=True)
class Counters:
    """What the door has seen since it opened, for the metrics page."""

    connections: int = 0
    connections_made_room: int = 0  # closed unfinished, since a newer one needed the place
    requests: int = 0
    failures: int = 0  # exceptions of the application, answered 500
    timeouts: int = 0
    refused: dict[int, int] = field(default_factory=dict)  # by status; 0 is closed without an answer


# Words of the common errors for what the door refuses by itself; the JSON protocols' clients read `__type`.
_CODES: Final = {
    400: "BadRequestException",
    408: "RequestTimeoutException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedMediaTypeException",
    417: "ExpectationFailedException",
    421: "MisdirectedRequestException",
    431: "RequestHeaderFieldsTooLargeException",
    500: "InternalFailure",
    501: "NotImplementedException",
    503: "ServiceUnavailableException",
    505: "HttpVersionNotSupportedException",
}
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus}
_PIPELINED_BYTES_MAX: Final = 64 * 1024  # unparsed bytes of one connection behind a request that is being answered
_TURN_REQUESTS: Final = 16  # requests of one connection answered before others get their turn
TICK_S: Final = 0.5  # deadlines are looked at this often


def refusal(status: int, why: str) -> Response:
    """The answer to what the door itself does not take, small and the same for everybody."""
    code = _CODES.get(status, "BadRequestException")
    return Response(
        status,
        [
            ("Content-Type", "application/x-amz-json-1.1"),
            ("x-amzn-RequestId", str(uuid.uuid4())),
            ("x-amzn-ErrorType", code),
        ],
        json.dumps({"__type": code, "message": why}).encode(),
    )


class Door:
    """One listening address and its connections."""

    def __init__(self, app: App, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.counters = Counters()
        self.listening = ""  # as the operator wrote it: a name or an address
        self.address: tuple[str, int] = ("", 0)
        self.connections: dict[Connection, None] = {}  # oldest first
        self.by_address: dict[str, dict[Connection, None]] = {}
        self.bodies_bytes = 0
        self.stopping = False
        self._emptied = asyncio.Event()  # stopping, and the last connection is gone
        self._hosts: dict[bytes, bool] = {}  # verdicts on Host as sent
        self._date = (0, "")

    def __repr__(self) -> str:
        busy = sum(connection.busy for connection in self.connections)
        return f"<Door {self.address[0]}:{self.address[1]} [{len(self.connections)} connections, {busy} busy]>"

    async def serve(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        ready: Callable[[], None],
        stop: asyncio.Event,
    ) -> None:
        """Listen, call `ready`, answer until `stop` is set, finish what is running. Raises OSError."""
        loop = asyncio.get_running_loop()
        self.listening = host.lower()
        _raise_open_files(self.limits.connections_max + 256)
        server = await loop.create_server(
            lambda: Connection(self, loop),
            host,
            port,
            ssl=tls,
            backlog=1024,
            ssl_handshake_timeout=self.limits.head_s if tls else None,
            ssl_shutdown_timeout=self.limits.linger_s if tls else None,
        )
        self.address = server.sockets[0].getsockname()[:2]
        ticking = loop.create_task(self._tick(loop))
        try:
            ready()
            await stop.wait()
        finally:
            self.stopping = True
            server.close()
            for connection in list(self.connections):
                connection.finish()
            if self.connections:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._emptied.wait(), self.limits.grace_s)
            for connection in list(self.connections):
                connection.abort()
            ticking.cancel()

    async def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what is past its deadline. One look at all twice a second costs less than a timer for each request."""
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            for connection in [c for c in self.connections if c.deadline < now]:
                connection.expire()

    def admit(self, connection: Connection) -> bool:
        """Whether there is a place for one more, if need be that of the one that has been unfinished the longest.

        So slow callers take each other's places and never lock anybody out.
        """
        peers = self.by_address.setdefault(connection.peer, {})
        loopback = connection.peer.startswith("127.") or connection.peer == "::1"
        places = self.limits.connections_loopback_max if loopback else self.limits.connections_per_address_max
        for held, most in ((peers, places), (self.connections, self.limits.connections_max)):
            if len(held) >= most:
                unfinished = next((c for c in held if not c.busy), None)
                if unfinished is None:
                    if not peers:
                        del self.by_address[connection.peer]
                    return False
                self.counters.connections_made_room += 1
                unfinished.abort()
                self.forget(unfinished)
                peers = self.by_address.setdefault(connection.peer, {})
        self.connections[connection] = None
        peers[connection] = None
        self.counters.connections += 1
        return True

    def forget(self, connection: Connection) -> None:
        self.connections.pop(connection, None)
        peers = self.by_address.get(connection.peer)
        if peers is not None:
            peers.pop(connection, None)
            if not peers:
                del self.by_address[connection.peer]
        if self.stopping and not self.connections:
            self._emptied.set()

    def hosts_allow(self, host: bytes, dialled: str) -> bool:
        """Whether the Host header names us. A page of a name that was rebound to our address does not.

        `dialled` is the address that this connection came in on: a literal, so nothing can be rebound to it.
        """
        verdict = self._hosts.get(host)
        if verdict is None:
            name = _host_name(host)
            verdict = self._names_us(name)
            if not verdict:
                return name == dialled
            if len(self._hosts) < 256:
                self._hosts[host] = verdict
        return verdict

    def _names_us(self, name: str) -> bool:
        if not name:
            return False
        allowed = self.limits.hosts
        if name in allowed or name == "localhost" or name.endswith(".localhost"):
            return True
        if any(name.endswith(suffix) for suffix in allowed if suffix.startswith(".")):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == self.listening
        return address.is_loopback or (name == self.listening and not address.is_unspecified)

    def date(self) -> str:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        return self._date[1]


class Connection(asyncio.Protocol):
    """One connection: bytes into requests, one at a time; answers into bytes."""

    # Where a request stands: `_head` is None until its head is whole; `busy` from its last byte to its answer.
    __slots__ = (
        "_began",
        "_buffer",
        "_charged",
        "_chunks",
        "_closing",
        "_dialled",
        "_door",
        "_eof",
        "_head",
        "_loop",
        "_pending",
        "_reading_paused",
        "_scanned",
        "_transport",
        "_writing_paused",
        "busy",
        "deadline",
        "peer",
    )

    def __init__(self, door: Door, loop: asyncio.AbstractEventLoop) -> None:
        self._door = door
        self._loop = loop
        self._buffer = bytearray()
        self._scanned = 0  # bytes of the buffer in which the head's end was not found
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._charged = 0  # bytes of this connection in `door.bodies_bytes`
        self._began = 0.0  # when the first byte of the current request came; 0 between requests
        self._closing = False
        self._eof = False
        self._pending: asyncio.Future[Response] | None = None
        self._reading_paused = False
        self._writing_paused = False
        self.busy = False
        self.deadline = loop.time() + door.limits.head_s

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.peer: str = peer[0] if peer else ""
        dialled = transport.get_extra_info("sockname")
        self._dialled: str = dialled[0] if dialled else ""
        if self._door.stopping or not self._door.admit(self):
            self._refuse(503, "Too many connections are open.")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        # What the application has begun goes on: a write that was taken is made, whoever still listens.
        self._closing = True
        self._discharge()
        self._door.forget(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._buffer += data
        if self.busy or self._writing_paused:
            if len(self._buffer) > _PIPELINED_BYTES_MAX:
                self._pause_reading()
            return
        self._advance()

    def eof_received(self) -> bool:
        """The caller has said all. An unfinished request is dropped; an answer on its way is finished."""
        self._eof = True
        if self._transport.get_extra_info("sslcontext") is not None:  # TLS has no half-closed connections
            return False
        if not (self.busy or self._buffer or self._writing_paused) or self._began:
            return False
        return not self._closing

    def pause_writing(self) -> None:
        self._writing_paused = True
        self.deadline = self._loop.time() + self._door.limits.write_s

    def resume_writing(self) -> None:
        self._writing_paused = False
        if not self.busy and not self._closing:
            self._rest()
            self._loop.call_soon(self._advance)

    # -- the door's side

    def expire(self) -> None:
        """The deadline has passed. Meanwhile nothing else ends this state."""
        if self._closing or self._writing_paused:
            self.abort()
        elif self._began:
            self._door.counters.timeouts += 1
            self._refuse(408, "The request did not arrive in time.")
        else:
            self._close()

    def finish(self) -> None:
        """Close as soon as the current answer is out."""
        if not self.busy and not self._closing:
            self._close()

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    # -- reading

    def _advance(self) -> None:
        """Answer what is whole in the buffer, as far as this turn goes."""
        for _ in range(_TURN_REQUESTS):
            if self.busy or self._closing or self._writing_paused:
                return
            try:
                request = self._next_request()
            except Malformed as malformed:
                self._refuse(malformed.status, malformed.why)
                return
            if request is None:
                if self._eof:
                    self._close()
                elif self._reading_paused:
                    self._reading_paused = False
                    self._transport.resume_reading()
                return
            self._answer(request)
        # The rest of a long pipeline comes after the others' turn. Nothing else would call for it.
        if not (self.busy or self._closing or self._writing_paused):
            self._loop.call_soon(self._advance)

    def _next_request(self) -> Request | None:
        """The request at the front of the buffer, taken from it; None when it is not whole. Raises Malformed."""
        buffer = self._buffer
        head = self._head
        if head is None:
            head = self._next_head(buffer)
            if head is None:
                return None
        if head.length is None:
            body = self._chunked_body(buffer)
            if body is None:
                return None
        else:
            if len(buffer) < head.length:
                self._await_body(len(buffer))
                return None
            body = bytes(buffer[: head.length])
            del buffer[: head.length]
        self._began = 0.0
        if self._charged:
            self._discharge()
        return Request(head.method, head.target, head.headers, body, self.peer, head.fields)

    def _next_head(self, buffer: bytearray) -> Head | None:
        limits = self._door.limits
        if not buffer:
            return None
        if not self._began:
            self._began = self._loop.time()
            if buffer.startswith(b"\r\n"):  # old clients end a body with one more empty line; RFC 9112, 2.2
                del buffer[:2]
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), limits.head_bytes_max)
        if end < 0:
            if buffer and buffer.find(b"\n", 0, self._scanned) < 0:
                check_start(bytes(buffer[:8192]))
            if len(buffer) >= limits.head_bytes_max:
                raise Malformed(431, f"The request's head is larger than {limits.head_bytes_max} bytes.")
            self._scanned = len(buffer)
            self.deadline = self._began + limits.head_s
            return None
        head = read_head(bytes(buffer[:end]), limits.headers_max)
        if b"host" in head.fields and not self._door.hosts_allow(head.fields[b"host"], self._dialled):
            raise Malformed(421, "This server is not known by the name in the Host header.")
        if head.length is not None and head.length > limits.body_bytes_max:
            raise Malformed(413, f"The request's body is larger than {limits.body_bytes_max} bytes.")
        del buffer[: end + 4]
        self._scanned = 0
        self._head = head
        if head.length is None:
            self._chunks = Chunks(limits.body_bytes_max)
        if head.expects_continue and not buffer and head.length != 0:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return head

    def _chunked_body(self, buffer: bytearray) -> bytes | None:
        chunks = self._chunks
        assert chunks is not None
        chunks.feed(buffer)
        if not chunks.done:
            self._await_body(len(chunks) + len(buffer))
            return None
        self._chunks = None
        return chunks.body

    def _await_body(self, held: int) -> None:
        """More is to come: set the deadline and count what is held. Raises Malformed when all hold too much."""
        limits = self._door.limits
        self.deadline = min(self._loop.time() + limits.body_idle_s, self._began + limits.request_s)
        if held > limits.body_small_bytes:
            self._door.bodies_bytes += held - self._charged
            self._charged = held
            if self._door.bodies_bytes > limits.bodies_bytes_max:
                raise Malformed(503, "Too many large requests are arriving at once.")

    def _discharge(self) -> None:
        self._door.bodies_bytes -= self._charged
        self._charged = 0

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _rest(self) -> None:
        """Between two requests."""
        self.deadline = self._loop.time() + self._door.limits.idle_s

    # -- answering

    def _answer(self, request: Request) -> None:
        self._door.counters.requests += 1
        try:
            answer = self._door.app(request)
        except Exception:
            self._write(self._failed())
            return
        if type(answer) is Response:
            self._write(answer)
            return
        self.busy = True
        self.deadline = float("inf")  # the application's own time limits hold here
        self._pending = asyncio.ensure_future(cast("Awaitable[Response]", answer), loop=self._loop)
        self._pending.add_done_callback(self._answered)

    def _answered(self, future: asyncio.Future[Response]) -> None:
        self.busy = False
        self._pending = None
        if future.cancelled():
            answer = self._failed()
        elif future.exception() is not None:
            answer = self._failed(future.exception())
        else:
            answer = future.result()
        if self._closing:
            return
        self._write(answer)
        if not self._closing and not self._writing_paused:
            self._advance()

    def _failed(self, error: BaseException | None = None) -> Response:
        """Our bug: the caller gets an id, the log gets the rest."""
        self._door.counters.failures += 1
        answer = refusal(500, "The request could not be answered. The log has the reason under the request's id.")
        log.error("no answer to request %s", answer.headers[1][1], exc_info=error or True)
        return answer

    def _write(self, answer: Response) -> None:
        head = self._head
        assert head is not None
        self._head = None
        keep = head.keep_alive and not self._door.stopping
        try:
            data = self._bytes_of(answer, keep, head)
        except Exception as error:
            data = self._bytes_of(self._failed(error), keep, head)
        self._transport.write(data)
        if not keep:
            self._close()
        elif not self._writing_paused:
            self._rest()

    def _bytes_of(self, answer: Response, keep: bool, head: Head | None) -> bytes:
        """The answer for the wire. Raises ValueError on a header that would break its line."""
        lines = [f"{name}: {value}\r\n" for name, value in answer.headers]
        lines.append(f"Date: {self._door.date()}\r\n")
        bodiless = answer.status in (204, 304)
        if not bodiless:
            lines.append(f"Content-Length: {len(answer.body)}\r\n")
        if not keep:
            lines.append("Connection: close\r\n")
        elif head is not None and head.http_1_0:
            lines.append("Connection: keep-alive\r\n")
        text = "".join(lines)
        if text.count("\n") != len(lines) or text.count("\r") != len(lines):
            raise ValueError("a header of an answer holds a line break")
        start = (_STATUS_LINES[answer.status] + text + "\r\n").encode("latin-1")
        return start if bodiless or (head is not None and head.method == b"HEAD") else start + answer.body

    def _refuse(self, status: int, why: str) -> None:
        """Answer what is no request of ours, and close. Status 0: say nothing, the other side would not read it."""
        refused = self._door.counters.refused
        refused[status] = refused.get(status, 0) + 1
        if status:
            self._transport.write(self._bytes_of(refusal(status, why), keep=False, head=self._head))
        self._close(unread=bool(status))

    def _close(self, *, unread: bool = False) -> None:
        """Close after what is written. With `unread` bytes of the caller's, not before it could read the refusal:

        closing a socket that holds unread bytes resets it, and the answer in flight is lost.
        """
        self._closing = True
        self._buffer.clear()
        self._discharge()
        limits = self._door.limits
        self.deadline = self._loop.time() + limits.write_s
        if unread and self._transport.can_write_eof():
            self._pause_reading()
            self._transport.write_eof()
            self._loop.call_later(limits.linger_s, self._transport.close)
        else:
            self._transport.close()


async def serve(
    app: App,
    host: str,
    port: int,
    *,
    limits: Limits,
    tls: ssl.SSLContext | None,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Answer with `app` at host:port until `stop` is set. Raises OSError when the address can't be had."""
    await Door(app, limits).serve(host, port, tls=tls, ready=ready, stop=stop)


def _host_name(host: bytes) -> str:
    """The name in a Host header, lower-case, without port and brackets; empty when it is none."""
    try:
        text = host.decode("ascii").lower()
    except UnicodeDecodeError:
        return ""
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        return name if bracket and (not port or (port[0] == ":" and port[1:].isdigit())) else ""
    name, colon, port = text.partition(":")
    if colon and not port.isdigit():
        return ""
    return name.removesuffix(".")


def _raise_open_files(wanted: int) -> None:
    """Let the process hold as many sockets as the limits promise, as far as the host's own limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and soft != resource.RLIM_INFINITY:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if most > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
