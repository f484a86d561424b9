"""`coverage`: what works, derived from the code that does it, so that it can't be rosier than the truth."""

from __future__ import annotations

from typing import Any, Final

import click

from millstream.cli.here import Here, Trouble, command, nearest, table

WORKS: Final = "works"
PARTIAL: Final = "partial"
REFUSED: Final = "refused"
NOT_BUILT: Final = "not built yet: answers with a clear error"


def coverage() -> dict[str, Any]:
    """Every operation with its members: `works`, `partial` (why) or `refused`."""
    import millstream.resources  # noqa: F401 - registers what is built
    from millstream.model import shapes
    from millstream.resources.partial import PARTIAL as SHORT

    operations: dict[str, Any] = {}
    for name, operation in sorted(shapes.OPERATIONS.items()):
        built = operation.handler is not None
        short = SHORT.get(name, {})
        members = [
            _member(path, kind, built=built, why=short.get(path, ""))
            for kind, shape in (("input", operation.input), ("output", operation.output))
            for path in _members(shape)
        ]
        # Parts of members that fall short on their own: `VpcConfig.SecurityGroupIds`.
        members += [_member(path, "input", built=built, why=why) for path, why in short.items() if "." in path]
        status = REFUSED if not built else PARTIAL if short else WORKS
        operations[name] = {
            "status": status,
            "why": NOT_BUILT if not built else "; ".join(f"{path}: {why}" for path, why in sorted(short.items())),
            "members": members,
        }
    counts = {status: sum(o["status"] == status for o in operations.values()) for status in (WORKS, PARTIAL, REFUSED)}
    return {"operations": operations, "counts": counts}


def _members(shape: str) -> list[str]:
    from millstream.model import shapes
    from millstream.model.shape import Structure

    found = shapes.SHAPES.get(shape)
    return list(found.members) if isinstance(found, Structure) else []


def _member(path: str, kind: str, *, built: bool, why: str) -> dict[str, Any]:
    return {
        "name": path,
        "of": kind,
        "status": REFUSED if not built else PARTIAL if why else WORKS,
        "why": why or ("" if built else NOT_BUILT),
    }


@command(
    name="coverage",
    params=[click.Argument(["operation"], required=False)],
    examples=["millstream coverage", "millstream coverage CreateImageBuilder", "millstream coverage --json"],
)
def coverage_command(here: Here, *, operation: str | None) -> None:
    """List every operation and member: works, partial or refused.

    An operation that is not built yet answers with an error that says so: nothing is accepted and then ignored
    without standing here.
    """
    found = coverage()
    operations = found["operations"]
    if operation is not None:
        if operation not in operations:
            meant = nearest(operation, operations)
            raise Trouble(
                "usage.unknown",
                what=f"the API has no operation {operation}",
                why=f"did you mean {meant}?" if meant else "",
                next_step=f"millstream coverage {meant}".rstrip(),
            )
        one = operations[operation]
        here.answer(
            "coverage",
            {"operations": {operation: one}, "counts": found["counts"]},
            [f"{operation}: {one['status']}", *member_lines(one)],
        )
        return
    lines: list[str] = []
    for name, one in operations.items():
        if one["status"] != REFUSED:
            lines.append(f"{name}: {one['status']}")
            lines += [
                f"  {member['name']}: {member['why']}" for member in one["members"] if member["status"] == PARTIAL
            ]
    refused = [name for name, one in operations.items() if one["status"] == REFUSED]
    counts = found["counts"]
    lines += ["", f"refused, {NOT_BUILT}:", *_wrapped(refused)]
    lines += ["", f"{counts[WORKS]} work, {counts[PARTIAL]} work in part, {counts[REFUSED]} are refused."]
    here.answer("coverage", found, lines)


def member_lines(one: dict[str, Any]) -> list[str]:
    return table(
        [(member["of"], member["name"], member["status"], member["why"]) for member in one["members"]], indent="  "
    )


def _wrapped(words: list[str]) -> list[str]:
    import textwrap

    return textwrap.wrap(", ".join(words), width=88, initial_indent="  ", subsequent_indent="  ")
