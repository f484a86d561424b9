"""`make bench`: every promised figure beside its floor, measured in the same run.

    python -m bench [NAME …] [--quick] [--json] [--write]

Writes nothing, unless told to `--write` the table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from bench.table import Figure, as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Name, module, function: what `python -m bench NAME` measures, in the order of the table.
FIGURES: Final = {
    "describe": ("bench.api", "describe"),
    "stored": ("bench.api", "stored"),
    "pairs": ("bench.service", "pairs"),
    "start": ("bench.service", "start"),
    "settled": ("bench.service", "settled"),
}


@dataclass(frozen=True, slots=True)
class Options:
    quick: bool


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
    for name in given.names or FIGURES:
        module, function = FIGURES[name]
        measure: Callable[[Options], Iterator[Figure]] = getattr(import_module(module), function)
        began = time.monotonic()
        print(f"{name} …", end="", file=sys.stderr, flush=True)
        figures += measure(Options(given.quick))
        print(f" {time.monotonic() - began:.0f} s", file=sys.stderr)
    if given.json:
        print(json.dumps([figure.as_json() for figure in figures], indent=2, ensure_ascii=False))
    else:
        print(as_text(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
