"""Every use of the driver and every commit fails once, in every way, over every story: the world is right afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.heart.heart_world import DRIVER_FAULTS, SMALL, STORE_FAULTS, VERBS, Plan, World, a_world

from millstream.capacity.driver import CapacityError
from millstream.capacity.simulated import Durations
from millstream.model import shapes as aws
from millstream.model.errors import ServiceError
from millstream.model.records import Observed, Sighting, Survey

Story = Callable[[World], str | None]  # tells the story, and what state must be shown at its end (None: not found)

GONE = aws.ResourceNotFoundException
TAKEN = aws.ResourceAlreadyExistsException
STARTED = aws.ResourceNotAvailableException  # a repeated Start finds PENDING


def create(world: World) -> str | None:
    world.ask(aws.CreateImageBuilder, TAKEN, Name="b", Tags={"for": "b"}, **SMALL)
    world.settle()
    return "RUNNING"


def stop_and_start(world: World) -> str | None:
    create(world)
    world.ask(aws.StopImageBuilder, Name="b")
    world.settle()
    world.ask(aws.StartImageBuilder, STARTED, Name="b")
    world.settle()
    return "RUNNING"


def update(world: World) -> str | None:
    create(world)
    world.ask(aws.StopImageBuilder, Name="b")
    world.settle()
    world.ask(aws.UpdateImageBuilder, Name="b", Description="new", DisplayName="B")
    world.settle()
    assert world.shown() is not None
    assert (world.shown() or {})["Description"] == "new"
    return "STOPPED"


def delete(world: World) -> str | None:
    create(world)
    world.ask(aws.DeleteImageBuilder, GONE, Name="b")
    world.settle()
    return None


def delete_while_creating(after_steps: int) -> Story:
    def story(world: World) -> str | None:
        world.ask(aws.CreateImageBuilder, TAKEN, Name="b", Tags={"for": "b"}, **SMALL)
        for _ in range(after_steps):
            world.step()
        world.ask(aws.DeleteImageBuilder, GONE, Name="b")
        world.settle()
        return None

    return story


def create_delete_create(world: World) -> str | None:
    """The name is free the moment that Describe says not found."""
    create(world)
    first = (world.shown() or {}).get("CreatedTime")
    world.ask(aws.DeleteImageBuilder, GONE, Name="b")
    world.settle_until(lambda: world.shown() is None)
    world.clock.now += 1
    assert world.ask(aws.CreateImageBuilder, TAKEN, Name="b", **SMALL) != {}
    world.settle()
    assert (world.shown() or {})["CreatedTime"] != first
    assert world.call(aws.ListTagsForResource, ResourceArn=(world.shown() or {})["Arn"])["Tags"] == {}
    return "RUNNING"


STORIES: dict[str, Story] = {
    "create": create,
    "stop and start": stop_and_start,
    "update": update,
    "delete": delete,
    "delete at once": delete_while_creating(0),
    "delete after acquire": delete_while_creating(1),
    "delete after start": delete_while_creating(2),
    "create, delete, create": create_delete_create,
}
# Boots that a story takes: each start that was asked for once, whatever failed.
BOOTS = {"create": 1, "stop and start": 2, "update": 1, "create, delete, create": 1}


def told(story: str, world: World) -> None:
    """Tell a story and look at the world."""
    refused = False
    try:
        wanted = STORIES[story](world)
    except ServiceError:
        # A driver that refuses for good makes it FAILED; what its owner asks of it then is refused, with a reason.
        assert world.driver_plan.how == "refused"
        wanted, refused = "FAILED", True
        world.settle()
    shown = world.shown()
    refused = refused or (world.driver_plan.how == "refused" and world.driver_plan.hit)
    if refused and shown is not None and shown["State"] == "FAILED":
        assert "never" in shown["ImageBuilderErrors"][0]["ErrorMessage"]
        assert "never" in shown["StateChangeReason"]["Message"]
        world.check()
        world.ask(aws.DeleteImageBuilder, GONE, Name="b")  # and it can always be deleted
        world.settle()
        assert world.shown() is None
        wanted = None
    else:
        assert (shown or {}).get("State") == wanted
        assert "ImageBuilderErrors" not in (shown or {})
        if story in BOOTS:
            assert list(world.boots().values()) == [BOOTS[story]], "started once too often"
    if wanted is None:
        assert (world.rows(), world.held()) == ([], {})
    calls: dict[tuple[str, str], int] = {}
    for operation in ("CreateImageBuilder", "DeleteImageBuilder", "StopImageBuilder", "StartImageBuilder"):
        for line in world.lines(operation):
            calls[operation, line.machine_id] = calls.get((operation, line.machine_id), 0) + 1
    assert set(calls.values()) <= {1}, f"something was done twice: {calls}"
    world.check()


@pytest.mark.parametrize("story", STORIES)
def test_every_use_of_the_driver_fails_once(story: str) -> None:
    plan = Plan()
    with a_world(driver_plan=plan) as world:
        told(story, world)
    uses = plan.names
    assert set(uses) & set(VERBS) or story == "delete at once"
    for number, name in enumerate(uses, 1):
        for how in DRIVER_FAULTS:
            if how == "refused" and name not in VERBS:
                continue
            plan = Plan(at=number, how=how)
            with a_world(driver_plan=plan) as world:
                tell(story, world, f"use {number} of the driver ({name}): {how}")
            assert plan.hit


@pytest.mark.parametrize("story", STORIES)
def test_every_commit_fails_once(story: str) -> None:
    plan = Plan()
    with a_world(store_plan=plan) as world:
        told(story, world)
    for number in range(1, plan.used + 1):
        for how in STORE_FAULTS:
            plan = Plan(at=number, how=how)
            with a_world(store_plan=plan) as world:
                tell(story, world, f"commit {number}: {how}")
            assert plan.hit


def tell(story: str, world: World, what: str) -> None:
    """`told`, naming what failed when it goes wrong."""
    try:
        told(story, world)
    except BaseException as error:
        error.add_note(f"{story}, with {what}")
        raise


def test_the_check_itself_can_fail() -> None:
    """A machine that no row knows, or a row that tells another story, is found."""
    with a_world() as world:
        create(world)
        world.check()
        world.simulated._run("UPDATE held SET running = 0")
        with pytest.raises(AssertionError):
            world.check()
        world.simulated._run("UPDATE held SET running = 1")
        world.check()
        rows: list[Any] = world.rows()
        world.simulated._run("UPDATE held SET id = ?", "f" * 32)
        with pytest.raises(AssertionError, match="no row knows"):
            world.check()
        assert rows


# -- its owner speaks while a verb is under way


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", range(1, 6))
def test_a_delete_that_arrives_during_a_step_is_not_overwritten(number: int, moment: str) -> None:
    """At each use of the driver while it is created: what the step then writes must not hide the new wish."""
    with a_world() as world:
        use, used = world.driver._use, 0

        def speaking(name: str, real: Callable[[], Any]) -> Any:
            nonlocal used
            used += 1
            if used == number and moment == "before":
                world.call(aws.DeleteImageBuilder, Name="b")
            result = use(name, real)
            if used == number and moment == "after":
                world.call(aws.DeleteImageBuilder, Name="b")
            return result

        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        world.driver._use = speaking  # type: ignore[method-assign,assignment]
        states: set[str | None] = set()

        def gone() -> bool:
            state = (world.shown() or {}).get("State")
            if used >= number:
                states.add(state)
            return state is None

        world.settle_until(gone, limit_s=60)
        assert used >= number
        assert states <= {"DELETING", None}, "after Delete it shows DELETING until it is gone"
        assert (world.rows(), world.held()) == ([], {})
        world.check_timeline()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_stop_that_arrives_while_it_is_brought_up_again(number: int, moment: str) -> None:
    """RUNNING, stopped by itself, and its owner stops it just as the reconciler looks or starts."""
    with a_world() as world:
        running(world)
        world.simulated._run("UPDATE held SET running = 0")
        world.reconciler.sweep()
        use, used = world.driver._use, 0

        def speaking(name: str, real: Callable[[], Any]) -> Any:
            nonlocal used
            used += 1
            if used == number and moment == "before":
                world.call(aws.StopImageBuilder, Name="b")
            result = use(name, real)
            if used == number and moment == "after":
                world.call(aws.StopImageBuilder, Name="b")
            return result

        world.driver._use = speaking  # type: ignore[method-assign,assignment]
        world.settle()
        assert used >= number
        assert (world.shown() or {})["State"] == "STOPPED"
        world.check(timeline=False)


# -- the world changes behind our back


def running(world: World) -> dict[str, Any]:
    create(world)
    shown = world.shown()
    assert shown is not None
    return shown


def sweep(world: World) -> None:
    world.reconciler.sweep()
    world.settle()


def test_a_stranger_is_released_only_when_seen_twice() -> None:
    with a_world() as world:
        create(world)
        for letter in "def":
            world.simulated._run(
                "INSERT INTO held (id, owner, internet, agent_version) VALUES (?, '', 0, '')", letter * 32
            )
        sweep(world)
        assert len(world.held()) == 4, "seen once: it may be on its way"
        world.driver_plan.at, world.driver_plan.how = world.driver_plan.used + 2, "not now"  # the first one's release
        sweep(world)
        assert world.driver_plan.hit
        assert len(world.held()) == 2, "one that can't go keeps no other"
        assert world.reconciler.released_strangers == 2
        sweep(world)
        world.check()
        assert world.reconciler.released_strangers == 3
        assert (world.shown() or {})["State"] == "RUNNING"


def test_a_machine_that_a_row_gained_meanwhile_is_no_stranger() -> None:
    """Seen without a row in one survey, with one in the next: a create was under way."""
    with a_world() as world:
        create(world)
        row = world.rows()[0]
        world.reconciler._strangers = {row["id"]}
        sweep(world)
        sweep(world)
        assert world.reconciler.released_strangers == 0
        world.check()


@pytest.mark.parametrize("state", ["RUNNING", "STOPPED"])
def test_a_lost_machine_fails_with_the_reason_and_is_not_made_anew(state: str) -> None:
    with a_world() as world:
        running(world)
        if state == "STOPPED":
            world.call(aws.StopImageBuilder, Name="b")
            world.settle()
        world.simulated._run("DELETE FROM held")
        sweep(world)
        shown = world.shown()
        assert shown is not None
        assert shown["State"] == "FAILED"
        assert "no longer there" in shown["ImageBuilderErrors"][0]["ErrorMessage"]
        assert shown["StateChangeReason"]["Code"] == "INTERNAL_ERROR"
        sweep(world)
        assert world.held() == {}, "its disk is lost: another machine in its place would hide that"
        world.check()
        world.call(aws.DeleteImageBuilder, Name="b")
        world.settle()
        assert world.shown() is None


def test_a_machine_made_by_a_crashed_acquire_is_known_to_be_made() -> None:
    """The look after the crash finds it, so its loss later is a loss and no reason to make another."""
    plan = Plan(at=2, how="crash after")
    with a_world(driver_plan=plan) as world:
        running(world)
        assert plan.names[1] == "acquire"
        assert plan.hit
        world.simulated._run("DELETE FROM held")
        sweep(world)
        assert (world.shown() or {})["State"] == "FAILED"


def test_a_machine_that_stopped_by_itself_shows_rebooting_and_comes_back() -> None:
    with a_world() as world:
        running(world)
        world.clock.now += 1000
        world.simulated._run("UPDATE held SET running = 0")
        world.reconciler.sweep()
        seen = []
        world.settle_until(lambda: seen.append((world.shown() or {})["State"]) or len(seen) > 3)  # type: ignore[func-returns-value]
        assert set(seen) <= {"RUNNING", "REBOOTING"}
        assert "REBOOTING" in seen
        world.settle()
        assert (world.shown() or {})["State"] == "RUNNING"
        # The thousand seconds in which it ran are no part of its restart.
        assert sum(line.ended - line.started for line in world.lines("start")) < 10
        world.check_timeline(strictly=False)


def test_a_machine_that_keeps_dying_fails_after_a_bounded_number_of_starts() -> None:
    with a_world() as world:
        running(world)
        start = world.simulated.start
        world.simulated.start = lambda spec: None  # type: ignore[method-assign]  # noqa: ARG005 - acknowledged, never up
        world.simulated._run("UPDATE held SET running = 0")
        sweep(world)
        shown = world.shown()
        assert shown is not None
        assert shown["State"] == "FAILED"
        assert f"{world.limits.restarts_max} times in a row" in shown["ImageBuilderErrors"][0]["ErrorMessage"]
        world.simulated.start = start  # type: ignore[method-assign]
        world.check()


class Down:
    """The driver is away: every look and verb answers *not now*."""

    def __init__(self, world: World, code: str = "engine.no-answer") -> None:
        self.world, self.code = world, code

    def __enter__(self) -> None:
        self.use = self.world.driver._use

        def refuse(name: str, use: Callable[[], Any]) -> Any:
            raise CapacityError("the engine does not answer", code=self.code)

        self.world.driver._use = refuse  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self.world.driver._use = self.use  # type: ignore[method-assign]


def steps_for(world: World, seconds: float) -> None:
    until = world.clock.now + seconds
    while world.clock.now < until:
        if not world.step():
            world.clock.now += 0.5


@pytest.mark.parametrize("call", ["create", "delete", "stop", "start"])
def test_what_a_builder_waits_for_is_shown_and_vanishes_with_its_cause(call: str) -> None:
    with a_world() as world:
        if call != "create":
            running(world)
        if call == "start":
            world.call(aws.StopImageBuilder, Name="b")
            world.settle()
        with Down(world):
            match call:
                case "create":
                    world.call(aws.CreateImageBuilder, Name="b", **SMALL)
                case "delete":
                    world.call(aws.DeleteImageBuilder, Name="b")
                case "stop":
                    world.call(aws.StopImageBuilder, Name="b")
                case "start":
                    world.call(aws.StartImageBuilder, Name="b")
            steps_for(world, 60)
            shown = world.shown()
            assert shown is not None
            assert shown["State"] == {"delete": "DELETING", "stop": "STOPPING"}.get(call, "PENDING")
            assert shown["ImageBuilderErrors"][0]["ErrorMessage"] == "the engine does not answer (engine.no-answer)"
            first = shown["ImageBuilderErrors"][0]["ErrorTimestamp"]
            steps_for(world, 60)
            assert (world.shown() or {})["ImageBuilderErrors"][0]["ErrorTimestamp"] == first, "since when it waits"
            assert world.reconciler.executor.limits.retry_s_max == 30
        steps_for(world, 31)
        world.settle()
        shown = world.shown()
        assert (shown or {}).get("State") == {"delete": None, "stop": "STOPPED"}.get(call, "RUNNING")
        assert "ImageBuilderErrors" not in (shown or {})
        world.check()


def test_an_error_does_not_outlive_its_cause_while_the_desktop_starts() -> None:
    with a_world() as world:
        world.simulated._durations = Durations(0, 20.0, 0, 0)
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        steps_for(world, 1)
        with Down(world):
            steps_for(world, 2)
            assert "ImageBuilderErrors" in (world.shown() or {})
        steps_for(world, 3)
        assert (world.shown() or {})["State"] == "PENDING"
        assert "ImageBuilderErrors" not in (world.shown() or {})


def test_a_driver_away_for_long_ends_a_create_but_never_a_delete() -> None:
    with a_world() as world:
        for name in ("b", "c"):
            world.call(aws.CreateImageBuilder, Name=name, **SMALL)
        world.call(aws.DeleteImageBuilder, Name="c")
        with Down(world):
            steps_for(world, 400)
            assert (world.shown() or {})["State"] == "FAILED"
            assert "Gave up after 300 s" in (world.shown() or {})["ImageBuilderErrors"][0]["ErrorMessage"]
            steps_for(world, 7200)
            assert (world.shown("c") or {})["State"] == "DELETING"
            assert len(world.rows()) == 2
        steps_for(world, 31)
        assert world.shown("c") is None
        assert len(world.lines("look")) <= 4, "a wait is one line with a growing count"


def test_a_stop_that_was_given_up_is_still_done_when_the_driver_is_back() -> None:
    with a_world() as world:
        running(world)
        world.call(aws.StopImageBuilder, Name="b")
        with Down(world):
            steps_for(world, 400)
            assert (world.shown() or {})["State"] == "FAILED"
            message = (world.shown() or {})["ImageBuilderErrors"][0]["ErrorMessage"]
            assert "Gave up" in message
            steps_for(world, 400)
            assert (world.shown() or {})["ImageBuilderErrors"][0]["ErrorMessage"] == message, "why it FAILED stays"
        world.settle()
        assert (world.shown() or {})["State"] == "STOPPED"
        assert "ImageBuilderErrors" not in (world.shown() or {})
        world.check()


@pytest.mark.parametrize("verb", ["stop", "release"])
def test_a_verb_that_is_acknowledged_and_does_not_hold_is_repeated_slowly_and_said(verb: str) -> None:
    with a_world() as world:
        running(world)
        calls = 0

        def lies(_machine_id: str) -> None:
            nonlocal calls
            calls += 1

        real = getattr(world.simulated, verb)
        setattr(world.simulated, verb, lies)
        world.call(aws.StopImageBuilder if verb == "stop" else aws.DeleteImageBuilder, Name="b")
        steps_for(world, 60)
        assert 50 <= calls <= 80, "about one a second: no spinning"
        shown = world.shown()
        assert shown is not None
        assert shown["State"] == ("STOPPING" if verb == "stop" else "DELETING")
        assert "still shows it as READY" in shown["ImageBuilderErrors"][0]["ErrorMessage"]
        assert len(world.lines(verb)) == 2, "a wait is one line with a growing count"
        setattr(world.simulated, verb, real)
        world.settle()
        assert (world.shown() or {}).get("State") == ("STOPPED" if verb == "stop" else None)
        world.check()


def test_an_error_of_our_own_is_shown_and_ends() -> None:
    """A bug in a driver is no reason to be PENDING for ever without a word."""
    with a_world() as world:

        def broken(_spec: object) -> None:
            raise KeyError("unforeseen")

        world.simulated.acquire = broken  # type: ignore[method-assign,assignment]
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        steps_for(world, 10)
        assert "reconcile.bug" in (world.shown() or {})["ImageBuilderErrors"][0]["ErrorMessage"]
        world.settle()
        assert (world.shown() or {})["State"] == "FAILED"
        world.check()


def test_a_driver_that_does_not_know_is_asked_again_and_said() -> None:
    with a_world() as world:
        look = world.simulated.look
        world.simulated.look = lambda _id: Sighting(Observed.UNKNOWN, "the engine is being upgraded")  # type: ignore[method-assign,assignment]
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        steps_for(world, 10)
        assert "being upgraded" in (world.shown() or {})["ImageBuilderErrors"][0]["ErrorMessage"]
        world.simulated.look = look  # type: ignore[method-assign]
        world.settle()
        assert (world.shown() or {})["State"] == "RUNNING"


def test_a_silent_agent_fails_after_its_limit_and_recovers() -> None:
    with a_world() as world:
        running(world)
        look = world.simulated.look
        world.simulated.look = lambda _id: Sighting(Observed.SILENT, "no answer at its socket")  # type: ignore[method-assign,assignment]
        survey = Survey({row["id"]: Sighting(Observed.SILENT) for row in world.rows()})
        world.simulated.survey = lambda: survey  # type: ignore[method-assign]
        world.reconciler.sweep()
        began = world.clock.now
        world.settle_until(lambda: (world.shown() or {})["State"] == "FAILED")
        assert world.limits.silent_s <= world.clock.now - began <= world.limits.silent_s + 3
        assert "no answer at its socket" in (world.shown() or {})["ImageBuilderErrors"][0]["ErrorMessage"]
        world.simulated.look = look  # type: ignore[method-assign]
        world.settle()
        assert (world.shown() or {})["State"] == "RUNNING"
        assert "ImageBuilderErrors" not in (world.shown() or {})


# -- the clock


@pytest.mark.parametrize("jump_s", [-86_400.0, -3600.0, -60.0, -31.0, -4.0, 4.0, 31.0, 60.0, 3600.0, 86_400.0])
@pytest.mark.parametrize("at", range(8))
def test_a_stepped_clock_neither_fails_nor_hangs_a_machine(jump_s: float, at: int) -> None:
    """At any moment of a create with a desktop that takes five seconds, and of the delete after it."""
    with a_world() as world:
        world.simulated._durations = Durations(0, 5.0, 0, 0)
        began = real = world.clock.now

        def pass_time(done: Callable[[], bool]) -> None:
            nonlocal real
            moments = 0
            while not done():
                assert (world.shown() or {}).get("State") != "FAILED"
                moments += 1
                if moments == at:
                    world.clock.now += jump_s
                    # The engine's own clock of readiness is not the wall's.
                    world.simulated._run("UPDATE held SET ready_at = ready_at + ?", jump_s)
                if not world.step():
                    world.clock.now += 0.5
                    real += 0.5
                assert real - began < 80, "it hangs"

        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        pass_time(lambda: (world.shown() or {})["State"] == "RUNNING")
        world.settle()
        world.check_timeline(strictly=False)
        began = real
        world.call(aws.DeleteImageBuilder, Name="b")
        pass_time(lambda: world.shown() is None)
        assert world.held() == {}


def test_a_service_that_was_down_for_long_fails_nobody_for_it() -> None:
    """Crashed between the engine's start and its row, and down for an hour: the time limit begins anew."""
    plan = Plan(at=4, how="crash after")
    with a_world(driver_plan=plan) as world:
        world.simulated._durations = Durations(0, 3601.0, 0, 0)
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        while not plan.hit:
            world.step()
        assert plan.names[3] == "start"
        world.clock.now += 3600
        world.settle()
        assert (world.shown() or {})["State"] == "RUNNING"
        assert list(world.boots().values()) == [1]


def test_a_start_after_a_long_stop_counts_from_its_own_beginning() -> None:
    with a_world() as world:
        running(world)
        world.call(aws.StopImageBuilder, Name="b")
        world.settle()
        world.clock.now += 86_400
        world.call(aws.StartImageBuilder, Name="b")
        world.simulated._durations = Durations(0, 1.0, 0, 0)
        world.driver_plan.at, world.driver_plan.how = world.driver_plan.used + 2, "crash after"
        world.settle_until(lambda: (world.shown() or {})["State"] != "PENDING")
        assert world.driver_plan.hit
        assert (world.shown() or {})["State"] == "RUNNING"
