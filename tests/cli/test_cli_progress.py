"""Progress: lines that are only added without a terminal, drawn in place on one, a sign of life every ten seconds."""

from __future__ import annotations

import io
import os
import pty
import time

import pytest

from millstream.cli.here import seconds, size, table
from millstream.cli.progress import Progress, redraws


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_lines_are_only_added() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress.step("packages", "podman and 2 more")
        clock.now = 34.0
        progress.step("engine", "podman 4.3.1")
        clock.now = 35.0
        progress.done()
    said = stream.getvalue()
    assert "\r" not in said
    assert "\x1b" not in said
    lines = said.splitlines()
    assert lines[0] == "  packages: podman and 2 more"
    assert lines[1].split() == ["packages", "podman", "and", "2", "more", "34", "s"]
    assert lines[-1].split() == ["engine", "podman", "4.3.1", "1.0", "s"]


def test_a_long_step_gives_a_sign_of_life_with_what_is_usual() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock) as progress:
        progress.step("display", usual_s=0.5)
        clock.now = 12.0
        until = time.monotonic() + 5
        while "still" not in stream.getvalue():
            assert time.monotonic() < until
            time.sleep(0.02)
    assert "  still: display (12 s, usually 0.50 s)" in stream.getvalue()


def test_a_step_that_is_cut_off_says_so() -> None:
    stream = io.StringIO()

    def cut_off() -> None:
        with Progress(stream=stream) as progress:
            progress.step("display")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    assert stream.getvalue().rstrip().endswith("failed")


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    with Progress(stream=stream, quiet=True) as progress:
        progress.step("display")
        progress.done()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"ACCESSIBLE": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_lines_are_drawn_over_only_where_that_is_wanted(
    variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "ACCESSIBLE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(os.dup(theirs), "w") as terminal:
            assert redraws(terminal) is wanted
    finally:
        os.close(ours)
        os.close(theirs)


def test_on_a_terminal_a_step_is_drawn_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.cli.progress.redraws", lambda _stream: True)
    stream = io.StringIO()
    started = time.monotonic()
    with Progress(stream=stream) as progress:
        progress.step("display", "starting")
        for _ in range(100):
            progress.text(f"starting {_}")
            time.sleep(0.006)
    took_s = time.monotonic() - started
    drawn = stream.getvalue().count("\r")
    assert 2 <= drawn <= 4 * took_s + 3  # the first, the last, and one of rounding


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0.00 s"), (0.141, "0.14 s"), (2.26, "2.3 s"), (12.4, "12 s"), (97.0, "1 min 37 s"), (7320.0, "2 h 2 min")],
)
def test_durations(value: float, told: str) -> None:
    assert seconds(value) == told


def test_sizes() -> None:
    assert [size(590_000_000), size(2_100_000_000), size(12)] == ["590 MB", "2.1 GB", "12 B"]


def test_tables_are_aligned_and_without_borders() -> None:
    assert table([("a", "x"), ("longer", "y")], head=("NAME", "WHAT")) == ["NAME    WHAT", "a       x", "longer  y"]
    assert table([], head=("NAME",)) == []
