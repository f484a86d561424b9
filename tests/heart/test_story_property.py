"""Any calls, any faults, any clock, in any order: once it is quiet, the world is what was asked for."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.heart.heart_world import DRIVER_FAULTS, SMALL, STORE_FAULTS, Plan, World, a_folder

from millstream.lifecycle import machine as lifecycle
from millstream.model import shapes as aws
from millstream.model.errors import ServiceError

NAMES = st.sampled_from(["a", "b", "c"])
TEXTS = st.sampled_from(["", "one", "two"])


class Stories(RuleBasedStateMachine):
    """`asked`: what each builder's owner knows of it: the last acknowledged wish and the members that were given."""

    @initialize()
    def begin(self) -> None:
        self.context = a_folder()
        self.world = World(self.context.__enter__())
        self.asked: dict[str, dict[str, Any]] = {}
        self.refused_for_good = False
        self.deaths = 0

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.quiet()
        finally:
            self.world.close()
            self.context.__exit__(None, None, None)

    # -- what its owner does

    def ask(self, operation: Any, name: str, *fine: type[ServiceError], **request: Any) -> bool | None:
        """Whether it was accepted; None when it had to be repeated, and the repetition can't tell."""
        try:
            return None if self.world.ask(operation, *fine, Name=name, **request) is None else True
        except ServiceError as error:
            if not operation.binds(error):
                raise
            return False

    def state_of(self, name: str) -> str | None:
        shown = self.world.shown(name)
        return None if shown is None else shown["State"]

    @rule(name=NAMES, text=TEXTS)
    def create(self, name: str, text: str) -> None:
        before = self.state_of(name)
        answer = self.ask(
            aws.CreateImageBuilder,
            name,
            aws.ResourceAlreadyExistsException,
            Description=text,
            Tags={"t": text},
            **SMALL,
        )
        assert answer in {before is None, None}, "a name is free just when Describe says not found"
        if before is None:
            self.asked[name] = {"wanted": "RUNNING", "Description": text, "tags": {"t": text}}
            assert self.state_of(name) == "PENDING"

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        before = self.state_of(name)
        answer = self.ask(aws.StartImageBuilder, name, aws.ResourceNotAvailableException)
        assert answer in {before in lifecycle.START, None}
        if before in lifecycle.START:
            self.asked[name]["wanted"] = "RUNNING"
            assert self.state_of(name) == lifecycle.START[str(before)]

    @rule(name=NAMES)
    def stop(self, name: str) -> None:
        before = self.state_of(name)
        answer = self.ask(aws.StopImageBuilder, name)
        assert answer in {before in lifecycle.STOP, None}
        if before in lifecycle.STOP:
            self.asked[name]["wanted"] = "STOPPED"
            assert self.state_of(name) == lifecycle.STOP[str(before)]

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        before = self.state_of(name)
        answer = self.ask(aws.DeleteImageBuilder, name, aws.ResourceNotFoundException)
        assert answer in {before in lifecycle.DELETE, None}
        if before in lifecycle.DELETE:
            self.asked[name]["wanted"] = "GONE"
            assert self.state_of(name) == "DELETING"

    @rule(name=NAMES, text=TEXTS)
    def update(self, name: str, text: str) -> None:
        before = self.state_of(name)
        answer = self.ask(aws.UpdateImageBuilder, name, Description=text)
        assert answer in {before == "STOPPED", None}
        if before == "STOPPED":
            self.asked[name]["Description"] = text

    @rule(name=NAMES, key=st.sampled_from("tu"), text=TEXTS)
    def tag(self, name: str, key: str, text: str) -> None:
        shown = self.world.shown(name)
        if shown is not None:
            self.world.ask(aws.TagResource, ResourceArn=shown["Arn"], Tags={key: text})
            self.asked[name]["tags"][key] = text

    # -- what happens meanwhile

    @rule(steps=st.integers(1, 4), seconds=st.floats(0, 40))
    def time_passes(self, steps: int, seconds: float) -> None:
        for _ in range(steps):
            self.world.step()
            self.world.clock.now += seconds / steps

    @rule(seconds=st.sampled_from([-1e6, -3600.0, -60.0, -5.0, 5.0, 60.0, 3600.0, 1e6]))
    def clock_jumps(self, seconds: float) -> None:
        self.world.clock.now += seconds
        self.world.simulated._run("UPDATE held SET ready_at = ready_at + ?", seconds)

    @rule(ahead=st.integers(1, 6), how=st.sampled_from(DRIVER_FAULTS))
    def driver_fails(self, ahead: int, how: str) -> None:
        plan: Plan = self.world.driver_plan
        plan.at, plan.how = plan.used + ahead, how
        self.refused_for_good = self.refused_for_good or how == "refused"

    @rule(ahead=st.integers(1, 6), how=st.sampled_from(STORE_FAULTS))
    def store_fails(self, ahead: int, how: str) -> None:
        plan: Plan = self.world.store_plan
        plan.at, plan.how = plan.used + ahead, how

    @rule()
    def the_service_is_killed(self) -> None:
        self.world.restart()

    @precondition(lambda self: self.world.held())
    @rule()
    def machines_stop_by_themselves(self) -> None:
        self.world.simulated._run("UPDATE held SET running = 0")
        self.deaths += 1

    @rule()
    def settles(self) -> None:
        self.quiet()

    # -- what holds

    @invariant()
    def describe_is_a_pure_read(self) -> None:
        if not hasattr(self, "world"):
            return
        before = self.world.rows()
        for name in "abc":
            self.world.shown(name)
        assert self.world.rows() == before

    @invariant()
    def no_state_outside_the_lists(self) -> None:
        """Terraform after Create accepts PENDING only on the way, after Delete DELETING only."""
        if not hasattr(self, "world"):
            return
        for row in self.world.rows():
            assert (
                row["state"]
                in {
                    "RUNNING": {"PENDING", "RUNNING", "REBOOTING", "FAILED"},
                    "STOPPED": {"STOPPING", "STOPPED", "FAILED"},
                    "GONE": {"DELETING"},
                }[row["wanted"]]
            )

    def quiet(self) -> None:
        """No further faults; let it run on; look at the world."""
        world = self.world
        world.driver_plan.at = world.store_plan.at = 0
        world.settle()
        world.reconciler.sweep()
        world.settle()
        world.reconciler.sweep()
        assert world.reconciler.released_strangers == 0, "nothing of ours was ever a stranger"
        for name in list(self.asked):
            asked, shown = self.asked[name], world.shown(name)
            if asked["wanted"] == "GONE":
                assert shown is None
                del self.asked[name]
                continue
            assert shown is not None, "an acknowledged create was lost"
            if shown["State"] == "FAILED":
                assert self.refused_for_good or self.deaths >= world.limits.restarts_max, shown
                assert shown["ImageBuilderErrors"]
            else:
                assert shown["State"] == asked["wanted"]
                assert "ImageBuilderErrors" not in shown
            assert shown["Description"] == asked["Description"]
            assert world.call(aws.ListTagsForResource, ResourceArn=shown["Arn"])["Tags"] == asked["tags"]
        assert {row["owner"].rsplit("/")[-1] for row in world.rows()} == set(self.asked)
        world.check(timeline=False)  # a jumping clock keeps no sums


TestStories = Stories.TestCase
TestStories.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
