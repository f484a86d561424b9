"""Smithy's rpc-v2-cbor: `POST /service/PhotonAdminProxyService/operation/<Operation>`. The Go SDK, so Terraform."""

from __future__ import annotations

from typing import Any

from millstream.api.http import Response
from millstream.api.wire import refuse_empty, said
from millstream.model import cbor, document
from millstream.model.errors import ServiceError
from millstream.model.operation import Operation

NAME = "cbor"
CONTENT_TYPE = "application/cbor"


def decode(operation: Operation[Any, Any], body: bytes) -> tuple[dict[str, Any], list[str]]:
    if not body:
        refuse_empty(operation)
        return {}, []
    return document.read_cbor(operation.input, body)


def encode(operation: Operation[Any, Any], result: Any) -> bytes:
    return document.encode_cbor(operation.output, result)  # an empty result is an empty map: botocore reads no less


join = document.join_cbor


def answer(body: bytes, request_id: str) -> Response:
    return _response(200, body, request_id)


def error(error: ServiceError, request_id: str) -> Response:
    # `__type` is the bare name: a namespace before it would become part of the code that the Go SDK shows.
    return _response(error.status, cbor.encode(said(error)), request_id)


def _response(status: int, body: bytes, request_id: str) -> Response:
    headers = [("content-type", CONTENT_TYPE), ("smithy-protocol", "rpc-v2-cbor"), ("x-amzn-RequestId", request_id)]
    return Response(status, headers, body)
