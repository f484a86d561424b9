"""One viewer and one machine's display: a thin shell of sockets around the pump and the filter."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, cast

from aiohttp import WSMsgType

from millstream.gateway.pump import CHUNK_BYTES_MAX, Effect, Pause, Pump, Resume, Send
from millstream.gateway.rfb import RemoteProtocolError
from millstream.gateway.session import Close

if TYPE_CHECKING:
    from aiohttp import web

    from millstream.gateway.engines import Engine, Filter
    from millstream.gateway.metrics import Metrics
    from millstream.model.ticket import Pass

_FAREWELL_S = 1.0  # for the close frame; a viewer that is gone is not waited for
_UNSENT_BYTES = 131_072  # what the kernel may hold unsent: a newer picture is worth more than a full buffer


class Display(asyncio.BufferedProtocol):
    """The machine's side of a stream. Reads into one buffer, so that no read is larger than the pump's chunk."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = memoryview(bytearray(CHUNK_BYTES_MAX))
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._stream.display = cast("asyncio.Transport", transport)  # before its first bytes

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._stream.arrived(bytes(self._buffer[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._writable.set()
        self._stream.cut(Close.MACHINE_LOST)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def writable(self) -> None:
        await self._writable.wait()


class Stream:
    """`run` pumps until something ends it: the viewer, the display, the grammar, or `cut` from outside."""

    def __init__(self, granted: Pass, engine: Engine, upward: Filter, metrics: Metrics) -> None:
        self.granted = granted
        self.last_input: float | None = None
        self.upward = upward
        self.reported: tuple[int, float | None] | None = None
        self._engine = engine
        self._metrics = metrics
        self._bytes = {"up": 0, "down": 0}  # since the last `account`
        self._sending_since: float | None = None  # loop's time
        self._pump = Pump()
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[Close | None] = loop.create_future()
        self._under_way: asyncio.Queue[bytes] = asyncio.Queue()  # one Send at a time, says the pump
        self.display: asyncio.Transport | None = None

    def __repr__(self) -> str:
        return f"<Stream {self.granted.machine_id[:8]} {self.granted.role} {self._pump!r}>"

    def cut(self, why: Close | None) -> None:
        """End it, from anywhere. The first word counts."""
        if not self._end.done():
            self._end.set_result(why)

    def arrived(self, chunk: bytes) -> None:
        """Bytes from the machine. They are not read, only passed."""
        if not self._end.done():
            self._apply(self._pump.read(chunk))

    def stalled_s(self, now: float) -> float:
        """How long the viewer has not taken what is being sent; `now` is the loop's time."""
        return 0.0 if self._sending_since is None else now - self._sending_since

    def account(self) -> None:
        """Bring what was counted here into the metrics: not once a message, but when somebody asks."""
        for (kind, verdict), n in self.upward.counts.items():
            self._metrics.count("messages", n, engine=self._engine.kind, way="up", kind=kind, verdict=verdict)
        self.upward.counts.clear()
        for way, n in self._bytes.items():
            self._metrics.count("bytes", n, way=way)
            self._bytes[way] = 0

    async def run(
        self, ws: web.WebSocketResponse, viewer: asyncio.Transport | None, connection: socket.socket
    ) -> Close | None:
        """Pump between a prepared WebSocket and a connected display until the end, and say how it ended."""
        loop = asyncio.get_running_loop()
        # The write buffer's size is what a viewer who doesn't read can hold of ours, besides the pump.
        if viewer is not None:
            sock = viewer.get_extra_info("socket")
            if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        connection.settimeout(0)
        connect = loop.create_unix_connection if connection.family == socket.AF_UNIX else loop.create_connection
        transport, display = await connect(lambda: Display(self), sock=connection)
        tasks = [asyncio.ensure_future(self._up(ws, display)), asyncio.ensure_future(self._down(ws))]
        try:
            return await self._end
        finally:
            transport.abort()  # at once: a display drinks no CPU for a viewer who left
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.account()

    async def _up(self, ws: web.WebSocketResponse, display: Display) -> None:
        machine = self.display
        assert machine is not None
        upward, inputs = self.upward, self.upward.inputs
        try:
            async for message in ws:
                if message.type is not WSMsgType.BINARY:
                    self.cut(Close.GRAMMAR)
                    return
                self._bytes["up"] += len(message.data)
                passed = upward.feed(message.data)
                if upward.inputs != inputs:
                    inputs = upward.inputs
                    self.last_input = time.time()
                if passed:
                    machine.write(passed)
                    await display.writable()
            self.cut(None)
        except RemoteProtocolError:
            self._metrics.count("messages", engine=self._engine.kind, way="up", kind="unknown", verdict="refused")
            self.cut(Close.GRAMMAR)
        except (ConnectionError, RuntimeError):
            self.cut(None)

    async def _down(self, ws: web.WebSocketResponse) -> None:
        now = asyncio.get_running_loop().time
        try:
            while True:
                data = await self._under_way.get()
                self._sending_since = now()
                await ws.send_bytes(data)
                self._sending_since = None
                self._bytes["down"] += len(data)
                self._apply(self._pump.sent())
        except (ConnectionError, RuntimeError):
            self.cut(None)

    def _apply(self, effects: list[Effect]) -> None:
        assert self.display is not None
        for effect in effects:
            match effect:
                case Send(data):
                    self._under_way.put_nowait(data)
                case Pause():
                    self._metrics.count("paused")
                    self.display.pause_reading()
                case Resume():
                    self.display.resume_reading()


async def farewell(ws: web.WebSocketResponse, viewer: asyncio.Transport | None, why: Close) -> None:
    """Tell the page why, and be gone within a second whether it listens or not."""
    # In a task of its own: a send that was given up leaves aiohttp a cancelled future, and who waits on that is
    # cancelled, too.
    told = asyncio.ensure_future(ws.close(code=why, message=why.name.lower().encode()))
    await asyncio.wait((told,), timeout=_FAREWELL_S)
    told.cancel()
    await asyncio.gather(told, return_exceptions=True)
    if viewer is not None and viewer.get_write_buffer_size():
        viewer.abort()  # it doesn't read: what waits for it is let go
