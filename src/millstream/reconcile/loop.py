"""The reconciler: threads that claim what is due and take one step. A wake-up carries no data."""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from millstream.capacity.driver import CapacityError, Driver, Refused
from millstream.lifecycle import machine as lifecycle
from millstream.model.records import Health, Observed, Sighting
from millstream.reconcile.executor import Executor
from millstream.store.store import Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.store.store import Tx

log = logging.getLogger("millstream.reconcile")

LEASE_S: Final = 180.0  # longer than any driver verb's own time limit
TICK_S: Final = 1.0  # the longest sleep: bounds what a lost wake-up can cost
SWEEP_S: Final = 5.0  # at least this long between surveys
SWEEP_SHARE: Final = 200  # and at least 200 times what the last one took: at most half a per cent of a core
HEALTH_S: Final = 5.0
PRUNE_S: Final = 3600.0
KEEP_STEPS_S: Final = 30 * 86400.0
SLICE: Final = 2000


class Reconciler:
    """Claims, looks, decides, acts, until told to stop. `driver` is the engine's only holder in the service."""

    def __init__(
        self,
        store: Store,
        driver: Driver,
        *,
        clock: Callable[[], float] = time.time,
        limits: lifecycle.Limits | None = None,
        threads: int = 16,
    ) -> None:
        self.store = store
        self.driver = driver
        self.clock = clock
        self.threads = threads
        self.executor = Executor(store, driver, by=f"{os.getpid()}-{secrets.token_hex(4)}", clock=clock, limits=limits)
        self.woken = threading.Event()
        self.stopping = threading.Event()
        self._working: set[str] = set()
        self._lock = threading.Lock()
        self._strangers: set[str] = set()
        self.released_strangers = 0
        self.steps = 0
        self.last_sweep_s = 0.0

    # -- claiming ----------------------------------------------------------------------------------------------------

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Until `stop`. Raises StoreError when the store can't be used at the start."""
        self.store.write(lambda tx: tx.run("free_leases")).result()
        watch = threading.Thread(target=self._watch, name="watch", daemon=True)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="step") as pool:
            self._report_health()
            watch.start()
            ready()
            while not self.stopping.is_set():
                self.woken.clear()
                try:
                    claimed = self.claim()
                    for machine_id in claimed:
                        pool.submit(self._work, machine_id)
                    if claimed:
                        continue
                    wait_s = self._wait_s()
                except StoreError as error:
                    log.warning("store", extra={"code": error.code, "why": str(error)})
                    wait_s = TICK_S
                self.woken.wait(wait_s)
        watch.join(timeout=10)

    def stop(self) -> None:
        self.stopping.set()
        self.woken.set()

    def wake(self) -> None:
        self.woken.set()

    def claim(self) -> list[str]:
        """Lease what is due and not already in work here, as much as there are free threads."""
        with self._lock:
            working = len(self._working)
        if working >= self.threads:
            return []
        now = self.clock()
        asked = {
            "by": self.executor.by,
            "now": now,
            "until": now + LEASE_S,
            "wait_max": self.executor.limits.retry_s_max + 1.0,
            "most": self.threads + working,
        }
        rows = self.store.write(lambda tx: tx.all("claim", **asked)).result()
        with self._lock:
            fresh = [row["id"] for row in rows if row["id"] not in self._working][: self.threads - working]
            self._working.update(fresh)
        return fresh

    def _wait_s(self) -> float:
        with self._lock:
            if len(self._working) >= self.threads:
                return TICK_S
        due = self.store.read().one("next_due")[0]
        return TICK_S if due is None else min(max(due - self.clock(), 0.0), TICK_S)

    def _work(self, machine_id: str) -> None:
        try:
            self.executor.step(machine_id)
            self.steps += 1
        except StoreError as error:
            log.warning("store", extra={"code": error.code, "why": str(error), "machine": machine_id})
            self.stopping.wait(TICK_S)
        except Exception:
            log.exception("step", extra={"machine": machine_id})
            self.stopping.wait(TICK_S)
        finally:
            with self._lock:
                self._working.discard(machine_id)
            self.woken.set()

    def settle(self, most: int = 10_000) -> int:
        """Step everything that is due in this thread until nothing is (tests, demonstrations). How many steps."""
        taken = 0
        while taken < most and (claimed := self.claim()):
            self._working.difference_update(claimed)
            for machine_id in claimed:
                self.executor.step(machine_id)
                taken += 1
        return taken

    # -- watching ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Health, the sweep and the pruning, each at its own pace, beside the steps."""
        sweep_at = health_at = prune_at = 0.0
        while not self.stopping.is_set():
            now = time.monotonic()
            try:
                if now >= health_at:
                    self._report_health()
                    health_at = now + HEALTH_S
                if now >= sweep_at:
                    self.sweep()
                    sweep_at = time.monotonic() + max(SWEEP_S, SWEEP_SHARE * self.last_sweep_s)
                if now >= prune_at:
                    self._prune()
                    prune_at = now + PRUNE_S
            except (CapacityError, StoreError) as error:
                log.warning("watch", extra={"code": error.code, "why": str(error)})
                sweep_at = time.monotonic() + SWEEP_S
            except Exception:
                log.exception("watch")
                sweep_at = time.monotonic() + SWEEP_S
            self.stopping.wait(0.5)

    def _report_health(self) -> None:
        health: Health = self.driver.health()
        images = self.driver.images() if health.ok else []
        now = self.clock()

        def work(tx: Tx) -> None:
            tx.run(
                "set_health",
                role="reconcile",
                ok=health.ok,
                code=health.code,
                why=health.why,
                next=health.next,
                at=now,
                figures=json.dumps(self.figures()),
            )
            if not health.ok:
                return
            known = {row["name"]: row["digest"] for row in tx.all("base_images")}
            for image in images:
                if known.pop(image.name, None) != image.digest:
                    tx.run(
                        "set_base_image",
                        name=image.name,
                        reference=image.reference,
                        digest=image.digest,
                        created=image.created,
                        size_bytes=image.size_bytes,
                        description=image.description,
                    )
            for name in known:
                tx.run("drop_base_image", name=name)

        self.store.write(work).result()

    def figures(self) -> dict[str, float]:
        """Metrics by name; the api shows them with its own."""
        return {
            "steps_total": self.steps,
            "steps_failed_total": self.executor.put_off,
            "strangers_released_total": self.released_strangers,
            "sweep_cpu_seconds": round(self.last_sweep_s, 6),
            "working": len(self._working),
        }

    def sweep(self) -> None:
        """Hold what the driver has against what the rows know: wake what differs, release strangers seen twice."""
        started = time.process_time()
        held = self.driver.survey().sightings
        unknown = set(held)
        differing: list[str] = []
        absent = Sighting(Observed.ABSENT)
        after = ""
        while rows := self.store.read().all("machines_after", after=after, most=SLICE):
            for row in rows:
                unknown.discard(row["id"])
                if not row["busy"] and lifecycle.differs(row["state"], row["wanted"], held.get(row["id"], absent)):
                    differing.append(row["id"])
            after = rows[-1]["id"]
        if differing:
            now = self.clock()
            self.store.write(
                lambda tx: [tx.run("wake_machine", id=machine_id, now=now) for machine_id in differing]
            ).result()
            self.wake()
        for machine_id in sorted(unknown & self._strangers):
            log.warning("stranger", extra={"machine": machine_id, "code": "sweep.stranger"})
            try:
                self.driver.release(machine_id)
            except (CapacityError, Refused) as error:  # one that stays keeps no other from going
                log.warning("stranger", extra={"machine": machine_id, "code": error.code, "why": str(error)})
            else:
                self.released_strangers += 1
        self._strangers = unknown
        self.last_sweep_s = time.process_time() - started

    def _prune(self) -> None:
        now = self.clock()

        def work(tx: Tx) -> None:
            tx.run("prune_steps", before=now - KEEP_STEPS_S)
            tx.run("prune_tickets", now=now)

        self.store.write(work).result()
