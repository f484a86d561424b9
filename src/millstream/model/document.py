"""Documents (dicts in the wire's spelling) read from and written to both wires' bytes, led by the model's shapes.

Reading checks kinds only; bounds and patterns are `api/validate.py`'s. Pure: no HTTP.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.model import cbor
from millstream.model.errors import SerializationException
from millstream.model.shape import Flag, Instant, ListOf, MapOf, Structure, Text, Whole
from millstream.model.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterable

DEPTH_MAX = cbor.DEPTH_MAX
SECONDS_MAX = 253402300799.0  # the end of year 9999: no client can show a later moment

_JSON_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder().encode


# --- reading ---------------------------------------------------------------------------------------------------------


def read_json(shape: str, body: bytes) -> tuple[dict[str, Any], list[str]]:
    """The document and the paths of members that the model does not know (left out of it).

    Raises SerializationException for anything that is not one JSON object of this shape: bad syntax, a key given
    twice, half a surrogate pair, NaN, more than 64 levels, a member of another kind.
    """
    try:
        value = _decode_json(body)
    except msgspec.DecodeError as error:
        raise SerializationException(f"The body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise SerializationException("The body is not valid JSON: a text is not UTF-8") from None
    except RecursionError:
        raise SerializationException(f"The body is not valid JSON: nested more than {DEPTH_MAX} deep") from None
    # The decoder keeps the last of two equal keys. Every key has its colon, and outside of strings nothing else has:
    # if the document holds fewer keys than the body colons, one came twice.
    keys = _keys(value, 0)
    if keys != body.count(b":") and keys != _JSON_STRING.sub(b"", body).count(b":"):
        raise SerializationException("The body is not valid JSON: a key comes twice")
    return _read_document(shape, value, float)


def read_cbor(shape: str, body: bytes) -> tuple[dict[str, Any], list[str]]:
    """As `read_json`, for CBOR: timestamps must carry tag 1."""
    return _read_document(shape, cbor.decode(body), cbor.Moment)


def _keys(value: Any, depth: int) -> int:
    """How many keys the objects in `value` have, all levels together."""
    if type(value) is dict:
        inner: Iterable[Any] = value.values()
        count = len(value)
    elif type(value) is list:
        inner, count = value, 0
    else:
        return 0
    if depth >= DEPTH_MAX:
        raise SerializationException(f"The body is not valid JSON: nested more than {DEPTH_MAX} deep")
    return count + sum([_keys(item, depth + 1) for item in inner if type(item) is dict or type(item) is list])


def _read_document(shape: str, value: Any, moment: type[float]) -> tuple[dict[str, Any], list[str]]:
    if type(value) is not dict:
        raise SerializationException(_found(value, "a structure"))
    unknown: list[str] = []
    document: dict[str, Any] = _read(shape, value, "", moment, unknown)
    return document, unknown


def _read(name: str, value: Any, path: str, moment: type[float], unknown: list[str]) -> Any:
    """`value` as the shape `name` wants it. A null member counts as absent; a null item is an error."""
    shape = SHAPES[name]
    kind = type(value)
    match shape:
        case Text():
            if kind is str:
                return value
            raise _mismatch(value, "a String", path)
        case Structure():
            if kind is not dict:
                raise _mismatch(value, "a structure", path)
            document = {}
            for key, item in value.items():
                member = shape.members.get(key)
                if member is None:
                    unknown.append(f"{path}.{key}" if path else key)
                elif item is not None:
                    document[key] = _read(member, item, f"{path}.{key}" if path else key, moment, unknown)
            return document
        case ListOf():
            if kind is not list:
                raise _mismatch(value, "a list", path)
            return [_read(shape.member, item, f"{path}[{at}]", moment, unknown) for at, item in enumerate(value)]
        case MapOf():
            if kind is not dict:
                raise _mismatch(value, "a map", path)
            return {key: _read(shape.value, item, f"{path}[{key}]", moment, unknown) for key, item in value.items()}
        case Flag():
            if kind is bool:
                return value
            raise _mismatch(value, "a Boolean", path)
        case Whole():
            # A program without integers sends 5 as 5.0; nothing is lost by taking it.
            if kind is int or (kind is float and value.is_integer()):
                limit = 1 << (shape.bits - 1)
                if -limit <= value < limit:
                    return int(value)
            raise _mismatch(value, "an Integer" if shape.bits == 32 else "a Long", path)
        case Instant():
            # JSON has numbers only; CBOR marks moments.
            if (kind is moment or (kind is int and moment is float)) and abs(value) <= SECONDS_MAX:
                return float(value)
            raise _mismatch(value, "a Timestamp", path)


def _mismatch(value: Any, wanted: str, path: str) -> SerializationException:
    return SerializationException(f"{_found(value, wanted)} (at '{path[:200]}')")


def _found(value: Any, wanted: str) -> str:
    """The words of the JSON services, as far as they are known."""
    match value:
        case dict():
            return "Start of structure or map found where not expected."
        case list():
            return "Start of list found where not expected"
        case None:
            return f"NULL_VALUE can not be converted to {wanted}"
        case bool():
            return f"{'TRUE' if value else 'FALSE'}_VALUE can not be converted to {wanted}"
        case str():
            return f"STRING_VALUE can not be converted to {wanted}"
        case bytes():
            return f"BLOB_VALUE can not be converted to {wanted}"
        case cbor.Moment():
            return f"TIMESTAMP_VALUE can not be converted to {wanted}"
        case float():
            return f"DECIMAL_VALUE can not be converted to {wanted}"
        case _:
            return f"NUMBER_VALUE can not be converted to {wanted}"


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_json(shape: str, document: Any) -> bytes:
    """The document's bytes for awsJson1.1. TypeError if it is not exactly of this shape: our own bug."""
    return _encode_json(_written(shape, document, float))


def encode_cbor(shape: str, document: Any) -> bytes:
    """The document's bytes for rpc-v2-cbor: no nil, whole numbers as integers, moments under tag 1 as doubles."""
    return cbor.encode(_written(shape, document, cbor.Moment))


def join_json(member: str, documents: Iterable[bytes], next_token: str | None) -> bytes:
    """A page of documents that `encode_json` wrote: `{"ImageBuilders":[…],"NextToken":"…"}`."""
    token = b',"NextToken":' + _encode_json(next_token) if next_token is not None else b""
    return b'{"%b":[%b]%b}' % (member.encode(), b",".join(documents), token)


def join_cbor(member: str, documents: Iterable[bytes], next_token: str | None) -> bytes:
    """A page of documents that `encode_cbor` wrote."""
    pages = list(documents)
    token = cbor.encode("NextToken") + cbor.encode(next_token) if next_token is not None else b""
    return b"".join([cbor.head(5, 1 + bool(token)), cbor.encode(member), cbor.head(4, len(pages)), *pages, token])


def _written(name: str, value: Any, moment: type[float]) -> Any:
    """`value` ready for an encoder, every part checked against its shape."""
    shape = SHAPES[name]
    kind = type(value)
    match shape:
        case Structure() if kind is dict and value.keys() <= shape.members.keys():
            return {key: _written(shape.members[key], item, moment) for key, item in value.items()}
        case ListOf() if kind is list:
            return [_written(shape.member, item, moment) for item in value]
        case MapOf() if kind is dict:
            return {
                _written(shape.key, key, moment): _written(shape.value, item, moment) for key, item in value.items()
            }
        case Text() if isinstance(value, str):
            return str(value)
        case Flag() if kind is bool:
            return value
        case Whole() if kind is int and -1 << (shape.bits - 1) <= value < 1 << (shape.bits - 1):
            return value
        case Instant() if (kind is float or kind is int) and math.isfinite(value):
            return moment(value)
    raise TypeError(f"a document of ours is not of its shape: {name} can't be {value!r:.200}")
