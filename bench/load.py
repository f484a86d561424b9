"""Load on an HTTP server: requests made beforehand, sent over kept connections, one at a time on each."""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(slots=True)
class Load:
    """What a run of requests met. Times in seconds."""

    took_s: float
    latencies_s: list[float] = field(repr=False)

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


class Clients:
    """`count` kept connections to one address. Raises OSError; ValueError on an answer that is not the wanted one."""

    def __init__(self, port: int, count: int) -> None:
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
        self._selector = selectors.DefaultSelector()
        for connection in self._sockets:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ)

    def run(self, requests: list[bytes], total: int, wants: bytes = b" 200 ") -> Load:
        """Send `total` requests, those of `requests` in turn; every answer's first line must hold `wants`."""
        endless = itertools.islice(itertools.cycle(requests), total)
        return self._run([endless] * len(self._sockets), wants)

    def run_stories(self, stories: list[list[bytes]]) -> Load:
        """Send each story's requests in order, one story after the other on each connection."""
        waiting = iter(stories)
        each = itertools.chain.from_iterable
        return self._run([each(waiting) for _ in self._sockets], b" 200 ")

    def _run(self, sources: Sequence[Iterator[bytes]], wants: bytes) -> Load:
        source_of = dict(zip(self._sockets, sources, strict=True))
        sent: dict[socket.socket, float] = {}
        latencies: list[float] = []
        partial: dict[socket.socket, bytes] = {}
        began = time.perf_counter()

        def send(connection: socket.socket) -> None:
            request = next(source_of[connection], None)
            if request is not None:
                sent[connection] = time.perf_counter()
                connection.sendall(request)

        for each in self._sockets:
            send(each)
        while sent:
            ready = self._selector.select(10.0)
            if not ready:
                raise TimeoutError(f"{len(sent)} requests have had no answer for 10 s")
            for key, _ in ready:
                connection = cast("socket.socket", key.fileobj)
                data = partial.pop(connection, b"") + connection.recv(262144)
                if not _whole(data):
                    if not data:
                        raise ConnectionError("the server closed the connection")
                    partial[connection] = data
                    continue
                latencies.append(time.perf_counter() - sent.pop(connection))
                if wants not in data[:16]:
                    raise ValueError(f"an answer that was not wanted: {data[:600]!r}")
                send(connection)
        return Load(time.perf_counter() - began, latencies)

    def close(self) -> None:
        self._selector.close()
        for connection in self._sockets:
            connection.close()


def _whole(data: bytes) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    at = data.find(b"Content-Length: ", 0, end)
    return len(data) >= end + 4 + int(data[at + 16 : data.index(b"\r\n", at)])


def one_answer(port: int, request: bytes) -> bytes:
    """The whole answer to one request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        data = b""
        while not _whole(data):
            more = connection.recv(262144)
            if not more:
                raise ValueError("the server closed the connection")
            data += more
        return data
