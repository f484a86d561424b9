"""A service without its processes: real handlers, real store, real reconciler, simulated machines, a clock in hand.

Everything runs in the test's own thread, so that one use of a driver or one commit can be made to fail, and the same
story told again gives the same uses.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import millstream.resources  # noqa: F401 - registers the handlers
from millstream.capacity.driver import CapacityError, Driver, Refused
from millstream.capacity.simulated import Durations, SimulatedDriver
from millstream.lifecycle.machine import Limits
from millstream.model import document
from millstream.model import shapes as aws
from millstream.model.errors import ServiceError
from millstream.model.identity import Identity
from millstream.model.operation import Operation
from millstream.model.records import BaseImage, Health, MachineSpec, Observed, Sighting, Survey
from millstream.reconcile.loop import Reconciler
from millstream.resources.call import Call, Page, Service
from millstream.store import image_builders, machines, steps
from millstream.store.store import Store, StoreError, Tx

T = TypeVar("T")
ACCOUNT = "000000000000"
IMAGE = "debian-12-desktop"
SMALL: dict[str, Any] = {"InstanceType": "stream.standard.small", "ImageName": IMAGE}
NOON = 1_795_000_000.0
SERVICE = Service(
    public_url="http://127.0.0.1:8401", ticket_key=b"t" * 32, token_key=b"p" * 32, agent_version="11-20-2026"
)
DRIVER_FAULTS = ("crash before", "crash after", "not now", "answer lost", "refused")
STORE_FAULTS = ("crash before", "crash after", "disk full", "busy", "answer lost")
# What a failure may not touch: a look is never refused for good.
VERBS = ("acquire", "start", "stop", "release")


class Crash(BaseException):
    """The process is killed here."""


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class Plan:
    """What fails when: `at` is the use's number (from 1), `how` one of the faults; counts the uses."""

    at: int = 0
    how: str = ""
    used: int = 0
    names: list[str] = field(default_factory=list)
    hit: bool = False

    def now(self, name: str) -> str:
        self.used += 1
        self.names.append(name)
        if self.used != self.at:
            return ""
        self.hit = True
        return self.how


class Faulty:
    """A driver whose uses are counted; the one that the plan names fails."""

    name = "faulty"

    def __init__(self, driver: Driver, plan: Plan) -> None:
        self.driver = driver
        self.plan = plan

    def _use(self, name: str, use: Callable[[], T]) -> T:
        how = self.plan.now(name)
        if how == "crash before":
            raise Crash(name)
        if how == "not now":
            raise CapacityError(f"{name}: not now", code="test.not-now")
        if how == "refused" and name in VERBS:
            raise Refused(f"{name}: never", code="test.refused")
        result = use()
        if how == "crash after":
            raise Crash(name)
        if how == "answer lost":
            raise CapacityError(f"{name}: the answer was lost", code="test.answer-lost")
        return result

    def survey(self) -> Survey:
        return self._use("survey", self.driver.survey)

    def look(self, machine_id: str) -> Sighting:
        return self._use("look", lambda: self.driver.look(machine_id))

    def acquire(self, spec: MachineSpec) -> None:
        self._use("acquire", lambda: self.driver.acquire(spec))

    def start(self, spec: MachineSpec) -> None:
        self._use("start", lambda: self.driver.start(spec))

    def stop(self, machine_id: str) -> None:
        self._use("stop", lambda: self.driver.stop(machine_id))

    def release(self, machine_id: str) -> None:
        self._use("release", lambda: self.driver.release(machine_id))

    def images(self) -> list[BaseImage]:
        return self.driver.images()

    def health(self) -> Health:
        return self.driver.health()

    def end(self) -> None:
        self.driver.end()

    def close(self) -> None:
        self.driver.close()


class World:
    """One data folder, its clock, and the process that may die."""

    def __init__(self, folder: Path, *, driver_plan: Plan | None = None, store_plan: Plan | None = None) -> None:
        self.folder = folder
        self.clock = Clock()
        self.limits = Limits()
        self.service = SERVICE
        self.region = "us-east-1"
        self.account = ACCOUNT
        self.driver_plan = driver_plan or Plan()
        self.store_plan = store_plan or Plan()
        self.simulated = SimulatedDriver(folder, Durations(0, 0, 0, 0), clock=self.clock, sleep=lambda _s: None)
        self.driver = Faulty(self.simulated, self.driver_plan)
        self.crashes = 0
        self.counting = False
        self._open()
        self.counting = True

    # -- life and death of the process

    def _open(self) -> None:
        self.store = Store(self.folder, synchronous="NORMAL")
        self.store.open()
        self.store.commit_hook = self._commit
        self.reconciler = Reconciler(self.store, self.driver, clock=self.clock, limits=self.limits, threads=4)
        counting, self.counting = self.counting, False
        self.store.write(lambda tx: tx.run("free_leases")).result()
        self.reconciler._report_health()
        self.counting = counting

    def restart(self) -> None:
        self.crashes += 1
        self.store.close()
        self._open()

    def close(self) -> None:
        self.store.close()
        self.simulated.close()

    def _commit(self, moment: str) -> None:
        if not self.counting:
            return
        if moment == "before":
            self._how = self.store_plan.now("commit")
        match moment, self._how:
            case ("before", "crash before") | ("after", "crash after"):
                raise Crash("commit")
            case "before", "disk full":
                raise sqlite3.OperationalError("database or disk is full")
            case "before", "busy":
                raise sqlite3.OperationalError("database is locked")
            case "after", "answer lost":
                raise sqlite3.OperationalError("disk I/O error")

    # -- its owner

    def call(self, operation: Operation[Any, Any], **request: Any) -> Any:
        """One call as the application makes it. Raises ServiceError, StoreError, Crash."""

        def work(tx: Tx) -> Any:
            identity = Identity(self.account, "AKIATEST", f"arn:aws:iam::{self.account}:root", self.region, "appstream")
            assert operation.handler is not None
            return operation.handler(Call(tx, identity, self.clock(), "request", self.service, "json"), request)

        result = work(self.store.read()) if operation.reads else self.store.write(work).result()
        if isinstance(result, Page):
            shown = [msgspec.json.decode(text) for text in result.documents]
            return {result.member: shown} | ({"NextToken": result.next_token} if result.next_token else {})
        return result

    def ask(self, operation: Operation[Any, Any], *fine: type[ServiceError], **request: Any) -> Any:
        """A call of a client that repeats it until it has an answer, as SDKs do.

        `fine`: what a repeated call may be told because the first one did arrive.
        """
        again = False
        while True:
            try:
                return self.call(operation, **request)
            except Crash:
                self.restart()
            except StoreError:
                self.clock.now += 0.1
            except fine:
                if again:
                    return None
                raise
            again = True

    def shown(self, name: str = "b") -> dict[str, Any] | None:
        """What Describe says; None: not found."""
        try:
            found: dict[str, Any] = self.call(aws.DescribeImageBuilders, Names=[name])["ImageBuilders"][0]
        except aws.ResourceNotFoundException:
            return None
        return found

    # -- time

    def step(self) -> bool:
        """Everything that is due once; False when nothing was."""
        try:
            claimed = self.reconciler.claim()
            self.reconciler._working.clear()
            for machine_id in claimed:
                self.reconciler.executor.step(machine_id)
        except Crash:
            self.restart()
        except StoreError:
            self.clock.now += 1.0
        else:
            return bool(claimed)
        return True

    def settle(self, limit_s: float = 7200.0) -> None:
        """Until nothing is due any more, with the clock going on from one due moment to the next."""
        until = self.clock.now + limit_s
        while True:
            while self.step():
                assert self.clock.now < until, f"still moving: {self.rows()}"
            due = self.store.read()._connection.execute("SELECT min(due) FROM machine").fetchone()[0]
            if due is None:
                return
            self.clock.now = max(self.clock.now, due)
            assert self.clock.now < until, f"not settled in {limit_s} s: {self.rows()}"

    def settle_until(self, done: Callable[[], bool], limit_s: float = 7200.0) -> None:
        until = self.clock.now + limit_s
        while not done():
            if not self.step():
                self.clock.now += 0.5
            assert self.clock.now < until, f"not within {limit_s} s: {self.rows()}"

    # -- the world

    def rows(self) -> list[dict[str, Any]]:
        connection = self.store.read()._connection
        return [dict(row) for row in connection.execute("SELECT * FROM machine ORDER BY id")]

    def held(self) -> dict[str, Sighting]:
        return self.simulated.survey().sightings

    def boots(self) -> dict[str, int]:
        return {str(row[0]): int(str(row[1])) for row in self.simulated._run("SELECT id, boots FROM held")}

    def check(self, *, timeline: bool = True) -> None:
        """What must hold whenever nothing moves: the rows, the machines and the documents tell one story."""
        tx = self.store.read()
        connection = tx._connection
        rows, held = self.rows(), self.held()
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert set(held) <= {row["id"] for row in rows}, "a machine that no row knows"
        builders = [dict(row) for row in connection.execute("SELECT * FROM image_builder")]
        assert sorted(row["id"] for row in rows) == sorted(row["machine_id"] for row in builders)
        for row in rows:
            assert (row["lease_by"], row["due"]) == (None, None), row
            observed = held.get(row["id"], Sighting(Observed.ABSENT)).observed
            assert row["wanted"] != "GONE", "deleted and settled, and still there"
            match row["state"]:
                case "RUNNING":
                    assert (row["wanted"], observed, row["error"]) == ("RUNNING", Observed.READY, None)
                case "STOPPED":
                    assert (row["wanted"], observed, row["error"]) == ("STOPPED", Observed.STOPPED, None)
                case "FAILED":
                    assert row["error"]
                case other:
                    raise AssertionError(f"settled as {other}")
        for builder in builders:
            found = machines.get(tx, builder["machine_id"])
            assert found is not None
            told = image_builders.render(msgspec.json.decode(builder["asked"]), found)
            assert builder["json"] == document.encode_json("ImageBuilder", told)
            assert builder["cbor"] == document.encode_cbor("ImageBuilder", told)
        tagged = {row[0] for row in connection.execute("SELECT DISTINCT arn FROM tag")}
        assert tagged <= {builder["arn"] for builder in builders}
        if timeline:
            self.check_timeline()

    def check_timeline(self, *, strictly: bool = True) -> None:
        """Steps add up: each begins where the last one ended, or where its owner spoke."""
        ended: dict[str, float] = {}
        gone: set[str] = set()
        for _, line in steps.after(self.store.read(), 0, most=100_000):
            assert line.started <= line.ended, line
            assert line.machine_id not in gone, f"after its end: {line}"
            if line.request_id:
                ended[line.machine_id] = line.ended
            elif strictly:
                assert line.started == ended[line.machine_id], line
            ended[line.machine_id] = line.ended
            if line.step == "gone":
                gone.add(line.machine_id)

    def lines(self, step: str) -> list[steps.Step]:
        return [line for _, line in steps.after(self.store.read(), 0, most=100_000) if line.step == step]


_FOLDER = Path("/dev/shm")


@contextmanager
def a_folder() -> Iterator[Path]:
    """In memory where that is possible: these tests make thousands."""
    folder = Path(tempfile.mkdtemp(prefix="millstream-heart-", dir=_FOLDER if _FOLDER.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def a_world(**plans: Plan) -> Iterator[World]:
    with a_folder() as folder:
        world = World(folder, **plans)
        try:
            yield world
        finally:
            world.close()
