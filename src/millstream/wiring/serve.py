"""`millstream serve`: three roles as processes, and one that watches over them.

The watcher starts what dies again, holds the data folder's locks, and ends them all when it is told to. A role whose
watcher was killed ends by itself, so a new service finds the folder free.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from millstream.wiring import logs
from millstream.wiring.build import open_store, root_key, signing_keys
from millstream.wiring.confine import let_go_of_files
from millstream.wiring.roles import ROLES, run_folder, tls_context
from millstream.wiring.settings import Settings, SettingsError, address

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("millstream.serve")

READY_S: Final = 120.0
STOP_S: Final = 10.0  # then by force: whatever is cut off is taken up again by the next start
LOCK_S: Final = 5.0  # a killed service's roles notice within this time
RESTART_S_MAX: Final = 10.0
ADDRESSES: Final = {"api": "listen", "edge": "edge"}  # a role's setting
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15


def serve(settings: Settings, *, ready: Callable[[], None] = lambda: None, adopt: bool = False) -> int:
    """Run all roles until SIGTERM or SIGINT; `ready` is called when a create would be answered.

    Exit code: 0 when told to end, 1 when a role could not be started. Raises SettingsError (also for an address that is
    taken), StoreError.
    """
    logs.set_up("serve", settings.log_format, settings.log_level)
    store = open_store(settings, role="serve", adopt=adopt)
    locks = [lock(settings, role) for role in ROLES]
    tls_context(settings)  # said here in a sentence, and not by each role in a traceback
    for name in ADDRESSES.values():
        free(settings, name)
    root_key(store, settings.account)
    signing_keys(store)
    store.close()  # its thread must not be there when the roles are made
    watcher = Watcher(settings, locks)
    try:
        return watcher.run(ready)
    finally:
        for held in locks:
            os.close(held)


def run_role(role: str, settings: Settings, *, ready: Callable[[], None] = lambda: None) -> int:
    """Run one role alone, in this process. Raises SettingsError (the folder has one already), StoreError, OSError."""
    logs.set_up(role, settings.log_format, settings.log_level)
    store = open_store(settings, role=role)
    held = lock(settings, role)
    if role in ADDRESSES:
        free(settings, ADDRESSES[role])
    root_key(store, settings.account)
    store.close()
    try:
        ROLES[role](settings, ready)
    finally:
        os.close(held)
    return 0


def free(settings: Settings, name: str) -> None:
    """Whether its address can be had, said before any role starts. Raises SettingsError `serve.address-taken`."""
    host, port = address(getattr(settings, name))
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise SettingsError(
            f"{name} = {getattr(settings, name)} can't be had: {error.strerror}",
            code="serve.address-taken",
            next_step=f"stop what listens there, or give another one: --{name} {host}:{min(port + 10, 65535)}",
        ) from error


def lock(settings: Settings, role: str) -> int:
    """One of each role a data folder. Raises SettingsError `data.locked`."""
    path = run_folder(settings) / f"{role}.lock"
    held = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until and not _answers(settings):
                time.sleep(0.05)
                continue
            os.close(held)
            raise SettingsError(
                f"another Millstream works on {settings.data} (its {role} role holds {path.name})",
                code="data.locked",
                next_step="stop it, or serve with another --data",
            ) from None
        return held


def _answers(settings: Settings) -> bool:
    """Whether the service that wrote service.json is alive; a killed one's roles are on their way out."""
    try:
        pid = int(json.loads((settings.data / "run/service.json").read_text(encoding="utf-8"))["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


@dataclass(slots=True)
class _Child:
    role: str
    pid: int
    ready: int  # a pipe that says one byte, then closes
    born: float
    is_ready: bool = False


class Watcher:
    def __init__(self, settings: Settings, locks: list[int]) -> None:
        self.settings = settings
        self.locks = locks
        self.children: dict[int, _Child] = {}
        self.stopping = False
        self.again: dict[str, tuple[float, float]] = {}  # role: when to start it again, how long it waited

    def run(self, ready: Callable[[], None]) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told)
        for role in ROLES:
            self._start(role)
        if not self._await_ready():
            self._stop()
            return 0 if self.stopping else 1
        self._say_where()
        ready()
        while not self.stopping:
            self._reap()
            self._restart()
            select.select([], [], [], 0.2)
        self._stop()
        (self.settings.data / "run/service.json").unlink(missing_ok=True)
        return 0

    def _say_where(self) -> None:
        """For commands on this data folder: whole or not there at all, and for its owner's eyes."""
        facts = {
            "api": self.settings.api_url,
            "edge": self.settings.edge_url,
            "capacity": self.settings.capacity,
            "engine": self.settings.engine,
            "listen": self.settings.listen,
            "edge_listen": self.settings.edge,
            "tls_certificate": self.settings.tls_certificate,
            "tls_key": self.settings.tls_key,
            "pid": os.getpid(),
        }
        path = self.settings.data / "run/service.json"
        new = path.with_suffix(".new")
        with open(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 - Path can't give a mode
            json.dump(facts, file)
        new.replace(path)

    def _told(self, _number: int, _frame: object) -> None:
        self.stopping = True

    def _start(self, role: str) -> None:
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _child(role, self.settings, write, parent, self.locks)
        os.close(write)
        self.children[pid] = _Child(role, pid, read, time.monotonic())

    def _await_ready(self) -> bool:
        until = time.monotonic() + READY_S
        waiting = {child.ready: child for child in self.children.values()}
        while waiting and not self.stopping:
            readable, _, _ = select.select(list(waiting), [], [], min(0.2, max(0.0, until - time.monotonic())))
            for pipe in readable:
                child = waiting.pop(pipe)
                child.is_ready = os.read(pipe, 1) == b"+"
                if not child.is_ready:
                    log.error("role did not start", extra={"role_name": child.role})
                    return False
            if waiting and time.monotonic() > until:
                late = ", ".join(child.role for child in waiting.values())
                log.error("roles not ready in time", extra={"roles": late, "limit_s": READY_S})
                return False
        return not self.stopping

    def _reap(self) -> None:
        for pid in list(self.children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                child = self.children.pop(pid)
                os.close(child.ready)
                lived_s = time.monotonic() - child.born
                waited_s = 0.1 if lived_s > 60 else min(self.again.get(child.role, (0, 0.05))[1] * 2, RESTART_S_MAX)
                self.again[child.role] = (time.monotonic() + waited_s, waited_s)
                log.error(
                    "role ended",
                    extra={
                        "role_name": child.role,
                        "code": "serve.role-ended",
                        "status": os.waitstatus_to_exitcode(status),
                    },
                )

    def _restart(self) -> None:
        running = {child.role for child in self.children.values()}
        for role, (at, _) in self.again.items():
            if role not in running and time.monotonic() >= at:
                self._start(role)

    def _stop(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + STOP_S
        while self.children:
            for pid in list(self.children):
                found, _ = os.waitpid(pid, os.WNOHANG)
                if found:
                    del self.children[pid]
            if self.children and time.monotonic() > until:
                for pid in self.children:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def _child(role: str, settings: Settings, ready: int, parent: int, locks: list[int]) -> None:
    """The new process: one role, then the end. Never returns."""
    code = 1
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        libc.prctl(_PR_SET_NAME, f"ms-{role}".encode())  # what ps and top show
        if os.getppid() != parent:  # it died in between
            os._exit(1)
        if sys.platform == "linux":
            let_go_of_files((ready, *locks))
        os.setpgid(0, 0)  # a terminal's Ctrl-C is for the watcher, which ends its roles in order
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        logs.set_up(role, settings.log_format, settings.log_level)
        ROLES[role](settings, lambda: _say_ready(ready))
        code = 0
    except BaseException as error:
        log.exception("role failed", extra={"role_name": role, "why": str(error)})
    finally:
        sys.stderr.flush()
        os._exit(code)


def _say_ready(pipe: int) -> None:
    os.write(pipe, b"+")
