"""Kill -9 of the whole service and of each role under load: what was acknowledged holds, nothing leaks, nothing twice.

The moments are drawn from a seed (MILLSTREAM_SIEGE_SEED), which a failure names.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.siege.quick_signer import QuickSigner
from tests.siege.siege_world import ROLES, Line, Service, alive, new_builder, service, wait_until

SEED = int(os.environ.get("MILLSTREAM_SIEGE_SEED", "20261123"))
ROUNDS = int(os.environ.get("MILLSTREAM_SIEGE_ROUNDS", "4"))
SHORT_STOP = "import sys, millstream.wiring; sys.modules['millstream.wiring.serve'].STOP_S = 1.0"
FAST = {
    "simulated_acquire_s": "0.01",
    "simulated_start_s": "0.05",
    "simulated_stop_s": "0.02",
    "simulated_release_s": "0.02",
    "log_level": "info",
}


@pytest.fixture
def running() -> Iterator[Service]:
    with service(**FAST) as found:
        yield found


class Owner:
    """One caller who creates, stops, starts and deletes, and remembers what was acknowledged and what stayed unsaid."""

    def __init__(self, running: Service, number: int) -> None:
        self.running = running
        self.chance = random.Random(SEED * 100 + number)
        self.signer = QuickSigner(running.root(), running.listen)
        self.names = [f"o{number}-{n}" for n in range(4)]
        self.acknowledged: dict[str, str] = {}  # name: RUNNING, STOPPED or GONE
        self.unsaid: dict[str, str] = {}  # sent, and the connection ended before an answer: may have happened or not
        self.calls = 0
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        line = Line(self.running.port, limit_s=10)
        while not self.over.is_set():
            name = self.chance.choice(self.names)
            operation, wish = self.chance.choice(
                (
                    ("CreateImageBuilder", "RUNNING"),
                    ("CreateImageBuilder", "RUNNING"),
                    ("StopImageBuilder", "STOPPED"),
                    ("StartImageBuilder", "RUNNING"),
                    ("DeleteImageBuilder", "GONE"),
                )
            )
            document = new_builder(name) if operation == "CreateImageBuilder" else {"Name": name}
            self._call(line, operation, name, wish, document)
            time.sleep(0.01)
        line.close()

    def _call(self, line: Line, operation: str, name: str, wish: str, document: dict[str, Any]) -> None:
        data = self.signer.json(operation, json.dumps(document).encode())
        try:
            # Never sent twice: what is unsaid stays so.
            line.close()
            answer = line.send(data)
        except ConnectionRefusedError:
            time.sleep(0.02)
            return
        except OSError:
            self.unsaid[name] = wish
            line.close()
            return
        if answer.status == 0:
            self.unsaid[name] = wish
        elif answer.status == 200:
            self.calls += 1
            self.acknowledged[name] = wish
            self.unsaid.pop(name, None)
        elif answer.status >= 500 and answer.code != "ServiceUnavailableException":
            self.wrong.append(f"{operation}: {answer}")

    def settled(self, states: dict[str, str]) -> list[str]:
        """What is not as this owner was told it would be."""
        odd = list(self.wrong)
        for name in self.names:
            state = states.get(name, "GONE")
            allowed = {self.acknowledged.get(name, "GONE")}
            if name in self.unsaid:
                allowed |= {self.unsaid[name]}
                allowed |= {"STOPPED", "RUNNING"} & {state} if "GONE" not in allowed else set()
            if state not in allowed:
                odd.append(f"{name} is {state}, acknowledged {allowed}")
        return odd


@contextlib.contextmanager
def load(running: Service, count: int = 4) -> Iterator[list[Owner]]:
    owners = [Owner(running, number) for number in range(count)]
    for owner in owners:
        owner.thread.start()
    try:
        yield owners
    finally:
        for owner in owners:
            owner.over.set()
        for owner in owners:
            owner.thread.join()


def settle(running: Service, owners: list[Owner]) -> None:
    """Wait until nothing is on its way any more, then compare what was promised, what is known and what is held."""
    wait_until(running.answers, 30, "the service to be back")

    def at_rest() -> bool:
        return running.rows("SELECT count(*) FROM machine WHERE due IS NOT NULL") == [(0,)] and not (
            set(running.states().values()) - {"RUNNING", "STOPPED"}
        )

    wait_until(at_rest, 30, f"seed {SEED}: all to settle, {running.states()}")
    states = running.states()
    odd = [text for owner in owners for text in owner.settled(states)]
    assert not odd, f"seed {SEED}: {odd}"
    # Strangers are released when they were seen twice, five seconds apart.
    wait_until(lambda: running.held() == running.known(), 20, f"seed {SEED}: held and known to be equal")
    assert len(running.known()) == len(states)


def boots(running: Service) -> dict[str, int]:
    return dict(running.rows("SELECT id, boots FROM held", db="simulated.db"))


def kill_all(running: Service) -> None:
    """As a loss of power would, but for what the kernel has."""
    assert running.process is not None
    pids = [running.process.pid, *running.roles().values()]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.process.wait(10)
    assert running.process.stdout is not None
    running.process.stdout.close()
    for pid in pids:
        wait_until(lambda pid=pid: not alive(pid), 10)  # type: ignore[misc]


@pytest.mark.slow
def test_killed_whole_again_and_again(running: Service) -> None:
    chance = random.Random(SEED)
    with load(running) as owners:
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(0.05, 0.8))  # the moment of the kill is what is drawn
            kill_all(running)
            running.start()
        wait_until(lambda: all(owner.calls > 10 for owner in owners), 30, "owners to be answered")
    settle(running, owners)


@pytest.mark.slow
def test_each_role_killed_at_any_moment(running: Service) -> None:
    """The watcher starts it again; the others stay."""
    chance = random.Random(SEED + 1)
    with load(running) as owners:
        for _ in range(ROUNDS):
            for role in chance.sample(ROLES, len(ROLES)):
                roles = wait_until(lambda: len(running.roles()) == len(ROLES) and running.roles(), 20, "three roles")
                assert roles
                time.sleep(chance.uniform(0.0, 0.15))
                os.kill(roles[role], signal.SIGKILL)
                wait_until(lambda r=role, old=roles: running.roles().get(r, old[r]) != old[r], 20, f"{role} again")  # type: ignore[misc]
                others = {name: pid for name, pid in running.roles().items() if name != role}
                assert others == {name: pid for name, pid in roles.items() if name != role}
    settle(running, owners)
    ended = [entry for entry in running.logged() if entry.get("code") == "serve.role-ended"]
    assert {entry["role_name"] for entry in ended} == set(ROLES)


@pytest.mark.slow
def test_a_killed_watchers_roles_end(running: Service) -> None:
    with load(running) as owners:
        for _ in range(2):
            assert running.process is not None
            roles = running.roles()
            assert len(roles) == len(ROLES)
            os.kill(running.process.pid, signal.SIGKILL)
            running.process.wait(10)
            began = time.monotonic()
            for pid in roles.values():
                wait_until(lambda pid=pid: not alive(pid), 10, "a role to end with its watcher")  # type: ignore[misc]
            assert time.monotonic() - began < 5
            running.start()
    settle(running, owners)


def test_a_start_is_not_repeated_for_a_running_machine(running: Service) -> None:
    """Each machine was started once, however often those who start it were killed."""
    chance = random.Random(SEED + 2)
    names = [f"once{number}" for number in range(12)]
    for name in names:
        assert running.call("CreateImageBuilder", new_builder(name)).status == 200
        if chance.random() < 0.5:
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(running.roles()["reconcile"], signal.SIGKILL)
                time.sleep(chance.uniform(0, 0.05))
    wait_until(lambda: set(running.states().values()) == {"RUNNING"}, 30, "all to run")
    assert len(running.states()) == len(names)
    assert set(boots(running).values()) == {1}


def test_machines_are_found_again(running: Service) -> None:
    """A stop of the service is none of its machines."""
    running.create("stays")
    before = boots(running)
    assert running.stop() == 0
    assert boots(running) == before
    running.start()
    assert running.states() == {"stays": "RUNNING"}
    assert running.call("DeleteImageBuilder", {"Name": "stays"}).status == 200
    wait_until(lambda: not running.held() and not running.known(), 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_end_it_ends_cleanly(running: Service, number: signal.Signals) -> None:
    """Exit code 0, quickly, with open connections, with calls on their way, nothing left running."""
    roles = running.roles()
    held_open = [Line(port) for port in (running.port, running.edge_port)]
    for line, port in zip(held_open, (running.port, running.edge_port), strict=True):
        assert line.send(f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()).status == 200
    with load(running, 2) as owners:
        wait_until(lambda: all(owner.calls > 3 for owner in owners))
        began = time.monotonic()
        assert running.stop(number) == 0
        assert time.monotonic() - began < 5
    assert not any(alive(pid) for pid in roles.values())
    assert not (running.data / "run" / "service.json").exists()
    assert not [entry for entry in running.logged() if "traceback" in entry]
    running.start()
    settle(running, owners)


def test_a_ctrl_c_at_the_terminal_ends_it_once(running: Service) -> None:
    """It goes to the whole group; the roles leave the ending to their watcher."""
    assert running.process is not None
    roles = running.roles()
    groups = {os.getpgid(pid) for pid in roles.values()}
    assert os.getpgid(running.process.pid) not in groups
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.process.wait(10) == 0
    assert not any(alive(pid) for pid in roles.values())


def test_a_hanging_reconciler_is_seen(running: Service) -> None:
    """Stopped, it answers knocks by not refusing them; that it no longer reports is what tells."""
    running.create("seen")
    pid = running.roles()["reconcile"]
    os.kill(pid, signal.SIGSTOP)
    try:
        # It may hold the store's lock at this moment: then the row can't be aged, and the next moment is tried.
        with contextlib.closing(sqlite3.connect(running.data / "millstream.db", timeout=5)) as rows:
            rows.execute("UPDATE health SET at = at - 31 WHERE role = 'reconcile'")
            rows.commit()
        for port in (running.port, running.edge_port):
            told = running.health(port)
            assert told.status == 503
            assert b"reconcile.stuck" in told.body
        assert running.states() == {"seen": "RUNNING"}  # what is known is still told
        asked = running.call("DeleteImageBuilder", {"Name": "seen"})
        assert asked.status == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: running.health().status == 200, 15, "health after it goes on")
    wait_until(lambda: not running.states(), 15, "what was asked meanwhile to be done")
    assert running.roles()["reconcile"] == pid


def test_an_absent_reconciler_is_said(running: Service) -> None:
    assert running.process is not None
    os.kill(running.process.pid, signal.SIGSTOP)  # the watcher would start it again
    try:
        os.kill(running.roles()["reconcile"], signal.SIGKILL)
        told = wait_until(lambda: (found := running.health()).status == 503 and found, 5)
        assert told
        assert b"reconcile.absent" in told.body
        assert running.call("CreateImageBuilder", new_builder("later")).status == 200
    finally:
        os.kill(running.process.pid, signal.SIGCONT)
    wait_until(lambda: running.states().get("later") == "RUNNING", 15)


def test_a_hanging_edge_or_api_leaves_the_other(running: Service) -> None:
    for role, port, other in (("edge", running.edge_port, running.port), ("api", running.port, running.edge_port)):
        pid = running.roles()[role]
        os.kill(pid, signal.SIGSTOP)
        try:
            assert running.health(other).status == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        assert running.health(port).status == 200


def test_a_service_with_a_hanging_role_can_be_ended() -> None:
    """Within its time for ending, by force if need be, and the next one starts."""
    with service(prelude=SHORT_STOP, **FAST) as running:
        pid = running.roles()["reconcile"]
        os.kill(pid, signal.SIGSTOP)
        try:
            assert running.stop() == 0
            assert not alive(pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        running.start()
        assert running.answers()


def test_no_second_service_on_one_folder(running: Service) -> None:
    second = Service(running.data)
    with pytest.raises(AssertionError):
        second.start()
    assert second.process is not None
    assert second.process.wait(10) != 0
    assert second.process.stdout is not None
    second.process.stdout.close()
    assert running.answers()
    assert Path(running.data / "run" / "service.json").exists()
