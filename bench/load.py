"""Load on an HTTP server: requests made beforehand, sent over kept connections, one at a time on each."""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass, field


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
        sent: dict[socket.socket, float] = {}
        latencies: list[float] = []
        partial: dict[socket.socket, bytes] = {}
        began = time.perf_counter()
        next_at = 0
        for connection in self._sockets[:total]:
            sent[connection] = time.perf_counter()
            connection.sendall(requests[next_at % len(requests)])
            next_at += 1
        while len(latencies) < total:
            for key, _ in self._selector.select(10.0):
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = partial.pop(connection, b"") + connection.recv(262144)
                if not _whole(data):
                    if not data:
                        raise ValueError("the server closed the connection")
                    partial[connection] = data
                    continue
                now = time.perf_counter()
                latencies.append(now - sent[connection])
                if wants not in data[:16]:
                    raise ValueError(f"an answer that was not wanted: {data[:600]!r}")
                if next_at < total:
                    sent[connection] = now
                    connection.sendall(requests[next_at % len(requests)])
                    next_at += 1
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
