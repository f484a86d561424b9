"""Key press → changed pixels, through the edge and at the display directly, in turns on one real Xvnc.

`python -m bench.edge_key_to_pixel [RUNS]` prints medians and the edge's own cost; the edge is a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import resource
import select
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.edge.edge_client import cookie, viewer
from tests.edge.edge_world import Desktop, EdgeServer, Rows, Sockets

Send = Callable[[bytes], None]


class Viewer:
    """The smallest RFB client: raw pixels, one update asked for at a time."""

    def __init__(self, connection: socket.socket, send: Send, read: Callable[[], bytes]) -> None:
        self._connection = connection
        self._send = send
        self._read = read
        self._rest = b""
        self._take(12)
        send(b"RFB 003.008\n")
        self._take(self._take(1)[0])
        send(b"\x01")
        self._take(4)
        send(b"\x01")
        self.width, self.height = struct.unpack(">HH", self._take(4))
        self._take(16)
        self._take(struct.unpack(">I", self._take(4))[0])
        send(struct.pack(">BxHi", 2, 1, 0))
        self.ask(incremental=0)
        self.update()
        self.ask()

    def _take(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._rest += self._read()
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def ask(self, incremental: int = 1) -> None:
        self._send(struct.pack(">BBHHHH", 3, incremental, 0, 0, self.width, self.height))

    def settle(self) -> None:
        """Take what still comes of the key before: a blinking of the cursor is no answer to the next one."""
        while select.select([self._connection], [], [], 0.02)[0]:
            self.update()
            self.ask()

    def key(self, sym: int) -> None:
        self._send(struct.pack(">BBxxI", 4, 1, sym) + struct.pack(">BBxxI", 4, 0, sym))

    def update(self) -> None:
        while True:
            kind = self._take(1)[0]
            if kind == 0:
                break
            if kind == 3:
                self._take(3)
                self._take(struct.unpack(">I", self._take(4))[0])
        self._take(1)
        for _ in range(struct.unpack(">H", self._take(2))[0]):
            _, _, width, height, _ = struct.unpack(">HHHHi", self._take(12))
            self._take(width * height * 4)


def _edge(port: int, machine_id: str, path: str, told: Any) -> None:
    rows, sockets = Rows(), Sockets()
    rows.targets[machine_id] = dataclasses.replace(rows.targets.pop(rows.add()), machine_id=machine_id)
    sockets.paths[machine_id] = path
    with EdgeServer(rows, sockets, port=port):
        told.send("ready")
        while told.recv() != "end":
            used = resource.getrusage(resource.RUSAGE_SELF)
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            told.send((used.ru_utime + used.ru_stime, pages * os.sysconf("SC_PAGE_SIZE")))


def measure(runs: int) -> dict[str, float]:
    """Medians in ms, their ratio, and the edge's CPU and memory."""
    rows = Rows()
    idle_edge = EdgeServer(rows, Sockets())  # never started: only for its address
    machine = rows.add()
    here, there = multiprocessing.get_context("spawn").Pipe()
    with Desktop() as desktop:
        process = multiprocessing.get_context("spawn").Process(
            target=_edge, args=(idle_edge.port, machine, desktop.socket, there), daemon=True
        )
        process.start()
        assert here.recv() == "ready"
        here.send("cost")
        _, idle_bytes = here.recv()
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(desktop.socket)
        ws = viewer(idle_edge, machine, cookie(idle_edge, machine))
        ws.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        direct = Viewer(raw, raw.sendall, lambda: raw.recv(262_144))
        edge = Viewer(ws.socket, ws.send, lambda: ws.frame().data)
        direct.settle()
        for _ in range(40):  # until the terminal has the focus and its shell answers to keys
            raw.sendall(struct.pack(">BBHH", 5, 1, 200, 200) + struct.pack(">BBHH", 5, 0, 200, 200))
            direct.settle()
            direct.key(0x61)
            if select.select([raw], [], [], 0.5)[0]:
                break
        else:
            raise TimeoutError("the terminal on the display doesn't answer")
        took: dict[str, list[float]] = {"direct": [], "edge": []}
        here.send("cost")
        cpu_before, _ = here.recv()
        for n in range(runs * 2):
            name, one, other = ("direct", direct, edge) if n % 2 else ("edge", edge, direct)
            direct.settle()
            edge.settle()
            time.sleep(n % 7 / 700)  # apart from the display's own 60 Hz
            began = time.perf_counter()
            one.key(0xFF08 if n // 2 % 2 else 0x61)  # a letter and its end, so that no line gets long
            one.update()
            took[name].append((time.perf_counter() - began) * 1000)
            other.update()
            one.ask()
            other.ask()
        here.send("cost")
        cpu_after, busy_bytes = here.recv()
        ws.close()
        raw.close()
        here.send("end")
        process.join(10)
    middle = {name: statistics.median(values) for name, values in took.items()}
    return {
        "runs": runs,
        "direct_p50_ms": round(middle["direct"], 3),
        "edge_p50_ms": round(middle["edge"], 3),
        "ratio": round(middle["edge"] / middle["direct"], 3),
        "direct_p95_ms": round(statistics.quantiles(took["direct"], n=20)[18], 3),
        "edge_p95_ms": round(statistics.quantiles(took["edge"], n=20)[18], 3),
        "edge_cpu_us_per_key": round((cpu_after - cpu_before) / runs / 2 * 1e6, 1),
        "edge_rss_idle_mb": round(idle_bytes / 1e6, 1),
        "edge_rss_streaming_mb": round(busy_bytes / 1e6, 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 300), indent=2))
