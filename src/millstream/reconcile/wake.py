"""Wake-ups between roles: they carry no data, so one that is lost costs a tick and nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class WakeSocket:
    """Where other roles knock: a datagram without content. Lost ones cost at most a tick."""

    def __init__(self, folder: Path) -> None:
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # A path through the held folder: socket paths end at 107 bytes, data folders may lie deeper.
        self._path = f"/proc/self/fd/{self._folder}/reconcile.wake"

    def listen(self, woken: Callable[[], None]) -> None:
        """Call `woken` for each knock, in a thread of its own."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink("reconcile.wake", dir_fd=self._folder)
        self._socket.bind(self._path)

        def loop() -> None:
            while True:
                self._socket.recv(1)
                woken()

        threading.Thread(target=loop, name="wake", daemon=True).start()

    def knock(self) -> bool:
        """Whether a reconciler listens."""
        try:
            self._socket.sendto(b"", socket.MSG_DONTWAIT, self._path)
        except BlockingIOError:
            return True  # its queue is full of knocks already
        except OSError:
            return False
        return True
