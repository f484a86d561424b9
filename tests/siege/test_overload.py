"""Slow callers, many callers, one loud caller: the others are answered as before."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
import timeit
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.siege.quick_signer import QuickSigner
from tests.siege.siege_world import Line, Service, memory_bytes, service, wait_until

from millstream import wiring
from millstream.api.throttle import BURST_S, Throttle
from millstream.wiring.settings import Settings

SLOW = 400


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    with service(log_level="warning", throttle_reads_per_s="300", throttle_writes_per_s="20") as found:
        yield found


def a_key(running: Service, name: str) -> QuickSigner:
    store = wiring.open_store(Settings(data=running.data))
    key = store.write(lambda tx: wiring.new_key(tx, "000000000000", name)).result()
    store.close()
    return QuickSigner(replace(running.root(), key_id=key.key_id, secret=key.secret.reveal()), running.listen)


def answered(running: Service, signer: QuickSigner, count: int) -> list[float]:
    """Seconds that each of so many calls took, at a modest pace; all must be answered."""
    line, took = Line(running.port), []
    for _ in range(count):
        sent = signer.json("DescribeImageBuilders", b"{}")
        began = time.monotonic()
        assert line.send(sent).status == 200
        took.append(time.monotonic() - began)
        time.sleep(0.005)
    line.close()
    return took


def p(share: float, took: list[float]) -> float:
    return statistics.quantiles(took, n=100)[int(share * 100) - 1]


@pytest.mark.slow
def test_slow_callers_hold_up_nobody(running: Service) -> None:
    """Heads and bodies that never end, silence, answers that nobody reads: on both addresses at once."""
    signer = a_key(running, "patient")
    quiet = p(0.95, answered(running, signer, 100))
    roles = running.roles()
    before = {role: memory_bytes(pid) for role, pid in roles.items()}
    beginnings = (
        b"",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n{",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50,
    )
    with contextlib.ExitStack() as open_ones:
        for number in range(SLOW):
            for port in (running.port, running.edge_port):
                with contextlib.suppress(OSError):  # the edge takes 256 from one address
                    slow = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                    slow.sendall(beginnings[number % len(beginnings)])
        beside = answered(running, signer, 200)
        for port in (running.port, running.edge_port):
            # The edge counts connections by address; this host's share may be taken, an open door may not.
            told = running.health(port)
            assert told.status == 200 or port == running.edge_port
        for role, pid in roles.items():
            assert memory_bytes(pid) - before[role] < 50 << 20
    assert p(0.95, beside) < max(4 * quiet, 0.1)
    wait_until(lambda: running.health(running.edge_port).status == 200, 10, "the edge to be free again")
    assert running.roles() == roles


@pytest.mark.slow
def test_one_keys_flood_is_its_own(running: Service) -> None:
    loud, other = a_key(running, "loud"), a_key(running, "other")
    quiet = p(0.95, answered(running, other, 60))
    answers: Counter[tuple[int, str]] = Counter()
    over = threading.Event()

    def shout() -> None:
        line = Line(running.port)
        while not over.is_set():
            for _ in range(20):
                answer = line.send(loud.json("DescribeImageBuilders", b"{}"))
                answers[answer.status, answer.code] += 1
        line.close()

    shouting = [threading.Thread(target=shout) for _ in range(2)]
    for thread in shouting:
        thread.start()
    try:
        wait_until(lambda: answers[400, "ThrottlingException"] > 200, 20, "the flood to be throttled")
        beside = answered(running, other, 100)
    finally:
        over.set()
        for thread in shouting:
            thread.join()
    assert set(answers) == {(200, ""), (400, "ThrottlingException")}
    assert p(0.95, beside) < max(4 * quiet, 0.1)
    wait_until(lambda: running.line.send(loud.json("DescribeImageBuilders", b"{}")).status == 200, 5, "forgiveness")


def test_writes_have_a_bucket_of_their_own(running: Service) -> None:
    writer = a_key(running, "writer")
    line, codes = Line(running.port), Counter[str]()
    for _ in range(60):
        codes[line.send(writer.json("StopImageBuilder", b'{"Name":"nobody"}')).code] += 1
    assert codes["ResourceNotFoundException"] >= 20 * BURST_S
    assert codes["ThrottlingException"]
    assert line.send(writer.json("DescribeImageBuilders", b"{}")).status == 200
    assert line.send(writer.cbor("StopImageBuilder", b"\xa1dNamefnobody")).code == "ThrottlingException"


def test_a_stranger_can_not_empty_a_keys_bucket(running: Service) -> None:
    """Only calls whose signature is right are counted against a key."""
    victim = a_key(running, "victim")
    forger = QuickSigner(replace(victim._caller, secret="guessed"), running.listen)
    line = Line(running.port)
    for _ in range(900):
        assert line.send(forger.json("DescribeImageBuilders", b"{}")).code == "InvalidSignatureException"
    assert line.send(victim.json("DescribeImageBuilders", b"{}")).status == 200
    assert not [entry for entry in running.logged() if entry.get("code") == "ThrottlingException"]


# -- the bucket itself


@given(st.lists(st.floats(0, 5), max_size=300), st.integers(1, 50))
def test_no_second_holds_more_than_rate_and_burst(pauses: list[float], rate: int) -> None:
    """Over any span of t seconds at most (t + burst) x rate calls pass, and a silent key always has its burst."""
    now = 0.0
    throttle = Throttle(reads_per_s=rate, clock=lambda: now)
    passed = []
    for pause in pauses:
        now += pause / rate
        if throttle.admits("k", reads=True):
            passed.append(now)
    for first in range(0, len(passed), 7):
        for last in range(first, len(passed), 7):
            assert last - first + 1 <= (passed[last] - passed[first] + BURST_S) * rate + 1
    now += BURST_S + 1
    assert all(throttle.admits("k", reads=True) for _ in range(int(BURST_S * rate)))


def test_keys_and_kinds_do_not_share() -> None:
    throttle = Throttle(reads_per_s=1, writes_per_s=1, clock=lambda: 0.0)
    for key in ("a", "b"):
        for reads in (True, False):
            assert [throttle.admits(key, reads=reads) for _ in range(4)] == [True, True, False, False]


def test_no_rate_is_no_limit() -> None:
    throttle = Throttle(clock=lambda: 0.0)
    assert all(throttle.admits("a", reads=False) for _ in range(10_000))


def test_what_it_remembers_is_bounded() -> None:
    now = 0.0
    throttle = Throttle(reads_per_s=100, clock=lambda: now)
    for number in range(20_000):
        now += 0.001
        assert throttle.admits(f"key{number}", reads=True)
    assert len(throttle._buckets[True][1]) <= 4096


def test_it_costs_less_than_a_microsecond() -> None:
    throttle = Throttle(reads_per_s=1e9)
    best = min(timeit.repeat(lambda: throttle.admits("AKIAEXAMPLEEXAMPLE00", reads=True), number=20_000, repeat=10))
    assert best / 20_000 < 1e-6
