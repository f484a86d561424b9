"""Dial a machine's sockets. All that lies in a machine's folder is a trap that its root may have set.

The edge uses this too: it imports no engine, and needs none.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Final

from millstream.capacity.driver import CapacityError

if TYPE_CHECKING:
    from pathlib import Path

MACHINES: Final = "machines"
INSIDE: Final = "engine"  # the only folder of a machine that the machine itself can write
SOCKETS: Final = {"rfb": "rfb.sock"}
AGENT: Final = "agent.sock"
DIAL_LIMIT_S: Final = 2.0
MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")


class ContainerStreams:
    """Streams of the machines whose folders lie in one data folder."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def open_stream(self, machine_id: str, kind: str) -> socket.socket:
        """See `Streams.open_stream`."""
        name = SOCKETS.get(kind)
        if name is None:
            raise CapacityError(f"machines have no stream of kind {kind[:20]!r}", code="stream.unknown-kind")
        connection = dial(self.data, machine_id, name, DIAL_LIMIT_S)
        connection.settimeout(None)
        return connection


def dial(data: Path, machine_id: str, name: str, limit_s: float) -> socket.socket:
    """Connect to the socket `name` in a machine's folder. Raises CapacityError (`stream.no-display`).

    Each step down is relative to a held folder and follows no link; what is found is held before it is looked at,
    and dialled by that hold. So a socket that becomes a link, whenever it does, leads nowhere.
    """
    if not MACHINE_ID.fullmatch(machine_id):
        raise CapacityError("no such machine", code="stream.no-display")
    folder_flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    held: list[int] = []
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.append(os.open(data / MACHINES, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        held.append(os.open(machine_id, folder_flags, dir_fd=held[-1]))
        held.append(os.open(INSIDE, folder_flags, dir_fd=held[-1]))
        held.append(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held[-1]))
        if not stat.S_ISSOCK(os.fstat(held[-1]).st_mode):
            raise OSError(f"{name} is no socket")  # noqa: TRY301 - one way out for all that is wrong
        connection.settimeout(limit_s)
        connection.connect(f"/proc/self/fd/{held[-1]}")
    except OSError as error:
        connection.close()
        raise CapacityError(f"nothing answers at the machine's {name}", code="stream.no-display") from error
    finally:
        for number in held:
            os.close(number)
    return connection
