"""The records that floors hand each other. Plain data: no clock, no store, no driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Wanted(StrEnum):
    """What a machine's owner asked for. Only an API handler writes it."""

    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    GONE = "GONE"


class Observed(StrEnum):
    """What a capacity driver says of one machine. Never stored as truth."""

    ABSENT = "ABSENT"  # the driver holds nothing of it: no machine, volume, address, folder
    REMNANT = "REMNANT"  # no machine, but something of it is left (a folder, a half-made volume)
    STOPPED = "STOPPED"  # made, whole, not running
    STARTING = "STARTING"  # running; its agent has not said that the display is ready
    READY = "READY"  # running; agent and display answer
    SILENT = "SILENT"  # running, was started, but its agent can't be reached
    UNKNOWN = "UNKNOWN"  # the driver itself could not be asked


@dataclass(frozen=True, slots=True)
class Sighting:
    """One machine as its driver sees it. Facts come from the engine, never from inside the machine."""

    observed: Observed
    reason: str = ""  # one sentence, when `observed` needs one (SILENT, REMNANT, UNKNOWN)
    engine_id: str = ""  # the engine's own name of it, for operators
    address: str = ""  # IPv4
    addresses6: tuple[str, ...] = ()
    interface_id: str = ""  # `eni-` + 17 hex digits, stable while the interface lives
    agent_version: str = ""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """All that a driver needs to make one machine. `id` is its name at the driver: 32 lower-case hex digits."""

    id: str
    owner: str  # ARN of the resource, for the operator's eyes (a label, never a name or a path)
    image: str  # a base image's name as `Driver.images` gives it
    vcpus: float
    memory_bytes: int
    disk_bytes: int
    internet: bool  # EnableDefaultInternetAccess
    administrator: bool  # image builders: the person may become root inside
    agent_version: str  # MM-DD-YYYY


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A public base image that a driver can start machines from."""

    name: str  # "debian-12-desktop"
    reference: str  # what the engine calls it
    digest: str
    created: float  # seconds since the epoch
    size_bytes: int
    description: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a create would succeed, and if not, the readable code (`engine.no-answer`), why and what next."""

    ok: bool
    code: str = "ok"
    why: str = ""
    next: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """One row of `machine`: what is wanted and what was last decided of it."""

    id: str
    owner: str  # ARN of the resource that it serves
    wanted: Wanted
    state: str  # what Describe shows; only the executor writes it after the handler's first word
    spec: MachineSpec
    asked_at: float  # when `wanted` was last written
    made: bool = False  # a driver has acknowledged `acquire`
    started_at: float | None = None  # the last `start` that the driver acknowledged, for time limits
    silent_since: float | None = None  # the agent has not answered since
    starts: int = 0  # starts, stops or releases in a row that the driver acknowledged and that do not hold yet
    attempts: int = 0  # failures in a row of the current step
    version: int = 0  # grows with each write; a write on an older version is refused
    error: Problem | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a machine is not what its owner asked for: one of the model's error codes and a sentence."""

    code: str  # FleetErrorCode of the model, e.g. INTERNAL_SERVICE_ERROR
    message: str
    at: float
    retrying: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """One look for all machines that a driver holds, ours and strangers."""

    sightings: dict[str, Sighting] = field(default_factory=dict)
