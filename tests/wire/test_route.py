"""A request's head decides wire and operation, or says why not."""

from __future__ import annotations

import pytest

from millstream.api import wire_cbor, wire_json
from millstream.api.route import route, unbuilt
from millstream.model import shapes as aws
from millstream.model.errors import ServiceError

JSON = {b"content-type": b"application/x-amz-json-1.1", b"x-amz-target": b"PhotonAdminProxyService.StopFleet"}
CBOR = {b"content-type": b"application/cbor", b"smithy-protocol": b"rpc-v2-cbor"}
PATH = b"/service/PhotonAdminProxyService/operation/StopFleet"


@pytest.mark.parametrize("name", sorted(aws.OPERATIONS))
def test_every_operation_is_found_in_both_protocols(name: str) -> None:
    target = JSON | {b"x-amz-target": b"PhotonAdminProxyService." + name.encode()}
    assert route(b"POST", b"/", target) == (wire_json, aws.OPERATIONS[name])
    path = b"/service/PhotonAdminProxyService/operation/" + name.encode()
    assert route(b"POST", path, CBOR) == (wire_cbor, aws.OPERATIONS[name])


@pytest.mark.parametrize(
    ("method", "path", "headers", "code", "status"),
    [
        (b"POST", b"/", JSON | {b"x-amz-target": b"PhotonAdminProxyService.Nope"}, "UnknownOperationException", 400),
        (b"POST", b"/", JSON | {b"x-amz-target": b"PhotonAdminProxyService."}, "UnknownOperationException", 400),
        (
            b"POST",
            b"/",
            JSON | {b"x-amz-target": b"PhotonAdminProxyService.StopFleet\xff"},
            "UnknownOperationException",
            400,
        ),
        (b"POST", b"/", JSON | {b"x-amz-target": b"DynamoDB_20120810.ListTables"}, "UnknownOperationException", 400),
        (b"POST", b"/", JSON | {b"x-amz-target": b"StopFleet"}, "UnknownOperationException", 400),
        (b"POST", b"/", JSON | {b"x-amz-target": b""}, "UnknownOperationException", 400),
        (b"POST", b"/x", JSON, "UnknownOperationException", 404),
        (b"POST", b"//", JSON, "UnknownOperationException", 404),
        (b"POST", b"/%2f", JSON, "UnknownOperationException", 404),
        (b"GET", b"/", JSON, "UnknownOperationException", 405),
        (b"PUT", b"/", JSON, "UnknownOperationException", 405),
        (b"POST", b"/", JSON | {b"content-type": b"application/json"}, "UnsupportedMediaTypeException", 415),
        (b"POST", b"/", JSON | {b"content-type": b"application/cbor"}, "UnsupportedMediaTypeException", 415),
        (b"POST", b"/", JSON | {b"content-type": b""}, "UnsupportedMediaTypeException", 415),
        (b"POST", b"/", JSON | {b"content-encoding": b"gzip"}, "UnsupportedMediaTypeException", 415),
    ],
)
def test_json_refusals(method: bytes, path: bytes, headers: dict[bytes, bytes], code: str, status: int) -> None:
    wire, refusal = route(method, path, headers)
    assert wire is wire_json
    assert isinstance(refusal, ServiceError)
    assert (refusal.code, refusal.status) == (code, status)
    assert refusal.message.isprintable()


@pytest.mark.parametrize(
    ("method", "path", "headers", "code", "status"),
    [
        (b"POST", PATH + b"s", CBOR, "UnknownOperationException", 404),
        (b"POST", PATH + b"/", CBOR, "UnknownOperationException", 404),
        (b"POST", PATH.replace(b"Photon", b"Other"), CBOR, "UnknownOperationException", 404),
        (b"POST", PATH.replace(b"S", b"%53"), CBOR, "UnknownOperationException", 404),
        (b"POST", b"/prefix" + PATH, CBOR, "UnknownOperationException", 404),
        (b"POST", b"/", CBOR, "UnknownOperationException", 404),
        (b"POST", PATH, {b"content-type": b"application/cbor"}, "UnknownOperationException", 404),
        (b"POST", PATH, CBOR | {b"smithy-protocol": b"rpc-v2-json"}, "UnknownOperationException", 404),
        (b"POST", PATH, CBOR | JSON | {b"content-type": b"application/cbor"}, "UnknownOperationException", 400),
        (b"GET", PATH, CBOR, "UnknownOperationException", 405),
        (b"POST", PATH, CBOR | {b"content-type": b"application/x-amz-json-1.1"}, "UnsupportedMediaTypeException", 415),
        (b"POST", PATH, CBOR | {b"content-encoding": b"br"}, "UnsupportedMediaTypeException", 415),
    ],
)
def test_cbor_refusals(method: bytes, path: bytes, headers: dict[bytes, bytes], code: str, status: int) -> None:
    wire, refusal = route(method, path, headers)
    assert wire is wire_cbor
    assert isinstance(refusal, ServiceError)
    assert (refusal.code, refusal.status) == (code, status)


def test_leniencies_that_clients_need() -> None:
    charset = JSON | {b"content-type": b"Application/X-Amz-JSON-1.1; charset=utf-8"}
    assert route(b"POST", b"/", charset) == (wire_json, aws.StopFleet)
    assert route(b"POST", PATH, {b"smithy-protocol": b"rpc-v2-cbor"}) == (wire_cbor, aws.StopFleet)


def test_an_operation_not_built_is_refused_by_name() -> None:
    refusal = unbuilt(aws.StopFleet)
    assert refusal.status == 400
    assert "StopFleet" in refusal.message
    assert "millstream coverage" in refusal.message
