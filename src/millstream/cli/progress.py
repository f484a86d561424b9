"""Waiting shown as named steps with times, on stderr: redrawn in place on a terminal, append-only lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Self, TextIO

from millstream.cli.here import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

REDRAW_S: Final = 0.25  # at most four times a second
STILL_S: Final = 10.0  # a sign of life for logs and screen readers


def redraws(stream: TextIO) -> bool:
    """Whether lines may be drawn over: a terminal whose owner has not asked for plain lines."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("ACCESSIBLE") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


class Progress:
    """One step at a time: `step` begins one (and ends the one before), `done` ends it. Used as a context manager.

    `quiet`: for --json, says nothing.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        still_s: float = STILL_S,
    ) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = not quiet and redraws(self._stream)
        self._clock = clock
        self._still_s = still_s
        self._lock = threading.Lock()
        self._name = ""
        self._text = ""
        self._usual_s: float | None = None
        self._since = 0.0
        self._said_at = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if not self._quiet:
            self._thread = threading.Thread(target=self._beat, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._name:
                self._end("failed" if kind is not None else "")

    def step(self, name: str, text: str = "", *, usual_s: float | None = None) -> None:
        """A step begins now."""
        with self._lock:
            if self._name:
                self._end("")
            self._name, self._text, self._usual_s = name, text, usual_s
            self._since = self._said_at = self._clock()
            if self._live:
                self._draw()
            else:
                self._say(f"  {name}: {text}" if text else f"  {name}")

    def text(self, text: str) -> None:
        """What the step is at, when that changes."""
        with self._lock:
            if text != self._text:
                self._text = text
                self._said_at = min(self._said_at, self._clock() - self._still_s + REDRAW_S)

    def done(self, text: str = "") -> None:
        """The step has ended."""
        with self._lock:
            if self._name:
                self._text = text or self._text
                self._end("")

    def _end(self, how: str) -> None:
        took = seconds(self._clock() - self._since)
        line = f"  {self._name:<12} {self._text}".rstrip()
        line = f"{line:<60}  {took}" + (f"   {how}" if how else "")
        self._say(f"\r\x1b[K{line}" if self._live else line)
        self._name = self._text = ""

    def _beat(self) -> None:
        while not self._ended.wait(REDRAW_S):
            with self._lock:
                if not self._name:
                    continue
                if self._live:
                    self._draw()
                elif self._clock() - self._said_at >= self._still_s:
                    self._said_at = self._clock()
                    self._say(f"  still: {self._name} ({self._so_far()})" + (f": {self._text}" if self._text else ""))

    def _so_far(self) -> str:
        usual = f", usually {seconds(self._usual_s)}" if self._usual_s is not None else ""
        return seconds(self._clock() - self._since) + usual

    def _draw(self) -> None:
        so_far = f"  {self._so_far()}"
        line = f"  {self._name:<12} {self._text}".rstrip()
        room = _columns(self._stream) - 1 - len(so_far)  # a long text is cut, never the time
        self._stream.write(f"\r\x1b[K{f'{line:<60}'[: max(room, 0)]}{so_far}")
        self._stream.flush()

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._stream.write(line + "\n")
            self._stream.flush()


def _columns(stream: TextIO) -> int:
    """The width of the terminal that `stream` is; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
