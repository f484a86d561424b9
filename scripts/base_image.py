#!/usr/bin/env python3
"""Build the base image's tarball into a folder, without .venv and without an engine: `make setup` runs it beside pip.

base_image.py FOLDER          build it, if it is not there
base_image.py --check FOLDER  exit code 0 when it is there
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from millstream.capacity.containers import image
from millstream.capacity.driver import CapacityError, Refused


def main(arguments: list[str]) -> int:
    folder = Path(arguments[-1]).expanduser()
    if arguments[0] == "--check":
        return 0 if image.tarball_of(folder).exists() else 1
    try:
        image.build_tarball(folder, lambda step, _since_s: print(step, flush=True))
    except (CapacityError, Refused) as error:
        print(f"{error.code}: {error}")
        return 6
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
