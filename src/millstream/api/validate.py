"""A decoded request against every constraint of the model, with the service's own wording.

Each operation's checks are put together at its first request, its patterns compiled at their first use. Lengths are
judged before patterns, so a pattern never sees more than its shape allows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from millstream.model.errors import ValidationException
from millstream.model.operation import Operation
from millstream.model.shape import Flag, Instant, ListOf, MapOf, Structure, Text, Whole
from millstream.model.shapes import SHAPES

SHOWN_MAX: Final = 2048  # characters of one value in an error's text
PATTERN_SIZE_MAX: Final = 4096  # characters; the model leaves a few patterned texts unbounded, none is ever so long
ERRORS_MAX: Final = 25  # errors told of at once; all are counted
REDACTED: Final = "***Sensitive Data Redacted***"

Check = Callable[[Any, str, list[str]], None]  # value, its path, errors to add to


def validate(operation: Operation[Any, Any], request: dict[str, Any]) -> None:
    """Raises one ValidationException that tells of everything wrong."""
    check = _check(operation.input)
    if check is None:
        return
    errors: list[str] = []
    check(request, "", errors)
    if errors:
        plural = "s" if len(errors) > 1 else ""
        raise ValidationException(f"{len(errors)} validation error{plural} detected: {'; '.join(errors[:ERRORS_MAX])}")


@cache
def _check(name: str) -> Check | None:
    """The check of one shape, None if nothing about it can be wrong."""
    shape = SHAPES[name]
    match shape:
        case Structure():
            return _structure(shape)
        case ListOf():
            return _list(name, shape)
        case MapOf():
            return _map(name, shape)
        case Text() | Whole():
            if not _constraints(shape):
                return None

            def scalar(value: Any, path: str, errors: list[str]) -> None:
                errors += [_told(name, value, path, constraint) for constraint in _broken(shape, value)]

            return scalar
        case Flag() | Instant():
            return None


def _structure(shape: Structure) -> Check | None:
    rows = [
        (member, member[0].lower() + member[1:], member in shape.required, check)
        for member, its_shape in shape.members.items()
        if (check := _check(its_shape)) is not None or member in shape.required
    ]
    if not rows:
        return None

    def structure(value: Any, path: str, errors: list[str]) -> None:
        prefix = f"{path}." if path else ""
        for member, label, required, check in rows:
            item = value.get(member)
            if item is None:
                if required:
                    errors.append(
                        f"Value null at '{prefix}{label}' failed to satisfy constraint: Member must not be null"
                    )
            elif check is not None:
                check(item, prefix + label, errors)

    return structure


def _list(name: str, shape: ListOf) -> Check | None:
    member = SHAPES[shape.member]
    nested = None if isinstance(member, Text | Whole) else _check(shape.member)
    sizes, items = _constraints(shape), _constraints(member) if isinstance(member, Text | Whole) else []
    if not sizes and not items and nested is None:
        return None

    def check(value: Any, path: str, errors: list[str]) -> None:
        errors += [_told(name, value, path, constraint) for constraint in _broken(shape, value)]
        if items and any(_broken(member, item) for item in value):
            errors.append(_told(name, value, path, f"Member must satisfy constraint: [{', '.join(items)}]"))
        if nested is not None:
            for at, item in enumerate(value, 1):
                nested(item, f"{path}.{at}.member", errors)

    return check


def _map(name: str, shape: MapOf) -> Check | None:
    """Maps of the model hold text only; the generator's test says when that ends."""
    key_shape, value_shape = SHAPES[shape.key], SHAPES[shape.value]
    keys, values = _constraints(key_shape), _constraints(value_shape)
    if not keys and not values and not _constraints(shape):
        return None

    def check(value: Any, path: str, errors: list[str]) -> None:
        errors += [_told(name, value, path, constraint) for constraint in _broken(shape, value)]
        if keys and any(_broken(key_shape, key) for key in value):
            errors.append(_told(name, value, path, f"Map keys must satisfy constraint: [{', '.join(keys)}]"))
        if values and any(_broken(value_shape, item) for item in value.values()):
            errors.append(_told(name, value, path, f"Map value must satisfy constraint: [{', '.join(values)}]"))

    return check


def _constraints(shape: Any) -> list[str]:
    """All that the model demands of a value, as the service words it where it lists the whole."""
    said = []
    match shape:
        case Text() | ListOf() | MapOf():
            if shape.size_max is not None:
                said.append(_LONG.format(shape.size_max))
            if shape.size_max is not None or shape.size_min:
                said.append(_SHORT.format(shape.size_min))
            if isinstance(shape, Text):
                said += [_PATTERN.format(shape.pattern)] if shape.pattern else []
                said += [_ENUM.format(", ".join(shape.values))] if shape.values else []
        case Whole():
            said += [_HIGH.format(shape.value_max)] if shape.value_max is not None else []
            said += [_LOW.format(shape.value_min)] if shape.value_min is not None else []
    return said


def _broken(shape: Any, value: Any) -> list[str] | tuple[()]:
    """Those of the constraints that `value` fails."""
    match shape:
        case Whole():
            if shape.value_max is not None and value > shape.value_max:
                return [_HIGH.format(shape.value_max)]
            if shape.value_min is not None and value < shape.value_min:
                return [_LOW.format(shape.value_min)]
            return ()
        case Text() | ListOf() | MapOf():
            said: list[str] | tuple[()] = ()
            if shape.size_max is not None and len(value) > shape.size_max:
                return [_LONG.format(shape.size_max)]
            if len(value) < shape.size_min:
                said = [_SHORT.format(shape.size_min)]
            if isinstance(shape, Text):
                if shape.pattern and (len(value) > PATTERN_SIZE_MAX or not _fullmatch(shape.pattern)(value)):
                    said = [*said, _PATTERN.format(shape.pattern)]
                if shape.values and value not in shape.values:
                    said = [*said, _ENUM.format(", ".join(shape.values))]
            return said
    return ()


_LONG: Final = "Member must have length less than or equal to {}"
_SHORT: Final = "Member must have length greater than or equal to {}"
_PATTERN: Final = "Member must satisfy regular expression pattern: {}"
_ENUM: Final = "Member must satisfy enum value set: [{}]"
_HIGH: Final = "Member must have value less than or equal to {}"
_LOW: Final = "Member must have value greater than or equal to {}"


@cache
def _fullmatch(pattern: str) -> Callable[[str], Any]:
    r"""The model's patterns are Java's: the whole value must match, and `\w`, `\d`, `\s` mean ASCII."""
    if r"\p{" in pattern:
        import regex

        fullmatch: Callable[[str], Any] = regex.compile(pattern).fullmatch
        return fullmatch
    return re.compile(pattern, re.ASCII).fullmatch


def _told(name: str, value: Any, path: str, constraint: str) -> str:
    shown = _shown(name, value)
    at = f"Value at '{path}'" if shown == REDACTED else f"Value '{shown[:SHOWN_MAX]}' at '{path}'"
    return f"{at} failed to satisfy constraint: {constraint}"


def _shown(name: str, value: Any) -> str:
    """A value as the service prints it, without what the model calls sensitive."""
    shape = SHAPES[name]
    match shape:
        case Text():
            return REDACTED if shape.sensitive else value
        case Structure():
            if shape.sensitive:
                return REDACTED
            members = shape.members
            inner = [f"{key[0].lower()}{key[1:]}={_shown(members[key], item)}" for key, item in value.items()]
            return f"{name}({', '.join(inner)})"
        case ListOf():
            return f"[{', '.join(_shown(shape.member, item) for item in value)}]"
        case MapOf():
            return f"{{{', '.join(f'{key}={_shown(shape.value, item)}' for key, item in value.items())}}}"
        case Flag():
            return "true" if value else "false"
        case _:
            return str(value)
