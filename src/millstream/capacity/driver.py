"""What a capacity driver owes. One protocol, one contract suite, every driver.

Every verb may be repeated: a machine's name at the driver is its id, so a verb that was cut off half-way is simply
called again. A verb returns when the driver has acknowledged it; whether it *holds* is for the next look to say.

A driver raises `CapacityError` when something can't be done now (looked at again later) and `Refused` when no retry
will mend it. Anything else is our bug.
"""

from __future__ import annotations

import socket
from typing import Protocol

from millstream.model.records import BaseImage, Health, MachineSpec, Sighting, Survey


class CapacityError(Exception):
    """Not now: counted, shown with its reason, tried again later. `code` is readable: `engine.no-answer`."""

    def __init__(self, message: str, *, code: str = "capacity.error") -> None:
        super().__init__(message)
        self.code = code


class Refused(Exception):  # noqa: N818 - reads as what it is where it is caught
    """Never: the resource goes FAILED. `error_code` is one of the model's FleetErrorCode values."""

    def __init__(
        self, message: str, *, error_code: str = "INTERNAL_SERVICE_ERROR", code: str = "capacity.refused"
    ) -> None:
        super().__init__(message)
        self.error_code = error_code
        self.code = code


class Driver(Protocol):
    """The hands: they hold the engine. Only the reconcile role (and the operator's own commands) has one."""

    name: str

    def survey(self) -> Survey:
        """Everything held, in one look. Strangers of this data folder are in it too. Raises CapacityError."""

    def look(self, machine_id: str) -> Sighting:
        """One machine now; ABSENT only if nothing of it is left. Raises CapacityError when it can't be known."""

    def acquire(self, spec: MachineSpec) -> None:
        """Make the machine, stopped: root volume, limits, network interface, folder. Repeatable.

        Raises CapacityError (engine silent, disk full) or Refused (image unknown, host too small).
        """

    def start(self, spec: MachineSpec) -> None:
        """Start it. No effect on a running one. Raises CapacityError, Refused."""

    def stop(self, machine_id: str) -> None:
        """Shut it down cleanly within 10 s, then by force; the disk stays. No effect on a stopped or absent one."""

    def release(self, machine_id: str) -> None:
        """Take away machine, volume, address, interface, folder, sockets. No effect when absent.

        May return with something still left: the next look says REMNANT or more, and release is called again.
        """

    def images(self) -> list[BaseImage]:
        """Base images at hand. Raises CapacityError."""

    def health(self) -> Health:
        """Would an `acquire` + `start` succeed now? Never raises."""

    def end(self) -> None:
        """The service ends. Machines keep running; if there are none, nothing of the engine stays on the host."""

    def close(self) -> None:
        """Let go of connections and helper processes. Machines keep running."""


class Streams(Protocol):
    """The edge's view of the machines: dial one's display. Holds no engine."""

    def open_stream(self, machine_id: str, kind: str) -> socket.socket:
        """A connected, blocking stream socket to the machine's engine `kind` (`rfb`).

        Raises CapacityError (`stream.no-display`) when nothing answers there. What comes out is hostile.
        """
