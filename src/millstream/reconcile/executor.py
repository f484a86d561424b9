"""One step of one machine: look, decide, at most one driver verb, one transaction. The only writer of `state`."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

from millstream.capacity.driver import CapacityError, Driver, Refused
from millstream.lifecycle import machine as lifecycle
from millstream.lifecycle.actions import Acquire, Action, Fail, Forget, Release, Rest, Settle, Start, Stop, Wait
from millstream.model.records import Observed, Problem, Sighting, Wanted
from millstream.store import image_builders, machines, steps
from millstream.store.machines import Facts, MachineRow, with_machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.store.store import Store, Tx

log = logging.getLogger("millstream.reconcile")

# The timeline's name of each driver verb.
STEP_OF = {Acquire: "acquire", Start: "start", Stop: "stop", Release: "release"}
# A look that says one of these proves that there is a machine, whoever heard the answer to its acquire.
HELD = frozenset({Observed.STOPPED, Observed.STARTING, Observed.READY, Observed.SILENT})


@dataclass(slots=True)
class Outcome:
    """What came of a look and a verb."""

    sighting: Sighting
    action: Action
    error: CapacityError | Refused | None = None
    engine_s: float = 0.0
    fault: int | None = None  # a fault on request that was used


class Executor:
    def __init__(
        self,
        store: Store,
        driver: Driver,
        *,
        by: str,
        clock: Callable[[], float] = time.time,
        limits: lifecycle.Limits | None = None,
    ) -> None:
        self.store = store
        self.driver = driver
        self.by = by
        self.clock = clock
        self.limits = limits or lifecycle.Limits()
        self.put_off = 0  # looks and verbs that failed, for the metrics

    def step(self, machine_id: str) -> None:
        """One step of a machine that this reconciler has claimed. Raises StoreError; a driver's errors are recorded."""
        found = machines.get(self.store.read(), machine_id)
        if found is None:
            return
        row = replace(found, machine=lifecycle.watched(found.machine, found.due, self.clock(), self.limits))
        outcome = self._act(row)
        self.store.write(lambda tx: self._record(tx, row, outcome)).result()

    def _act(self, row: MachineRow) -> Outcome:
        """Look, decide, act. Nothing is written here."""
        machine = row.machine
        looked_at = time.perf_counter()
        outcome = Outcome(Sighting(Observed.UNKNOWN), Rest())
        try:
            outcome.sighting = self._look(machine.id)
            outcome.action = lifecycle.next_step(machine, outcome.sighting, self.clock(), self.limits)
            step = STEP_OF.get(type(outcome.action), "")
            if isinstance(outcome.action, Settle) and outcome.action.state == "RUNNING":
                step = "desktop"
            if step:
                self._with_faults(row, step, outcome)
        except (CapacityError, Refused) as error:
            outcome.error = error
        except Exception as error:  # our bug: it is put off like any failure, so its owner reads of it and it ends
            log.exception("step", extra={"machine": machine.id, "owner": machine.owner})
            outcome.error = CapacityError(f"an internal error: {type(error).__name__}", code="reconcile.bug")
        self.put_off += outcome.error is not None
        outcome.engine_s = time.perf_counter() - looked_at
        return outcome

    def _look(self, machine_id: str) -> Sighting:
        sighting = self.driver.look(machine_id)
        if sighting.observed is Observed.UNKNOWN:
            raise CapacityError(sighting.reason or "the capacity driver did not answer", code="capacity.unknown")
        return sighting

    def _with_faults(self, row: MachineRow, step: str, outcome: Outcome) -> None:
        """Run the verb, unless a fault was asked for (`millstream fault`)."""
        fault = self.store.read().one("fault_for", owner=row.machine.owner, step=step)
        if fault is not None:
            outcome.fault = fault["id"]
            if fault["moment"] == "refused":
                raise Refused(fault["message"], error_code=fault["error_code"], code="fault.refused")
            if fault["moment"] == "before":
                raise CapacityError(fault["message"], code="fault.before")
        self._verb(row, outcome.action)
        if fault is not None:
            raise CapacityError(fault["message"], code="fault.after")

    def _verb(self, row: MachineRow, action: Action) -> None:
        spec = row.machine.spec
        match action:
            case Acquire():
                self.driver.acquire(spec)
            case Start():
                self.driver.start(spec)
            case Stop():
                self.driver.stop(spec.id)
            case Release():
                self.driver.release(spec.id)
            case Settle() | Fail() | Forget() | Wait() | Rest():
                pass
            case _:
                assert_never(action)

    # -- writing what came of it -------------------------------------------------------------------------------------

    def _record(self, tx: Tx, seen: MachineRow, outcome: Outcome) -> None:
        row = machines.get(tx, seen.machine.id)
        if row is None:
            return
        now = self.clock()
        if outcome.fault is not None:
            tx.run("use_fault", id=outcome.fault)
            tx.run("prune_faults")
        if row.machine.version != seen.machine.version:
            # Its owner spoke meanwhile: only what the driver now holds is noted, and it is looked at again at once.
            made = row.machine.made or _made(outcome)
            machines.save(tx, self.by, with_machine(row, made=made), due=now)
            return
        row = seen  # the same, with its stamps moved past what nobody watched
        if isinstance(outcome.action, Forget) and outcome.error is None:
            self._forget(tx, row, now)
            return
        after, due = self._after(row, outcome, now)
        step = self._timeline(row, after, outcome, now)
        if step is not None:
            after = replace(after, stepped_at=now)
        if not machines.save(tx, self.by, after, due=due):
            return
        if step is not None:
            steps.add(tx, step)
        if (row.machine.state, row.machine.error, row.facts) != (after.machine.state, after.machine.error, after.facts):
            image_builders.refresh(tx, after)

    def _forget(self, tx: Tx, row: MachineRow, now: float) -> None:
        machine = row.machine
        tx.run("forget_builder", machine_id=machine.id)
        if not tx.run("forget_machine", id=machine.id, by=self.by):
            raise CapacityError(f"the lease of {machine.id} was lost", code="reconcile.lease-lost")
        tx.run("drop_tags", arn=machine.owner)
        tx.run("forget_viewing", machine_id=machine.id)
        began = min(row.stepped_at, now)  # a clock that was set back makes no step shorter than nothing
        steps.add(tx, steps.Step(machine.owner, machine.id, "gone", began, now, engine_id=row.facts.engine_id))

    def _after(self, row: MachineRow, outcome: Outcome, now: float) -> tuple[MachineRow, float | None]:
        """The row after this step, and when it is due again (None: settled)."""
        action, sighting = outcome.action, outcome.sighting
        row = with_machine(row, made=row.machine.made or _made(outcome))
        if outcome.error is not None:
            if isinstance(action, Start):  # whatever it was, it is not up now
                row = with_machine(row, state=action.state)
            return self._after_error(row, outcome.error, now)
        match action:
            case Acquire():
                row = with_machine(row, attempts=0, error=None)
            case Start(state):
                row = with_machine(
                    row, state=state, started_at=now, starts=row.machine.starts + 1, attempts=0, error=None
                )
            case Stop() | Release():
                row = with_machine(row, starts=row.machine.starts + 1, attempts=0)
                if row.machine.starts > 1:  # acknowledged before, and yet there
                    reason = sighting.reason or f"the engine still shows it as {sighting.observed}"
                    decided = lifecycle.not_held(row.machine, reason, self.limits)
                    return self._put_off(row, f"{reason} (capacity.not-held)", decided, now)
                row = with_machine(row, error=None)
            case Settle(state):
                row = with_machine(row, state=state, error=None, silent_since=None, starts=0, attempts=0)
                return replace(row, facts=Facts.of(sighting), waiting=""), None
            case Fail(error_code, message):
                problem = Problem(error_code, message, now)
                return replace(with_machine(row, state="FAILED", error=problem, silent_since=None), waiting=""), (
                    # A silent or slow machine may yet come back; one that is lost can't.
                    now + self.limits.retry_s_max if sighting.observed in {Observed.SILENT, Observed.STARTING} else None
                )
            case Wait(reason, after_s, silent):
                since = (row.machine.silent_since or now) if silent else None
                # The driver answers again: what was waited for has gone. Why a machine FAILED stays.
                kept = row.machine.error if row.machine.state == "FAILED" else None
                row = with_machine(row, silent_since=since, attempts=0, error=kept)
                return replace(row, waiting=reason), now + after_s
            case Rest():
                return replace(row, waiting=""), None
            case Forget():
                raise AssertionError(action)
            case _:
                assert_never(action)
        return replace(row, waiting=""), now

    def _after_error(
        self, row: MachineRow, error: CapacityError | Refused, now: float
    ) -> tuple[MachineRow, float | None]:
        machine = row.machine
        if isinstance(error, Refused) and machine.wanted is not Wanted.GONE:
            problem = Problem(error.error_code, str(error), now)
            return replace(with_machine(row, state="FAILED", error=problem), waiting=""), None
        message = f"{error} ({error.code})"
        decided = lifecycle.put_off(machine, message, self.limits)
        return self._put_off(with_machine(row, attempts=machine.attempts + 1), message, decided, now)

    def _put_off(
        self, row: MachineRow, message: str, decided: Fail | Wait, now: float
    ) -> tuple[MachineRow, float | None]:
        machine = row.machine
        if isinstance(decided, Fail):
            problem = Problem(decided.error_code, decided.message, now)
            # One that was to stop is still running: it is tried on, while its owner may delete it.
            due = now + self.limits.retry_s_max if machine.wanted is Wanted.STOPPED else None
            return replace(with_machine(row, state="FAILED", error=problem), waiting=""), due
        # What it waits for is shown, since a row that is "deleting" for ever is what operators fear most.
        problem = Problem("INTERNAL_SERVICE_ERROR", message, now, retrying=True)
        if machine.error is not None and (machine.state == "FAILED" or machine.error.message == message):
            problem = machine.error
        return replace(with_machine(row, error=problem), waiting=message), now + decided.after_s

    def _timeline(self, row: MachineRow, after: MachineRow, outcome: Outcome, now: float) -> steps.Step | None:
        """The step's line, if there is something to tell."""
        action, error = outcome.action, outcome.error
        name = STEP_OF.get(type(action), "")
        if isinstance(action, Settle):
            name = {"RUNNING": "desktop", "STOPPED": "stopped"}.get(action.state, "")
        elif isinstance(action, Fail):
            name = "failed"
        elif error is not None and not name:
            name = "look"
        if not name:
            return None
        failed = after.machine.state == "FAILED" and row.machine.state != "FAILED"
        problem = after.machine.error
        return steps.Step(
            owner=row.machine.owner,
            machine_id=row.machine.id,
            step=name,
            started=min(row.stepped_at, now),
            ended=now,
            outcome="failed" if failed else "retrying" if after.waiting else "done",
            attempt=max(after.machine.attempts, after.machine.starts) if after.waiting else row.machine.attempts + 1,
            engine_s=round(outcome.engine_s, 6),
            code=(error.code if error is not None else problem.code) if problem is not None else "",
            reason=problem.message if problem is not None else "",
            engine_id=outcome.sighting.engine_id,
        )


def _made(outcome: Outcome) -> bool:
    """Whether this step proves that the driver holds the machine."""
    return outcome.sighting.observed in HELD or (isinstance(outcome.action, Acquire) and outcome.error is None)
