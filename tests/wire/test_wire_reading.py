"""Requests that are not what they should be: each is a SerializationException in both protocols, never a fault."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.api import wire_cbor, wire_json
from millstream.api.route import WIRES
from millstream.api.wire import Wire
from millstream.model import cbor
from millstream.model import shapes as aws
from millstream.model.errors import SerializationException
from millstream.model.shape import Structure


def body(wire: Wire, document: Any) -> bytes:
    if wire is wire_json:
        return json.dumps(document).encode()

    def nil(value: Any) -> bytes:
        """As cbor.encode, with nil, which a client may send and we never write."""
        if type(value) is dict:
            return cbor.head(5, len(value)) + b"".join(cbor.encode(key) + nil(item) for key, item in value.items())
        if type(value) is list:
            return cbor.head(4, len(value)) + b"".join(nil(item) for item in value)
        return b"\xf6" if value is None else cbor.encode(value)

    return nil(document)


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.NAME)
@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"Name": 1}, r"NUMBER_VALUE can not be converted to a String \(at 'Name'\)"),
        ({"Name": 1.5}, "DECIMAL_VALUE can not be converted to a String"),
        ({"Name": True}, "TRUE_VALUE can not be converted to a String"),
        ({"Name": ["a"]}, r"Start of list found where not expected \(at 'Name'\)"),
        ({"Name": {"a": "b"}}, "Start of structure or map found where not expected"),
        ({"EnableDefaultInternetAccess": "true"}, "STRING_VALUE can not be converted to a Boolean"),
        ({"EnableDefaultInternetAccess": 0}, "NUMBER_VALUE can not be converted to a Boolean"),
        (
            {"RootVolumeConfig": {"VolumeSizeInGb": "9"}},
            r"STRING_VALUE can not be .* \(at 'RootVolumeConfig.VolumeSizeInGb'\)",
        ),
        ({"RootVolumeConfig": {"VolumeSizeInGb": 1.5}}, "DECIMAL_VALUE can not be converted to an Integer"),
        ({"RootVolumeConfig": {"VolumeSizeInGb": 2**31}}, "NUMBER_VALUE can not be converted to an Integer"),
        ({"RootVolumeConfig": {"VolumeSizeInGb": True}}, "TRUE_VALUE can not be converted to an Integer"),
        ({"VpcConfig": []}, r"Start of list found where not expected \(at 'VpcConfig'\)"),
        ({"VpcConfig": "x"}, "STRING_VALUE can not be converted to a structure"),
        ({"VpcConfig": {"SubnetIds": {}}}, r"Start of structure .* \(at 'VpcConfig.SubnetIds'\)"),
        ({"VpcConfig": {"SubnetIds": "x"}}, "STRING_VALUE can not be converted to a list"),
        ({"VpcConfig": {"SubnetIds": ["x", None]}}, r"NULL_VALUE .* \(at 'VpcConfig.SubnetIds\[1\]'\)"),
        ({"Tags": ["x"]}, "Start of list found where not expected"),
        ({"Tags": {"a": 1}}, r"NUMBER_VALUE .* \(at 'Tags\[a\]'\)"),
        ({"Tags": {"a": None}}, "NULL_VALUE can not be converted to a String"),
        ([], "Start of list found where not expected"),
        ("x", "STRING_VALUE"),
        (None, "NULL_VALUE"),
        (1, "NUMBER_VALUE"),
    ],
)
def test_a_member_of_another_kind(wire: Wire, document: Any, words: str) -> None:
    with pytest.raises(SerializationException, match=words):
        wire.decode(aws.CreateImageBuilder, body(wire, document))


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.NAME)
def test_null_is_absent_unknown_is_told_and_whole_floats_are_whole(wire: Wire) -> None:
    document: dict[str, Any] = {
        "Name": "a",
        "Description": None,
        "Colour": {"Name": [1, None, {}]},
        "name": "b",
        "VpcConfig": {"SubnetIds": [], "Zone": 1, "SecurityGroupIds": None},
        "RootVolumeConfig": {"VolumeSizeInGb": 200.0},
    }
    request, unknown = wire.decode(aws.CreateImageBuilder, body(wire, document))
    assert request == {"Name": "a", "VpcConfig": {"SubnetIds": []}, "RootVolumeConfig": {"VolumeSizeInGb": 200}}
    assert type(request["RootVolumeConfig"]["VolumeSizeInGb"]) is int
    assert unknown == ["Colour", "name", "VpcConfig.Zone"]


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.NAME)
def test_an_empty_body_is_no_request_where_a_request_could_say_something(wire: Wire) -> None:
    for operation in aws.OPERATIONS.values():
        shape = aws.SHAPES[operation.input]
        assert isinstance(shape, Structure)
        if shape.members:
            with pytest.raises(SerializationException, match="empty"):
                wire.decode(operation, b"")
        else:
            assert wire.decode(operation, b"") == ({}, [])
        assert wire.decode(operation, body(wire, {})) == ({}, [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"Name":"a","Name":"b"}', "twice"),
        (b'{"Name":"a","N\\u0061me":"b"}', "twice"),  # the same key in another spelling
        (b'{"Unknown":{"x":[{"a":1,"a":2}]}}', "twice"),
        (b'{"Name":NaN}', "not valid JSON"),
        (b'{"Name":Infinity}', "not valid JSON"),
        (b'{"Name":1e999}', "not valid JSON"),
        (b'{"Name":"\\ud800"}', "not valid JSON"),
        (b'{"Name":"\\udc00x"}', "not valid JSON"),
        (b'{"Name":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"Name":"\xff"}', "UTF-8"),
        (b'\xef\xbb\xbf{"Name":"a"}', "not valid JSON"),
        (b'{"Name":"a"}{}', "not valid JSON"),
        (b'{"Name":"a",}', "not valid JSON"),
        (b"{'Name':'a'}", "not valid JSON"),
        (b'{"Name":"a"', "not valid JSON"),
        (b'{"Name":"a\n"}', "not valid JSON"),
        (b'{"Name":01}', "not valid JSON"),
        (b'{"Name":"a"}\x00', "not valid JSON"),
        (b'{"X":' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"X":' + b"[" * 64 + b"]" * 64 + b"}", "64 deep"),
        (b'{"X":' + b'{"a":' * 64 + b"1" + b"}" * 65, "64 deep"),
        (b'{"X":' + b"[" * 500_000 + b"]" * 500_000 + b"}", "64 deep"),
        (b"[" * 1_000_000, "64 deep"),
    ],
)
def test_json_is_read_strictly(text: bytes, why: str) -> None:
    with pytest.raises(SerializationException, match=why):
        wire_json.decode(aws.CreateImageBuilder, text)


def test_json_that_only_looks_doubled_is_taken() -> None:
    text = '{"Name":"a:b\\\\","Description":"\\"Name\\":\\"b\\",{}[]:","Tags":{":":":::","Name":"Name"},"X":[{"a":1},{"a":2}]}'
    request, unknown = wire_json.decode(aws.CreateImageBuilder, text.encode())
    assert request == {"Name": "a:b\\", "Description": '"Name":"b",{}[]:', "Tags": {":": ":::", "Name": "Name"}}
    assert unknown == ["X"]
    wire_json.decode(aws.CreateImageBuilder, b'{"X":' + b"[" * 63 + b"]" * 63 + b"}")


@settings(max_examples=1500, deadline=None, database=None)
@given(
    st.binary(max_size=80)
    | st.lists(
        st.sampled_from(
            [b'"Name"', b":", b",", b"{", b"}", b"[", b"]", b'"Tags"', b"1", b"null", b'"\\', b'"', b"\\ud8"]
        ),
        max_size=30,
    ).map(b"".join)
)
def test_any_bytes_give_a_request_or_a_serialization_exception(text: bytes) -> None:
    for wire in WIRES:
        for operation in (aws.CreateImageBuilder, aws.DescribeImageBuilders):
            try:
                request, _ = wire.decode(operation, text)
            except SerializationException:
                continue
            assert type(request) is dict


def test_a_megabyte_is_read_within_a_second() -> None:
    size = 1 << 20
    for text in (
        b'{"Name":"' + b"x" * size + b'"}',
        b'{"Name":"' + b"\\\\" * (size // 2) + b'"}',
        b'{"X":[' + b"1," * (size // 2) + b"1]}",
        b'{"X":[' + b"{}," * (size // 3) + b"{}]}",
        b'{"Tags":{' + b",".join(b'"%d":""' % n for n in range(size // 12)) + b"}}",
        b'"' * size,
        b'{"a":"' * (size // 6),
    ):
        started = time.process_time()
        with contextlib.suppress(SerializationException):
            wire_json.decode(aws.CreateImageBuilder, text)
        assert time.process_time() - started < 1.5


def test_cbor_moments_need_their_tag() -> None:
    from millstream.model.document import read_cbor

    moment = cbor.encode({"CreatedTime": cbor.Moment(1.5)})
    assert read_cbor("ImageBuilder", moment) == ({"CreatedTime": 1.5}, [])
    assert read_cbor("ImageBuilder", b"\xa1\x6bCreatedTime\xc1\x1a\x65\x53\xf1\x00") == (
        {"CreatedTime": 1700000000.0},
        [],
    )
    for value in (1.5, 1700000000, "now", cbor.Moment(1e30)):
        with pytest.raises(SerializationException, match="a Timestamp"):
            read_cbor("ImageBuilder", cbor.encode({"CreatedTime": value}))
    with pytest.raises(SerializationException, match="TIMESTAMP_VALUE"):
        wire_cbor.decode(aws.CreateImageBuilder, cbor.encode({"Name": cbor.Moment(1)}))
