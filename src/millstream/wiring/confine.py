"""What a role may still do once it listens: the edge and the api can't reach the engine, even when they are taken over.

A confined role lives in a small world of mounts: the root file system read-only and without devices, the data folder
without the engine's folders, an empty /run. Whatever is mounted besides (other machines' disks, network namespaces)
is not held by it. Then its capabilities go. Must run before the role has a second thread: threads keep what they had.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from millstream.wiring.settings import address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from millstream.wiring.settings import Settings

log = logging.getLogger("millstream.confine")

# Folders of the data folder that only the reconciler works on, with the modes that it would give them. They are made
# here, so that they can be covered before it needs them.
PRIVATE: Final = {"engine": 0o700, "agents": 0o755, "machines": 0o711}
KEPT: Final = {"api": frozenset({"run"}), "edge": frozenset({"run", "machines"})}
OPEN_FILES: Final = 8192
DAC_OVERRIDE: Final = 1  # the edge dials sockets of the machines' own uids
NET_BIND_SERVICE: Final = 10
_LAST_CAPABILITY: Final = 63
_NEWNS, _RDONLY, _NOSUID, _NODEV, _NOEXEC = 0x20000, 1, 2, 4, 8
_REMOUNT, _BIND, _REC, _PRIVATE_FLAG, _DETACH = 32, 4096, 16384, 1 << 18, 2
_SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR = 4, 24, 38, 47, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_libc: Final = ctypes.CDLL(None, use_errno=True)


def confine(role: str, settings: Settings) -> list[str]:
    """Give up what `role` (api, edge, reconcile) needs not. What could not be given up is returned and logged.

    The reconcile role keeps its rights, since it is the one that holds the engine, but leaves no core dump.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _raise_open_files()
    _libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    if role == "reconcile":
        return []
    partial = shortfall(settings)
    if not partial and not _alone():
        partial.append("started beside other threads, which keep their rights")
    _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() == 0 and _alone():
        try:
            _small_world(settings, KEPT[role])
        except OSError as error:
            partial.append(f"no mounts of its own: {error}")
        kept = {DAC_OVERRIDE} if role == "edge" else set()
        if address(settings.listen if role == "api" else settings.edge)[1] < 1024:
            kept.add(NET_BIND_SERVICE)
        try:
            _set_capabilities(set(), permitted=True)
            if not all(_readable(place) for place in (str(settings.data), *_code())):
                partial.append("data folder or program belong to another user: CAP_DAC_OVERRIDE is kept")
                kept.add(DAC_OVERRIDE)
            _drop_capabilities(kept)
        except OSError as error:
            partial.append(f"capabilities: {error}")
    if partial:
        log.warning("confine", extra={"code": "confine.partial", "why": "; ".join(partial)})
    return partial


def _raise_open_files() -> None:
    """As many sockets as the doors' limits promise: a shell's 1,024 would end before them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def let_go_of_files(kept: Iterable[int]) -> None:
    """Of a role's new process: every open file of its parent's but `kept` becomes /dev/null.

    An engine's connection would be among them. Not closed: an object that still has the number would one day close
    whatever came to have it next.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    kept = {0, 1, 2, null, *kept}
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number not in kept:
            with contextlib.suppress(OSError):  # the folder's own handle, gone by now
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
    os.close(null)


def shortfall(settings: Settings) -> list[str]:
    """What can't be closed off on this host, one clause each; empty when all can. For `doctor`, too."""
    if sys.platform != "linux":
        return ["not Linux: api and edge could reach the engine's socket"]
    if os.geteuid() != 0:
        return ["not started as root: api and edge run as the engine's own user and could reach its socket"]
    found = []
    if settings.engine and not settings.engine.startswith("unix://"):
        found.append("the engine is reached by TCP, which every process of this host can do")
    elif settings.engine and _engine_folder(settings) is None:
        found.append("the engine's socket lies in a folder that api and edge need: put it into one of its own")
    return found


def _alone() -> bool:
    return len(list(Path("/proc/self/task").iterdir())) == 1


def _engine_folder(settings: Settings) -> Path | None:
    """The folder of an outside engine's socket, None if it can't be covered. The socket itself may be made anew."""
    folder = Path(settings.engine.removeprefix("unix://")).resolve().parent
    needed = any(Path(place).is_relative_to(folder) for place in (str(settings.data.resolve()), *_code()))
    return None if needed or not folder.is_dir() else folder


def _small_world(settings: Settings, kept: frozenset[str]) -> None:
    """Change into a root that holds what the role needs and nothing else. Raises OSError."""
    data = settings.data.resolve()
    for name, mode in PRIVATE.items():
        (data / name).mkdir(mode=mode, exist_ok=True)
    new = data / "engine"  # any folder that is not needed: it is covered while the new root is made there
    _call("unshare", _NEWNS)
    _mount("none", "/", _REC | _PRIVATE_FLAG)
    needed = _mount_points((data, *_code(), "/proc", "/usr", "/lib", "/etc", "/etc/hosts", "/etc/resolv.conf"))
    old_world = os.open("/", os.O_PATH | os.O_DIRECTORY)
    for point in needed:
        # By way of the held old root: the new one may by now lie over what the path names.
        source, target = f"/proc/self/fd/{old_world}{point}", f"{new}{point.rstrip('/')}"
        _mount(source, target, _BIND)
        _mount("none", target, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    target = f"{new}{data}"
    _mount(str(data), target, _BIND)
    _mount("none", target, _REMOUNT | _BIND | _NOSUID | _NODEV | _NOEXEC)
    os.close(old_world)
    os.chdir(new)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir(data)  # the only place that can be written
    for folder in sorted(path for path in data.iterdir() if path.is_dir() and path.name not in kept):
        _cover(folder)
    if not data.is_relative_to("/run"):
        _cover(Path("/run"))
    engine = _engine_folder(settings) if settings.engine.startswith("unix://") else None
    if engine is not None:
        _cover(engine)


def _cover(folder: Path) -> None:
    if folder.is_dir():
        _mount("tmpfs", str(folder), _RDONLY | _NOSUID | _NODEV | _NOEXEC, b"tmpfs", b"size=4k,mode=0555")


def _code() -> tuple[str, ...]:
    """Where Python and we are loaded from."""
    places = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *filter(None, sys.path)}
    return tuple(place for place in places if Path(place).is_dir())


def _mount_points(paths: Iterable[Path | str]) -> list[str]:
    """The mounts that these paths lie on, outer ones first."""
    with Path("/proc/self/mountinfo").open(encoding="utf-8") as lines:
        points = {line.split(" ", 5)[4].encode().decode("unicode_escape").rstrip("/") for line in lines}
    found = {"/"}
    for path in map(os.path.realpath, paths):
        found.add(max((point for point in points if f"{path}/".startswith(f"{point}/")), key=len) or "/")
    return sorted(found)


def _readable(folder: str) -> bool:
    try:
        os.scandir(folder).close()
    except PermissionError:
        return False
    return True


def _drop_capabilities(kept: set[int]) -> None:
    _call("prctl", _CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)
    _set_capabilities({8}, permitted=True)  # SETPCAP: bounds are dropped with it
    for number in range(_LAST_CAPABILITY + 1):
        if number not in kept and _libc.prctl(_CAPBSET_DROP, number, 0, 0, 0):
            break  # beyond this kernel's last one
    _set_capabilities(kept)


def _set_capabilities(kept: set[int], *, permitted: bool = False) -> None:
    """Only `kept` in effect; with `permitted` the others can be taken up again. None is inherited."""
    effective = sum(1 << number for number in kept)
    may = _permitted() if permitted else effective & _permitted()
    effective &= may
    words = [word >> shift & 0xFFFFFFFF for shift in (0, 32) for word in (effective, may, 0)]
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)(*words))


def _permitted() -> int:
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm"))


def _mount(source: str, target: str, flags: int, kind: bytes | None = None, options: bytes | None = None) -> None:
    _call("mount", source.encode(), target.encode(), kind, ctypes.c_ulong(flags), options)


def _call(name: str, *arguments: object) -> None:
    """Raises OSError, which names the call."""
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
