"""The store: durable, one writer's batches, migrations, copies, leases, a disk that fills up and empties again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.heart.heart_world import SMALL, Clock, Crash, World, a_folder, a_world

from millstream.model import shapes as aws
from millstream.reconcile.executor import Outcome
from millstream.reconcile.loop import LEASE_S, Reconciler
from millstream.store import steps
from millstream.store import store as store_module
from millstream.store.machines import MachineRow
from millstream.store.store import Store, StoreError, Tx


@pytest.fixture
def folder() -> Iterator[Path]:
    with a_folder() as found:
        yield found


def opened(folder: Path, **options: Any) -> Store:
    store = Store(folder, **options)
    store.open()
    return store


def put(key: str, value: str = "x") -> Any:
    return lambda tx: tx.run("set_meta", key=key, value=value)


def value_of(folder: Path, key: str) -> str | None:
    """As another process sees it."""
    with sqlite3.connect(folder / "millstream.db") as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


# -- versions


def schema(folder: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(folder / "millstream.db") as connection:
        return sorted(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))


def test_files_are_their_owners_only(folder: Path) -> None:
    store = opened(folder / "data")
    store.write(put("a")).result()
    assert (folder / "data").stat().st_mode & 0o777 == 0o700
    for file in (folder / "data").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    store.close()


def test_an_older_store_is_migrated_with_what_is_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From version 0 (a file that was made, and no more) and from each version on the way, with a next one to come."""
    (folder / "millstream.db").touch()
    store = opened(folder)
    store.write(put("kept", "yes")).result()
    store.close()
    real = store_module._migrations()
    monkeypatch.setattr(
        store_module,
        "_migrations",
        lambda: [*real, "ALTER TABLE meta ADD COLUMN more TEXT;\nUPDATE meta SET more = key;\n"],
    )
    store = opened(folder)
    with sqlite3.connect(folder / "millstream.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(real) + 1,)
        assert connection.execute("SELECT value, more FROM meta WHERE key = 'kept'").fetchone() == ("yes", "kept")
    store.close()


def test_an_upgrade_that_is_cut_off_has_not_happened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(folder).close()
    before = schema(folder)
    real = store_module._migrations()
    broken = "CREATE TABLE half (a TEXT);\nDROP TABLE viewing;\nCREATE TABLE meta (a TEXT);\n"
    monkeypatch.setattr(store_module, "_migrations", lambda: [*real, "CREATE TABLE first (a TEXT);", broken])
    with pytest.raises(StoreError):
        opened(folder)
    assert schema(folder) == before
    monkeypatch.undo()
    opened(folder).close()


def test_an_upgrade_killed_between_two_statements_has_not_happened(folder: Path) -> None:
    """By kill -9 of the process that does it."""
    opened(folder).close()
    before = schema(folder)
    program = """
import os, signal, sys
from pathlib import Path
from millstream.store import store
real = store._migrations()
store._migrations = lambda: [*real, "CREATE TABLE half (a TEXT);\\nSELECT die();\\n"]
connect = store.Store._connect
def dying(self):
    connection = connect(self)
    connection.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return connection
store.Store._connect = dying
store.Store(Path(sys.argv[1])).open()
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr
    opened(folder).close()
    assert schema(folder) == before


def test_a_migration_that_ends_in_the_middle_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_migrations", lambda: ["CREATE TABLE meta (a TEXT);\nCREATE TABLE b (a TEXT)\n"])
    with pytest.raises(ValueError, match="middle of a statement"):
        opened(folder)


def test_a_newer_store_is_refused_and_left_alone(folder: Path) -> None:
    opened(folder).close()
    with sqlite3.connect(folder / "millstream.db") as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="newer Millstream") as caught:
        opened(folder)
    assert caught.value.code == "store.newer"
    assert caught.value.next
    with sqlite3.connect(folder / "millstream.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (99,)


@pytest.mark.parametrize("damage", [b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_damaged_store_is_said_to_be_damaged(folder: Path, damage: bytes) -> None:
    (folder / "millstream.db").write_bytes(damage)
    with pytest.raises(StoreError) as caught:
        opened(folder)
    assert caught.value.code == "store.damaged"
    assert (folder / "millstream.db").read_bytes() == damage, "evidence is kept"


# -- copies


def test_a_copied_folder_is_refused_and_adopted_on_request(folder: Path) -> None:
    first = opened(folder / "a")
    first.write(put("kept", "yes")).result()
    shutil.copytree(folder / "a", folder / "b")  # while it runs
    with pytest.raises(StoreError) as caught:
        opened(folder / "b")
    assert caught.value.code == "store.copied"
    assert str(folder / "a") in str(caught.value)
    assert "--adopt" in caught.value.next
    adopted = Store(folder / "b")
    adopted.open(adopt=True)
    data_ids = [str(value_of(folder / name, "data_id")) for name in "ab"]
    assert data_ids[0] != data_ids[1], "its machines must not be taken for the original's"
    assert value_of(folder / "b", "kept") == "yes"
    for name in "ab":
        opened(folder / name).close()  # both are at home now
    adopted.close()
    first.close()


def test_a_moved_folder_is_refused_and_fine_when_moved_back(folder: Path) -> None:
    opened(folder / "a").close()
    (folder / "a").rename(folder / "b")
    with pytest.raises(StoreError, match="moved"):
        opened(folder / "b")
    (folder / "b").rename(folder / "a")
    data_id = value_of(folder / "a", "data_id")
    store = Store(folder / "a")
    store.open(adopt=True)  # nothing to adopt: it stays what it was
    assert value_of(folder / "a", "data_id") == data_id


# -- one service


def test_a_second_service_on_the_folder_is_refused() -> None:
    from millstream.wiring import Settings, SettingsError
    from millstream.wiring.serve import lock

    with tempfile.TemporaryDirectory() as data:
        settings = Settings(data=Path(data))
        held = lock(settings, "api")
        (settings.data / "run/service.json").write_text(json.dumps({"pid": os.getpid()}))
        began = time.monotonic()
        with pytest.raises(SettingsError) as caught:
            lock(settings, "api")
        assert caught.value.code == "data.locked"
        assert caught.value.next
        assert time.monotonic() - began < 2, "its holder lives: no reason to wait"
        os.close(lock(settings, "edge"))
        os.close(held)
        os.close(lock(settings, "api"))


# -- commits


def test_calls_that_arrive_together_share_commits(folder: Path) -> None:
    store = opened(folder)
    gate = threading.Event()
    first = store.write(lambda _tx: gate.wait(10))
    futures = [store.write(put(f"k{number}")) for number in range(500)]
    gate.set()
    first.result()
    for future in futures:
        future.result()
    assert store.commits <= 4, "one for the first, then batches"
    assert value_of(folder, "k499") == "x"
    store.close()


def test_one_failing_call_harms_no_other_of_its_batch(folder: Path) -> None:
    store = opened(folder)
    gate = threading.Event()

    def half(tx: Tx) -> None:
        tx.run("set_meta", key="half", value="x")
        raise ValueError("and no further")

    def crashing(tx: Tx) -> None:
        tx.run("set_meta", key="crashed", value="x")
        raise Crash

    def wrong(tx: Tx) -> None:
        tx.run("add_fault", owner="a", step="b", moment="never", error_code="", message="", times=1)

    store.write(lambda _tx: gate.wait(10))
    futures = [store.write(work) for work in (put("a"), half, put("b"), crashing, put("c"), wrong, put("d"))]
    gate.set()
    told = [future.exception() for future in futures]
    assert [type(error) for error in told] == [
        type(None), ValueError, type(None), Crash, type(None), sqlite3.IntegrityError, type(None),
    ]  # fmt: skip
    assert [value_of(folder, key) for key in ("a", "half", "b", "crashed", "c", "d")] == [
        "x",
        None,
        "x",
        None,
        "x",
        "x",
    ]
    store.close()


def test_a_caller_who_went_away_ends_nothing(folder: Path) -> None:
    """Cancelled before its turn it is not done; cancelled later it is done; the writer lives on in both cases."""
    store = opened(folder)
    gate, began = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        tx.run("set_meta", key="slow", value="x")
        began.set()
        gate.wait(10)

    running: Future[Any] = store.write(slow)
    began.wait(10)
    waiting: Future[Any] = store.write(put("cancelled"))
    assert waiting.cancel()
    assert not running.cancel(), "under way: too late"
    gate.set()
    store.write(put("after")).result(timeout=10)
    with pytest.raises(CancelledError):
        waiting.result()
    assert [value_of(folder, key) for key in ("slow", "cancelled", "after")] == ["x", None, "x"]
    store.close()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
@settings(max_examples=40, deadline=None)
def test_what_was_answered_is_there_and_what_failed_is_not(calls: list[tuple[str, bool]]) -> None:
    """Property: the store equals the fold of the calls that were answered, in order, however they are batched."""
    with a_folder() as folder:
        store = opened(folder, synchronous="NORMAL")
        expected: dict[str, str] = {}
        futures: list[Future[Any]] = []
        for number, (key, fails) in enumerate(calls):

            def work(tx: Tx, key: str = key, number: int = number, fails: bool = fails) -> None:
                tx.run("set_meta", key=key, value=str(number))
                if fails:
                    raise ValueError

            futures.append(store.write(work))
            if not fails:
                expected[key] = str(number)
        for future, (_, fails) in zip(futures, calls, strict=True):
            assert isinstance(future.exception(), ValueError) == fails
        assert {key: value for key in "abc" if (value := value_of(folder, key))} == expected
        store.close()


def test_acknowledged_means_synced(folder: Path) -> None:
    """The answer comes after the file system was told to write through; NORMAL leaves that to the checkpoint."""
    program = """
import sys
from pathlib import Path
from millstream.store.store import Store
store = Store(Path(sys.argv[1]), synchronous=sys.argv[2])
store.open()
for number in range(20):
    store.write(lambda tx: tx.run("set_meta", key="k", value=str(number))).result()
    print("answered", number, flush=True)
"""
    if shutil.which("strace") is None:
        store = opened(folder, synchronous="FULL")
        assert store._connect().execute("PRAGMA synchronous").fetchone() == (2,)
        assert store._connect().execute("PRAGMA journal_mode").fetchone() == ("wal",)
        return
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=fdatasync,fsync,write", sys.executable, "-c", program, str(folder), "FULL"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    since_sync = 0
    for line in done.stderr.splitlines():
        if "sync(" in line:
            since_sync = 1
        if '"answered' in line:
            assert since_sync, line
            since_sync = 0


def test_another_process_reads_what_was_acknowledged(folder: Path) -> None:
    store = opened(folder)
    program = """
import sys
from pathlib import Path
from millstream.store.store import Store
store = Store(Path(sys.argv[1]))
store.open()
for line in sys.stdin:
    row = store.read().one("meta", key="n")
    print(row["value"] if row else "", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for number in range(50):
            store.write(put("n", str(number))).result()
            other.stdin.write("look\n")
            other.stdin.flush()
            assert other.stdout.readline().strip() == str(number)
        other.stdin.close()
    store.close()


def test_a_snapshot_sees_one_moment(folder: Path) -> None:
    store = opened(folder)
    store.write(put("a", "1")).result()
    with store.snapshot() as tx:
        assert tx.one("meta", key="a")["value"] == "1"
        store.write(put("a", "2")).result()
        assert tx.one("meta", key="a")["value"] == "1"
    assert store.read().one("meta", key="a")["value"] == "2"
    store.close()


# -- a full disk


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    point = Path(tempfile.mkdtemp(prefix="millstream-small-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(point)], check=False, capture_output=True
    )
    if mounted.returncode:
        point.rmdir()
        pytest.skip("this machine mounts nothing")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)
        point.rmdir()


def fill(disk: Path) -> Path:
    """Until there is no room for another block."""
    ballast = disk / "ballast"
    handle = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(handle, b"x" * 4096)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - how the loop ends
    finally:
        os.close(handle)
    return ballast


def test_a_full_disk_is_said_and_mends_itself(small_disk: Path) -> None:
    folder = small_disk / "data"
    store = opened(folder)
    store.write(put("before", "kept")).result()
    ballast = fill(small_disk)
    told: StoreError | None = None
    answered: list[str] = []
    for number in range(100):
        try:
            store.write(put(f"big{number}", "x" * 20_000)).result()
            answered.append(f"big{number}")
        except StoreError as error:
            told = error
            break
    assert told is not None, "the disk was full"
    assert told.code == "store.disk-full"
    assert told.next
    assert store.read().one("meta", key="before")["value"] == "kept", "reading goes on"
    with pytest.raises(StoreError):
        store.write(put("still", "x" * 20_000)).result()
    ballast.unlink()
    store.write(put("after", "x" * 20_000)).result()
    for key in ("before", *answered, "after"):
        assert value_of(folder, key), f"{key} was acknowledged"
    assert value_of(folder, "still") is None
    assert store.read()._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    store.close()


def test_a_store_that_can_not_be_opened_for_want_of_space_is_not_called_damaged(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises((StoreError, OSError)) as caught:
        opened(small_disk / "data")
    assert getattr(caught.value, "code", "store.disk-full") == "store.disk-full"


def test_a_store_that_another_holds_is_busy_and_mends_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_S", 0.1)
    store = opened(folder)
    other = sqlite3.connect(folder / "millstream.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as caught:
        store.write(put("a")).result()
    assert caught.value.code == "store.busy"
    other.execute("ROLLBACK")
    store.write(put("a")).result()
    other.close()
    store.close()


# -- claims


def reconciler(world: World, clock: Clock | None = None) -> Reconciler:
    return Reconciler(world.store, world.driver, clock=clock or world.clock, threads=4)


def test_two_reconcilers_never_step_the_same_machine() -> None:
    """Two at once over ten builders: each step is by the holder of the lease, each verb once."""
    with a_world() as world:
        for number in range(10):
            world.call(aws.CreateImageBuilder, Name=f"b{number}", **SMALL)
        stepping: dict[str, int] = {}
        lock = threading.Lock()
        clashes: list[str] = []

        def work(own: Reconciler) -> None:
            act = own.executor._act  # all between claim and commit: then the lease is free

            def watched(row: MachineRow) -> Outcome:
                machine_id = row.machine.id
                with lock:
                    stepping[machine_id] = stepping.get(machine_id, 0) + 1
                    if stepping[machine_id] > 1:
                        clashes.append(machine_id)
                time.sleep(0.001)  # long enough to be met by the other
                outcome = act(row)
                with lock:
                    stepping[machine_id] -= 1
                return outcome

            own.executor._act = watched  # type: ignore[method-assign]
            for _ in range(200):
                own.settle()

        both = [threading.Thread(target=work, args=(reconciler(world),)) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert clashes == []
        assert [row["state"] for row in world.rows()] == ["RUNNING"] * 10
        assert len(world.lines("acquire")) == len(world.lines("start")) == len(world.lines("desktop")) == 10
        assert set(world.boots().values()) == {1}
        world.check()


def test_a_lease_is_respected_until_it_ends_and_its_late_holder_writes_nothing() -> None:
    with a_world() as world:
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        slow, other = reconciler(world), reconciler(world)
        (machine_id,) = slow.claim()
        assert other.claim() == []
        world.clock.now += LEASE_S - 1
        assert other.claim() == []
        world.clock.now += 2
        assert other.claim() == [machine_id]
        before = world.rows()
        lines = len(world.lines("acquire"))
        slow.executor.step(
            machine_id
        )  # it comes to itself: what it did is no secret to the next look, what it writes is nothing
        assert world.rows() == before
        assert len(world.lines("acquire")) == lines
        other._working.clear()
        other.settle()
        world.clock.now += 1
        world.settle()
        world.check()
        assert set(world.boots().values()) == {1}


def test_a_reconciler_takes_up_its_own_lost_lease() -> None:
    """A step whose end could not be written (a full disk) is taken up again without waiting for the lease's end."""
    with a_world() as world:
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        own = reconciler(world)
        (machine_id,) = own.claim()
        assert own.claim() == [], "it still works on it"
        own._working.discard(machine_id)
        assert own.claim() == [machine_id]


def test_a_reconciler_that_starts_frees_what_its_killed_forerunner_held() -> None:
    with a_world() as world:
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        reconciler(world).claim()
        assert reconciler(world).claim() == []
        next_one = reconciler(world)
        done = threading.Thread(target=next_one.run)
        done.start()
        until = time.monotonic() + 20
        while world.rows()[0]["state"] != "RUNNING":
            assert time.monotonic() < until
            time.sleep(0.02)
        next_one.stop()
        done.join(timeout=20)
        assert not done.is_alive()
        world.check()


@pytest.mark.parametrize("back_s", [60.0, 3600.0, 1e8])
def test_leases_and_moments_from_before_the_clock_was_set_back_are_seen_through(back_s: float) -> None:
    with a_world() as world:
        world.call(aws.CreateImageBuilder, Name="b", **SMALL)
        assert reconciler(world).claim()
        world.clock.now -= back_s
        assert reconciler(world).claim(), "leased further ahead than a lease is long"


def test_a_store_that_can_be_opened_later_is_used_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file could be opened when the first call came: it is told so, and the next one is answered."""
    store = opened(folder)
    whole = store._connect

    def none_left() -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(store, "_connect", none_left)
    with pytest.raises(StoreError):
        store.write(put("a")).result(5)
    with pytest.raises(StoreError):
        store.read()
    monkeypatch.setattr(store, "_connect", whole)
    store.write(put("b")).result(5)
    assert (value_of(folder, "a"), store.read().one("meta", key="b")["value"]) == (None, "x")
    store.close()


def test_a_timeline_takes_bounded_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STEPS_MAX", 5)
    store = opened(folder)
    for number in range(9):
        for owner in ("restless", "quiet")[: 1 if number else 2]:
            line = steps.Step(owner, "m", "start", float(number), float(number))
            store.write(partial(steps.add, step=line)).result()
    assert [step.started for _, step in steps.newest(store.read(), "restless")] == [4.0, 5.0, 6.0, 7.0, 8.0]
    assert len(steps.newest(store.read(), "quiet")) == 1
    store.close()
