"""From a machine's display to one viewer: bytes in, effects out. Never drops, never grows. Pure: no sockets, no clock.

A display protocol's updates build on each other, so nothing may be left out for a viewer that can't keep up: the
machine is paused instead, and its own flow control then makes fewer, newer pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_BYTES_MAX = 65_536  # one read from the machine
HELD_BYTES_MAX = 4 * CHUNK_BYTES_MAX  # what may wait for a viewer besides the one message under way


class LocalProtocolError(Exception):
    """The caller broke the pump's rules: our bug."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes to the viewer, then say `sent()`."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop reading from the machine."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Read from the machine again."""


Effect = Send | Pause | Resume


class Pump:
    """At most one `Send` is under way; what arrives meanwhile is held, and joined into the next one."""

    def __init__(self, held_bytes_max: int = HELD_BYTES_MAX, chunk_bytes_max: int = CHUNK_BYTES_MAX) -> None:
        if held_bytes_max < chunk_bytes_max:
            raise LocalProtocolError("one chunk must fit into what may be held")
        self.held_bytes = 0
        self.paused = False
        self._sending = False
        self._held: list[bytes] = []
        self._held_bytes_max = held_bytes_max
        self._chunk_bytes_max = chunk_bytes_max

    def __repr__(self) -> str:
        going = "sending" if self._sending else "waiting"
        return f"<Pump [{going}{', paused' if self.paused else ''}, {self.held_bytes} bytes held]>"

    def read(self, chunk: bytes) -> list[Effect]:
        """The machine sent `chunk`. Not to be called while paused, or with more than `chunk_bytes_max`."""
        if self.paused or len(chunk) > self._chunk_bytes_max:
            raise LocalProtocolError("read while paused, or too much at once")
        if not chunk:
            return []
        if not self._sending:
            self._sending = True
            return [Send(chunk)]
        self._held.append(chunk)
        self.held_bytes += len(chunk)
        # Pause while one more chunk would still fit: the bound holds whatever the machine sends.
        if self.held_bytes + self._chunk_bytes_max > self._held_bytes_max:
            self.paused = True
            return [Pause()]
        return []

    def sent(self) -> list[Effect]:
        """The viewer took the last `Send`."""
        if not self._sending:
            raise LocalProtocolError("nothing was being sent")
        if not self._held:
            self._sending = False
            return []
        effects: list[Effect] = [Send(b"".join(self._held))]
        self._held.clear()
        self.held_bytes = 0
        if self.paused:
            self.paused = False
            effects.append(Resume())
        return effects
