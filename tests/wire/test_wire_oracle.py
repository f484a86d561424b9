"""botocore is the oracle: what it writes we read, what we write it reads, for all operations in both protocols."""

from __future__ import annotations

from functools import cache
from typing import Any

import botocore.loaders
import botocore.model
import botocore.parsers
import botocore.serialize
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millstream.api import wire_cbor, wire_json
from millstream.api.route import WIRES, route
from millstream.api.validate import validate
from millstream.api.wire import Wire
from millstream.model import cbor, errors
from millstream.model import shapes as aws
from millstream.model.document import encode_cbor, encode_json
from millstream.model.errors import CommonError, ServiceError
from millstream.model.shape import Flag, Instant, ListOf, MapOf, Structure, Text, Whole

MODEL = botocore.model.ServiceModel(
    botocore.loaders.Loader().load_service_model("appstream", "service-2"), service_name="appstream"
)
PROTOCOLS = {wire_json.NAME: "json", wire_cbor.NAME: "smithy-rpc-v2-cbor"}
PARSERS = botocore.parsers.ResponseParserFactory()
PARSERS.set_parser_defaults(timestamp_parser=float)

# Drawing from the patterns themselves made these tests thirty times slower and no sharper.
SAMPLES: dict[str, list[str]] = {
    r"^[a-zA-Z0-9().\-/_]{3,128}$": ["abc", "My_Ami-(1)/x." * 9],
    r"^[a-zA-Z0-9][a-zA-Z0-9_. -]{0,99}$": ["a", "Text Editor 2.0", "x" * 100],
    r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,99}$": ["a", "gedit_2.0-1", "x" * 100],
    r"^arn:aws(?:\-cn|\-iso\-b|\-iso|\-us\-gov)?:[A-Za-z0-9][A-Za-z0-9_/.-]{0,62}:[A-Za-z0-9_/.-]{0,63}:[A-Za-z0-9_/.-]{0,63}:[A-Za-z0-9][A-Za-z0-9:_/+=,@.\\-]{0,1023}$": [
        "arn:aws:appstream:eu-west-1:000000000000:image-builder/b1",
        "arn:aws-us-gov:iam::000000000000:role/r",
    ],
    r"^\d+$": ["000000000000", "1"],
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9][a-z0-9-]{0,61}[a-z0-9]": ["example.com", "a.b-c.example"],
    r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,100}$": ["a", "builder_1.x-y", "x" * 101],
    r"^[a-zA-Z0-9][a-zA-Z0-9_:/.-]{0,200}$": ["a", "http://x/y"],
    r"^[a-zA-Z0-9_.() -]+$": ["Desktop (2)", "-"],
    r"^[a-zA-Z0-9-]+(\.[a-z0-9-]+)+\.(small|medium|large|xlarge|\d+xlarge|metal)$": ["stream.standard.medium", "GeneralPurpose.m6i.12xlarge"],
    r"^arn:aws(?:\-cn|\-iso\-b|\-iso|\-us\-gov)?:kms:[a-z0-9\-]+:\d{12}:key/[A-Za-z0-9\-]+$": ["arn:aws:kms:eu-west-1:000000000000:key/1-a"],
    r"^[^\x00]+$": ["--fast 'a b' \n", "ü"],
    r"^[0-9]+(\.[0-9]+){1,2}$": ["1.2", "525.85.12"],
    r"^ami-[a-z0-9]{8,17}$": ["ami-12345678", "ami-0123456789abcdef0"],
    r"^[0-9a-z\.\-]*(?<!\.)$": ["bucket", "a.b-c"],
    r"^arn:aws(?:\-cn|\-iso\-b|\-iso|\-us\-gov)?:s3:::[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]$": ["arn:aws:s3:::bucket"],
    r"[\w+=,.@-]*": ["ab", "user@example.com"],
    r"^(^(?!aws:).[\p{L}\p{Z}\p{N}_.:/=+\-@]*)$": ["a", "Kostenstelle Süd", "文字:1", "Aws"],
    r"^([\p{L}\p{Z}\p{N}_.:/=+\-@]*)$": ["", "v", "a b\u00a0½"],
    r"^[-@./#&+\w\s]*$": ["Title #1", " "],
    r"^[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}$": ["01234567-89ab-cdef-0123-456789abcdef"],
    r"^((https?|ftp|sftp)://|mailto:)[^\s,;<>]+$": ["https://example.com/?q", "mailto:a@b"],
    r"^((\w*)\s*(\w*)\s*\,\s*(\w*)\s*\,\s*\*?(\w*)\s*\,\s*\*?(\w*)\s*\,\s*\*?\d*\s*\,\s*\*?\d*\s*\,\s*[0-1]\s*\,\s*[0-1]\s*)$": ["dev,1,*2,3,4,5,0,1", ",,,,,,1,0"],
    r"^[A-Za-z0-9_\-\s]+$": ["Ada", "de la-Cruz_2"],
    r"[\p{L}\p{M}\p{S}\p{N}\p{P}]+": ["ada@example.com", "ä€½"],
    r"^wsi-[0-9a-z]{8,63}$": ["wsi-12345678"],
}  # fmt: skip
FREE = ["x", "two words", 'quo"te \\ / \x7f\t\r\n', "ünï — 文字 😀", "\x00", "0", "a:b", "null"]


@cache
def drawn(name: str) -> st.SearchStrategy[Any]:
    """Documents of a shape that keep all of its constraints."""
    shape = aws.SHAPES[name]
    match shape:
        case Text(values=values) if values:
            return st.sampled_from(values)
        case Text():
            samples = SAMPLES[shape.pattern] if shape.pattern else [*FREE, "x" * (shape.size_max or 300)]
            low, high = shape.size_min, shape.size_max or 10**6
            fitting = [text for text in samples if low <= len(text) <= high] or ["x" * low]
            return st.sampled_from(fitting)
        case Whole():
            limit = 1 << (shape.bits - 1)
            low = -limit if shape.value_min is None else shape.value_min
            return st.integers(low, limit - 1 if shape.value_max is None else shape.value_max)
        case Flag():
            return st.booleans()
        case Instant():
            return st.sampled_from([0.0, 1.7e9, 1700000000.123, -1.0, 253402300799.0]) | st.floats(0, 4e9)
        case ListOf():
            return st.lists(drawn(shape.member), min_size=shape.size_min, max_size=max(2, shape.size_min))
        case MapOf():
            return st.dictionaries(drawn(shape.key), drawn(shape.value), min_size=shape.size_min, max_size=2)
        case Structure():
            # Few of the many members at a time, another few each time.
            optional = [member for member in shape.members if member not in shape.required]
            chosen = st.lists(st.sampled_from(optional), max_size=6, unique=True) if optional else st.just([])
            return chosen.flatmap(
                lambda names: st.fixed_dictionaries(
                    {member: drawn(shape.members[member]) for member in [*sorted(shape.required), *names]}
                )
            )


def sent(wire: Wire, name: str, request: dict[str, Any]) -> dict[str, Any]:
    """What botocore would put on the wire."""
    serializer = botocore.serialize.create_serializer(PROTOCOLS[wire.NAME], include_validation=False)
    written: dict[str, Any] = serializer.serialize_to_request(request, MODEL.operation_model(name))
    return written


def received(wire: Wire, name: str, status: int, headers: list[tuple[str, str]], body: bytes) -> dict[str, Any]:
    """What botocore makes of an answer."""
    parser = PARSERS.create_parser(PROTOCOLS[wire.NAME])
    response = {"status_code": status, "headers": {k.lower(): v for k, v in headers}, "body": body}
    parsed: dict[str, Any] = parser.parse(response, MODEL.operation_model(name).output_shape)
    return parsed


FEW = settings(
    max_examples=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_both_protocols_of_the_model_are_served() -> None:
    assert sorted(PROTOCOLS.values()) == sorted(MODEL.metadata["protocols"])
    assert {wire.NAME for wire in WIRES} == set(PROTOCOLS)


@pytest.mark.parametrize("name", sorted(aws.OPERATIONS))
def test_what_botocore_writes_is_read(name: str) -> None:
    operation = aws.OPERATIONS[name]

    @FEW
    @given(drawn(operation.input))
    def each(request: dict[str, Any]) -> None:
        for wire in WIRES:
            written = sent(wire, name, request)
            headers = {k.lower().encode(): v.encode() for k, v in written["headers"].items()}
            assert route(b"POST", written["url_path"].encode(), headers) == (wire, operation)
            assert wire.decode(operation, written["body"]) == (request, [])
        validate(operation, request)

    each()


@pytest.mark.parametrize("name", sorted(aws.OPERATIONS))
def test_what_we_write_botocore_reads(name: str) -> None:
    operation = aws.OPERATIONS[name]

    @FEW
    @given(drawn(operation.output))
    def each(result: dict[str, Any]) -> None:
        for wire in WIRES:
            response = wire.answer(wire.encode(operation, result), "request-1")
            parsed = received(wire, name, response.status, response.headers, response.body)
            assert parsed.pop("ResponseMetadata")["RequestId"] == "request-1"
            assert parsed == result

    each()


def pages() -> list[tuple[str, str, str]]:
    """Every operation that answers a page: its name, the list's member, the shape of what is in the list."""
    found = []
    for name, operation in aws.OPERATIONS.items():
        output = aws.SHAPES[operation.output]
        assert isinstance(output, Structure)
        for member, its in output.members.items():
            inner = aws.SHAPES[its]
            if "NextToken" in output.members and isinstance(inner, ListOf):
                found.append((name, member, inner.member))
    return found


ENCODERS = {"json": encode_json, "cbor": encode_cbor}  # what the store keeps ready


@pytest.mark.parametrize(("name", "member", "inner"), pages())
def test_a_page_joined_from_stored_documents_equals_one_written_at_once(name: str, member: str, inner: str) -> None:
    operation = aws.OPERATIONS[name]

    @settings(FEW, max_examples=4)
    @given(st.lists(drawn(inner), max_size=30), st.none() | st.sampled_from(["t", 'a"b\\é']))
    def each(documents: list[Any], token: str | None) -> None:
        whole = {member: documents} | ({"NextToken": token} if token is not None else {})
        for wire in WIRES:
            ready = (ENCODERS[wire.NAME](inner, document) for document in documents)
            assert wire.join(member, ready, token) == wire.encode(operation, whole)

    each()


COMMON = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CommonError)]


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.NAME)
@pytest.mark.parametrize("kind", [*aws.ERRORS.values(), *[kind for kind in COMMON if kind is not CommonError]])
def test_errors_reach_botocore_whole(wire: Wire, kind: type[ServiceError]) -> None:
    response = wire.error(kind('The builder "é" is not there.'), "request-2")
    parsed = received(wire, "DeleteImageBuilder", response.status, response.headers, response.body)
    assert parsed["Error"]["Code"] == kind.code
    assert parsed["Error"]["Message"] == 'The builder "é" is not there.'
    assert parsed["ResponseMetadata"]["HTTPStatusCode"] == kind.status
    assert parsed["ResponseMetadata"]["RequestId"] == "request-2"


def test_error_statuses_are_the_models() -> None:
    for shape in MODEL.error_shapes:
        assert aws.ERRORS[shape.name].status == shape.metadata["error"]["httpStatusCode"]
        assert list(shape.members) == ["Message"]


def test_a_cbor_answer_holds_the_models_number_types_and_no_nil() -> None:
    body = wire_cbor.encode(
        aws.DescribeImageBuilders,
        {"ImageBuilders": [{"Name": "a", "CreatedTime": 1700000000, "EnableDefaultInternetAccess": False}]},
    )
    moment = cbor.decode(body)["ImageBuilders"][0]["CreatedTime"]
    assert type(moment) is cbor.Moment
    assert b"\xc1\xfb" in body, "a double under tag 1"
    for wrong in ({"Name": None}, {"Name": 1}, {"Nane": "a"}, {"CreatedTime": float("nan")}, {"CreatedTime": "now"}):
        for wire in WIRES:
            with pytest.raises(TypeError, match="not of its shape"):
                wire.encode(aws.DescribeImageBuilders, {"ImageBuilders": [wrong]})
