"""What a signed call costs: the server's processor time, beside the same HTTP server answering fixed bytes."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import processes, signing
from bench.load import Clients, Load, one_answer
from bench.rows import fill
from bench.table import Figure, median

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.run import Options
    from millstream.model.identity import Key

WIRES: Final = ("json", "cbor")
KINDS: Final = ("one", "page")
WANTED: Final = {"one": 0.25, "page": 0.30}
PAGE: Final = 25
# The throttle counts every call, as always, but lets all of them pass.
UNTHROTTLED: Final = {
    "MILLSTREAM_THROTTLE_READS_PER_S": "1000000000",
    "MILLSTREAM_THROTTLE_WRITES_PER_S": "1000000000",
}


@dataclass(slots=True)
class Runs:
    """Rounds of one kind of call: microseconds a request, ours and the floor's, and what the callers saw."""

    ours_us: list[float] = field(default_factory=list)
    floor_us: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return median(floor / ours for floor, ours in zip(self.floor_us, self.ours_us, strict=True))


@dataclass(slots=True)
class Bench:
    """Servers that run, and requests for them by kind and wire."""

    key: Key
    ours: tuple[int, int]  # pid, port
    floor_pid: int
    floor_ports: dict[tuple[str, str], int]
    names: list[str]

    def requests(self, kind: str, wire: str, page: int = PAGE) -> list[bytes]:
        members = [{"Names": [name]} for name in self.names[:500]] if kind == "one" else [{"MaxResults": page}]
        return [signing.request(self.key, self.ours[1], wire, "DescribeImageBuilders", each) for each in members]


@contextlib.contextmanager
def api_role(folder: Path, builders: int, *, again: bool) -> Iterator[tuple[Key, int, int, list[str]]]:
    """`millstream api` on a data folder with so many image builders: key, pid, port, names.

    `again`: answers may be given again while nobody writes, as by default; else each read looks into the store.
    """
    key, names = fill(folder, builders)
    port = processes.free_port()
    command = [processes.MILLSTREAM, "api", "--data", str(folder), "--listen", f"127.0.0.1:{port}"]
    environment = {
        **UNTHROTTLED,
        "MILLSTREAM_CAPACITY": "simulated",
        "MILLSTREAM_ANSWERS_KEPT": "512" if again else "0",
    }
    with processes.running(command, folder / "api.log", **environment) as process:
        processes.await_port(port, process)
        yield key, process.pid, port, names


@contextlib.contextmanager
def servers(builders: int, *, again: bool) -> Iterator[Bench]:
    """Ours and the floor, both up: the floor answers the very bytes that ours did."""
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        key, pid, port, names = stack.enter_context(api_role(folder / "data", builders, again=again))
        bench = Bench(key, (pid, port), 0, {}, names)
        arguments: list[str] = []
        for kind in KINDS:
            for wire in WIRES:
                answer = one_answer(port, bench.requests(kind, wire)[0])
                if b" 200 " not in answer[:16]:
                    raise RuntimeError(f"not an answer to measure: {answer[:600]!r}")
                file = folder / f"{kind}-{wire}"
                file.write_bytes(f"application/{wire}\n".encode() + answer.partition(b"\r\n\r\n")[2])
                bench.floor_ports[kind, wire] = floor_port = processes.free_port()
                arguments += [str(floor_port), str(file)]
        floor = stack.enter_context(
            processes.running([sys.executable, "-m", "bench.floor", *arguments], folder / "floor.log")
        )
        for floor_port in bench.floor_ports.values():
            processes.await_port(floor_port, floor)
        bench.floor_pid = floor.pid
        yield bench


def measured(pid: int, port: int, requests: list[bytes], total: int, connections: int) -> tuple[float, Load]:
    """Microseconds of the server's processor time a request."""
    clients = Clients(port, connections)
    try:
        clients.run(requests, max(connections, total // 10))  # caches warm, connections known
        before = processes.cpu_s(pid)
        load = clients.run(requests, total)
        return (processes.cpu_s(pid) - before) / total * 1e6, load
    finally:
        clients.close()


def alternate(bench: Bench, kind: str, wire: str, connections: int, rounds: int, total: int) -> Runs:
    runs = Runs()
    requests = bench.requests(kind, wire)
    for at in range(rounds):
        for ours in (True, False) if at % 2 else (False, True):
            if ours:
                cost, load = measured(*bench.ours, requests, total, connections)
                runs.ours_us.append(cost)
                runs.latencies_s += load.latencies_s
            else:
                cost, _ = measured(bench.floor_pid, bench.floor_ports[kind, wire], requests, total, connections)
                runs.floor_us.append(cost)
    return runs


def describe(options: Options) -> Iterator[Figure]:
    """Signed DescribeImageBuilders by name and by page, both wires, at 1, 16 and 64 connections.

    Once as programs that wait ask, again and again while nobody writes; once with every read looking for itself.
    """
    for again in (True, False):
        yield from _describe(options, again=again)


def _describe(options: Options, *, again: bool) -> Iterator[Figure]:
    rounds, total = (3, 600) if options.quick else (7, 2000)
    asked = "asked again" if again else "looked up"
    with servers(100, again=again) as bench:
        costs: dict[tuple[str, str], list[float]] = {}
        for kind in KINDS:
            for wire in WIRES:
                for connections in (1, 16, 64):
                    runs = alternate(bench, kind, wire, connections, rounds, total)
                    costs.setdefault((kind, wire), []).append(median(runs.ours_us))
                    load = Load(0, runs.latencies_s)
                    yield Figure(
                        f"Describe {kind}, {asked}, {wire}, {connections} connections",
                        f"{median(runs.ours_us):.0f} µs",
                        f"{median(runs.floor_us):.0f} µs",
                        runs.ratio,
                        WANTED[kind],
                        ">=",
                        f"p50 {load.percentile_ms(0.5):.2f} ms, p99 {load.percentile_ms(0.99):.2f} ms",
                    )
        for kind in KINDS:
            as_json, as_cbor = (median(costs[kind, wire]) for wire in WIRES)
            # Beside each other at the same number of connections: those were measured close together.
            ratio = median(cbor / json for json, cbor in zip(costs[kind, "json"], costs[kind, "cbor"], strict=True))
            yield Figure(
                f"Describe {kind}, {asked}, cbor beside json", f"{as_cbor:.0f} µs", f"{as_json:.0f} µs", ratio, 1.3
            )


def stored(options: Options) -> Iterator[Figure]:
    """The same with 10, 10,000 and 1,000,000 image builders stored."""
    sizes = (10, 1000, 100_000) if options.quick else (10, 10_000, 1_000_000)
    rounds, total = (3, 600) if options.quick else (7, 2000)
    with contextlib.ExitStack() as stack:
        benches = []
        for size in sizes:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millstream-bench-")))
            key, pid, port, names = stack.enter_context(api_role(folder, size, again=False))
            benches.append(Bench(key, (pid, port), 0, {}, names))
        for kind in KINDS:
            costs: dict[int, list[float]] = {size: [] for size in sizes}
            # Pages of nine, so that the smallest store has a whole one and a token too.
            requests = [bench.requests(kind, "json", 9) for bench in benches]
            for at in range(rounds):
                in_turn = list(zip(sizes, benches, requests, strict=True))
                for size, bench, each in in_turn if at % 2 else reversed(in_turn):
                    cost, _ = measured(*bench.ours, each, total, 16)
                    costs[size].append(cost)
            first = costs[sizes[0]]
            for size in sizes[1:]:
                yield Figure(
                    f"Describe {kind} with {size:,} stored, beside {sizes[0]}",
                    f"{median(costs[size]):.0f} µs",
                    f"{median(first):.0f} µs",
                    median(many / few for many, few in zip(costs[size], first, strict=True)),
                    1.1,
                )
