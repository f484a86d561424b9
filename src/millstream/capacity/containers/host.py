"""What this host must have before its first machine: checked by `doctor`, mended by `doctor --fix` and `make setup`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from millstream.capacity.containers.engine import ENGINE_PATH, locked
from millstream.model.records import Health

# Podman cuts each machine's uids out of this range; 2,000 machines of 65,536 uids. It begins above what Debian
# gives to people (100000 and up, 65,536 each) and ends far below 2**31.
RANGE_USER: Final = "containers"
RANGE_START: Final = 1_000_000_000
RANGE_LENGTH: Final = 2_000 * 65_536
RANGE_FILES: Final = (Path("/etc/subuid"), Path("/etc/subgid"))

LOCK: Final = Path("/run/millstream-subuid.lock")

PACKAGES: Final = Path(__file__).with_name("packages.txt")
TOOLS: Final = {  # the program that is looked for, and its Debian package
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "newuidmap": "uidmap",
    "mmdebstrap": "mmdebstrap",
    "unshare": "util-linux",
    "mount": "mount",
}


def prepare_host() -> list[str]:
    """Give the engine its range of uids, if nobody has. Idempotent. Returns what was changed, in words.

    Raises PermissionError when not root.
    """
    changed = []
    for path in RANGE_FILES:
        with locked(LOCK):
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            if _has_range(text):
                continue
            start = free_start(text)
            line = f"{RANGE_USER}:{start}:{RANGE_LENGTH}\n"
            new = path.with_name(f"{path.name}.millstream")
            new.write_text(text if not text or text.endswith("\n") else text + "\n", encoding="utf-8")
            with new.open("a", encoding="utf-8") as file:
                file.write(line)
            new.chmod(0o644)
            new.replace(path)
            changed.append(f"{path}: added {line.strip()}")
    return changed


def check_host() -> list[Health]:
    """What is missing for the embedded engine, each with the command that mends it. Empty when all is there."""
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool, path=ENGINE_PATH)})
    found = []
    if missing:
        why = f"not installed: {', '.join(missing)}"
        found.append(
            Health(
                ok=False,
                code="host.packages",
                why=why,
                next=f"apt-get install --no-install-recommends {' '.join(missing)}",
            )
        )
    if os.geteuid() != 0:
        found.append(
            Health(ok=False, code="host.not-root", why="the embedded engine runs as root", next="sudo millstream serve")
        )
    if any(not _has_range(path.read_text(encoding="utf-8") if path.exists() else "") for path in RANGE_FILES):
        why = "/etc/subuid or /etc/subgid has no range for `containers`, so machines would have no uids of their own"
        found.append(Health(ok=False, code="host.no-uid-range", why=why, next="sudo millstream doctor --fix"))
    return found


def free_start(text: str) -> int:
    """Where our range may begin: behind every range that the file already gives away and that reaches that far."""
    ends = [RANGE_START]
    for line in text.splitlines():
        _, _, numbers = line.partition(":")
        first, _, length = numbers.partition(":")
        if first.isdigit() and length.isdigit():
            ends.append(int(first) + int(length))
    return max(ends)


def _has_range(text: str) -> bool:
    return any(line.startswith(f"{RANGE_USER}:") for line in text.splitlines())
