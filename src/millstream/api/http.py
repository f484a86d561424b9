"""One HTTP request as the door hands it on, one answer as the door takes it. Plain data: no socket, no parser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec


class Request(msgspec.Struct, frozen=True):
    """A whole request: its body has arrived, as long as it said it would be.

    `target` is the raw path and query, undecoded, since a signature covers just that. `headers` are in order, names
    in lower case, values without blanks around them; no name holds an underscore. `fields` is the last value by
    name: the door refuses a second value of each name that the product reads (`server.SINGLE`).

    A msgspec.Struct and not a dataclass: it is made once a request, and a frozen dataclass costs six times as much.
    """

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    peer: str  # the address of who dialled, without port
    fields: dict[bytes, bytes]

    @classmethod
    def of(
        cls, method: bytes, target: bytes, headers: tuple[tuple[bytes, bytes], ...], body: bytes = b"", peer: str = ""
    ) -> Request:
        """Make one from its parts, with names in any case and blanks around values."""
        lowered = tuple((name.lower(), value.strip(b" \t")) for name, value in headers)
        return cls(method, target, lowered, body, peer, dict(lowered))


@dataclass(slots=True)
class Response:
    """An answer. The door adds Content-Length, Date and Connection."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


# Reads answer inline on the loop; a write returns an awaitable that its commit resolves.
App = Callable[[Request], Response | Awaitable[Response]]
