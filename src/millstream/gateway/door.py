"""Who may knock at all: outside address, Host, Origin, and those who guess tickets. Pure: time is an argument."""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

ADDRESSES_MAX = 4096  # names remembered; the longest silent one is forgotten first
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """The address in the browser's address bar, taken apart once. It is configured, never guessed from a request."""

    scheme: str
    netloc: str  # host, and port unless it is the scheme's own
    prefix: str  # path before ours: "" or "/desks"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc_with_port(self) -> str:
        """As some clients write it: the scheme's own port, too."""
        has_port = ":" in self.netloc.rpartition("]")[2]
        return self.netloc if has_port else f"{self.netloc}:{_DEFAULT_PORTS[self.scheme]}"

    @property
    def secure(self) -> bool:
        return self.scheme == "https"


def public_url(text: str) -> PublicUrl:
    """Raises ValueError when it is no address that a browser could open."""
    parts = urlsplit(text)
    odd = parts.query or parts.fragment or parts.username is not None or not parts.hostname
    if parts.scheme not in _DEFAULT_PORTS or odd or not text.isascii():
        raise ValueError(f"the public address is http(s)://HOST[:PORT][/PREFIX], not {text!r}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    own_port = parts.port in {None, _DEFAULT_PORTS[parts.scheme]}
    return PublicUrl(parts.scheme, f"{host}" if own_port else f"{host}:{parts.port}", parts.path.rstrip("/"))


def host_allowed(values: list[str], allowed: frozenset[str]) -> bool:
    """Exactly one Host, and one of ours: a name that was rebound to our address is somebody else's page."""
    return len(values) == 1 and values[0].lower() in allowed


def origin_allowed(values: list[str], url: PublicUrl) -> bool:
    """Exactly one Origin, and ours to the letter: scheme, host and port. Browsers write it in one way only."""
    return values == [url.origin]


def within(address: str, networks: Iterable[Network]) -> bool:
    """False for what is no address, too."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def caller(peer: str, forwarded: list[str], proxies: Iterable[Network]) -> str:
    """The caller's address: the peer, or behind declared proxies the last address that none of them has.

    IPv6 callers are counted by their /64, which one person easily has.
    """
    found = peer
    for text in (part.strip() for value in reversed(forwarded) for part in reversed(value.split(","))):
        if not within(found, proxies):
            break
        found = text
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return peer  # a proxy of ours passed nonsense on
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else found


class PerMinute:
    """How often a name did something in the last minute: an address guessed tickets, a machine was opened.

    Only further wrong tickets are refused: a right one passes whoever else guesses.
    """

    def __init__(self, per_minute_max: int) -> None:
        self._per_minute_max = per_minute_max
        self._by_name: dict[str, deque[float]] = {}

    def too_many(self, name: str, now: float) -> bool:
        """Counts one more; True, and not counted, when there were too many in the last minute."""
        times = self._by_name.pop(name, None) or deque(maxlen=self._per_minute_max)
        self._by_name[name] = times  # to the end: the longest silent one is forgotten first
        if len(self._by_name) > ADDRESSES_MAX:
            del self._by_name[next(iter(self._by_name))]
        if len(times) == self._per_minute_max and times[0] > now - 60:
            return True
        times.append(now)
        return False
