"""awsJson1.1: `POST /` with `X-Amz-Target: PhotonAdminProxyService.<Operation>`. boto3, the CLI, JavaScript v3."""

from __future__ import annotations

from typing import Any

import msgspec

from millstream.api.http import Response
from millstream.api.wire import refuse_empty, said
from millstream.model import document
from millstream.model.errors import ServiceError
from millstream.model.operation import Operation

NAME = "json"
CONTENT_TYPE = "application/x-amz-json-1.1"


def decode(operation: Operation[Any, Any], body: bytes) -> tuple[dict[str, Any], list[str]]:
    if not body:
        refuse_empty(operation)
        return {}, []
    return document.read_json(operation.input, body)


def encode(operation: Operation[Any, Any], result: Any) -> bytes:
    return document.encode_json(operation.output, result)


join = document.join_json


def answer(body: bytes, request_id: str) -> Response:
    return Response(200, [("content-type", CONTENT_TYPE), ("x-amzn-RequestId", request_id)], body)


def error(error: ServiceError, request_id: str) -> Response:
    headers = [("content-type", CONTENT_TYPE), ("x-amzn-RequestId", request_id), ("x-amzn-ErrorType", error.code)]
    return Response(error.status, headers, msgspec.json.encode(said(error)))
