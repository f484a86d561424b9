"""The edge: one port for people. Every request passes the same door, then one exact path, then one answer.

A ticket in the address is looked at by GET and used up by POST from the page, so that a program which only looks at
links (a chat's preview) takes nothing over. What it is exchanged for is a cookie for one machine and one browser.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from millstream.capacity.driver import CapacityError
from millstream.gateway import door, pages
from millstream.gateway.engines import ENGINES
from millstream.gateway.metrics import Metrics
from millstream.gateway.pages import Notice, Pages
from millstream.gateway.rfb import Rules
from millstream.gateway.session import Close
from millstream.gateway.stream import Stream, farewell
from millstream.model.ticket import (
    TEXT_BYTES_MAX,
    VIEWER,
    Expired,
    Foreign,
    Forged,
    Pass,
    Ticket,
    mint_pass,
    open_pass,
    open_ticket,
)
from millstream.store.store import StoreError

if TYPE_CHECKING:
    import socket

    from aiohttp.web_request import BaseRequest

    from millstream.capacity.driver import Streams
    from millstream.gateway.engines import Engine
    from millstream.gateway.session import EdgeSettings, Sessions, Target

log = logging.getLogger("millstream.edge")

_STREAM_PATH = re.compile(r"/stream/([0-9a-f]{32})/([a-z]*)\Z")
_MESSAGE_BYTES_MAX = 1_048_576  # of one WebSocket message
_CONNECTIONS_MAX = 4096
_BODY_S = 5.0
_DIAL_S = 5.0
_LOOK_S = 2.0
_PING_S = 30.0
_WARN_S = 60.0
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _CSP,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), usb=(), payment=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Server": "millstream",
}
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_FORWARDED = ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "Via", "X-Real-IP")


class _Refused(Exception):  # noqa: N818 - not an error: an answer
    """A person gets this notice instead."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice.code)
        self.notice = notice


async def serve(
    settings: EdgeSettings,
    sessions: Sessions,
    streams: Streams,
    ready: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Answer people until `stop` is set; `ready` is called once, when the port is open. Raises OSError if it can't be.

    Running streams are told that the edge restarts; their pages come back by themselves.
    """
    loop = asyncio.get_running_loop()
    edge = Edge(settings, sessions, streams)
    http = _Server(edge, settings.connections_per_address_max, settings.head_s)
    listener = await loop.create_server(http, settings.host, settings.port, ssl=settings.tls, backlog=256)
    watch = asyncio.create_task(edge.watch())
    try:
        log.info("edge.ready", extra={"address": f"{settings.host}:{settings.port}", "public_url": settings.public_url})
        ready()
        await stop.wait()
    finally:
        watch.cancel()
        listener.close()
        await edge.close()
        await http.shutdown(timeout=1)


class Edge:
    """All requests and all streams of one process."""

    def __init__(self, settings: EdgeSettings, sessions: Sessions, streams: Streams) -> None:
        self._settings = settings
        self._sessions = sessions
        self._dial = streams.open_stream
        self._url = door.public_url(settings.public_url)
        self._pages = Pages(self._url.prefix)
        self._guesses = door.PerMinute(settings.wrong_tickets_per_minute_max)
        self._openings = door.PerMinute(settings.streams_per_minute_max)
        self._proxies = tuple(map(ipaddress.ip_network, settings.proxies))
        self._hosts = frozenset((self._url.netloc, self._url.netloc_with_port, *map(str.lower, settings.hosts)))
        self._operator_hosts = self._hosts | {f"{name}:{settings.port}" for name in _LOOPBACK_NAMES}
        # A cookie that http could set is none of ours; browsers check the prefix.
        self._cookie = "__Secure-millstream" if self._url.secure else "millstream"
        self._streams: dict[str, set[Stream]] = {}
        self._warn_at = 0.0
        self.metrics = Metrics()

    async def __call__(self, request: BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        if self._url.prefix and path.startswith(self._url.prefix + "/"):
            path = path[len(self._url.prefix) :]  # a proxy in front may take the prefix off, or leave it on
        try:
            try:
                return await self._answer(request, path, query)
            except StoreError as error:  # health tells it; a line and a traceback for each caller would tell no more
                log.debug("edge.store", extra={"code": error.code, "why": str(error)})
                raise _Refused(pages.NOT_NOW) from None
        except _Refused as refused:
            self.metrics.count("refused", reason=refused.notice.code)
            if path.endswith(("/enter", "/leave", "/state")):
                return _respond(refused.notice.status, pages.as_json(refused.notice), "application/json")
            return _respond(refused.notice.status, self._pages.notice(refused.notice))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            # The path names a machine at most; the query may hold a ticket and is never logged.
            self.metrics.count("errors")
            log.exception("edge.bug", extra={"path": path[:80]})
            return _respond(500, self._pages.notice(pages.BUG))

    async def _answer(self, request: BaseRequest, path: str, query: str) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if path in {"/healthz", "/metrics"}:
            if not door.host_allowed(hosts, self._operator_hosts):
                raise _Refused(pages.WRONG_HOST)
            _only(request, "GET", "HEAD")
            return await self._health() if path == "/healthz" else self._metrics(request, hosts)
        if not door.host_allowed(hosts, self._hosts):
            raise _Refused(pages.WRONG_HOST)
        if path in self._pages.files:
            _only(request, "GET", "HEAD")
            body, content_type = self._pages.files[path]
            return _respond(200, body, content_type, cache="public, max-age=31536000, immutable")
        found = _STREAM_PATH.match(path)
        if not found:
            raise _Refused(pages.UNKNOWN)
        machine_id, what = found.groups()
        if what in ENGINES:
            _only(request, "GET")
            return await self._stream(request, machine_id, ENGINES[what])
        match what:
            case "":
                _only(request, "GET", "HEAD")
                return self._page(request, machine_id, query)
            case "enter":
                _only(request, "POST")
                return await self._enter(request, machine_id)
            case "leave":
                _only(request, "POST")
                return self._leave(request, machine_id)
            case "state":
                _only(request, "GET")
                return self._state(request, machine_id)
            case _:
                raise _Refused(pages.UNKNOWN)

    # ------------------------------------------------------------------ getting in

    def _page(self, request: BaseRequest, machine_id: str, query: str) -> web.StreamResponse:
        """The stream's page, for a ticket in the address or a cookie of before. Takes nothing over, uses nothing up."""
        tickets = [value for name, value in parse_qsl(query[:4096], keep_blank_values=True) if name == "ticket"]
        if tickets:
            ticket = self._ticket(request, machine_id, tickets[0] if len(tickets) == 1 else "")
            role = ticket.role
            target = self._allowed(machine_id, ticket)
        else:
            granted = self._pass(request, machine_id)
            role = granted.role
            target = self._allowed(machine_id, granted)
        page = self._pages.stream(
            target, clipboard_bytes_max=self._settings.clipboard_bytes_max, view_only=role == VIEWER
        )
        return _respond(200, page)

    async def _enter(self, request: BaseRequest, machine_id: str) -> web.StreamResponse:
        """The page's ticket for a cookie: once, whoever else has the address."""
        self._own_page(request)
        if (request.content_length or 0) > TEXT_BYTES_MAX or request.content_length is None:
            raise _Refused(pages.FORGED)
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
        except (TimeoutError, web.RequestPayloadError):
            raise _Refused(pages.FORGED) from None
        ticket = self._ticket(request, machine_id, body.decode("ascii", "replace"))
        target = self._allowed(machine_id, ticket)
        with contextlib.suppress(_Refused):  # the same browser again: a reload, or the link clicked twice
            granted = self._pass(request, machine_id)
            if granted.nonce == ticket.nonce and granted.generation == target.generation:
                return _respond(204, "")
        try:
            first = await asyncio.to_thread(self._sessions.use_ticket, ticket.nonce, ticket.expires_at)
        except Exception:
            log.exception("edge.store", extra={"machine_id": machine_id})
            raise _Refused(pages.NOT_NOW) from None
        if not first:
            raise _Refused(pages.USED)
        now = int(time.time())
        granted = Pass(machine_id, target.generation, now, ticket.key_id, ticket.account, ticket.nonce, ticket.role)
        response = _respond(204, "")
        self._set_cookie(response, machine_id, mint_pass(self._sessions.ticket_keys()[0], granted))
        log.info("stream.entered", extra={"machine_id": machine_id, "key_id": ticket.key_id, "as": ticket.role})
        return response

    def _leave(self, request: BaseRequest, machine_id: str) -> web.StreamResponse:
        self._own_page(request)
        response = _respond(204, "")
        self._set_cookie(response, machine_id, "")
        return response

    def _state(self, request: BaseRequest, machine_id: str) -> web.StreamResponse:
        """For the page: may I still be here, and if there is no picture, why."""
        target = self._allowed(machine_id, self._pass(request, machine_id))
        return _respond(200, json.dumps({"state": target.state}), "application/json")

    def _ticket(self, request: BaseRequest, machine_id: str, text: str) -> Ticket:
        try:
            return open_ticket(text, self._sessions.ticket_keys(), now=time.time(), machine_id=machine_id)
        except Forged:
            raise self._forged(request) from None
        except Foreign:
            raise _Refused(pages.FOREIGN) from None
        except Expired as error:
            raise _Refused(pages.expired(error.at)) from None

    def _pass(self, request: BaseRequest, machine_id: str) -> Pass:
        """The cookie's. A browser's odd cookies of other services don't matter, only ours is read."""
        found = [
            value
            for line in request.headers.getall("Cookie", [])
            for name, _, value in (part.strip().partition("=") for part in line[:16_384].split(";"))
            if name == self._cookie and value
        ]
        if len(found) != 1:
            raise _Refused(pages.NO_TICKET)
        try:
            return open_pass(found[0], self._sessions.ticket_keys(), now=time.time(), machine_id=machine_id)
        except Forged:
            raise self._forged(request, pages.NO_TICKET) from None
        except Foreign:
            raise _Refused(pages.FOREIGN) from None
        except Expired as error:
            raise _Refused(pages.expired(error.at)) from None

    def _allowed(self, machine_id: str, granted: Ticket | Pass) -> Target:
        """The running machine that this was given for. Every way in asks here, and so does every running stream."""
        if not self._sessions.key_alive(granted.key_id):
            raise _Refused(pages.WITHDRAWN)
        target = self._sessions.target(machine_id)
        if target is None:
            raise _Refused(pages.GONE)
        if target.account != granted.account:
            raise _Refused(pages.FOREIGN)
        if not target.running or not target.display:
            raise _Refused(pages.not_running(target))
        if isinstance(granted, Pass) and granted.generation != target.generation:
            raise _Refused(pages.EARLIER_RUN)
        return target

    def _forged(self, request: BaseRequest, notice: Notice = pages.FORGED) -> _Refused:
        address = door.caller(_peer(request), request.headers.getall("X-Forwarded-For", []), self._proxies)
        if self._guesses.too_many(address, time.monotonic()):
            self._warn_of_guesses(address)
            return _Refused(pages.TOO_MANY)
        return _Refused(notice)

    def _warn_of_guesses(self, address: str) -> None:
        """One line a minute, whoever guesses: each guess is counted, and who guesses fills no disk."""
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + _WARN_S
            log.warning("ticket.too-many-wrong", extra={"address": address})

    def _own_page(self, request: BaseRequest) -> None:
        if not door.origin_allowed(request.headers.getall("Origin", []), self._url):
            raise _Refused(pages.FOREIGN_PAGE)

    def _set_cookie(self, response: web.StreamResponse, machine_id: str, value: str) -> None:
        response.set_cookie(
            self._cookie,
            value,
            path=f"{self._url.prefix}/stream/{machine_id}/",
            httponly=True,
            secure=self._url.secure,
            samesite="Strict",
            max_age=None if value else 0,  # gone with the browser, or now
        )

    # ------------------------------------------------------------------ streaming

    async def _stream(self, request: BaseRequest, machine_id: str, engine: Engine) -> web.StreamResponse:
        self._own_page(request)
        granted = self._pass(request, machine_id)
        self._allowed(machine_id, granted)
        here = self._streams.get(machine_id, set())
        if len(here) >= self._settings.streams_per_machine_max or self._streaming() >= self._settings.streams_max:
            raise _Refused(pages.FULL)
        if self._openings.too_many(machine_id, time.monotonic()):
            raise _Refused(pages.TOO_OFTEN)
        ws = web.WebSocketResponse(
            compress=False, max_msg_size=_MESSAGE_BYTES_MAX, heartbeat=_PING_S, timeout=0.5, writer_limit=1
        )
        ws.headers["Server"] = _HEADERS["Server"]
        if not ws.can_prepare(request).ok:
            raise _Refused(pages.METHOD)
        view_only = granted.role == VIEWER
        rules = Rules(view_only=view_only, clipboard_in_bytes_max=self._settings.clipboard_bytes_max)
        stream = Stream(granted, engine, engine.make_filter(rules), self.metrics)
        # In the books before anything waits, so that a thousand at once are counted, and the newest one wins.
        if not view_only:
            for other in here:
                if other.granted.role != VIEWER:
                    other.cut(Close.TAKEN_OVER)
        self._streams.setdefault(machine_id, set()).add(stream)
        why: Close | None = None
        began = time.monotonic()
        try:
            await ws.prepare(request)
            self.metrics.count("streams", engine=engine.kind)
            log.info("stream.opened", extra={"machine_id": machine_id, "key_id": granted.key_id, "as": granted.role})
            why = await self._pump(ws, request, stream, engine)
        finally:
            await self._forget(machine_id, stream)
            if why is not None:
                await farewell(ws, request.transport, why)
            self.metrics.count("closed", reason=why.name.lower() if why else "left")
            extra = {"machine_id": machine_id, "why": why.name.lower() if why else "left"}
            log.info("stream.closed", extra={**extra, "wall_s": round(time.monotonic() - began, 3)})
        return ws

    async def _pump(
        self, ws: web.WebSocketResponse, request: BaseRequest, stream: Stream, engine: Engine
    ) -> Close | None:
        dialled = asyncio.ensure_future(asyncio.to_thread(self._dial, stream.granted.machine_id, engine.kind))
        try:
            async with asyncio.timeout(_DIAL_S):
                connection = await asyncio.shield(dialled)
        except (CapacityError, OSError) as error:  # a timeout is an OSError, too
            if not dialled.done():
                dialled.add_done_callback(_hang_up)
            log.warning(
                "stream.no-display", extra={"machine_id": stream.granted.machine_id, "reason": str(error)[:256]}
            )
            return Close.MACHINE_LOST
        return await stream.run(ws, request.transport, connection)

    async def _forget(self, machine_id: str, stream: Stream) -> None:
        here = self._streams[machine_id]
        here.discard(stream)
        if not here:
            del self._streams[machine_id]
        await self._report(machine_id, [*here, stream])

    def _streaming(self) -> int:
        return sum(map(len, self._streams.values()))

    async def watch(self) -> None:
        """Once a second: is every stream still allowed? And tell the rows who looks on and when they last typed."""
        while True:
            await asyncio.sleep(self._settings.watch_s)
            for machine_id, here in list(self._streams.items()):
                for stream in list(here):
                    self._look(machine_id, stream)
                    if stream.stalled_s(asyncio.get_running_loop().time()) > self._settings.silent_viewer_s:
                        stream.cut(Close.SLOW)
                await self._report(machine_id, list(here))

    def _look(self, machine_id: str, stream: Stream) -> None:
        try:
            self._allowed(machine_id, stream.granted)
        except _Refused as refused:
            match refused.notice.code:
                case "machine.gone":
                    stream.cut(Close.DELETED)
                case "machine.not-running" | "machine.no-display":
                    target = self._sessions.target(machine_id)
                    stream.cut(Close.DELETED if target and target.state == "DELETING" else Close.STOPPED)
                case _:
                    stream.cut(Close.WITHDRAWN)
        except Exception:
            # The store is in trouble: nobody has said that this stream may not run.
            self.metrics.count("errors")
            log.exception("edge.store", extra={"machine_id": machine_id})

    async def _report(self, machine_id: str, streams: list[Stream]) -> None:
        viewers = len(self._streams.get(machine_id, ()))
        last_input = max((stream.last_input for stream in streams if stream.last_input), default=None)
        if all(stream.reported == (viewers, last_input) for stream in streams):
            return
        for stream in streams:
            stream.reported = (viewers, last_input)
        try:
            await asyncio.to_thread(self._sessions.seen, machine_id, viewers, last_input)
        except Exception:
            self.metrics.count("errors")
            log.exception("edge.store", extra={"machine_id": machine_id})

    async def close(self) -> None:
        """Every page is told that we come back."""
        for here in self._streams.values():
            for stream in here:
                stream.cut(Close.RESTARTING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while self._streams:  # noqa: ASYNC110 - two seconds at most, once
                    await asyncio.sleep(0.01)

    # ------------------------------------------------------------------ for operators

    def is_proxy(self, address: str) -> bool:
        return door.within(address, self._proxies)

    async def _health(self) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_LOOK_S):
                health = await asyncio.to_thread(self._sessions.health)
        except Exception as error:
            told = {"ok": False, "code": "edge.no-health", "why": type(error).__name__, "next": "millstream doctor"}
            return _respond(503, json.dumps(told), "application/json")
        told = {"ok": health.ok, "code": health.code, "why": health.why, "next": health.next}
        return _respond(200 if health.ok else 503, json.dumps(told), "application/json")

    def _metrics(self, request: BaseRequest, hosts: list[str]) -> web.StreamResponse:
        """For loopback, or with the token. What a proxy on this host passes on is not loopback."""
        token = self._settings.metrics_token.encode()
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        named = token and hmac.compare_digest(given, b"Bearer " + token)
        near = (
            _is_loopback(_peer(request))
            and not any(name in request.headers for name in _FORWARDED)
            and hosts[0].lower().rpartition(":")[0] in _LOOPBACK_NAMES
        )
        if not named and not near:
            raise _Refused(pages.UNKNOWN)
        for here in self._streams.values():
            for stream in here:
                stream.account()
        text = self.metrics.text({"streaming": self._streaming(), "machines_streaming": len(self._streams)})
        return _respond(200, text, "text/plain")


def _respond(status: int, body: str | bytes, content_type: str = "text/html", cache: str = "no-store") -> web.Response:
    raw = body.encode("utf-8") if isinstance(body, str) else body
    charset = "utf-8" if content_type.startswith("text/") or content_type == "application/json" else None
    response = web.Response(
        status=status, body=raw or None, content_type=content_type if raw else None, charset=charset if raw else None
    )
    response.headers.update(_HEADERS)
    response.headers["Cache-Control"] = cache
    return response


def _only(request: BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        raise _Refused(pages.METHOD)


def _peer(request: BaseRequest) -> str:
    return request.remote or ""


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _hang_up(dialled: asyncio.Future[socket.socket]) -> None:
    """A display that answered too late."""
    if not dialled.cancelled() and dialled.exception() is None:
        dialled.result().close()


class _Server(web.Server):
    """aiohttp's server with our limits on connections."""

    def __init__(self, edge: Edge, per_address_max: int, head_s: float) -> None:
        super().__init__(
            edge,
            access_log=None,  # it would write tickets
            keepalive_timeout=head_s,  # runs from the connection's first moment
            lingering_time=1.0,
            max_line_size=4096,
            max_field_size=8192,
            max_headers=64,
        )
        self._edge = edge
        self._per_address_max = per_address_max
        self._open = 0
        self._open_by_address: Counter[str] = Counter()

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def admit(self, peer: str) -> bool:
        """One more connection from `peer`; False when there are too many. Proxies speak for many people.

        IPv6 callers are counted by their /64: who has one has all of its addresses.
        """
        address = door.caller(peer, [], ())
        self._open += 1
        self._open_by_address[address] += 1
        few = self._open_by_address[address] <= self._per_address_max or self._edge.is_proxy(peer)
        return few and self._open <= _CONNECTIONS_MAX

    def left(self, peer: str) -> None:
        address = door.caller(peer, [], ())
        self._open -= 1
        self._open_by_address[address] -= 1
        if not self._open_by_address[address]:
            del self._open_by_address[address]

    def refused(self) -> None:
        self._edge.metrics.count("refused", reason="http.malformed")


class _Connection(RequestHandler):
    """One connection. What can't be read as HTTP gets 400 and nothing of its text in the answer or in a log."""

    __slots__ = ("_address", "_server")

    def __init__(self, server: _Server, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._server = server
        self._address: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else ""
        super().connection_made(transport)
        if not self._server.admit(self._address):
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._address is not None:
            self._server.left(self._address)
            self._address = None
        super().connection_lost(exc)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,  # noqa: ARG002 - aiohttp's signature
        message: str | None = None,  # noqa: ARG002 - as exc
    ) -> web.StreamResponse:
        self._server.refused()
        if request.writer.output_size > 0:
            raise ConnectionError("half an answer was sent")
        response = _respond(status, f"{status}: this could not be read as HTTP\n", "text/plain")
        response.force_close()
        return response
