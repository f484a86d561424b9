"""Our CBOR: whatever comes in, a value or a SerializationException; what both accept, another library reads alike."""

from __future__ import annotations

import math
import struct
import time
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millstream.model import cbor
from millstream.model.errors import SerializationException

MANY = settings(max_examples=400, deadline=None, database=None)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=30)
    | st.binary(max_size=30)
    | st.floats(-1e9, 4e9).map(cbor.Moment)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)


def written(value: Any, pieces: Any) -> bytes:
    """A document in one of the many forms that CBOR allows; `pieces` chooses among them."""
    if type(value) in {str, bytes} and pieces(st.booleans()):
        major = 3 if type(value) is str else 2
        cut = pieces(st.integers(0, len(value)))
        parts = [part.encode() if isinstance(part, str) else part for part in (value[:cut], value[cut:])]
        return bytes([major << 5 | 31]) + b"".join(cbor.head(major, len(part)) + part for part in parts) + b"\xff"
    if type(value) is list:
        body = b"".join(written(item, pieces) for item in value)
        return b"\x9f" + body + b"\xff" if pieces(st.booleans()) else cbor.head(4, len(value)) + body
    if type(value) is dict:
        body = b"".join(cbor.encode(key) + written(item, pieces) for key, item in value.items())
        return b"\xbf" + body + b"\xff" if pieces(st.booleans()) else cbor.head(5, len(value)) + body
    if type(value) is int and pieces(st.booleans()):  # longer than it need be
        return bytes([(0x3B if value < 0 else 0x1B)]) + (-1 - value if value < 0 else value).to_bytes(8)
    if value is None:
        return bytes([pieces(st.sampled_from([0xF6, 0xF7]))])
    if type(value) is float and struct.unpack(">f", struct.pack(">f", value if abs(value) < 3e38 else 0.0))[0] == value:
        return b"\xfa" + struct.pack(">f", value)
    return cbor.encode(value)


def same(ours: Any, theirs: Any) -> bool:
    """Equal, and of the same kinds."""
    if isinstance(ours, cbor.Moment):
        return isinstance(theirs, datetime) and math.isclose(theirs.timestamp(), ours, abs_tol=1e-3)
    if type(ours) is list:
        return type(theirs) is list and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if type(ours) is dict:
        return type(theirs) is dict and ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if theirs is cbor2.undefined:
        return ours is None
    return type(ours) is type(theirs) and bool(ours == theirs)


@MANY
@given(values, st.data())
def test_every_form_of_a_value_reads_as_the_value(value: Any, data: st.DataObject) -> None:
    assert cbor.decode(written(value, data.draw)) == value


@MANY
@given(values)
def test_what_we_write_another_library_reads_alike(value: Any) -> None:
    def without_nil(value: Any) -> Any:
        if type(value) is list:
            return [without_nil(item) for item in value if item is not None]
        if type(value) is dict:
            return {key: without_nil(item) for key, item in value.items() if item is not None}
        return 0 if value is None else value

    value = without_nil(value)
    body = cbor.encode(value)
    assert same(value, cbor2.loads(body))
    assert cbor.encode(cbor.decode(body)) == body


@settings(max_examples=3000, deadline=None, database=None)
@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"\x9f", b"\xbf", b"\xff", b"\xc1", b"\x61a", b"\x01", b"\x5f", b"\x7f", b"\xfb", b"\xa1", b"\x82", b"\xf6"]), max_size=30).map(b"".join))  # fmt: skip
@example(b"\x9b" + b"\xff" * 8)
@example(b"\xbb" + b"\x7f" * 8 + b"\x61a")
@example(b"\xc1\xc1\xc1\x00")
def test_any_bytes_give_a_value_or_a_serialization_exception(body: bytes) -> None:
    try:
        value = cbor.decode(body)
    except SerializationException:
        return
    try:
        theirs = cbor2.loads(body)
    except (cbor2.CBORDecodeError, OverflowError, ValueError):
        assert isinstance(value, cbor.Moment) or b"\xc1" in body  # a moment that datetime cannot hold
        return
    if isinstance(theirs, dict | list):
        assert type(value) is type(theirs)
        assert len(value) == len(theirs)


@MANY
@given(values, st.data())
def test_every_truncation_and_every_extension_is_refused(value: Any, data: st.DataObject) -> None:
    body = written(value, data.draw)
    for end in range(len(body)):
        with pytest.raises(SerializationException):
            cbor.decode(body[:end])
    with pytest.raises(SerializationException, match="follow"):
        cbor.decode(body + b"\x00")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"\xa2\x61a\x01\x61a\x02", "twice"),
        (b"\xbf\x61a\x01\x61a\x02\xff", "twice"),
        (b"\xa1\x01\x02", "not a text"),
        (b"\xa1\x41a\x02", "not a text"),
        (b"\x61\xff", "UTF-8"),
        (b"\x63\xed\xa0\x80", "UTF-8"),  # half a surrogate pair
        (b"\x7f\x61\xc3\x61\xa9\xff", "UTF-8"),  # a character cut by a piece's end
        (b"\x7f\x41a\xff", "another kind"),
        (b"\x5f\x5f\xff\xff", "another kind"),
        (b"\xf9\x7e\x00", "finite"),
        (b"\xfb\x7f\xf0" + b"\0" * 6, "finite"),
        (b"\xc0\x74" + b"2020-01-01T00:00:00Z"[:20], "tag 1"),
        (b"\xc2\x41\x01", "tag 1"),
        (b"\xd8\x1d\x00", "tag 1"),  # a shared value
        (b"\xd8\x23\x63(a+", "tag 1"),  # a regular expression
        (b"\xc1\x61a", "not a number"),
        (b"\xc1\xf5", "not a number"),
        (b"\xe0", "no item"),
        (b"\xf8\x20", "no item"),
        (b"\xff", "no item"),
        (b"\x1c", "no item"),
        (b"\x1f", "no item"),
        (b"\xdf\x01", "no item"),
        (b"", "too early"),
    ],
)
def test_what_the_protocol_has_no_word_for_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(SerializationException, match=why):
        cbor.decode(body)


@pytest.mark.parametrize("opening", [b"\x81", b"\x9f", b"\xa1\x61a", b"\xbf\x61a", b"\xc1"])
def test_depth_is_bounded(opening: bytes) -> None:
    for depth in (65, 1000, 400_000):
        with pytest.raises(SerializationException, match=r"64 deep|not a number"):
            cbor.decode(opening * depth + b"\x01")
    if opening == b"\x81":
        assert cbor.decode(opening * 64 + b"\x01")


def test_declared_lengths_buy_neither_memory_nor_time() -> None:
    tracemalloc.start()
    started = time.perf_counter()
    for major in (2, 3, 4, 5):
        for body in (cbor.head(major, 2**63), cbor.head(major, 2**31) + b"\x61a" * 10):
            with pytest.raises(SerializationException):
                cbor.decode(body)
    assert time.perf_counter() - started < 0.1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_megabyte_of_anything_takes_no_more_than_a_second() -> None:
    size = 1 << 20
    for body in (
        b"\x9f" + b"\x01" * size + b"\xff",
        b"\x7f" + b"\x60" * size + b"\xff",
        b"\x5f" + b"\x41a" * (size // 2) + b"\xff",
    ):
        started = time.process_time()
        cbor.decode(body)
        assert time.process_time() - started < 1.5


def test_writing_refuses_what_the_protocol_has_no_word_for() -> None:
    for value in (
        None,
        [None],
        {"a": None},
        {1: 2},
        math.nan,
        math.inf,
        2**64,
        -(2**64) - 1,
        {1, 2},
        datetime.now(UTC),
    ):
        with pytest.raises(TypeError):
            cbor.encode(value)
    with pytest.raises(UnicodeEncodeError):
        cbor.encode("\ud800")
