"""What the edge asks of the rest of the house: two small protocols (`Streams` stands in `capacity.driver`), its
settings, and the words in which a stream ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from millstream.gateway.rfb import CLIPBOARD_BYTES_MAX

if TYPE_CHECKING:
    import ssl

    from millstream.model.records import Health


@dataclass(frozen=True, slots=True)
class Target:
    """One machine as a person who opens its link needs to know it."""

    machine_id: str  # 32 lower-case hex digits; not a secret
    name: str  # the resource's name, for the pages
    account: str
    state: str  # as Describe shows it: RUNNING, STOPPED, …
    generation: str  # another text after every start of the machine: passes of an earlier run are refused
    running: bool  # may be streamed now
    reason: str = ""  # one sentence, when the state needs one
    coming: bool = False  # not running, but on its way: the page waits
    display: bool = True  # False: this capacity has no desktops at all (simulated)


class Sessions(Protocol):
    """The rows, as the edge sees them. Called from the edge's loop; what may wait for a commit says so."""

    def target(self, machine_id: str) -> Target | None:
        """The machine now, None when there is none. At most 1 ms: called in the loop."""

    def key_alive(self, key_id: str) -> bool:
        """False once the access key that asked for a ticket was revoked. At most 1 ms."""

    def ticket_keys(self) -> tuple[bytes, ...]:
        """The keys that tickets are checked with, the one in use first; two while rotating. At most 1 ms."""

    def use_ticket(self, nonce: str, expires_at: int) -> bool:
        """True the first time, for all edges together. May be forgotten after `expires_at`. Called in a thread."""

    def seen(self, machine_id: str, viewers: int, last_input: float | None) -> None:
        """`viewers` look on now; the person's last key or move, seconds since the epoch. In a thread, ≤ 1/s."""

    def health(self) -> Health:
        """Would a create succeed now? Called in a thread."""


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """How the edge listens and what it allows. The defaults are for one machine, one person, loopback."""

    host: str = "127.0.0.1"
    port: int = 8401
    public_url: str = "http://127.0.0.1:8401"  # what browsers see: scheme, host, port and path prefix
    tls: ssl.SSLContext | None = None
    hosts: tuple[str, ...] = ()  # further Host values that a proxy in front sends
    proxies: tuple[str, ...] = ()  # networks of such proxies: their X-Forwarded-For is believed
    metrics_token: str = field(default="", repr=False)  # lets others than loopback read /metrics
    clipboard_bytes_max: int = CLIPBOARD_BYTES_MAX  # into a machine, at once
    streams_max: int = 512
    streams_per_machine_max: int = 8
    streams_per_minute_max: int = 300  # of one machine: each is a commit and three lines in the log
    connections_per_address_max: int = 256
    wrong_tickets_per_minute_max: int = 20
    silent_viewer_s: float = 30.0
    head_s: float = 15.0  # for a request's head, and between two requests of one connection
    watch_s: float = 1.0  # how often a running stream's right to run is looked at: cut ≤ 2 s after it ended


class Close(IntEnum):
    """Why we ended a WebSocket. `stream.js` holds the sentences; a test compares both."""

    STOPPED = 4001
    DELETED = 4002
    TAKEN_OVER = 4003
    WITHDRAWN = 4004  # key revoked, or the pass is of an earlier run
    MACHINE_LOST = 4005
    SLOW = 4006
    GRAMMAR = 4007
    RESTARTING = 4008
