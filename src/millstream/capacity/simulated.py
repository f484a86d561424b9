"""Machines that are rows: for tests of automation at full speed, on any system, without an engine or root.

They live in a file of their own beside the store, so a survey compares two worlds here too, and they outlive the
service's processes as real machines do. There is no desktop in them.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from millstream.capacity.driver import CapacityError, Refused
from millstream.model.records import BaseImage, Health, MachineSpec, Observed, Sighting, Survey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS held (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    internet INTEGER NOT NULL,
    boots INTEGER NOT NULL DEFAULT 0,
    running INTEGER NOT NULL DEFAULT 0,
    ready_at REAL NOT NULL DEFAULT 0,
    agent_version TEXT NOT NULL
)
"""
_IMAGE: Final = BaseImage(
    name="debian-12-desktop",
    reference="simulated/debian-12-desktop",
    digest="simulated",
    created=1_751_328_000.0,  # 2025-07-01
    size_bytes=0,
    description="A simulated Debian 12 desktop: every state of the API, no machine behind it",
)


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds. A fraction of a second each, so that waits are seen but cost nothing."""

    acquire_s: float = 0.02
    start_s: float = 0.15
    stop_s: float = 0.1
    release_s: float = 0.05


class SimulatedDriver:
    """See `Driver`. `folder`: the data folder; `clock`: seconds since the epoch; `sleep`: how verbs take their time."""

    name = "simulated"

    def __init__(
        self,
        folder: Path,
        durations: Durations | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._durations = durations or Durations()
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        # Made with the right mode before SQLite opens it; what it makes beside it takes the same.
        os.close(os.open(folder / "simulated.db", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(folder / "simulated.db", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(_SCHEMA)

    def _run(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise CapacityError(f"the simulated machines can't be written: {error}", code="engine.error") from error

    def survey(self) -> Survey:
        now = self._clock()
        rows = self._run("SELECT id, number, boots, running, ready_at, agent_version FROM held")
        return Survey({str(row[0]): _sighting(row, now) for row in rows})

    def look(self, machine_id: str) -> Sighting:
        rows = self._run(
            "SELECT id, number, boots, running, ready_at, agent_version FROM held WHERE id = ?", machine_id
        )
        return _sighting(rows[0], self._clock()) if rows else Sighting(Observed.ABSENT)

    def acquire(self, spec: MachineSpec) -> None:
        if spec.image != _IMAGE.name:
            raise Refused(
                f"The image {spec.image} is not there any more.", error_code="IMAGE_NOT_FOUND", code="image.unknown"
            )
        self._sleep(self._durations.acquire_s)
        self._run(
            "INSERT INTO held (id, owner, internet, agent_version) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            spec.id,
            spec.owner,
            spec.internet,
            spec.agent_version,
        )

    def start(self, spec: MachineSpec) -> None:
        rows = self._run(
            "UPDATE held SET boots = boots + (running = 0), ready_at = CASE WHEN running THEN ready_at ELSE ? END, "
            "running = 1 WHERE id = ? RETURNING id",
            self._clock() + self._durations.start_s,
            spec.id,
        )
        if not rows:
            raise CapacityError(f"there is no machine {spec.id}", code="machine.absent")

    def stop(self, machine_id: str) -> None:
        if self._run("SELECT 1 FROM held WHERE id = ? AND running", machine_id):
            self._sleep(self._durations.stop_s)
            self._run("UPDATE held SET running = 0 WHERE id = ?", machine_id)

    def release(self, machine_id: str) -> None:
        if self._run("SELECT 1 FROM held WHERE id = ?", machine_id):
            self._sleep(self._durations.release_s)
            self._run("DELETE FROM held WHERE id = ?", machine_id)

    def images(self) -> list[BaseImage]:
        return [_IMAGE]

    def health(self) -> Health:
        try:
            self._run("SELECT 1")
        except CapacityError as error:
            return Health(ok=False, code=error.code, why=str(error), next="look at the data folder's disk")
        return Health(ok=True)

    def end(self) -> None:
        self.close()  # a file in the data folder is all there is

    def close(self) -> None:
        with self._lock:
            self._connection.close()


class NoStreams:
    """Simulated machines have no display."""

    def open_stream(self, machine_id: str, kind: str) -> socket.socket:
        raise CapacityError(f"the simulated machine {machine_id} has no {kind} display", code="stream.simulated")


def _sighting(row: tuple[object, ...], now: float) -> Sighting:
    machine_id, number, boots, running, ready_at, agent_version = row
    at = int(str(number))
    if not running:
        return Sighting(Observed.STOPPED, engine_id=f"simulated-{at}")
    return Sighting(
        Observed.READY if float(str(ready_at)) <= now else Observed.STARTING,
        engine_id=f"simulated-{at}",
        address=f"10.{64 + (at >> 16) % 64}.{(at >> 8) & 255}.{at & 255}",
        interface_id="eni-" + hashlib.sha256(f"{machine_id}/{boots}".encode()).hexdigest()[:17],
        agent_version=str(agent_version),
    )
