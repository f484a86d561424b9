"""The engines that a stream can run on: one line each. A second one is one more line and its filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from millstream.gateway.rfb import ClientFilter, Rules


class Filter(Protocol):
    """What a viewer sends, looked through before it reaches the machine."""

    inputs: int  # grows with every deed of the person
    counts: Counter[tuple[str, str]]  # (kind, verdict)

    def feed(self, data: bytes) -> bytes:
        """What may pass. Raises RemoteProtocolError."""


@dataclass(frozen=True, slots=True)
class Engine:
    path: str  # of its WebSocket, below the machine's prefix
    kind: str  # what `Streams.open_stream` is asked for
    make_filter: Callable[[Rules], Filter]


ENGINES = {engine.path: engine for engine in (Engine("rfb", "rfb", ClientFilter),)}
