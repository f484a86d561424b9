"""The timeline: what people waited for, step by step, with times that add up to the whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from millstream.store.store import Tx

STEPS_MAX: Final = 2000  # lines kept of one resource, the newest


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a resource's timeline. Times are seconds since the epoch; `engine_s` is the driver's share."""

    owner: str
    machine_id: str
    step: str
    started: float
    ended: float
    outcome: str = "done"  # done | failed | retrying
    attempt: int = 1
    engine_s: float = 0.0
    code: str = ""
    reason: str = ""
    engine_id: str = ""
    request_id: str = ""


def add(tx: Tx, step: Step) -> None:
    if step.outcome == "retrying" and tx.run(
        "retry_step",
        owner=step.owner,
        machine_id=step.machine_id,
        step=step.step,
        attempt=step.attempt,
        ended=step.ended,
        engine_s=step.engine_s,
        code=step.code,
        reason=step.reason,
    ):
        return
    tx.run("add_step", **asdict(step))
    # A machine's root can restart it again and again: its timeline takes no more room than this.
    tx.run("cap_steps", owner=step.owner, most=STEPS_MAX)


def of(tx: Tx, owner: str, *, after: int = 0, most: int = 1000) -> list[tuple[int, Step]]:
    """A resource's steps, oldest first, with their numbers."""
    return [_numbered(row) for row in tx.all("steps", owner=owner, after=after, most=most)]


def after(tx: Tx, number: int, *, most: int = 1000) -> list[tuple[int, Step]]:
    """Everybody's steps since `number`."""
    return [_numbered(row) for row in tx.all("steps_after", after=number, most=most)]


def newest(tx: Tx, owner: str | None = None, *, most: int = 100) -> list[tuple[int, Step]]:
    """The last steps of a resource, or of all, oldest first."""
    rows = tx.all("newest_steps", most=most) if owner is None else tx.all("newest_steps_of", owner=owner, most=most)
    return [_numbered(row) for row in reversed(rows)]


def usual_s(tx: Tx, step: str) -> float | None:
    """How long this kind of step usually takes: the middle of the last twenty; None when there were none."""
    took = sorted(row["took"] for row in tx.all("usual", step=step))
    return took[len(took) // 2] if took else None


def _numbered(row: object) -> tuple[int, Step]:
    values = dict(row)  # type: ignore[call-overload]
    return values.pop("id"), Step(**values)
