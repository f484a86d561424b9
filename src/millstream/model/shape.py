"""The kinds of shape that the service model knows, as plain data. `shapes.py` (generated) is made of these."""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
    size_min: int = 0  # code points
    size_max: int | None = None
    pattern: str = ""  # as the model spells it (Java's dialect), empty: none
    values: tuple[str, ...] = ()  # of an enumeration, empty: none
    sensitive: bool = False  # never shown in an error's text or a log


class Whole(NamedTuple):
    bits: int  # 32 (integer) or 64 (long), signed
    value_min: int | None = None
    value_max: int | None = None


class Flag(NamedTuple):
    pass


class Instant(NamedTuple):
    """Seconds since the epoch, a float."""


class ListOf(NamedTuple):
    member: str  # a shape's name
    size_min: int = 0
    size_max: int | None = None


class MapOf(NamedTuple):
    """Keys are always text."""

    key: str
    value: str
    size_min: int = 0
    size_max: int | None = None


class Structure(NamedTuple):
    members: dict[str, str]  # the wire's spelling → a shape's name
    required: frozenset[str] = frozenset()
    sensitive: bool = False


Shape = Text | Whole | Flag | Instant | ListOf | MapOf | Structure
