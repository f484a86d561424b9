"""Streams over real sockets: pumped whole, cut in time, taken over, bounded, and deaf to hostile frames."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.edge.edge_client import WebSocket, ask, cookie, viewer
from tests.edge.edge_world import BabblingDisplay, EdgeServer, Rows, Sockets, a_ticket, edge_with, wait_until

from millstream.gateway.rfb import VERSION
from millstream.gateway.session import Close
from millstream.model.ticket import VIEWER

World = tuple[EdgeServer, list[str]]
HELLO = VERSION + b"\x01\x01"
KEY_A = struct.pack(">BBxxI", 4, 1, 0x61)


@pytest.fixture
def world() -> Iterator[World]:
    yield from edge_with(2)


@pytest.fixture
def quiet() -> Iterator[tuple[EdgeServer, str, BabblingDisplay]]:
    """An edge and one machine whose display only listens."""
    rows, sockets = Rows(), Sockets()
    with BabblingDisplay(b"") as display, EdgeServer(rows, sockets) as edge:
        machine = rows.add()
        sockets.paths[machine] = display.socket
        yield edge, machine, display


def rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text("ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


Quiet = tuple[EdgeServer, str, BabblingDisplay]


# -------------------------------------------------------------------- the pump


def test_what_the_machine_says_arrives_whole() -> None:
    rows, sockets = Rows(), Sockets()
    said = b"".join(struct.pack(">Q", n) for n in range(8192))
    with BabblingDisplay(said) as display, EdgeServer(rows, sockets) as edge:
        machine = rows.add()
        sockets.paths[machine] = display.socket
        with viewer(edge, machine) as ws:
            got = b""
            while len(got) < 20 * len(said):
                frame = ws.frame()
                assert frame.opcode == 2
                got += frame.data
        assert got == (said * 30)[: len(got)]


def test_what_the_viewer_says_is_filtered(quiet: Quiet) -> None:
    edge, machine, display = quiet
    with viewer(edge, machine) as ws:
        ws.send(VERSION + b"\x01\x00")  # not shared
        ws.send(b"\xfa\0\x01\x02" + KEY_A)  # reboot, then a key
        wait_until(lambda: display.received == HELLO + KEY_A, what="the key, and nothing else")
    text = ask(edge, "GET", "/metrics").text
    assert 'kind="power",verdict="not_allowed"} 1' in wait_until(
        lambda: text if "power" in text else ask(edge, "GET", "/metrics").text
    )
    wait_until(lambda: display.hung_up == 1, 1, "the machine's side to end with the viewer")


def test_idle_is_the_person(quiet: Quiet) -> None:
    edge, machine, _ = quiet
    began = time.time()
    with viewer(edge, machine) as ws:
        ws.send(HELLO)
        wait_until(lambda: (machine, 1, None) in edge.rows.told, 3)
        for _ in range(10):
            ws.send(b"\x03" + bytes(9))
        ws.send(KEY_A)
        told = wait_until(lambda: [row for row in edge.rows.told if row[2]], 3)
        assert began <= (told[0][2] or 0) <= time.time()
    wait_until(lambda: edge.rows.told[-1][1] == 0, 3, "nobody looks on")
    assert len(edge.rows.told) <= 5, "at most once a second, and only what changed"


def test_a_guest_sees_and_cant_type(quiet: Quiet) -> None:
    edge, machine, display = quiet
    with viewer(edge, machine, cookie(edge, machine, a_ticket(machine, role=VIEWER))) as ws:
        ws.send(HELLO + KEY_A + b"\x05\x01\0\x01\0\x01" + b"\x03" + bytes(9))
        wait_until(lambda: display.received == HELLO + b"\x03" + bytes(9))


# -------------------------------------------------------------------- cut


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"state": "STOPPING", "running": False}, Close.STOPPED),
        ({"state": "DELETING", "running": False}, Close.DELETED),
        ({"generation": "2"}, Close.WITHDRAWN),
        ({"account": "111111111111"}, Close.WITHDRAWN),
        (None, Close.DELETED),
        ("revoked", Close.WITHDRAWN),
    ],
)
def test_cut_within_two_seconds(quiet: Quiet, change: dict[str, object] | str | None, code: Close) -> None:
    edge, machine, display = quiet
    with viewer(edge, machine) as ws:
        ws.send(HELLO)
        wait_until(lambda: display.received == HELLO)
        began = time.monotonic()
        if change is None:
            del edge.rows.targets[machine]
        elif isinstance(change, str):
            edge.rows.revoked.add("AKIATEST")
        else:
            edge.rows.change(machine, **change)
        assert ws.close_code() == code
        assert time.monotonic() - began <= 2
        wait_until(lambda: display.hung_up == 1, 1)


def test_a_store_in_trouble_cuts_nobody(quiet: Quiet) -> None:
    edge, machine, display = quiet
    with viewer(edge, machine) as ws:
        ws.send(HELLO)
        edge.rows.broken = True
        wait_until(lambda: "millstream_edge_errors_total 1" in ask(edge, "GET", "/metrics").text, 4)
        edge.rows.broken = False
        ws.send(KEY_A)
        wait_until(lambda: display.received == HELLO + KEY_A)


def test_machine_lost_and_machine_without_display(quiet: Quiet) -> None:
    edge, machine, display = quiet
    with viewer(edge, machine) as ws:
        ws.send(HELLO)
        wait_until(lambda: display.received)
        display.__exit__()
        assert ws.close_code() == Close.MACHINE_LOST
    with viewer(edge, machine) as ws:
        assert ws.status == 101
        assert ws.close_code() == Close.MACHINE_LOST


def test_a_restart_is_said(quiet: Quiet) -> None:
    edge, machine, _ = quiet
    rows, sockets = Rows(), edge.sockets
    with EdgeServer(rows, sockets) as other:
        mine = rows.add()
        sockets.paths[mine] = sockets.paths[machine]
        ws = viewer(other, mine)
        ws.send(HELLO)
        assert other._loop is not None
        assert other._stop is not None
        other._loop.call_soon_threadsafe(other._stop.set)
        assert ws.close_code() == Close.RESTARTING
        ws.close()


# -------------------------------------------------------------------- takeover, caps


def test_the_second_takes_over_and_the_first_is_told(quiet: Quiet) -> None:
    edge, machine, display = quiet
    first_pass, second_pass = cookie(edge, machine), cookie(edge, machine)
    with viewer(edge, machine, first_pass) as first:
        first.send(HELLO)
        wait_until(lambda: display.received == HELLO)
        with viewer(edge, machine, cookie(edge, machine, a_ticket(machine, role=VIEWER))) as guest:
            with viewer(edge, machine, second_pass) as second:
                assert first.close_code() == Close.TAKEN_OVER
                second.send(HELLO + KEY_A)
                wait_until(lambda: display.received.endswith(KEY_A))
                with viewer(edge, machine, first_pass) as back:  # take back
                    assert second.close_code() == Close.TAKEN_OVER
                    assert back.status == 101
            guest.send(b"", 9)
            assert guest.frame().opcode == 10, "a guest is not taken over"


def test_a_thousand_sockets_of_one_ticket(quiet: Quiet) -> None:
    edge, machine, display = quiet
    mine = cookie(edge, machine)
    before, answers, kept = rss_bytes(), {101: 0, 503: 0}, []
    for _ in range(200):
        ws = viewer(edge, machine, mine)
        answers[ws.status] = answers.get(ws.status, 0) + 1
        kept.append(ws)
    wait_until(
        lambda: "millstream_edge_streaming 1\n" in ask(edge, "GET", "/metrics").text, what="only the last is left"
    )
    assert set(answers) <= {101, 503}
    assert rss_bytes() - before < 30_000_000
    for ws in kept:
        ws.close()
    wait_until(lambda: "millstream_edge_streaming 0\n" in ask(edge, "GET", "/metrics").text)
    assert len(display._open) <= 200


def test_caps_by_machine_and_in_all() -> None:
    for edge, (one, two, three) in edge_with(3, streams_per_machine_max=2, streams_max=3):
        guests = [viewer(edge, one, cookie(edge, one, a_ticket(one, role=VIEWER))) for _ in range(3)]
        assert [ws.status for ws in guests] == [101, 101, 503]
        others = [viewer(edge, two), viewer(edge, three)]
        assert [ws.status for ws in others] == [101, 503]
        for ws in (*guests, *others):
            ws.close()


# -------------------------------------------------------------------- slow viewers


def test_slow_viewers_pause_the_machine_and_hold_little() -> None:
    rows, sockets = Rows(), Sockets()
    with BabblingDisplay() as display, EdgeServer(rows, sockets, silent_viewer_s=4) as edge:
        machines = [rows.add(f"m{n}") for n in range(30)]
        for machine in machines:
            sockets.paths[machine] = display.socket
        passes = [cookie(edge, machine) for machine in machines]
        before = rss_bytes()
        viewers = [viewer(edge, m, p, receive_bytes=4096) for m, p in zip(machines, passes, strict=True)]

        def still() -> bool:  # every machine is paused: nothing more is taken from it
            seen = display.sent_bytes
            time.sleep(0.3)
            return display.sent_bytes == seen > 0

        wait_until(still, 15, "the machines to be paused")
        assert rss_bytes() - before < 30 * 1_000_000, "a slow viewer holds less than a megabyte"
        assert viewers[0].frame().opcode == 2, "what was held is still there for one who wakes up"
        wait_until(lambda: 'millstream_edge_closed_total{reason="slow"} 30' in ask(edge, "GET", "/metrics").text, 10)
        assert display.hung_up == 30, "and the machines are let go"
        for ws in viewers:
            ws.close()


# -------------------------------------------------------------------- frames


def test_hostile_frames_end_their_own_connection_only(quiet: Quiet) -> None:
    edge, machine, _ = quiet
    mine = cookie(edge, machine)
    before = rss_bytes()

    def hostile(*frames: dict[str, object]) -> int:
        with viewer(edge, machine, mine) as ws:
            assert ws.status == 101
            try:
                for frame in frames:
                    ws.send(**frame)  # type: ignore[arg-type]
            except (BrokenPipeError, ConnectionResetError):
                return 0
            return ws.close_code(5)

    assert hostile({"data": b"x", "length": 2**63 - 1}) in {0, 1009, 1002}
    assert hostile({"data": b"x", "length": 2**62}) in {0, 1009}
    assert hostile({"data": bytes(1_048_577)}) in {0, 1009}
    assert hostile({"data": b"x" * 1024, "opcode": 3}) in {0, 1002}
    assert hostile({"data": b"x" * 126, "opcode": 9}) in {0, 1002}
    assert hostile({"data": b"x", "opcode": 0}) in {0, 1002, 1003, 1007}
    assert hostile({"data": b"\xff\xfe", "opcode": 1}) in {0, 1007, 4007}
    assert hostile({"data": b"hello", "opcode": 1}) == Close.GRAMMAR
    assert hostile({"data": b"GET / HTTP/1.1\r\n"}) == Close.GRAMMAR
    assert hostile({"data": HELLO + b"\x07"}) == Close.GRAMMAR
    assert hostile({"data": HELLO + b"\x06\0\0\0\x7f\xff\xff\xff"}) == Close.GRAMMAR
    # Fragments without end, up to the limit of one message.
    fragments: list[dict[str, object]] = [
        {"data": b"x" * 100, "opcode": 2 if n == 0 else 0, "fin": False} for n in range(11_000)
    ]
    assert hostile(*fragments) in {0, 1009}
    assert rss_bytes() - before < 30_000_000
    with viewer(edge, machine, mine) as ws:
        ws.send(HELLO)
        for _ in range(1000):
            ws.send(b"", 9)
        assert all(ws.frame().opcode == 10 for _ in range(1000))


def test_compression_is_never_agreed_on(quiet: Quiet) -> None:
    edge, machine, _ = quiet
    with WebSocket(
        edge, f"/stream/{machine}/rfb", Origin=edge.origin, Cookie=cookie(edge, machine),
        Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits",
    ) as ws:  # fmt: skip
        assert ws.status == 101
        assert b"extensions" not in ws.head.lower()
        ws.socket.sendall(bytes((0xC2, 0x85, 0, 0, 0, 0)) + b"bombs")  # RSV1 set all the same
        assert ws.close_code() in {0, 1002}


def test_machine_bytes_are_never_read(world: World) -> None:
    """Whatever a display sends, the edge only passes it on: random bytes, all lengths."""
    noise = os.urandom(50_021)
    rows, sockets = world[0].rows, world[0].sockets
    with BabblingDisplay(noise) as display:
        machine = rows.add()
        sockets.paths[machine] = display.socket
        with viewer(world[0], machine) as ws:
            got = b""
            while len(got) < 5 * len(noise):
                got += ws.frame().data
        assert got == (noise * 20)[: len(got)]


def test_slow_heads_and_silent_connections_are_ended() -> None:
    for edge, (machine,) in edge_with(head_s=2):
        _slow_heads(edge, machine)


def _slow_heads(edge: EdgeServer, machine: str) -> None:
    slow = []
    for n in range(100):
        made = socket.create_connection(("127.0.0.1", edge.port))
        made.sendall(b"" if n % 2 else b"GET / HTTP/1.1\r\nHost: ")
        slow.append(made)
    began = time.monotonic()
    assert ask(edge, "GET", f"/stream/{machine}/?ticket={a_ticket(machine)}").status == 200
    assert time.monotonic() - began < 1
    for made in slow:
        made.settimeout(30)
        assert made.recv(1) == b""
        made.close()
    assert time.monotonic() - began < 10


def test_connections_of_one_address_are_capped() -> None:
    for edge, _ in edge_with(connections_per_address_max=20):
        made = [socket.create_connection(("127.0.0.1", edge.port)) for _ in range(20)]
        with socket.create_connection(("127.0.0.1", edge.port)) as one_more:
            one_more.settimeout(5)
            assert one_more.recv(1) == b""
        for one in made:
            one.close()
        wait_until(partial(_answers, edge), 5)


def test_a_desktop_opened_again_and_again_is_refused() -> None:
    """Each opening is a commit and lines in the log: whoever holds one ticket fills no disk with them."""
    for edge, (machine, other) in edge_with(2, streams_per_minute_max=5):
        mine, theirs = cookie(edge, machine), cookie(edge, other)
        statuses = []
        for _ in range(8):
            with viewer(edge, machine, mine) as one:
                statuses.append(one.status)
        assert statuses == [101] * 5 + [429] * 3
        with viewer(edge, other, theirs) as one:
            assert one.status == 101


def _answers(edge: EdgeServer) -> bool:
    try:
        return ask(edge, "GET", "/healthz").status == 200
    except OSError:
        return False


def test_noise_on_every_layer_is_nobodys_error(quiet: Quiet) -> None:
    """Random bytes as HTTP, as frames, as RFB behind good frames: refused or ended, never our own error."""
    edge, machine, _ = quiet
    mine, chance, before = cookie(edge, machine), random.Random(7), rss_bytes()
    heads = [
        b"GET ",
        b"POST /stream/",
        b"GET / HTTP/1.1\r\nHost: ",
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"",
    ]
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", edge.port), timeout=5) as made:
            made.sendall(chance.choice(heads) + chance.randbytes(chance.randrange(400)) + b"\r\n\r\n")
    for n in range(150):
        with viewer(edge, machine, mine) as ws:
            if n % 3 == 0:
                ws.socket.sendall(chance.randbytes(chance.randrange(1, 600)))
            else:
                ws.send(
                    (HELLO if n % 3 == 1 else b"") + chance.randbytes(chance.randrange(1, 600)),
                    chance.choice((1, 2, 8, 9)),
                )
    wait_until(lambda: "millstream_edge_streaming 0\n" in ask(edge, "GET", "/metrics").text)
    text = ask(edge, "GET", "/metrics").text
    assert "millstream_edge_errors_total" not in [line.split(" ")[0] for line in text.splitlines()]
    assert rss_bytes() - before < 20_000_000
