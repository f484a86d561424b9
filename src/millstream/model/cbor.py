"""CBOR as rpc-v2-cbor uses it (RFC 8949, eight kinds of item and tag 1): a strict reader, a deterministic writer.

The reader's promise: whatever bytes come, it returns a value or raises `SerializationException`, never anything else,
in time and memory proportional to the bytes given (a declared length buys nothing before its bytes are there).
"""

from __future__ import annotations

import math
import struct
from typing import Any

from millstream.model.errors import SerializationException

DEPTH_MAX = 64  # of nested arrays, maps and tags; the model's deepest request has 5

_BREAK = 0xFF
_INDEFINITE = 31
_HALF, _SINGLE, _DOUBLE = struct.Struct(">e"), struct.Struct(">f"), struct.Struct(">d")
_UNSIGNED = {24: 1, 25: 2, 26: 4, 27: 8}  # additional information → bytes of the argument that follow
_FLOATS = {25: _HALF, 26: _SINGLE, 27: _DOUBLE}
_SIMPLE = {20: False, 21: True, 22: None, 23: None}  # the protocol reads `undefined` as null


class Moment(float):
    """Seconds since the epoch: what tag 1 holds, read and written."""

    __slots__ = ()


def decode(data: bytes) -> Any:
    """One item, and nothing after it. Maps become `dict` with text keys, tag 1 a `Moment`, null `None`."""
    value, at = _item(data, 0, 0)
    if at != len(data):
        raise _bad("bytes follow the end of the document", at)
    return value


def encode(value: Any) -> bytes:
    """The shortest form of every item, maps in their own order. TypeError for what the protocol has no word for."""
    out = bytearray()
    _write(out, value)
    return bytes(out)


def head(major: int, argument: int) -> bytes:
    """The first bytes of an item: its major type and its argument (a value or a length), as short as it goes."""
    if argument < 24:
        return bytes((major << 5 | argument,))
    for information, size in _UNSIGNED.items():
        if argument < 1 << size * 8:
            return bytes((major << 5 | information,)) + argument.to_bytes(size)
    raise TypeError(f"{argument} needs more than 64 bits")


def _bad(what: str, at: int) -> SerializationException:
    return SerializationException(f"The body is not valid CBOR: {what} (byte {at})")


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The item that starts at `at`, and where it ends."""
    if at >= len(data):
        raise _bad("it ends too early", at)
    major, information = data[at] >> 5, data[at] & 31
    if major == 7:
        return _simple_or_float(data, at, information)
    start, at = at, at + 1
    if information < 24:
        argument = information
    elif information in _UNSIGNED:
        end = at + _UNSIGNED[information]
        if end > len(data):
            raise _bad("it ends too early", len(data))
        argument, at = int.from_bytes(data[at:end]), end
    elif information == _INDEFINITE and 2 <= major <= 5:
        argument = -1
    else:
        raise _bad(f"no item starts with 0x{data[start]:02x}", start)

    if major == 0:
        return argument, at
    if major == 1:
        return -1 - argument, at
    if major <= 3:
        return _string(data, at, major, argument) if argument >= 0 else _chunks(data, at, major)
    if depth >= DEPTH_MAX:
        raise _bad(f"it is nested more than {DEPTH_MAX} deep", start)
    if major == 4:
        return _array(data, at, argument, depth + 1)
    if major == 5:
        return _map(data, at, argument, depth + 1)
    return _moment(data, start, at, argument, depth + 1)


def _string(data: bytes, at: int, major: int, size: int) -> tuple[bytes | str, int]:
    end = at + size
    if end > len(data):
        raise _bad("a string ends too early", len(data))
    if major == 2:
        return data[at:end], end
    try:
        return data[at:end].decode(), end
    except UnicodeDecodeError:
        raise _bad("a text is not UTF-8", at) from None


def _chunks(data: bytes, at: int, major: int) -> tuple[bytes | str, int]:
    """A string of unknown length: strings of known length and the same kind, until a break."""
    parts: list[Any] = []
    while at < len(data) and data[at] != _BREAK:
        if data[at] >> 5 != major or data[at] & 31 == _INDEFINITE:
            raise _bad("a piece of a string is of another kind", at)
        part, at = _item(data, at, 0)
        parts.append(part)
    if at >= len(data):
        raise _bad("a string ends too early", at)
    return (b"" if major == 2 else "").join(parts), at + 1


def _array(data: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while count < 0 or len(items) < count:
        if count < 0 and at < len(data) and data[at] == _BREAK:
            return items, at + 1
        value, at = _item(data, at, depth)
        items.append(value)
    return items, at


def _map(data: bytes, at: int, count: int, depth: int) -> tuple[dict[str, Any], int]:
    members: dict[str, Any] = {}
    while count < 0 or len(members) < count:
        if count < 0 and at < len(data) and data[at] == _BREAK:
            return members, at + 1
        start = at
        key, at = _item(data, at, depth)
        if type(key) is not str:
            raise _bad("a key is not a text", start)
        if key in members:
            raise _bad("a key comes twice", start)
        members[key], at = _item(data, at, depth)
    return members, at


def _moment(data: bytes, start: int, at: int, tag: int, depth: int) -> tuple[Moment, int]:
    if tag != 1:
        raise _bad("only tag 1 (a timestamp) is known", start)
    value, at = _item(data, at, depth)
    if type(value) not in {int, float}:
        raise _bad("a timestamp is not a number", start)
    return Moment(value), at


def _simple_or_float(data: bytes, at: int, information: int) -> tuple[float | bool | None, int]:
    if information in _SIMPLE:
        return _SIMPLE[information], at + 1
    form = _FLOATS.get(information)
    if form is None:
        raise _bad(f"no item starts with 0x{data[at]:02x}", at)
    end = at + 1 + form.size
    if end > len(data):
        raise _bad("a number ends too early", len(data))
    number: float = form.unpack_from(data, at + 1)[0]
    if not math.isfinite(number):  # no shape of the model takes one
        raise _bad("a number is not finite", at)
    return number, end


def _write(out: bytearray, value: Any) -> None:
    kind = type(value)
    if kind is str:
        text = value.encode()
        out += head(3, len(text))
        out += text
    elif kind is bool:
        out.append(0xF5 if value else 0xF4)
    elif kind is int:
        out += head(0, value) if value >= 0 else head(1, -1 - value)
    elif kind is Moment:
        out.append(0xC1)
        _write(out, float(value))
    elif kind is float and math.isfinite(value):
        out.append(0xFB)
        out += _DOUBLE.pack(value)
    elif kind is bytes:
        out += head(2, len(value))
        out += value
    elif kind is list:
        out += head(4, len(value))
        for item in value:
            _write(out, item)
    elif kind is dict:
        out += head(5, len(value))
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"a key must be a text, not {key!r}")
            _write(out, key)
            _write(out, item)
    else:
        raise TypeError(f"rpc-v2-cbor has no word for {value!r}")
