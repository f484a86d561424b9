"""One operation of the service, as a typed object that is also the decorator of its handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.model.errors import ServiceError

Request = TypeVar("Request")
Result = TypeVar("Result")
Call = TypeVar("Call")


class Operation(Generic[Request, Result]):
    """Used as `@aws.DeleteImageBuilder` over `def delete_image_builder(call, request) -> result`.

    `input` and `output` are keys of `shapes.SHAPES`, `errors` the codes that the model binds to it. An operation
    that nothing has been registered for has no `handler`: it is refused by name.
    """

    __slots__ = ("errors", "handler", "input", "name", "output", "reads")

    def __init__(self, name: str, *, input: str, output: str, errors: frozenset[str]) -> None:  # noqa: A002 - the model's own word
        self.name = name
        self.input = input
        self.output = output
        self.errors = errors
        self.reads = name.startswith(("Describe", "List", "Get"))
        self.handler: Callable[[Any, Request], Result] | None = None

    def __call__(self, handler: Callable[[Call, Request], Result]) -> Callable[[Call, Request], Result]:
        if self.handler is not None:
            raise RuntimeError(f"{self.name} has two handlers: {self.handler} and {handler}")
        self.handler = handler
        return handler

    def binds(self, error: ServiceError) -> bool:
        """Whether this operation may answer `error`: clients know an operation's own errors and the common ones."""
        return not error.modelled or error.code in self.errors

    def __repr__(self) -> str:
        return f"<Operation {self.name}{'' if self.handler else ', not built'}>"
