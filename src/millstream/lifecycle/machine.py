"""How a machine gets from what is to what is wanted: every transition stands in this file.

Pure: no clock, no chance, no store, no driver. `next_step` is the whole of it; the drawing in docs/lifecycle.md is made
from `TRANSITIONS`, and a test walks every pair (wanted, observed) to hold the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, assert_never

from millstream.lifecycle.actions import (
    Acquire,
    Action,
    Fail,
    Forget,
    Release,
    Rest,
    Settle,
    Start,
    Stop,
    Wait,
)
from millstream.model.records import Machine, Observed, Sighting, Wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

STATES: Final = (
    "PENDING",
    "UPDATING_AGENT",
    "RUNNING",
    "STOPPING",
    "STOPPED",
    "REBOOTING",
    "SNAPSHOTTING",
    "DELETING",
    "FAILED",
    "UPDATING",
    "PENDING_QUALIFICATION",
    "PENDING_SYNCING_APPS",
    "SYNCING_APPS",
    "PENDING_IMAGE_IMPORT",
)
SETTLED: Final = frozenset({"RUNNING", "STOPPED", "FAILED"})


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each kind of waiting may last, in seconds."""

    start_s: float = 60.0  # from the engine's start to a display that answers; TigerVNC needs 0.5 s
    silent_s: float = 20.0  # an agent that does not answer, before the state says so
    attempts_s: float = 300.0  # a create, start or stop that the driver keeps putting off
    restarts_max: int = 5  # starts of its own in a row, before a machine that keeps dying is FAILED
    look_s: float = 0.02  # between looks at a machine that is coming up
    retry_s: float = 0.25  # first delay after a failure, doubled each time
    retry_s_max: float = 30.0
    late_s: float = 5.0  # a look this late was kept from happening: see `watched`
    hold_s_max: float = 1.0  # longest delay before a verb that was acknowledged and did not hold is repeated


# state, what happened, state after it. Drawn into docs/lifecycle.md; the reading order is a builder's life.
TRANSITIONS: Final[tuple[tuple[str, str, str], ...]] = (
    ("", "CreateImageBuilder", "PENDING"),
    ("PENDING", "agent and display answer", "RUNNING"),
    ("PENDING", "refused, put off for too long, not ready in time, or lost", "FAILED"),
    ("PENDING", "DeleteImageBuilder", "DELETING"),
    ("RUNNING", "StopImageBuilder", "STOPPING"),
    ("RUNNING", "the machine stopped or restarted by itself", "REBOOTING"),
    ("RUNNING", "refused, the agent is silent too long, or the machine is lost", "FAILED"),
    ("RUNNING", "DeleteImageBuilder", "DELETING"),
    ("REBOOTING", "agent and display answer", "RUNNING"),
    ("REBOOTING", "it does not come back", "FAILED"),
    ("STOPPING", "the engine says stopped", "STOPPED"),
    ("STOPPING", "refused, put off for too long, or the machine is lost", "FAILED"),
    ("STOPPED", "StartImageBuilder", "PENDING"),
    ("STOPPED", "refused, or the machine is lost", "FAILED"),
    ("STOPPED", "DeleteImageBuilder", "DELETING"),
    ("FAILED", "RUNNING is wanted, and agent and display answer again", "RUNNING"),
    ("FAILED", "STOPPED is wanted, and the engine says stopped at last", "STOPPED"),
    ("FAILED", "DeleteImageBuilder", "DELETING"),
    ("DELETING", "the driver says gone", ""),
)

# What each call may find, and what it makes of it; None: the call is refused. A state that is missing is refused too.
START: Final[Mapping[str, str]] = {"STOPPED": "PENDING", "RUNNING": "RUNNING"}
STOP: Final[Mapping[str, str]] = {"RUNNING": "STOPPING", "STOPPING": "STOPPING", "STOPPED": "STOPPED"}
DELETE: Final[Mapping[str, str]] = dict.fromkeys(("PENDING", "RUNNING", "STOPPED", "FAILED", "DELETING"), "DELETING")
UPDATE: Final = frozenset({"STOPPED"})
STREAM: Final = frozenset({"RUNNING"})


def next_step(machine: Machine, sighting: Sighting, now: float, limits: Limits) -> Action:
    """The one next step towards what is wanted. `now`: seconds since the epoch."""
    if sighting.observed is Observed.UNKNOWN:
        return Wait(sighting.reason or "the capacity driver did not answer", limits.retry_s)
    match machine.wanted:
        case Wanted.GONE:
            return Forget() if sighting.observed is Observed.ABSENT else Release()
        case Wanted.STOPPED:
            return _towards_stopped(machine, sighting)
        case Wanted.RUNNING:
            return _towards_running(machine, sighting, now, limits)
        case _:
            assert_never(machine.wanted)


def _towards_stopped(machine: Machine, sighting: Sighting) -> Action:
    match sighting.observed:
        case Observed.STARTING | Observed.READY | Observed.SILENT:
            return Stop()
        case Observed.STOPPED:
            return Rest() if machine.state == "STOPPED" and machine.error is None else Settle("STOPPED")
        case _:
            return _lost(machine)


def _towards_running(machine: Machine, sighting: Sighting, now: float, limits: Limits) -> Action:
    match sighting.observed:
        case Observed.ABSENT | Observed.REMNANT if machine.made:
            return _lost(machine)
        case Observed.ABSENT | Observed.REMNANT:
            # Once refused for good it stays FAILED: its owner reads why, and deletes it.
            return Rest() if machine.state == "FAILED" else Acquire()
        case Observed.STOPPED:
            return _start_again(machine, limits)
        case Observed.STARTING:
            return _coming_up(machine, sighting, now, limits)
        case Observed.READY:
            at_rest = machine.state == "RUNNING" and machine.error is None and machine.silent_since is None
            return Rest() if at_rest else Settle("RUNNING")
        case Observed.SILENT:
            return _silent(machine, sighting, now, limits)
        case _:
            raise AssertionError(sighting.observed)


def _start_again(machine: Machine, limits: Limits) -> Action:
    # FAILED with a whole machine: refused at start, or it kept dying. It stays for its owner to see.
    if machine.state == "FAILED":
        return Rest()
    if machine.starts >= limits.restarts_max:
        return Fail(
            "INTERNAL_SERVICE_ERROR",
            f"The machine stopped {machine.starts} times in a row before its desktop was ready. "
            "Delete the image builder and create it again.",
        )
    # It was up, and stopped by itself: its person restarted it, or the host did.
    return Start("REBOOTING" if machine.state in {"RUNNING", "REBOOTING"} else "PENDING")


def _coming_up(machine: Machine, sighting: Sighting, now: float, limits: Limits) -> Action:
    if machine.state == "FAILED":
        return Wait("the desktop is not ready", limits.retry_s_max)
    # It restarted by itself, or the answer to its start was lost: nobody noted when. A start may be repeated, and
    # notes it; the time limit runs from there.
    if machine.started_at is None or machine.state == "RUNNING":
        return Start("REBOOTING" if machine.state in {"RUNNING", "REBOOTING"} else "PENDING")
    if now - machine.started_at >= limits.start_s:
        return Fail(
            "INTERNAL_SERVICE_ERROR",
            f"The desktop was not ready {limits.start_s:.0f} s after the machine's start"
            + (f": {sighting.reason}." if sighting.reason else "."),
        )
    return Wait("the desktop is starting", limits.look_s)


def _silent(machine: Machine, sighting: Sighting, now: float, limits: Limits) -> Action:
    reason = sighting.reason or "the machine's agent does not answer"
    if machine.state == "FAILED":
        return Wait(reason, limits.retry_s_max, silent=True)
    silent_for_s = 0.0 if machine.silent_since is None else now - machine.silent_since
    if silent_for_s >= limits.silent_s:
        return Fail(
            "INTERNAL_SERVICE_ERROR",
            f"The machine's agent has not answered for {limits.silent_s:.0f} s: {reason}.",
        )
    # Soon at first, since every machine's agent is silent for a moment after its start; then less and less often.
    return Wait(reason, min(max(silent_for_s / 8, limits.look_s), 1.0), silent=True)


def _lost(machine: Machine) -> Action:
    if machine.state == "FAILED":
        return Rest()
    return Fail(
        "INTERNAL_SERVICE_ERROR",
        "The machine and its root volume are no longer there: something other than Millstream removed them. "
        "Delete the image builder and create it again.",
    )


def put_off(machine: Machine, reason: str, limits: Limits) -> Fail | Wait:
    """After a look or verb failed with *not now*: wait longer each time, and give up at last, but never on a release.

    What was waited is counted in attempts, which no step of the clock and no pause of the service can change.
    """
    return _later(machine, machine.attempts, limits.retry_s, limits.retry_s_max, reason, limits)


def not_held(machine: Machine, reason: str, limits: Limits) -> Fail | Wait:
    """After a stop or release that the driver acknowledged before, and that this look says did not hold."""
    return _later(machine, machine.starts - 1, limits.look_s, limits.hold_s_max, reason, limits)


def _later(machine: Machine, before: int, first_s: float, most_s: float, reason: str, limits: Limits) -> Fail | Wait:
    """After `before` delays in a row, each twice the last: one more, or the end."""
    delays_s = [min(first_s * 2.0 ** min(number, 16), most_s) for number in range(max(0, min(before, 10_000)) + 1)]
    # A settled one's engine is away for a while: that is no reason to call it broken.
    may_end = machine.wanted is not Wanted.GONE and machine.state not in SETTLED
    if may_end and sum(delays_s[:-1]) >= limits.attempts_s:
        return Fail("INTERNAL_SERVICE_ERROR", f"Gave up after {limits.attempts_s:.0f} s: {reason}")
    return Wait(reason, delays_s[-1])


def watched(machine: Machine, due: float | None, now: float, limits: Limits) -> Machine:
    """The machine with its stamps moved past the time in which nobody looked: it counts towards no time limit.

    A look far from when it was due means that the clock was stepped, the host slept, or the service was down or
    overloaded. A late look still counts `late_s`, so every limit is reached after a bounded number of looks.
    """
    late_s = 0.0 if due is None else now - due
    if abs(late_s) <= limits.late_s:
        return machine
    moved_s = late_s - limits.late_s if late_s > 0 else late_s
    return replace(
        machine,
        # Of one that is up it is history, and names its streams' generation.
        started_at=machine.started_at
        if machine.started_at is None or machine.state == "RUNNING"
        else machine.started_at + moved_s,
        silent_since=None if machine.silent_since is None else machine.silent_since + moved_s,
    )


def differs(state: str, wanted: str, sighting: Sighting) -> bool:
    """Whether a survey's sighting is a reason to look at a settled machine."""
    if sighting.observed is Observed.UNKNOWN:
        return False
    if state == "FAILED":
        return wanted == Wanted.RUNNING and sighting.observed is Observed.READY
    return sighting.observed is not {"RUNNING": Observed.READY, "STOPPED": Observed.STOPPED}.get(state)
