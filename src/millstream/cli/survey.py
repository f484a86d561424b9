"""`survey`: two worlds side by side, what the driver holds and what the rows know. They should be one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from millstream.cli.here import Here, command, table
from millstream.model.codes import NO

if TYPE_CHECKING:
    from millstream.capacity.driver import Driver
    from millstream.store.store import Store

AGAIN_S: Final = 1.0  # a difference counts when it is still there after this: what moves differs for a moment
SLICE: Final = 2000


@dataclass(frozen=True, slots=True)
class Side:
    """One machine as both sides see it; None: that side has none."""

    machine_id: str
    owner: str | None  # from the rows
    state: str | None  # from the rows
    wanted: str | None  # from the rows
    held: str | None  # from the driver
    engine_id: str
    address: str

    @property
    def difference(self) -> str:
        """What is wrong, as a sentence, or nothing. Only what no reconciler is still working on counts."""
        if self.state is None:
            return "held, but no row knows it"
        if self.held is None and self.state in {"RUNNING", "STOPPED"}:
            return f"{self.state} in the rows, but nothing is held"
        if self.held is not None and (self.state, self.held) in _CONTRARY:
            return f"{self.state} in the rows, but {self.held} at the driver"
        return ""

    def shown(self) -> dict[str, Any]:
        return {
            "machine_id": self.machine_id,
            "resource": self.owner,
            "state": self.state,
            "wanted": self.wanted,
            "held": self.held,
            "engine_id": self.engine_id,
            "address": self.address,
            "difference": self.difference or None,
        }


_CONTRARY: Final = frozenset(
    {("RUNNING", "STOPPED"), ("RUNNING", "REMNANT"), ("STOPPED", "READY"), ("STOPPED", "STARTING"),
     ("STOPPED", "SILENT"), ("STOPPED", "REMNANT")}
)  # fmt: skip


def look(store: Store, driver: Driver) -> dict[str, Side]:
    """Both sides by machine id. Raises CapacityError when the driver can't be asked."""
    held = driver.survey().sightings
    sides: dict[str, Side] = {}
    after = ""
    while rows := store.read().all("machines_after", after=after, most=SLICE):
        for row in rows:
            seen = held.pop(row["id"], None)
            sides[row["id"]] = Side(
                row["id"],
                row["owner"],
                row["state"],
                row["wanted"],
                None if seen is None or seen.observed == "ABSENT" else str(seen.observed),
                seen.engine_id if seen else "",
                seen.address if seen else "",
            )
        after = rows[-1]["id"]
    for machine_id, seen in held.items():
        sides[machine_id] = Side(machine_id, None, None, None, str(seen.observed), seen.engine_id, seen.address)
    return sides


def persistent(store: Store, driver: Driver, *, again_s: float = AGAIN_S) -> tuple[dict[str, Side], set[str]]:
    """The newest look, and the machines whose difference was there in two looks at least `again_s` apart."""
    sides = look(store, driver)
    differing = {side.machine_id: side.difference for side in sides.values() if side.difference}
    if not differing:
        return sides, set()
    time.sleep(again_s)
    sides = look(store, driver)
    return sides, {
        machine_id
        for machine_id, was in differing.items()
        if machine_id in sides and sides[machine_id].difference == was
    }


@command(name="survey", examples=["millstream survey", "millstream survey --json && echo clean"])
def survey_command(here: Here) -> int:
    """Hold what the drivers hold beside what the rows know.

    A difference counts when it persists: it is looked at twice, a second apart. Then the exit code is 1. A running
    service mends differences by itself within its sweeps.
    """
    store = here.store()
    driver = here.driver()
    try:
        sides, differing = persistent(store, driver)
    finally:
        driver.close()
    ordered = sorted(sides.values(), key=lambda side: (side.owner or "", side.machine_id))
    rows = [side for side in ordered if side.state is not None]
    held = [side for side in ordered if side.held is not None]
    body = {
        "clean": not differing,
        "rows": len(rows),
        "machines": len(held),
        "driver": driver.name,
        "differences": [side.shown() for side in ordered if side.machine_id in differing],
        "all": [side.shown() for side in ordered],
    }
    lines = table(
        [
            (
                (side.owner or "-").rpartition(":")[2],
                side.state or "-",
                side.held or "-",
                side.address or "-",
                side.machine_id[:12],
                side.difference if side.machine_id in differing else "",
            )
            for side in ordered
        ],
        head=("RESOURCE", "ROWS SAY", "DRIVER HOLDS", "ADDRESS", "MACHINE", ""),
    )
    told = f"{len(differing)} differ" if differing else "nothing differs" if ordered else "nothing on either side"
    here.answer("survey", body, [*lines, f"Rows {len(rows)}, machines {len(held)}: {told}."])
    return NO if differing else 0
