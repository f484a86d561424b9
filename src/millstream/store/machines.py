"""Machines as rows: between the store's columns and the records that decisions are made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.model.records import Machine, MachineSpec, Problem, Sighting, Wanted

if TYPE_CHECKING:
    from millstream.store.store import Row, Tx


@dataclass(frozen=True, slots=True)
class Facts:
    """What a driver last said of a machine that is worth showing; empty while it has none."""

    engine_id: str = ""
    address: str = ""
    addresses6: tuple[str, ...] = ()
    interface_id: str = ""
    agent_version: str = ""

    @classmethod
    def of(cls, sighting: Sighting) -> Facts:
        return cls(
            sighting.engine_id,
            sighting.address,
            sighting.addresses6,
            sighting.interface_id,
            sighting.agent_version,
        )


@dataclass(frozen=True, slots=True)
class MachineRow:
    """A machine with all that the row remembers of it."""

    machine: Machine
    facts: Facts
    waiting: str  # why nothing happens at the moment, for people
    stepped_at: float  # when the last step ended: the next one is counted from there, so steps add up to the whole
    working: bool  # a reconciler has it in hand
    due: float | None  # when it was to be looked at


_SPEC = msgspec.json.Decoder(MachineSpec)
_PROBLEM = msgspec.json.Decoder(Problem)
_FACTS = msgspec.json.Decoder(Facts)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def from_row(row: Row) -> MachineRow:
    machine = Machine(
        id=row["id"],
        owner=row["owner"],
        wanted=Wanted(row["wanted"]),
        state=row["state"],
        spec=_SPEC.decode(row["spec"]),
        asked_at=row["asked_at"],
        made=bool(row["made"]),
        started_at=row["started_at"],
        silent_since=row["silent_since"],
        starts=row["starts"],
        attempts=row["attempts"],
        version=row["version"],
        error=_PROBLEM.decode(row["error"]) if row["error"] else None,
    )
    return MachineRow(
        machine,
        _FACTS.decode(row["facts"]),
        row["waiting"],
        row["stepped_at"],
        row["lease_by"] is not None,
        row["due"],
    )


def get(tx: Tx, machine_id: str) -> MachineRow | None:
    row = tx.one("machine", id=machine_id)
    return from_row(row) if row is not None else None


def add(tx: Tx, spec: MachineSpec, *, state: str, now: float) -> None:
    tx.run(
        "add_machine",
        id=spec.id,
        owner=spec.owner,
        wanted=Wanted.RUNNING,
        state=state,
        spec=_text(asdict(spec)),
        now=now,
    )


def want(tx: Tx, machine_id: str, wanted: Wanted, *, state: str, now: float) -> None:
    """What an API handler says: a new wish, and the state that shows it from this commit on."""
    tx.run("want", id=machine_id, wanted=wanted, state=state, now=now)


def save(tx: Tx, by: str, row: MachineRow, *, due: float | None) -> bool:
    """What the executor says after a step. False when the lease is no longer `by`'s: then nothing is written."""
    machine = row.machine
    changed = tx.run(
        "save_machine",
        id=machine.id,
        by=by,
        state=machine.state,
        made=machine.made,
        started_at=machine.started_at,
        silent_since=machine.silent_since,
        starts=machine.starts,
        attempts=machine.attempts,
        error=_text(machine.error) if machine.error else None,
        facts=_text(row.facts),
        waiting=row.waiting,
        stepped_at=row.stepped_at,
        due=due,
    )
    return changed == 1


def with_machine(row: MachineRow, **changes: Any) -> MachineRow:
    return replace(row, machine=replace(row.machine, **changes))
