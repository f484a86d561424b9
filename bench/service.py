"""The whole service on simulated capacity: pairs of durable calls, its start, and what it takes while idle."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import processes, signing
from bench.api import UNTHROTTLED
from bench.load import Clients, one_answer
from bench.rows import fill
from bench.table import Figure, median

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from bench.run import Options
    from millstream.model.identity import Key

CALLERS: Final = 64
ROLES: Final = ("watcher", "api", "edge", "reconcile")
INSTANT: Final = {
    "MILLSTREAM_CAPACITY": "simulated",
    "MILLSTREAM_SIMULATED_ACQUIRE_S": "0",
    "MILLSTREAM_SIMULATED_START_S": "0",
    "MILLSTREAM_SIMULATED_STOP_S": "0",
    "MILLSTREAM_SIMULATED_RELEASE_S": "0",
    "MILLSTREAM_IMAGE_BUILDERS_MAX": "10000000",
    **UNTHROTTLED,
}


@dataclass(frozen=True, slots=True)
class Service:
    process: subprocess.Popen[bytes]
    key: Key
    port: int
    first_answer_s: float  # from its start

    def request(self, operation: str, **members: object) -> bytes:
        return signing.request(self.key, self.port, "json", operation, members)


@contextlib.contextmanager
def serving(folder: Path, key: Key, environment: dict[str, str]) -> Iterator[Service]:
    """`millstream serve` on a warm data folder, from its start to its first answered call to its end."""
    port, edge = processes.free_port(), processes.free_port()
    describe = signing.request(key, port, "json", "DescribeImageBuilders", {})
    command = [processes.MILLSTREAM, "serve", "--data", str(folder)]
    command += ["--listen", f"127.0.0.1:{port}", "--edge", f"127.0.0.1:{edge}"]
    began = time.perf_counter()
    with processes.running(command, folder.parent / f"{folder.name}.log", **environment) as process:
        while True:
            try:
                answer = one_answer(port, describe)
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError(f"millstream serve ended with {process.returncode}") from None
                time.sleep(0.002)
        took_s = time.perf_counter() - began
        if b" 200 " not in answer[:16]:
            raise RuntimeError(f"not the answer that was asked for: {answer[:600]!r}")
        yield Service(process, key, port, took_s)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # Beside the working directory and not in /tmp, which may be memory: durability is measured here.
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as text:
        yield Path(text).absolute()


def pairs(options: Options) -> Iterator[Figure]:
    """Durable create + delete pairs a second, many callers at once, beside bare durable commits of the same disk."""
    rounds, count = (3, 400) if options.quick else (7, 1500)
    ours: list[float] = []
    floor: list[float] = []
    latencies: list[float] = []
    with _folder() as folder:
        key, _ = fill(folder / "data", 1)
        with serving(folder / "data", key, INSTANT) as service:
            clients = Clients(service.port, CALLERS)
            for at in range(rounds):
                stories = [_pair(service, f"pair-{at}-{number}") for number in range(count)]
                floor.append(_commits_per_s(folder, 1.0))
                load = clients.run_stories(stories)
                ours.append(count / load.took_s)
                latencies += load.latencies_s
                _await_quiet(folder / "data", 1)
            clients.close()
    ordered = sorted(latencies)
    yield Figure(
        f"Create + delete pairs a second, {CALLERS} callers",
        f"{median(ours):.0f}/s",
        f"{median(floor):.0f} commits/s",
        median(one / other for one, other in zip(ours, floor, strict=True)),
        0.5,
        ">=",
        f"each call answered in {ordered[len(ordered) // 2] * 1000:.0f} ms (p50), "
        f"{ordered[len(ordered) * 99 // 100] * 1000:.0f} ms (p99); all of the service on {os.cpu_count()} cores",
    )


def _pair(service: Service, name: str) -> list[bytes]:
    return [
        service.request(
            "CreateImageBuilder", Name=name, InstanceType="stream.standard.medium", ImageName="debian-12-desktop"
        ),
        service.request("DeleteImageBuilder", Name=name),
    ]


def _commits_per_s(folder: Path, for_s: float) -> float:
    """Bare SQLite as the store uses it: write-ahead log, FULL, one small row a commit."""
    connection = sqlite3.connect(folder / "floor.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS row (number INTEGER PRIMARY KEY, text TEXT)")
    count, began = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began) < for_s:
        connection.execute("INSERT INTO row (text) VALUES ('x')")
        count += 1
    connection.close()
    return count / took_s


def _await_quiet(folder: Path, machines: int) -> None:
    """Until the reconciler has brought all to its end."""
    connection = sqlite3.connect(folder / "millstream.db")
    until = time.monotonic() + 120
    while connection.execute("SELECT count(*) FROM machine").fetchone()[0] > machines:
        if time.monotonic() > until:
            raise TimeoutError("deleted image builders are still there")
        time.sleep(0.05)
    connection.close()


def start(options: Options) -> Iterator[Figure]:
    """`millstream serve` to its first answered call, and what it holds in memory when idle."""
    times = []
    with _folder() as folder:
        key, _ = fill(folder / "data", 10, simulated=True)
        for _ in range(3 if options.quick else 9):
            with serving(folder / "data", key, INSTANT) as service:
                times.append(service.first_answer_s)
        yield Figure("Start to the first answered call", f"{median(times):.2f} s", "", median(times), 0.8)
        with serving(folder / "data", key, INSTANT) as service:
            time.sleep(5)
            yield from _memory("Idle", service, 120)


def _memory(name: str, service: Service, wanted: float | None) -> Iterator[Figure]:
    held = [processes.memory_bytes(pid) for pid in processes.family(service.process.pid)]
    resident, proportional = (sum(each) / 1e6 for each in zip(*held, strict=True))
    each = ", ".join(f"{role} {rss / 1e6:.0f}" for role, (rss, _) in zip(ROLES, held, strict=True))
    yield Figure(
        f"{name}: memory, pages that processes share counted once",
        f"{proportional:.0f} MB",
        "",
        proportional,
        wanted,
    )
    yield Figure(
        f"{name}: memory, the processes' resident sizes added up",
        f"{resident:.0f} MB",
        "",
        resident,
        wanted,
        note=f"MB resident: {each}",
    )


def settled(options: Options) -> Iterator[Figure]:
    """Processor time and memory with 100,000 settled image builders."""
    count, for_s = (10_000, 20) if options.quick else (100_000, 120)  # long enough for a sweep to be in it
    with _folder() as folder:
        key, _ = fill(folder / "data", count, simulated=True)
        with serving(folder / "data", key, INSTANT) as service:
            time.sleep(8)  # its start and first sweep
            pids = processes.family(service.process.pid)
            before = [processes.cpu_s(pid) for pid in pids]
            time.sleep(for_s)
            used = [processes.cpu_s(pid) - at for pid, at in zip(pids, before, strict=True)]
            share = sum(used) / for_s
            each = ", ".join(f"{role} {cpu / for_s:.2%}" for role, cpu in zip(ROLES, used, strict=True))
            yield Figure(
                f"{count:,} settled: share of a core over {for_s} s", f"{share:.2%}", "", share * 100, 1.0, "<=", each
            )
            yield from _memory(f"{count:,} settled", service, None)
