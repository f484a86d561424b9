"""Every pair of what is wanted and what is seen, in every state, walked; and the drawing held to what was walked."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.heart.heart_world import Clock, Faulty, Plan, World, a_folder, a_world
from tests.heart.test_faults import stop_and_start

from millstream.capacity.driver import CapacityError, Refused
from millstream.lifecycle import machine as lifecycle
from millstream.lifecycle.actions import Acquire, Action, Fail, Forget, Release, Rest, Settle, Start, Stop, Wait
from millstream.lifecycle.machine import STATES, TRANSITIONS, Limits
from millstream.model.records import Machine, MachineSpec, Observed, Problem, Sighting, Wanted
from millstream.model.shape import Text
from millstream.model.shapes import SHAPES
from millstream.reconcile.executor import STEP_OF, Executor, Outcome
from millstream.store.machines import Facts, MachineRow

ROOT = Path(__file__).parents[2]
NOW = 1_795_000_000.0
LIMITS = Limits()
SPEC = MachineSpec("a" * 32, "arn", "debian-12-desktop", 1, 1, 1, internet=False, administrator=True, agent_version="")
# Which states each wish may be shown in.
STATES_OF = {
    Wanted.RUNNING: {"PENDING", "RUNNING", "REBOOTING", "FAILED"},
    Wanted.STOPPED: {"STOPPING", "STOPPED", "FAILED"},
    Wanted.GONE: {"DELETING"},
}
ANSWERS: tuple[CapacityError | Refused | None, ...] = (None, CapacityError("not now"), Refused("never"))


def machines() -> Iterator[Machine]:
    """Every kind of machine that a row can hold: each wish in each of its states, and what the row remembers."""
    for wanted, states in STATES_OF.items():
        for state, made, started, silent, starts, attempts, error in itertools.product(
            sorted(states),
            (False, True),
            (None, NOW - 1e6, NOW - 1, NOW + 1e6),
            (None, NOW - 1e6, NOW - 1, NOW + 1e6),
            (0, 4, 5, 1000),
            (0, 1000),
            (None, Problem("INTERNAL_SERVICE_ERROR", "x", NOW)),
        ):
            yield Machine(
                SPEC.id, "arn", wanted, state, SPEC, NOW - 1e6, made, started, silent, starts, attempts, 0, error
            )


def rank(machine: Machine, observed: Observed) -> Action:
    return lifecycle.next_step(machine, Sighting(observed), NOW, LIMITS)


def test_next_step_has_an_answer_for_every_pair_and_is_pure() -> None:
    count = 0
    for machine in machines():
        for observed in Observed:
            before = replace(machine)
            action = rank(machine, observed)
            assert action == rank(machine, observed)
            assert machine == before
            assert isinstance(action, Acquire | Start | Stop | Release | Forget | Settle | Fail | Wait | Rest)
            count += 1
    assert count > 10_000


def test_each_wish_does_only_what_serves_it() -> None:
    """A delete never starts, a run never releases, nothing but absence is forgotten."""
    may: dict[Wanted, tuple[type[Action], ...]] = {
        Wanted.GONE: (Release, Forget, Wait),
        Wanted.STOPPED: (Stop, Settle, Fail, Wait, Rest),
        Wanted.RUNNING: (Acquire, Start, Settle, Fail, Wait, Rest),
    }
    for machine in machines():
        for observed in Observed:
            action = rank(machine, observed)
            assert isinstance(action, may[machine.wanted]), (machine, observed, action)
            assert isinstance(action, Forget) == (machine.wanted is Wanted.GONE and observed is Observed.ABSENT)
            if isinstance(action, Acquire):
                assert not machine.made, "a lost disk is never replaced in silence"
            if isinstance(action, Settle):
                assert (machine.wanted, observed) in {
                    (Wanted.RUNNING, Observed.READY),
                    (Wanted.STOPPED, Observed.STOPPED),
                }


def test_delete_never_gives_up() -> None:
    for machine in machines():
        if machine.wanted is Wanted.GONE:
            for observed in Observed:
                assert not isinstance(rank(machine, observed), Fail | Rest)
            for decided in (lifecycle.put_off(machine, "x", LIMITS), lifecycle.not_held(machine, "x", LIMITS)):
                assert isinstance(decided, Wait)
                assert 0 < decided.after_s <= LIMITS.retry_s_max


def test_rest_only_when_it_is_what_was_asked_for_or_failed() -> None:
    for machine in machines():
        for observed in Observed:
            if isinstance(rank(machine, observed), Rest):
                if machine.state == "FAILED":
                    continue
                assert machine.error is None
                assert (machine.wanted, machine.state, observed) in {
                    (Wanted.RUNNING, "RUNNING", Observed.READY),
                    (Wanted.STOPPED, "STOPPED", Observed.STOPPED),
                }


# -- the walk: from creation through every look, every answer of a verb and every call


@pytest.fixture(scope="module")
def walked() -> set[tuple[str, str]]:
    """Pairs of states, one after the other, that are reachable at all."""
    clock = Clock(NOW)
    with a_world() as world:
        executor = Executor(world.store, Faulty(world.simulated, Plan()), by="walk", clock=clock)
        first = row_of(Machine(SPEC.id, "arn", Wanted.RUNNING, "PENDING", SPEC, NOW))
        pairs = {("", "PENDING")}
        todo, seen = [first], {key(first)}
        while todo:
            row = todo.pop()
            for after in (*stepped(executor, row, pairs), *called(row)):
                pairs.add((row.machine.state, after.machine.state))
                assert after.machine.state in STATES_OF[after.machine.wanted]
                if key(after) not in seen:
                    seen.add(key(after))
                    todo.append(after)
        return {(old, new) for old, new in pairs if old != new}


def row_of(machine: Machine) -> MachineRow:
    return MachineRow(machine, Facts(), "", NOW, working=False, due=NOW)


def key(row: MachineRow) -> tuple[object, ...]:
    m = row.machine
    times = tuple(None if at is None else at > NOW - 30 for at in (m.started_at, m.silent_since))
    return (m.wanted, m.state, m.made, times, min(m.starts, 6), m.attempts > 0, m.error is not None)


def stepped(executor: Executor, row: MachineRow, pairs: set[tuple[str, str]]) -> Iterator[MachineRow]:
    """The rows after one step: each sighting, each answer, early and late."""
    for observed, error, late, often in itertools.product(Observed, ANSWERS, (False, True), (False, True)):
        machine = row.machine
        if late:  # every clock of it ran out
            machine = replace(
                machine,
                started_at=None if machine.started_at is None else NOW - 1000,
                silent_since=None if machine.silent_since is None else NOW - 1000,
            )
        if often:
            machine = replace(
                machine, attempts=1000, starts=1000 if machine.wanted is not Wanted.RUNNING else machine.starts
            )
        at = replace(row, machine=machine)
        outcome = Outcome(Sighting(observed), lifecycle.next_step(machine, Sighting(observed), NOW, LIMITS))
        if isinstance(outcome.action, Forget):
            pairs.add((machine.state, ""))
            continue
        if error is not None:
            if type(outcome.action) not in STEP_OF and not isinstance(error, CapacityError):
                continue  # only a verb is refused for good
            outcome.error = error
        after, due = executor._after(at, outcome, NOW)
        if after.machine.state not in lifecycle.SETTLED:
            assert due is not None, f"moving, and never looked at again: {after}"
        yield after


def called(row: MachineRow) -> Iterator[MachineRow]:
    tables = ((lifecycle.START, Wanted.RUNNING), (lifecycle.STOP, Wanted.STOPPED), (lifecycle.DELETE, Wanted.GONE))
    for table, wanted in tables:
        state = table.get(row.machine.state)
        if state is not None and state != row.machine.state:
            yield replace(
                row,
                machine=replace(
                    row.machine, wanted=wanted, state=state, started_at=None, silent_since=None, starts=0, attempts=0,
                    error=None,
                ),
            )  # fmt: skip


def test_what_happens_is_what_is_drawn(walked: set[tuple[str, str]]) -> None:
    drawn = {(old, new) for old, _, new in TRANSITIONS}
    assert walked - drawn == set(), "happens, and is not drawn"
    assert drawn - walked == set(), "drawn, and never happens"


def test_the_tables_speak_of_states_of_the_model() -> None:
    for old, cause, new in TRANSITIONS:
        assert {old, new} <= {*STATES, ""}
        assert cause
    for table in (lifecycle.START, lifecycle.STOP, lifecycle.DELETE):
        assert {*table, *table.values()} <= set(STATES)
    assert set(STATES) >= lifecycle.UPDATE | lifecycle.STREAM
    # Every state that can be reached can be deleted, but for those that pass by themselves.
    reached = {new for _, _, new in TRANSITIONS} - {""}
    assert reached - set(lifecycle.DELETE) == {"STOPPING", "REBOOTING"}


# -- no way is without an end


@pytest.mark.parametrize("observed", [o for o in Observed if o is not Observed.READY])
@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("late_s", [0.0, 10.0, 3600.0, -3600.0])
def test_running_wanted_is_never_stuck(
    observed: Observed, made: bool, answer: CapacityError | Refused | None, late_s: float
) -> None:
    """Whatever a driver goes on saying, and however late or early each look is: an end is reached."""
    clock = Clock(NOW)
    with a_world() as world:
        executor = Executor(world.store, world.driver, by="walk", clock=clock)
        row = row_of(Machine(SPEC.id, "arn", Wanted.RUNNING, "PENDING", SPEC, NOW, made=made))
        watched_s = 0.0
        for _ in range(5000):
            now = clock.now
            row = replace(row, machine=lifecycle.watched(row.machine, row.due, now, LIMITS))
            outcome = Outcome(Sighting(observed), lifecycle.next_step(row.machine, Sighting(observed), now, LIMITS))
            if observed is Observed.UNKNOWN:
                outcome.error = CapacityError("unknown")
            elif type(outcome.action) in STEP_OF:
                outcome.error = answer
            row, due = executor._after(row, outcome, now)
            row = replace(row, due=due)
            if row.machine.state == "FAILED":
                break
            assert due is not None
            watched_s += due - now
            # Within the bounds in which a claim takes it: a clock set back further than any delay is seen as such.
            clock.now = due + late_s
        assert row.machine.state == "FAILED"
        assert watched_s < 2 * LIMITS.attempts_s


@given(st.floats(-1e7, 1e7), st.floats(0, 300), st.floats(0, 100), st.sampled_from(["PENDING", "REBOOTING", "RUNNING"]))
def test_time_that_nobody_watched_counts_no_more_than_its_share(
    late_s: float, started_ago_s: float, silent_ago_s: float, state: str
) -> None:
    machine = Machine(
        SPEC.id,
        "arn",
        Wanted.RUNNING,
        state,
        SPEC,
        NOW,
        started_at=NOW - started_ago_s,
        silent_since=NOW - silent_ago_s,
    )
    now = NOW + late_s
    after = lifecycle.watched(machine, NOW, now, LIMITS)
    assert after.silent_since is not None
    assert after.started_at is not None
    counted_s = (now - after.silent_since) - silent_ago_s
    assert -LIMITS.late_s - 1e-3 <= counted_s <= LIMITS.late_s + 1e-3
    if late_s >= 0:
        assert counted_s >= min(late_s, LIMITS.late_s) - 1e-3, "a limit is reached at last"
    if state == "RUNNING":
        assert after.started_at == machine.started_at
    else:
        assert abs((now - after.started_at) - started_ago_s) <= LIMITS.late_s + 1e-3


def test_a_survey_wakes_exactly_what_would_not_rest() -> None:
    """`differs` on a settled machine says yes just when a look would do something."""
    for machine in machines():
        if machine.state not in lifecycle.SETTLED or machine.error is not None or machine.silent_since is not None:
            continue
        for observed in Observed:
            if observed is Observed.UNKNOWN or machine.state == "FAILED":
                continue
            if not machine.made and observed in {Observed.ABSENT, Observed.REMNANT}:
                continue  # it was seen before it came to rest, so it is known to be made
            action = rank(machine, observed)
            assert lifecycle.differs(machine.state, machine.wanted, Sighting(observed)) == (
                not isinstance(action, Rest)
            )


def test_every_state_of_the_model_can_be_shown() -> None:
    model = SHAPES["ImageBuilderState"]
    assert isinstance(model, Text)
    assert set(STATES) == set(model.values)


def test_the_drawing_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/draw_lifecycle.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_world_follows_the_drawing(walked: set[tuple[str, str]]) -> None:
    """The commonest path, in a real store: only drawn transitions are ever shown."""
    shown: list[str] = []

    class Watching(World):
        def step(self) -> bool:
            found = super().step()
            state = (self.shown() or {}).get("State", "")
            if not shown or shown[-1] != state:
                shown.append(state)
            return found

    with a_folder() as folder:
        world = Watching(folder)
        stop_and_start(world)
        world.close()
    assert shown == ["PENDING", "RUNNING", "STOPPING", "STOPPED", "PENDING", "RUNNING"]
    assert set(itertools.pairwise(shown)) <= walked
