"""Which wire a request speaks and which operation it names. Pure: plain values in, plain values out."""

from __future__ import annotations

import re
from typing import Any, Final

from millstream.api import wire_cbor, wire_json
from millstream.api.wire import SERVICE, Wire
from millstream.model.errors import (
    MethodNotAllowedException,
    ServiceError,
    UnknownOperationException,
    UnknownRouteException,
    UnsupportedMediaTypeException,
)
from millstream.model.operation import Operation
from millstream.model.shapes import OPERATIONS

WIRES: Final[tuple[Wire, ...]] = (wire_json, wire_cbor)

_CBOR_PATH: Final = f"/service/{SERVICE}/operation/".encode()
_TARGET: Final = f"{SERVICE}.".encode()
_OPERATION: Final = re.compile(rb"[A-Za-z0-9]{1,64}")


def route(method: bytes, path: bytes, headers: dict[bytes, bytes]) -> tuple[Wire, Operation[Any, Any] | ServiceError]:
    """The wire to answer in, and the operation asked for or the reason why none is.

    `path` is the raw one without its query, `headers` have lower-case names. The wire is known even when the operation
    is not, so that the caller can read the refusal.
    """
    if path.startswith(b"/service/") or b"smithy-protocol" in headers:
        return wire_cbor, _cbor(method, path, headers)
    return wire_json, _json(method, path, headers)


def unbuilt(operation: Operation[Any, Any]) -> ServiceError:
    """What an operation answers that no handler has been written for."""
    return UnknownOperationException(
        f"Millstream does not offer {operation.name} yet. `millstream coverage` lists what it offers."
    )


def _json(method: bytes, path: bytes, headers: dict[bytes, bytes]) -> Operation[Any, Any] | ServiceError:
    if path != b"/":
        return UnknownRouteException("Nothing is here. The JSON protocol's requests go to `POST /`.")
    refusal = _refusal(method, headers, wire_json.CONTENT_TYPE)
    if refusal is not None:
        return refusal
    target = headers.get(b"x-amz-target", b"")
    if not target:
        return UnknownOperationException(f"The header X-Amz-Target is missing: {SERVICE}.<Operation>.")
    if not target.startswith(_TARGET):
        return UnknownOperationException(f"X-Amz-Target names another service than {SERVICE}.")
    return OPERATIONS.get(_name(target[len(_TARGET) :])) or UnknownOperationException(
        _no_such_operation(target[len(_TARGET) :])
    )


def _cbor(method: bytes, path: bytes, headers: dict[bytes, bytes]) -> Operation[Any, Any] | ServiceError:
    if not path.startswith(_CBOR_PATH):
        return UnknownRouteException(
            f"Nothing is here. rpc-v2-cbor's requests go to `POST {_CBOR_PATH.decode()}<Name>`."
        )
    if headers.get(b"smithy-protocol") != b"rpc-v2-cbor":
        return UnknownRouteException("The header Smithy-Protocol must be rpc-v2-cbor here.")
    if b"x-amz-target" in headers:
        # The protocol forbids it: two places that name the operation could name two.
        return UnknownOperationException("X-Amz-Target has no place in an rpc-v2-cbor request.")
    refusal = _refusal(method, headers, wire_cbor.CONTENT_TYPE)
    if refusal is not None:
        return refusal
    return OPERATIONS.get(_name(path[len(_CBOR_PATH) :])) or UnknownRouteException(
        _no_such_operation(path[len(_CBOR_PATH) :])
    )


def _refusal(method: bytes, headers: dict[bytes, bytes], content_type: str) -> ServiceError | None:
    if method != b"POST":
        return MethodNotAllowedException("Operations are called with POST.")
    given = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if given != content_type.encode() and not (content_type == wire_cbor.CONTENT_TYPE and not given):
        # Without a body rpc-v2-cbor has no content type.
        return UnsupportedMediaTypeException(f"Content-Type must be {content_type} here.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return UnsupportedMediaTypeException("Content-Encoding is not supported; no operation needs it.")
    return None


def _name(name: bytes) -> str:
    return name.decode() if _OPERATION.fullmatch(name) else ""


def _no_such_operation(name: bytes) -> str:
    known = _name(name)
    return f"AppStream has no operation {known}." if known else "The operation's name is not one."
