"""Tickets and passes: what lets a person through the edge to one machine. Pure: keys and time are arguments.

A *ticket* stands in a streaming URL: anyone who reads the URL has it, so it can be used once and soon expires.
A *pass* is what a ticket is exchanged for: the cookie of one browser, good for one run of one machine.

Both are one line of base64url: a kind byte, fixed fields, text fields with their length before them, HMAC-SHA256.
The kind byte is the version too: another layout gets another byte, and the old one is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

STREAM = "stream"  # the one purpose so far: look at and work on a machine's desktop
OWNER = "owner"  # sees and types
VIEWER = "viewer"  # sees only

PASS_LIFE_S_MAX = 604_800  # a pass ends with its machine's run, and never later than the longest ticket would
TEXT_BYTES_MAX = 1024  # the longest ticket is under 700; refused unread above

_TICKET = 0x01
_PASS = 0x41
_HEAD = struct.Struct(">BQ16s16s")  # kind, seconds, nonce, machine id
_MAC_BYTES = 32
_MACHINE_ID = re.compile(r"[0-9a-f]{32}\Z")
_NONCE = _MACHINE_ID
_FIELD = re.compile(r"[\x21-\x7e]{0,128}\Z")


class TicketError(Exception):
    """Not let in. Made only as one of the three below."""


class Forged(TicketError):  # noqa: N818 - reads as what it is where it is caught
    """Not ours, changed on the way, not the one encoding, or made with a key that is no longer in use."""


class Foreign(TicketError):  # noqa: N818 - as Forged
    """Ours and whole, but for another machine, purpose or account."""


class Expired(TicketError):  # noqa: N818 - as Forged
    """Ours, for this machine, but too old. `at` is when it ended, seconds since the epoch."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


@dataclass(frozen=True, slots=True)
class Ticket:
    """One permission to enter. `machine_id` and `nonce` are 32 lower-case hex digits (a nonce has 128 random bits).

    The other texts are up to 128 printable ASCII characters.
    """

    machine_id: str
    expires_at: int  # seconds since the epoch
    key_id: str  # the access key that asked for it: revoked key, dead ticket
    account: str
    nonce: str
    purpose: str = STREAM
    role: str = OWNER


@dataclass(frozen=True, slots=True)
class Pass:
    """What a used ticket became: the same machine, key and role, bound to one run (`generation`) of the machine."""

    machine_id: str
    generation: str
    issued_at: int  # seconds since the epoch
    key_id: str
    account: str
    nonce: str  # of the ticket that it was given for
    role: str = OWNER


def mint(key: bytes, ticket: Ticket) -> str:
    """The ticket as it stands in a URL. ValueError when a field can't be written (our own mistake)."""
    texts = (ticket.purpose, ticket.key_id, ticket.account, ticket.role)
    return _seal(key, (_TICKET, ticket.expires_at, ticket.nonce, ticket.machine_id), texts)


def open_ticket(text: str, keys: Sequence[bytes], *, now: float, machine_id: str, purpose: str = STREAM) -> Ticket:
    """The ticket in `text`, whole and valid for this machine now. Raises Forged, Foreign or Expired, in this order.

    `keys` are tried one after the other: the key in use and, while rotating, the one before it.
    """
    expires_at, nonce, machine, texts = _open(text, _TICKET, keys, 4)
    ticket = Ticket(machine, expires_at, texts[1], texts[2], nonce, texts[0], texts[3])
    if ticket.machine_id != machine_id or ticket.purpose != purpose:
        raise Foreign
    if now >= ticket.expires_at:
        raise Expired(ticket.expires_at)
    return ticket


def stream_url(public_url: str, ticket: Ticket, text: str) -> str:
    """The address that a person opens: `text` is the minted ticket, `public_url` the edge's outside address."""
    return f"{public_url.rstrip('/')}/stream/{ticket.machine_id}/?ticket={text}"


def mint_pass(key: bytes, granted: Pass) -> str:
    """The pass as it stands in a cookie. ValueError when a field can't be written (our own mistake)."""
    texts = (granted.generation, granted.key_id, granted.account, granted.role)
    return _seal(key, (_PASS, granted.issued_at, granted.nonce, granted.machine_id), texts)


def open_pass(text: str, keys: Sequence[bytes], *, now: float, machine_id: str) -> Pass:
    """The pass in `text`, for this machine. Raises Forged, Foreign or Expired.

    Whether the machine still is in the run that `generation` names, the caller compares.
    """
    issued_at, nonce, machine, texts = _open(text, _PASS, keys, 4)
    granted = Pass(machine, texts[0], issued_at, texts[1], texts[2], nonce, texts[3])
    if granted.machine_id != machine_id:
        raise Foreign
    if now >= granted.issued_at + PASS_LIFE_S_MAX:
        raise Expired(granted.issued_at + PASS_LIFE_S_MAX)
    return granted


def _seal(key: bytes, head: tuple[int, int, str, str], texts: Sequence[str]) -> str:
    kind, seconds, nonce, machine_id = head
    if len(key) < _MAC_BYTES:
        raise ValueError("a ticket key has at least 32 bytes")
    if not _NONCE.match(nonce) or not _MACHINE_ID.match(machine_id) or not all(map(_FIELD.match, texts)):
        raise ValueError("nonce and machine id are 32 hex digits, the rest up to 128 printable characters")
    body = _HEAD.pack(kind, seconds, bytes.fromhex(nonce), bytes.fromhex(machine_id))
    body += b"".join(bytes((len(text),)) + text.encode("ascii") for text in texts)
    return _encode(body + _mac(key, body))


def _open(text: str, kind: int, keys: Sequence[bytes], count: int) -> tuple[int, str, str, list[str]]:
    """(seconds, nonce, machine id, the `count` text fields), or Forged: one answer whatever is wrong."""
    if len(text) > TEXT_BYTES_MAX:
        raise Forged
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise Forged from error
    # Only one text stands for these bytes: spare bits, padding and the other alphabet are refused, so that
    # "used" can't be dodged by writing the same ticket differently.
    if _encode(raw) != text or len(raw) < _HEAD.size + _MAC_BYTES:
        raise Forged
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if not any([hmac.compare_digest(_mac(key, body), mac) for key in keys]) or body[0] != kind:  # noqa: C419 - no early end: the time tells nothing
        raise Forged
    # From here on the bytes are our own.
    _, seconds, nonce, machine_id = _HEAD.unpack_from(body)
    texts, at = [], _HEAD.size
    for _ in range(count):
        end = at + 1 + body[at]
        texts.append(body[at + 1 : end].decode("ascii"))
        at = end
    return seconds, nonce.hex(), machine_id.hex(), texts


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, b"millstream ticket\0" + body, hashlib.sha256)


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
