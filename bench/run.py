"""`make bench`: every promised figure beside its floor, measured in the same run.

    python -m bench [NAME …] [--quick] [--json] [--write]

Writes nothing, unless told to `--write` the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.table import Figure, as_markdown, as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Name, module, function: what `python -m bench NAME` measures, in the order of the table.
FIGURES: Final = {
    "describe": ("bench.api", "describe"),
    "stored": ("bench.api", "stored"),
    "pairs": ("bench.service", "pairs"),
    "start": ("bench.service", "start"),
    "settled": ("bench.service", "settled"),
    "machines": ("bench.machines", "machines"),
    "crowd": ("bench.machines", "crowd"),
    "key": ("bench.machines", "key_press"),
}

PAGE: Final = Path(__file__).parents[1] / "docs/performance.md"
BEGIN: Final = "<!-- bench: the table begins -->"
END: Final = "<!-- bench: the table ends -->"


@dataclass(frozen=True, slots=True)
class Options:
    quick: bool


def write(page: Path, figures: list[Figure]) -> None:
    """Put the table between the page's two marks; what stands around it is written by people."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no place for the table: {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{_machine()}\n\n{as_markdown(figures)}\n{END}{after}", encoding="utf-8")


def _machine() -> str:
    words = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if ":" in line
    )
    model = next((value.strip() for name, value in words.items() if name.strip() == "model name"), platform.machine())
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"Measured on {time.strftime('%Y-%m-%d', time.gmtime())} on {os.cpu_count()} processors ({model}), "
        f"{memory_gib:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}; load average {os.getloadavg()[2]:.1f} over the last quarter of an hour."
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller stores: a first impression")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    given = parser.parse_args(arguments)
    strange = set(given.names) - set(FIGURES)
    if strange:
        parser.error(f"no figure is called {min(strange)}; there are {', '.join(FIGURES)}")
    figures: list[Figure] = []
    failed = 0
    for name in given.names or FIGURES:
        module, function = FIGURES[name]
        measure: Callable[[Options], Iterator[Figure]] = getattr(import_module(module), function)
        began = time.monotonic()
        print(f"{name} …", end="", file=sys.stderr, flush=True)
        try:
            figures += measure(Options(given.quick))
        except Exception as error:
            failed += 1
            traceback.print_exc()
            figures.append(Figure(name, "", "", None, None, note=f"could not be measured here: {error!r:.300}"))
        print(f" {time.monotonic() - began:.0f} s", file=sys.stderr)
    if given.write:
        write(PAGE, figures)
    if given.json:
        print(json.dumps([figure.as_json() for figure in figures], indent=2, ensure_ascii=False))
    else:
        print(as_text(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
