"""How a machine gets from what is to what is wanted: every transition stands in this file.

Pure: no clock, no chance, no store, no driver. `next_step` is the whole of it; the drawing in docs/lifecycle.md is made
from `TRANSITIONS`, and a test walks every pair (wanted, observed) to hold the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    attempts_s: float = 300.0  # a create or start that the driver keeps putting off
    restarts_max: int = 5  # starts of its own in a row, before a machine that keeps dying is FAILED
    look_s: float = 0.05  # between looks at a machine that is coming up
    retry_s: float = 0.25  # first delay after a failure, doubled each time
    retry_s_max: float = 30.0


# state, what happened, state after it. Drawn into docs/lifecycle.md; the reading order is a builder's life.
TRANSITIONS: Final[tuple[tuple[str, str, str], ...]] = (
    ("", "CreateImageBuilder", "PENDING"),
    ("PENDING", "agent and display answer", "RUNNING"),
    ("PENDING", "refused, or put off for too long", "FAILED"),
    ("PENDING", "DeleteImageBuilder", "DELETING"),
    ("RUNNING", "StopImageBuilder", "STOPPING"),
    ("RUNNING", "the machine stopped by itself", "REBOOTING"),
    ("RUNNING", "the agent is silent too long, or the machine is lost", "FAILED"),
    ("RUNNING", "DeleteImageBuilder", "DELETING"),
    ("REBOOTING", "agent and display answer", "RUNNING"),
    ("REBOOTING", "it does not come back", "FAILED"),
    ("STOPPING", "the engine says stopped", "STOPPED"),
    ("STOPPING", "the machine is lost", "FAILED"),
    ("STOPPED", "StartImageBuilder", "PENDING"),
    ("STOPPED", "the machine is lost", "FAILED"),
    ("STOPPED", "DeleteImageBuilder", "DELETING"),
    ("FAILED", "agent and display answer again", "RUNNING"),
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
            return Rest() if machine.state == "STOPPED" else Settle("STOPPED")
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
    waited_s = now - (machine.started_at if machine.started_at is not None else machine.asked_at)
    # A stepped clock must neither fail a machine that has just been started nor wait for ever.
    if not -limits.start_s <= waited_s < limits.start_s:
        if machine.state == "FAILED":
            return Wait("the desktop is not ready", limits.retry_s_max)
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
    if machine.silent_since is None or not 0 <= now - machine.silent_since < limits.silent_s:
        if machine.silent_since is None or now < machine.silent_since:
            return Wait(reason, 1.0, silent=True)
        return Fail(
            "INTERNAL_SERVICE_ERROR",
            f"The machine's agent has not answered for {limits.silent_s:.0f} s: {reason}.",
        )
    return Wait(reason, 1.0, silent=True)


def _lost(machine: Machine) -> Action:
    if machine.state == "FAILED":
        return Rest()
    return Fail(
        "INTERNAL_SERVICE_ERROR",
        "The machine and its root volume are no longer there: something other than Millstream removed them. "
        "Delete the image builder and create it again.",
    )


def put_off(machine: Machine, reason: str, now: float, limits: Limits) -> Action:
    """After a verb failed with *not now*: wait longer each time, and give up at last, but never on a release."""
    after_s: float = min(limits.retry_s * 2.0 ** min(machine.attempts, 16), limits.retry_s_max)
    given_up = machine.wanted is Wanted.RUNNING and now - machine.asked_at > limits.attempts_s
    if given_up and machine.state not in {"FAILED", "RUNNING"}:
        return Fail("INTERNAL_SERVICE_ERROR", f"Gave up after {limits.attempts_s:.0f} s: {reason}")
    return Wait(reason, after_s)


def differs(state: str, wanted: str, sighting: Sighting) -> bool:
    """Whether a survey's sighting is a reason to look at a settled machine."""
    if sighting.observed is Observed.UNKNOWN:
        return False
    if state == "FAILED":
        return wanted == Wanted.RUNNING and sighting.observed is Observed.READY
    return sighting.observed is not {"RUNNING": Observed.READY, "STOPPED": Observed.STOPPED}.get(state)
