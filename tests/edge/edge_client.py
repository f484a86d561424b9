"""A caller that sends exactly what a test says: plain HTTP, and WebSocket frames made by hand."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import socket
import ssl
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.edge.edge_world import EdgeServer, a_ticket


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def ask(edge: EdgeServer, method: str, path: str, body: bytes | None = None, **headers: str | list[str]) -> Answer:
    """One request on one connection. `Host` is the edge's own unless given; a list sends a header several times."""
    context = ssl._create_unverified_context() if edge.url.startswith("https") else None  # noqa: S323 - made for this test
    made = (
        http.client.HTTPSConnection("127.0.0.1", edge.port, timeout=10, context=context)
        if context
        else http.client.HTTPConnection("127.0.0.1", edge.port, timeout=10)
    )
    try:
        made.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
        if body is not None and "Content_Length" not in headers:
            made.putheader("Content-Length", str(len(body)))
        for name, values in headers.items():
            for value in values if isinstance(values, list) else [values]:
                made.putheader(name.replace("_", "-"), value)
        made.endheaders(body)
        answer = made.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        made.close()


def enter(edge: EdgeServer, machine_id: str, text: str | None = None, **headers: str) -> Answer:
    return ask(
        edge,
        "POST",
        f"/stream/{machine_id}/enter",
        (text or a_ticket(machine_id)).encode(),
        **{"Origin": edge.origin, **headers},
    )


def cookie(edge: EdgeServer, machine_id: str, text: str | None = None) -> str:
    """A pass, as the Cookie header that a browser would send."""
    answer = enter(edge, machine_id, text)
    assert answer.status == 204, answer.body
    return str(answer.headers["Set-Cookie"]).partition(";")[0]


@dataclass
class Frame:
    opcode: int
    data: bytes


class WebSocket:
    """A viewer. `status` is the answer to the upgrade; 101 means that frames can be sent."""

    def __init__(self, edge: EdgeServer, path: str, *, receive_bytes: int = 0, **headers: str | list[str]) -> None:
        self.socket: socket.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", edge.port))
        if edge.url.startswith("https"):
            self.socket = ssl._create_unverified_context().wrap_socket(self.socket)  # noqa: S323 - as above
        lines = [f"GET {path} HTTP/1.1"]
        own: dict[str, str | list[str]] = {
            "Host": edge.origin.partition("//")[2],
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec_WebSocket_Version": "13",
            "Sec_WebSocket_Key": base64.b64encode(os.urandom(16)).decode(),
        }
        for name, values in {**own, **headers}.items():
            lines += [f"{name.replace('_', '-')}: {v}" for v in (values if isinstance(values, list) else [values])]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._rest = b""
        while b"\r\n\r\n" not in self._rest:
            more = self.socket.recv(65_536)
            if not more:
                break
            self._rest += more
        self.head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        self.status = int(self.head.split(b" ", 2)[1]) if self.head else 0

    def send(
        self, data: bytes, opcode: int = 2, *, fin: bool = True, mask: bool = True, length: int | None = None
    ) -> None:
        size = len(data) if length is None else length
        bit = 0x80 if mask else 0
        head = bytes((opcode | (0x80 if fin else 0),))
        if size < 126:
            head += bytes((bit | size,))
        elif size < 65_536:
            head += bytes((bit | 126,)) + struct.pack(">H", size)
        else:
            head += bytes((bit | 127,)) + struct.pack(">Q", size)
        self.socket.sendall(head + (b"\0\0\0\0" if mask else b"") + data)  # a mask of zeros leaves the bytes readable

    def _read(self, count: int) -> bytes:
        while len(self._rest) < count:
            more = self.socket.recv(262_144)
            if not more:
                raise EOFError
            self._rest += more
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def frame(self) -> Frame:
        """The next frame. Raises EOFError at the end of the connection."""
        first, second = self._read(2)
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(self._read(2), "big")
        elif size == 127:
            size = int.from_bytes(self._read(8), "big")
        return Frame(first & 0xF, self._read(size))

    def close_code(self, limit_s: float = 10) -> int:
        """Reads on until the other side closes: its code, 0 when it just hung up."""
        self.socket.settimeout(limit_s)
        try:
            while True:
                frame = self.frame()
                if frame.opcode == 8:
                    return int.from_bytes(frame.data[:2], "big") if frame.data else 0
        except (EOFError, ConnectionError):
            return 0

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def viewer(edge: EdgeServer, machine_id: str, pass_: str | None = None, **more: int) -> WebSocket:
    """A viewer with all that is asked for."""
    return WebSocket(
        edge,
        f"/stream/{machine_id}/rfb",
        Origin=edge.origin,
        Cookie=pass_ or cookie(edge, machine_id),
        **more,  # type: ignore[arg-type]
    )
