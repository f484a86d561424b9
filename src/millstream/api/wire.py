"""What a wire protocol owes. Each is one module that has these functions; `route.py` lists them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from millstream.api.http import Response
from millstream.model.errors import SerializationException, ServiceError
from millstream.model.operation import Operation
from millstream.model.shape import Structure
from millstream.model.shapes import SHAPES

SERVICE = "PhotonAdminProxyService"  # the model's targetPrefix


class Wire(Protocol):
    """Between a request's or an answer's bytes and documents in the model's spelling."""

    NAME: str  # as metrics and logs say it, and the store's column of ready documents

    def decode(self, operation: Operation[Any, Any], body: bytes) -> tuple[dict[str, Any], list[str]]:
        """The request, and the paths of members that the model does not know. Raises SerializationException."""

    def encode(self, operation: Operation[Any, Any], result: Any) -> bytes:
        """The body of a success. TypeError if the result is not of the operation's shape."""

    def join(self, member: str, documents: Iterable[bytes], next_token: str | None) -> bytes:
        """The body of a page: stored documents under `member`, and the token of the next page if there is one."""

    def answer(self, body: bytes, request_id: str) -> Response:
        """A success with that body."""

    def error(self, error: ServiceError, request_id: str) -> Response:
        """The answer that says `error`."""


def refuse_empty(operation: Operation[Any, Any]) -> None:
    """An empty body stands for an empty structure only where the structure can't be anything else."""
    shape = SHAPES[operation.input]
    if isinstance(shape, Structure) and shape.members:
        raise SerializationException("The body is empty; a request without members is an empty structure")


def said(error: ServiceError) -> dict[str, str]:
    """An error's document. Clients look for a modelled error's member `Message`, for any other's `message`."""
    return {"__type": error.code, "Message" if error.modelled else "message": error.message}
