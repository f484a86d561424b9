"""What the reconciler can be told to do with one machine. Plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acquire:
    """Driver verb: make the machine."""


@dataclass(frozen=True, slots=True)
class Start:
    """Driver verb: start it, showing `state` while it comes up."""

    state: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Driver verb: shut it down; the disk stays."""


@dataclass(frozen=True, slots=True)
class Release:
    """Driver verb: take it away with all that belongs to it."""


@dataclass(frozen=True, slots=True)
class Forget:
    """The driver says *gone*: delete the rows of machine and resource, in one transaction."""


@dataclass(frozen=True, slots=True)
class Settle:
    """It is what its owner asked for: show `state`, with the facts of the sighting, and clear errors."""

    state: str


@dataclass(frozen=True, slots=True)
class Fail:
    """It can't become what its owner asked for: FAILED, with one of the model's error codes and a sentence."""

    error_code: str
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do yet: look again in `after_s`; `reason` is what the owner is told."""

    reason: str
    after_s: float
    silent: bool = False  # the agent does not answer: the clock of its time limit runs


@dataclass(frozen=True, slots=True)
class Rest:
    """Settled: nothing to do until somebody asks or a survey differs."""


Action = Acquire | Start | Stop | Release | Forget | Settle | Fail | Wait | Rest

# Where a fault can be asked for: the driver's verbs, and the moment at which a desktop would be found ready.
FAULT_STEPS = ("acquire", "start", "desktop", "stop", "release")
