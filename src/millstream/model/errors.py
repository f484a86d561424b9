# ruff: noqa: N818 - the names are the wire's
"""Errors that a caller is told: `ServiceError`, and those which every service of this kind may answer.

The errors of the model itself are generated into `shapes.py`. Statuses are those of the JSON services: 400 for
whatever the caller did, since clients retry 500, 502, 503 and 504, and take 403 and 404 for other protocols' words.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """An answer, not a fault: `code` goes on the wire as `__type`, the sentence as its message."""

    code: ClassVar[str] = "InternalFailure"
    status: ClassVar[int] = 500
    modelled: ClassVar[bool] = False  # whether the service model declares it (its member is then `Message`)

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CommonError(ServiceError):
    """What any operation may answer, whatever its own list of errors says."""

    status = 400


class ValidationException(CommonError):
    code = "ValidationException"


class SerializationException(CommonError):
    code = "SerializationException"


class UnknownOperationException(CommonError):
    code = "UnknownOperationException"


class UnknownRouteException(UnknownOperationException):
    """No such path: the same word as for an unknown operation, with the status that rpc-v2-cbor demands."""

    status = 404


class MethodNotAllowedException(UnknownOperationException):
    status = 405


class UnsupportedMediaTypeException(CommonError):
    code = "UnsupportedMediaTypeException"
    status = 415


class AccessDeniedException(CommonError):
    code = "AccessDeniedException"


class UnrecognizedClientException(CommonError):
    code = "UnrecognizedClientException"


class InvalidSignatureException(CommonError):
    code = "InvalidSignatureException"


class IncompleteSignatureException(CommonError):
    code = "IncompleteSignatureException"


class MissingAuthenticationTokenException(CommonError):
    code = "MissingAuthenticationTokenException"


class ExpiredTokenException(CommonError):
    code = "ExpiredTokenException"


class ThrottlingException(CommonError):
    """Clients retry this one by its code, with back-off."""

    code = "ThrottlingException"


class RequestTimeoutException(CommonError):
    code = "RequestTimeoutException"
    status = 408


class RequestEntityTooLargeException(CommonError):
    code = "RequestEntityTooLargeException"
    status = 413


class InternalFailure(CommonError):
    code = "InternalFailure"
    status = 500


class ServiceUnavailableException(CommonError):
    code = "ServiceUnavailableException"
    status = 503
