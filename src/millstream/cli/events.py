"""`events`: the stored timeline, of one resource or of all, once or as it grows."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli import names
from millstream.cli.here import Here, command, moment, rfc3339, seconds, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.store.steps import Step
    from millstream.store.store import Tx

LOOK_S: Final = 0.1
PAGE: Final = 1000


def shown(number: int, step: Step) -> dict[str, Any]:
    """A step as programs read it."""
    return {
        "number": number,
        "resource": step.owner,
        "machine_id": step.machine_id,
        "step": step.step,
        "attempt": step.attempt,
        "started": rfc3339(step.started),
        "ended": rfc3339(step.ended),
        "wall_s": round(step.ended - step.started, 6),
        "engine_s": step.engine_s,
        "outcome": step.outcome,
        "code": step.code,
        "reason": step.reason,
        "engine_id": step.engine_id,
        "request_id": step.request_id,
    }


def cells(step: Step, *, resource: bool = True) -> tuple[str, ...]:
    """A step as people read it."""
    told = step.outcome if step.outcome != "done" else ""
    if step.attempt > 1:
        told += f" attempt {step.attempt}"
    if step.reason:
        told += f"  {step.reason}"
    name = (step.owner.rpartition(":")[2],) if resource else ()
    engine = f"engine {seconds(step.engine_s)}" if step.engine_s >= 0.005 else ""
    return (moment(step.ended), *name, step.step, seconds(step.ended - step.started), engine, told.strip())


@command(
    name="events",
    params=[
        click.Argument(["resource"], required=False, shell_complete=names.complete),
        click.Option(["--follow", "-f"], is_flag=True, help="Go on showing what comes, until Ctrl-C."),
        click.Option(["--last"], type=click.IntRange(1, 100_000), default=100, show_default=True, help="How many."),
    ],
    examples=["millstream events", "millstream events my-builder", "millstream events --follow --json"],
)
def events_command(here: Here, *, resource: str | None, follow: bool, last: int) -> None:
    """Show what happened, step by step, with times.

    Steps of one resource add up to what its owner waited for. They are kept for 30 days, also when the resource is
    gone. With --follow and --json each step is one object on a line of its own.
    """
    from millstream.store import steps

    store = here.store()
    tx = store.read()
    owner = names.resolve(tx, resource, gone_too=True).arn if resource is not None else None
    found = steps.newest(tx, owner, most=last)
    if not follow:
        here.answer(
            "events",
            {"events": [shown(number, step) for number, step in found]},
            table([cells(step, resource=owner is None) for _, step in found]),
        )
        return
    after = tx.one("last_step")[0]
    _print(here, found)
    while True:
        fresh = list(_since(store.read(), owner, after))
        if fresh:
            after = fresh[-1][0]
            _print(here, fresh)
        time.sleep(LOOK_S)


def _since(tx: Tx, owner: str | None, after: int) -> Iterator[tuple[int, Step]]:
    from millstream.store import steps

    found = steps.after(tx, after, most=PAGE) if owner is None else steps.of(tx, owner, after=after, most=PAGE)
    yield from found


def _print(here: Here, found: list[tuple[int, Step]]) -> None:
    if here.as_json:
        for number, step in found:
            print(json.dumps({"schema": "millstream.event/1", **shown(number, step)}, ensure_ascii=False), flush=True)
    else:
        for _, step in found:
            at, name, what, took, engine, told = cells(step)
            print(f"{at}  {name:<30} {what:<10} {took:>10}  {engine:<14} {told}".rstrip(), flush=True)
