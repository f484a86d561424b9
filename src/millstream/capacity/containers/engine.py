"""The engine that holds the machines: an embedded Podman inside the data folder, or one that the operator runs.

Knows how to start, adopt and stop it, and how to call it with time limits. Knows nothing of machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from millstream.capacity.driver import CapacityError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker.api

CALL_LIMIT_S: Final = 60.0  # the longest that a machine verb may hold a reconciler's thread; commits have their own
START_LIMIT_S: Final = 20.0  # Podman answers 0.15 s after its start on two quiet cores
SOCKET_PATH_MAX: Final = 100  # sun_path holds 108 bytes
RUNTIMES: Final = ("runc", "crun")  # in the order of trying; which one works depends on the host's cgroups
IDLE_CLIENTS_MAX: Final = 16
PING_LIMIT_S: Final = 2.0
LOCKS: Final = 8192  # Podman's default of 2048 locks is the number of machines that it could hold

# Podman is started without our environment: what an operator's shell holds (proxies, tokens) must not reach machines.
ENGINE_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


def folder_id(data: Path) -> str:
    """The eight hex digits that mark everything of this data folder on the host: labels, bridges, tables."""
    return hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:8]


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` against other processes and threads."""
    with path.open("a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class EmbeddedPodman:
    """A Podman of our own: storage, state and configuration inside `data/engine`, nothing shared with the user's.

    Whoever needs it starts it, under a lock file; one that still answers is adopted, so machines and engine live on
    when the service is killed. Nothing of it remains when the data folder is deleted after `stop`.
    """

    def __init__(self, data: Path, image_cache: Path | None = None) -> None:
        self.data = data.resolve()
        self.folder = self.data / "engine"
        self.image_store = image_cache / "store" if image_cache else None
        inside = self.folder / "engine.sock"
        short = Path("/run/millstream") / f"{folder_id(data)}.sock"
        self.socket = inside if len(str(inside)) <= SOCKET_PATH_MAX else short

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def ensure(self) -> None:
        """Return when it answers; start it if need be. Raises Refused (nothing to run), CapacityError (no answer)."""
        if answers(self.socket):
            return
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)  # a parent that mkdir makes on its way is open to all
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            if answers(self.socket):
                return
            self._end_process()  # one that hangs keeps locks that the next one needs
            self._forget_last_boot()
            share_namespaces_folder()
            if os.geteuid() == 0:
                from millstream.capacity.containers.host import prepare_host

                prepare_host()
            self.configure()
            self._start()

    def command(self, *arguments: str) -> list[str]:
        """A command line of the engine's own client, to be run with `environment()`."""
        podman = shutil.which("podman", path=ENGINE_PATH)
        if podman is None:
            raise Refused("podman is not installed: apt-get install podman", code="engine.missing")
        return [podman, *arguments]

    def environment(self) -> dict[str, str]:
        return {
            "PATH": ENGINE_PATH,
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"),
        }

    def configure(self) -> None:
        """Write the engine's configuration, all of it: what /etc/containers says is not read."""
        for name in ("tmp", "networks", "hooks"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        folder = self.folder
        _write(
            folder / "containers.conf",
            {
                "containers": {
                    "base_hosts_file": "none",  # the host's own /etc/hosts is no business of a machine
                    "host_containers_internal_ip": "none",
                    "http_proxy": False,
                    "pids_limit": 4096,
                },
                "engine": {
                    "cgroup_manager": "cgroupfs",
                    "events_logger": "none",
                    "hooks_dir": [str(folder / "hooks")],
                    "image_copy_tmp_dir": str(folder / "tmp"),
                    "lock_type": "file",  # the default is one table in /dev/shm for all engines of the host
                    "num_locks": LOCKS,
                    "runtime": working_runtime(folder),
                    "static_dir": str(folder / "storage" / "libpod"),
                    "tmp_dir": str(folder / "run" / "libpod"),
                    "volume_path": str(folder / "storage" / "volumes"),
                },
                "network": {"network_backend": "netavark", "network_config_dir": str(folder / "networks")},
            },
        )
        options = {"additionalimagestores": [str(self.image_store)]} if self.image_store else {}
        _write(
            folder / "storage.conf",
            {
                "storage": {
                    "driver": "overlay",
                    "graphroot": str(folder / "storage"),
                    "runroot": str(folder / "run" / "storage"),
                },
                "storage.options": options,
            },
        )
        _write(folder / "registries.conf", {})  # no registry: every image of ours was made here
        if self.image_store:
            self.image_store.mkdir(mode=0o700, parents=True, exist_ok=True)

    def stop(self) -> None:
        """End the engine's own process. Machines go on running; the next `ensure` finds them again."""
        if self.folder.exists():
            with locked(self.folder / "lock"):
                self._end_process()
                self.socket.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """The process of the engine, if it is the one that we started."""
        try:
            pid, started = (self.folder / "pid").read_text(encoding="ascii").split()
            return int(pid) if _started(int(pid)) == started else None
        except (FileNotFoundError, ValueError):
            return None

    def _start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with (self.folder / "engine.log").open("ab") as log:
            process = subprocess.Popen(
                self.command("--log-level=error", "system", "service", "--time=0", self.url),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # it outlives us, and a Ctrl-C at our terminal is not for it
            )
        (self.folder / "pid").write_text(f"{process.pid} {_started(process.pid)}", encoding="ascii")
        threading.Thread(target=process.wait, daemon=True, name="engine-reaper").start()
        deadline = time.monotonic() + START_LIMIT_S
        while not answers(self.socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise CapacityError(f"podman did not start: {self._last_words()}", code="engine.no-answer")
            time.sleep(0.01)

    def _end_process(self) -> None:
        pid = self.pid()
        if pid is None:
            return
        fd = os.pidfd_open(pid)
        try:
            for number, limit_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, number)
                if _ended(fd, limit_s):
                    break
        finally:
            os.close(fd)
        (self.folder / "pid").unlink(missing_ok=True)

    def _forget_last_boot(self) -> None:
        """Podman takes its run folder for proof that machines run. Ours lies on a disk, so a reboot empties it."""
        marker = self.folder / "boot"
        if marker.exists() and marker.read_text(encoding="ascii") == boot_id():
            return
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        marker.write_text(boot_id(), encoding="ascii")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "engine.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return lines[-1][-300:] if lines else "it said nothing"
        return "it said nothing"


class Engine:
    """Calls to an engine that speaks the Docker Engine API, from any thread, with time limits and our errors."""

    def __init__(self, data: Path, url: str | None = None, image_cache: Path | None = None) -> None:
        self.embedded = EmbeddedPodman(data, image_cache) if url is None else None
        self.url = self.embedded.url if self.embedded else url or ""
        self.socket = Path(self.url.removeprefix("unix://")) if self.url.startswith("unix://") else None
        self._lock = threading.Lock()
        self._idle: list[docker.api.APIClient] = []
        self._kind = ""
        self._api = ""  # the newest version that the engine speaks
        self._down_until = 0.0

    @property
    def kind(self) -> str:
        """`podman` or `docker`. Raises CapacityError."""
        if not self._api:
            with self.calls():
                pass  # the first connection tells
        return self._kind

    @contextlib.contextmanager
    def calls(self, limit_s: float = CALL_LIMIT_S) -> Iterator[docker.api.APIClient]:
        """A client for this thread alone. What goes wrong inside comes out as CapacityError or Refused."""
        import docker.errors
        import requests.exceptions

        try:
            client = self._take()
        except (docker.errors.DockerException, OSError) as error:
            raise CapacityError(f"the engine at {self.url} does not answer", code="engine.no-answer") from error
        client.timeout = limit_s  # type: ignore[assignment] # seconds may be a fraction
        broken = True
        try:
            yield client
            broken = False
        except docker.errors.APIError as error:
            broken = False
            raise translated(error) from error
        except requests.exceptions.Timeout as error:
            raise CapacityError(
                f"the engine at {self.url} took longer than {limit_s:.0f} s", code="engine.slow"
            ) from error
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            raise CapacityError(f"the engine at {self.url} does not answer", code="engine.no-answer") from error
        finally:
            if broken:
                self._drop(client)
            else:
                self._give_back(client)

    def close(self, *, stop_engine: bool = False) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for client in idle:
            client.close()
        if stop_engine and self.embedded:
            self.embedded.stop()

    def _take(self) -> docker.api.APIClient:
        import docker.api

        with self._lock:
            if self._idle:
                return self._idle.pop()
        if not self._api:
            heads = self._ping()
            self._kind = "podman" if "libpod-api-version" in heads else "docker"
            self._api = heads.get("api-version", "auto")
        elif self.embedded and not answers(self.embedded.socket):
            self._revive()
        return docker.api.APIClient(base_url=self.url, version=self._api, timeout=10, num_pools=1)

    def _ping(self) -> dict[str, str]:
        if self.embedded and not answers(self.embedded.socket):
            self._revive()
        heads = answers(self.socket) if self.socket else {"api-version": "auto"}
        if not heads:
            raise OSError("no answer to a ping")
        return heads

    def _revive(self) -> None:
        """Start our own engine again, but don't hammer one that fails to start."""
        assert self.embedded
        with self._lock:
            if time.monotonic() < self._down_until:
                raise CapacityError("podman did not start a moment ago", code="engine.no-answer")
            try:
                self.embedded.ensure()
            except CapacityError:
                self._down_until = time.monotonic() + 2.0
                raise

    def _give_back(self, client: docker.api.APIClient) -> None:
        with self._lock:
            if len(self._idle) < IDLE_CLIENTS_MAX:
                self._idle.append(client)
                return
        client.close()

    def _drop(self, client: docker.api.APIClient) -> None:
        """The connection's state is unknown, and those of its siblings that idle are no better."""
        client.close()
        with self._lock:
            idle, self._idle = self._idle, []
            self._api = ""  # another engine may answer next
        for other in idle:
            other.close()


def translated(error: Any) -> CapacityError | Refused:
    """The engine's answer in our words. `error` is a docker APIError."""
    text = str(error.explanation or error)[:300]
    if "no space left" in text.lower():
        return CapacityError(f"the engine's disk is full: {text}", code="engine.disk-full")
    return CapacityError(f"the engine answered {error.status_code}: {text}", code="engine.error")


def answers(socket_path: Path) -> dict[str, str]:
    """The heads of the answer to a ping there, by small names; empty when no engine answers within two seconds.

    Podman's /version runs dpkg-query for half a second, so the ping's heads tell its kind and its API's version.
    """
    import socket

    got = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PING_LIMIT_S)
        try:
            connection.connect(str(socket_path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: d\r\n\r\n")
            while b"\r\n\r\n" not in got and len(got) < 16384 and (data := connection.recv(4096)):
                got += data
        except OSError:
            return {}
    status, *lines = got.decode("latin-1").split("\r\n")
    if " 200 " not in status:
        return {}
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def share_namespaces_folder() -> None:
    """Make /run/netns a shared mount, as systemd's hosts have it and `ip netns add` makes it.

    Where it is private, Podman 4.3 leaves the network namespace of nearly every removed machine behind, with its
    address and its end on the bridge. Seen on a host without systemd.
    """
    folder = Path("/run/netns")
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    mounts = [
        line.split(" - ")[0].split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    ]
    covering = max((m for m in reversed(mounts) if folder.is_relative_to(m[4])), key=lambda m: len(m[4]))  # the topmost
    if any(option.startswith("shared:") for option in covering[6:]):
        return
    for command in (["mount", "--rbind", str(folder), str(folder)], ["mount", "--make-shared", str(folder)]):
        done = subprocess.run(command, capture_output=True, check=False, env={"PATH": ENGINE_PATH})
        if done.returncode:
            raise CapacityError(
                f"{folder} can't be made a shared mount: {done.stderr.decode()[:200]}", code="engine.netns"
            )


def unmount_below(folder: Path) -> None:
    """Podman mounts its storage onto itself; without this a data folder can't be deleted. Best effort."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    places = [line.split()[4].replace("\\040", " ") for line in mounts]
    for place in sorted((p for p in places if Path(p).is_relative_to(folder)), key=len, reverse=True):
        subprocess.run(["umount", place], capture_output=True, check=False, env={"PATH": ENGINE_PATH})


def working_runtime(folder: Path) -> str:
    """The first OCI runtime that can run a process under a memory limit on this host: found by trying, remembered.

    By name it can't be known: crun refuses hybrid cgroups, and both were seen missing.
    """
    found = {name: path for name in RUNTIMES if (path := shutil.which(name, path=ENGINE_PATH))}
    memory = folder / "runtime.json"
    # An upgraded runtime, or another kernel, is tried anew.
    key = [[n, p, Path(p).stat().st_mtime_ns] for n, p in found.items()] + [os.uname().release]
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["key"] == key:
            return str(known["runtime"])
    why = "none is installed"
    for name, path in found.items():
        why = _try_runtime(path, folder / "tmp" / f"try-{name}")
        if not why:
            memory.write_text(json.dumps({"key": key, "runtime": name}), encoding="utf-8")
            return name
    raise Refused(f"no OCI runtime works here ({', '.join(RUNTIMES)}): {why}", code="engine.no-runtime")


def _try_runtime(path: str, bundle: Path) -> str:
    """Run /bin/true in a container of the host's own programs, read-only. Returns why it failed, or nothing."""
    mounts: list[dict[str, Any]] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    for place in map(Path, ("/usr", "/bin", "/lib", "/lib64")):
        inside = bundle / "rootfs" / place.name
        inside.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            inside.unlink(missing_ok=True)
            inside.symlink_to(place.readlink())
        elif place.exists():
            inside.mkdir(exist_ok=True)
            options = ["rbind", "ro"]
            mounts.append({"destination": str(place), "type": "bind", "source": str(place), "options": options})
    name = f"millstream-try-{os.getpid()}-{threading.get_ident()}"
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": [f"PATH={ENGINE_PATH}"]},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": mounts,
        "linux": {
            "cgroupsPath": f"/{name}",
            "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 32}},
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}],
        },
    }
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
    command = [path, "--root", str(bundle / "state")]
    try:
        result = subprocess.run(
            [*command, "run", "--bundle", str(bundle), name],
            env={"PATH": ENGINE_PATH},
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=20,
            check=False,
        )
        return result.stderr.decode(errors="replace").strip()[-200:] if result.returncode else ""
    except subprocess.TimeoutExpired:
        return "it hangs"
    finally:
        subprocess.run(
            [*command, "delete", "--force", name], env={"PATH": ENGINE_PATH}, capture_output=True, check=False
        )
        # The bundle stays: it is four empty folders. A recursive removal near a mount of /usr is not to be dared.


def _write(path: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Write TOML: our values are booleans, numbers, plain strings and lists of them, as JSON writes them too."""
    lines = [
        line
        for name, values in tables.items()
        for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    ]
    new = path.with_suffix(".new")
    new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    new.replace(path)


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks: with the pid, its name for ever. Empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _ended(pidfd: int, limit_s: float) -> bool:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(limit_s * 1000))
