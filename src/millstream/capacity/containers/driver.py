"""Machines as containers of an engine that speaks the Docker Engine API: embedded Podman, or one given by URL.

A machine is a container named `ms-<id>` in a user namespace of its own, with limits, on one of two guarded networks,
with the agent mounted read-only and a folder for its sockets. What the engine says is fact; what the machine says is
not trusted. After its start nothing is run in a machine from outside: the agent is asked over its socket.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from millstream import agent as agent_package
from millstream.capacity.containers import stream
from millstream.capacity.containers.engine import ENGINE_PATH, Engine, folder_id, unmount_below
from millstream.capacity.containers.host import check_host
from millstream.capacity.containers.image import cache_folder, list_images, remove_image
from millstream.capacity.containers.network import Network, interface_id, mac_of, resolvers
from millstream.capacity.driver import CapacityError, Refused
from millstream.model.records import Health, Observed, Sighting, Survey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from millstream.model.records import BaseImage, MachineSpec

PREFIX: Final = "ms-"
LABEL_DATA: Final = "millstream.data"
LABEL_MACHINE: Final = "millstream.machine"
LABEL_OWNER: Final = "millstream.owner"

AGENT_INSIDE: Final = "/opt/millstream/agent"
FOLDER_INSIDE: Final = "/run/millstream/engine"
AGENT_LIMIT_S: Final = 1.0
AGENT_LINE_MAX: Final = 65536
ASKING_AT_ONCE: Final = 16

PROCESSES_MAX: Final = 4096
OPEN_FILES_MAX: Final = 16384
SHM_BYTES: Final = 256 << 20  # browsers share their tiles there; counted to the machine's memory
TMP_SHARE: Final = 0.25  # of the machine's memory may be files in /tmp
STOP_LIMIT_S: Final = 10
RELEASE_TRIES: Final = 40
REMOVE_LIMIT_S: Final = 60.0  # what is left of a folder by then is taken up by the next release
RELEASE_PAUSES_S: Final = (0.01, 0.2)  # Podman's busy mount is gone some 20 ms later; a busy host needs more

# Of the engine's default capabilities these are what a desktop with sudo and apt never misses. NET_RAW forges
# neighbours' frames; MKNOD, AUDIT_WRITE and SETPCAP open doors that nobody here goes through.
CAPABILITIES_DROPPED: Final = ("NET_RAW", "MKNOD", "AUDIT_WRITE", "SETPCAP")

RESERVE_BYTES: Final = 384 << 20  # memory that a start leaves to the host
USEFUL_BYTES: Final = 512 << 20  # a desktop with a browser window needs that much at least
DISK_RESERVE_BYTES: Final = 1 << 30
CPU_PERIOD_US: Final = 100_000


class _Said(msgspec.Struct):
    """What an agent may say. All else in its answer is ignored."""

    ready: bool
    version: str = ""


class ContainersDriver:
    """The hands on one engine, for the machines of one data folder. Threads may share it.

    Without `engine_url` it has an embedded Podman inside `data`. `allow_unmapped` lets an outside Docker that has no
    userns-remap hold machines whose root is the host's root: for a host that nobody else trusts.
    """

    name = "containers"

    def __init__(
        self,
        data: Path,
        engine_url: str | None = None,
        *,
        image_cache: Path | None = None,
        allow_unmapped: bool = False,
        memory_reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self.data = data.resolve()
        self.id = folder_id(self.data)
        self.image_cache = image_cache or cache_folder()
        self.engine = Engine(self.data, engine_url, self.image_cache)
        self.network = Network(self.data, self.engine)
        self.allow_unmapped = allow_unmapped
        self.memory_reserve_bytes = memory_reserve_bytes
        self._mapped: bool | None = None
        self._images: dict[str, BaseImage] = {}
        self._askers = ThreadPoolExecutor(ASKING_AT_ONCE, thread_name_prefix="ask")

    # --- what is there -------------------------------------------------------------------------------------------

    def survey(self) -> Survey:
        """See `Driver.survey`: one list call, each running machine's agent asked, and folders that are left."""
        rows = self._list()
        asked = [id_ for id_, row in rows.items() if row["State"] == "running"]
        said = dict(zip(asked, self._askers.map(self._ask, asked), strict=True))
        sightings = {id_: self._sighting(id_, _Facts.listed(row), said.get(id_)) for id_, row in rows.items()}
        for id_ in self._folders():
            if id_ not in sightings:
                sightings[id_] = Sighting(Observed.REMNANT, "its folder is left")
        return Survey(sightings)

    def look(self, machine_id: str) -> Sighting:
        """See `Driver.look`."""
        facts = self._inspect(machine_id)
        if facts is None:
            if self._folder(machine_id).exists():
                return Sighting(Observed.REMNANT, "its folder is left")
            return Sighting(Observed.ABSENT)
        return self._sighting(machine_id, facts, self._ask(machine_id) if facts.state == "running" else None)

    def images(self) -> list[BaseImage]:
        """See `Driver.images`."""
        return list_images(self.engine)

    def remove_image(self, name: str) -> None:
        """Take a base image from the engine. Raises CapacityError."""
        remove_image(self.engine, name)

    def health(self) -> Health:
        """See `Driver.health`."""
        try:
            if self.engine.embedded and (missing := check_host()):
                return missing[0]
            self.network.guard()  # first: machines run on while the engine is away, and so must the guard
            with self.engine.calls(limit_s=5.0) as api:
                api.ping()
            if not self.images():
                return _unhealthy("image.none", "no base image is there yet", "millstream image build")
            self._refuse_unmapped()
            free = shutil.disk_usage(self.data).free
            if free < DISK_RESERVE_BYTES:
                why = f"{free >> 20} MiB are free below {self.data}"
                return _unhealthy("disk.full", why, "free some space there")
        except (CapacityError, Refused) as error:
            return _unhealthy(error.code, str(error), "millstream doctor")
        except Exception as error:
            return _unhealthy("engine.error", repr(error)[:300], "millstream doctor")
        return Health(ok=True)

    # --- verbs ---------------------------------------------------------------------------------------------------

    def acquire(self, spec: MachineSpec) -> None:
        """See `Driver.acquire`."""
        _checked(spec.id)
        image = self._image(spec.image)
        self._refuse_unmapped()
        self._refuse_scarce(spec)
        self.network.guard()
        self.network.ensure(internet=spec.internet)
        self._make_folder(spec.id)
        agent = self._place_agent(spec.agent_version)
        config = self._container(spec, image, agent)
        try:
            with self.engine.calls() as api, _fine_when(409):  # 409: made by a call that was cut off
                # docker-py's create_container() knows neither `auto` nor a MAC; its session and its errors do.
                raw = cast("Any", api)
                url = raw._url("/containers/create")  # noqa: SLF001 - as said above
                answer = raw.post(url, params={"name": PREFIX + spec.id}, json=config, timeout=raw.timeout)
                raw._raise_for_status(answer)  # noqa: SLF001
        except CapacityError as error:
            # The network or the image may be gone.
            self.network.forget()
            self._images.clear()
            if "already in use" in str(error):  # Podman's 409 is a 500
                if self._inspect(spec.id):
                    return
                # Its storage holds a half-made one that it does not list; only a removal by name finds it.
                self._remove_container(spec.id)
            raise

    def start(self, spec: MachineSpec) -> None:
        """See `Driver.start`."""
        _checked(spec.id)
        facts = self._inspect(spec.id)
        if facts is None:
            raise CapacityError("the machine is not there", code="machine.absent")
        if facts.state == "running":
            return
        self._refuse_scarce(spec)
        self.network.guard()
        self._make_folder(spec.id)
        self._new_boot(spec.id)
        with self.engine.calls() as api:
            api.start(PREFIX + spec.id)

    def stop(self, machine_id: str) -> None:
        """See `Driver.stop`."""
        facts = self._inspect(machine_id)
        if facts is None or facts.state != "running":
            return
        with self.engine.calls(limit_s=STOP_LIMIT_S + 20.0) as api, _fine_when(304, 404):
            api.stop(PREFIX + machine_id, timeout=STOP_LIMIT_S)

    def release(self, machine_id: str) -> None:
        """See `Driver.release`: force-remove until the engine has nothing of it, then its folder."""
        _checked(machine_id)
        self._remove_container(machine_id)
        self._remove_folder(machine_id)

    def _remove_container(self, machine_id: str) -> None:
        for attempt in range(RELEASE_TRIES):
            try:
                with self.engine.calls() as api, _fine_when(404):
                    api.remove_container(PREFIX + machine_id, v=True, force=True)
                break
            except CapacityError as error:
                # Podman's first try often finds its own mounts busy; Docker says that a removal is under way.
                if error.code != "engine.error" or attempt == RELEASE_TRIES - 1:
                    raise
                time.sleep(min(RELEASE_PAUSES_S[0] * (attempt + 1), RELEASE_PAUSES_S[1]))

    def close(self, *, stop_engine: bool = False) -> None:
        """See `Driver.close`. With `stop_engine` the embedded engine's process ends too; machines keep running."""
        self._askers.shutdown(wait=False, cancel_futures=True)
        self.engine.close(stop_engine=stop_engine)

    def end(self) -> None:
        """See `Driver.end`."""
        try:
            if not self.survey().sightings:
                self.purge()
                return
        except (CapacityError, Refused):
            pass  # an engine that does not answer has nothing that could be taken away now
        self.close()

    def purge(self) -> None:
        """Take everything of this data folder from the host: machines, networks, guard, the engine's own process.

        For uninstalling and for tests; afterwards deleting the data folder leaves nothing behind.
        """
        self.engine.close()  # the engine may have ended since the last call
        for machine_id in self.survey().sightings:
            self.release(machine_id)
        self.network.purge()
        self.close(stop_engine=True)
        if self.engine.embedded:
            unmount_below(self.engine.embedded.folder)

    # --- the container -------------------------------------------------------------------------------------------

    def _container(self, spec: MachineSpec, image: BaseImage, agent: Path) -> dict[str, Any]:
        """The engine's order for one machine. Everything that an image could say about its start is overridden."""
        memory = self.memory_given(spec.memory_bytes)
        network = self.network.name(internet=spec.internet)
        mac = mac_of(spec.id)
        podman = self.engine.kind == "podman"
        host: dict[str, Any] = {
            "Binds": [f"{agent}:{AGENT_INSIDE}:ro", f"{self._folder(spec.id) / stream.INSIDE}:{FOLDER_INSIDE}:rw"],
            "CapDrop": list(CAPABILITIES_DROPPED),
            "CpuPeriod": CPU_PERIOD_US,
            "CpuQuota": int(self.vcpus_given(spec.vcpus) * CPU_PERIOD_US),
            "Memory": memory,
            "MemorySwap": memory,  # both together: no swap
            "PidsLimit": PROCESSES_MAX,
            "ShmSize": min(SHM_BYTES, memory // 4),
            "Tmpfs": {
                "/tmp": f"rw,nosuid,nodev,size={int(memory * TMP_SHARE)},mode=1777",  # noqa: S108 - the machine's own
                "/run": "rw,nosuid,nodev,size=64m,mode=0755",
            },
            "Ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "nofile", "Soft": OPEN_FILES_MAX, "Hard": OPEN_FILES_MAX},
                {"Name": "nproc", "Soft": PROCESSES_MAX, "Hard": PROCESSES_MAX},
            ],
            # Nothing may ask for a name where there is no way out: Docker's own resolver would ask for it.
            "Dns": (resolvers() or ["9.9.9.9"]) if spec.internet else ["127.0.0.1"],
            "NetworkMode": network,
            "LogConfig": {"Type": "k8s-file" if podman else "json-file", "Config": {"max-size": "1m"}},
            "RestartPolicy": {"Name": "no"},  # the reconciler starts machines, nobody else
        }
        if podman:
            host["UsernsMode"] = "auto:size=65536"
        return {
            "Image": image.digest,
            "Hostname": f"{PREFIX}{spec.id[:8]}",
            "Entrypoint": ["/usr/bin/python3", "-I", "-S", "-B", f"{AGENT_INSIDE}/main.py"],
            "Cmd": [],
            "User": "0:0",
            "WorkingDir": "/",
            "Env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG=C.UTF-8",
                f"MILLSTREAM_ADMINISTRATOR={int(spec.administrator)}",
                f"MILLSTREAM_AGENT_VERSION={spec.agent_version}",
            ],
            "Labels": {LABEL_DATA: self.id, LABEL_MACHINE: spec.id, LABEL_OWNER: spec.owner},
            "StopSignal": "SIGTERM",
            "MacAddress": mac,
            "HostConfig": host,
            "NetworkingConfig": {"EndpointsConfig": {network: {"MacAddress": mac}}},
        }

    def _image(self, name: str) -> BaseImage:
        """The base image of that name. Looked up at the engine once; forgotten when a create fails."""
        if name not in self._images:
            self._images = {image.name: image for image in self.images()}
        if name not in self._images:
            raise Refused(
                f"The image {name[:100]} is not there any more.", error_code="IMAGE_NOT_FOUND", code="image.unknown"
            )
        return self._images[name]

    def memory_given(self, wanted_bytes: int) -> int:
        """The memory limit that a machine gets: what its type says, or what this host can give at most."""
        return min(wanted_bytes, max(memory_total() - self.memory_reserve_bytes, USEFUL_BYTES))

    def vcpus_given(self, wanted: float) -> float:
        return min(wanted, float(len(os.sched_getaffinity(0))))

    def _refuse_scarce(self, spec: MachineSpec) -> None:
        """Limits may add up to more than the host has, since desktops rest most of the time; but one more desktop
        must fit into what is free now.
        """
        need = min(self.memory_given(spec.memory_bytes), USEFUL_BYTES)
        free = memory_available() - self.memory_reserve_bytes
        if free < need:
            raise Refused(
                f"memory is short on this host: a machine needs {need >> 20} MiB, {max(free, 0) >> 20} MiB are free "
                f"beyond the {self.memory_reserve_bytes >> 20} MiB kept for the host",
                code="host.memory-short",
            )

    def _refuse_unmapped(self) -> None:
        """A Docker without userns-remap would make the machine's root the host's."""
        if self._mapped is None:
            if self.engine.kind == "podman":
                self._mapped = True
            else:
                with self.engine.calls(limit_s=10.0) as api:
                    self._mapped = any("name=userns" in option for option in api.info().get("SecurityOptions") or [])
        if not self._mapped and not self.allow_unmapped:
            raise Refused(
                "this Docker Engine has no userns-remap, so a machine's root would be the host's root",
                code="engine.no-userns",
            )

    # --- seeing --------------------------------------------------------------------------------------------------

    def _list(self) -> dict[str, dict[str, Any]]:
        with self.engine.calls(limit_s=20.0) as api:
            rows = api.containers(all=True, filters={"label": f"{LABEL_DATA}={self.id}"})
        return {row["Labels"][LABEL_MACHINE]: row for row in rows}

    def _inspect(self, machine_id: str) -> _Facts | None:
        _checked(machine_id)
        with self.engine.calls(limit_s=10.0) as api, _fine_when(404):
            return _Facts.inspected(api.inspect_container(PREFIX + machine_id))
        return None

    def _sighting(self, machine_id: str, facts: _Facts, said: _Said | str | None) -> Sighting:
        if facts.state in {"created", "configured", "exited", "stopped", "initialized"}:
            return Sighting(Observed.STOPPED, engine_id=facts.engine_id)
        if facts.state in {"removing", "dead"}:
            return Sighting(Observed.REMNANT, f"the engine says {facts.state}", engine_id=facts.engine_id)
        if facts.state != "running":
            return Sighting(Observed.STARTING, f"the engine says {facts.state[:40]}", engine_id=facts.engine_id)
        if isinstance(said, _Said):
            observed, reason, version = (Observed.READY if said.ready else Observed.STARTING), "", said.version
        else:
            observed, reason, version = Observed.SILENT, said or "its agent does not answer", ""
        return Sighting(
            observed,
            reason,
            engine_id=facts.engine_id,
            address=facts.address,
            interface_id=interface_id(machine_id, self._boot(machine_id)),
            agent_version=version,
        )

    def _ask(self, machine_id: str) -> _Said | str:
        """What the machine's agent says of itself, or why it says nothing. Bounded in size and time."""
        deadline = time.monotonic() + AGENT_LIMIT_S
        try:
            with stream.dial(self.data, machine_id, stream.AGENT, AGENT_LIMIT_S) as connection:
                connection.sendall(b'{"ask":"status"}\n')
                got = b""
                while b"\n" not in got:
                    left_s = deadline - time.monotonic()
                    if left_s <= 0 or len(got) > AGENT_LINE_MAX:
                        return "its agent answers too slowly or too much"
                    connection.settimeout(left_s)
                    data = connection.recv(8192)
                    if not data:
                        return "its agent hung up"
                    got += data
            said = msgspec.json.decode(got.partition(b"\n")[0], type=_Said)
        except CapacityError:
            return "its agent does not answer"
        except OSError:
            return "its agent does not answer in time"
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return "its agent speaks nonsense"
        if not re.fullmatch(r"[0-9A-Za-z.-]{0,32}", said.version):
            said.version = ""
        return said

    # --- folders -------------------------------------------------------------------------------------------------

    def _folder(self, machine_id: str) -> Path:
        return self.data / stream.MACHINES / machine_id

    def _folders(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            folders = (self.data / stream.MACHINES).iterdir()
            return [folder.name for folder in folders if stream.MACHINE_ID.fullmatch(folder.name)]
        return []

    def _make_folder(self, machine_id: str) -> None:
        """Only we may enter the machine's folder. In it lies the one that the machine writes, whatever its uids are."""
        folder = self._folder(machine_id)
        inside = folder / stream.INSIDE
        try:
            folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                inside.mkdir(mode=0o777)
                inside.chmod(0o777)  # the umask took some of it
        except OSError as error:
            raise CapacityError(f"the machine's folder can't be made: {error}", code="disk.full") from error

    def _new_boot(self, machine_id: str) -> None:
        """Each start has a name of its own, beside the folder that the machine can write, not in it."""
        try:
            (self._folder(machine_id) / "boot").write_text(secrets.token_hex(8), encoding="ascii")
        except OSError as error:
            raise CapacityError(f"the machine's folder can't be written: {error}", code="disk.full") from error

    def _boot(self, machine_id: str) -> str:
        with contextlib.suppress(OSError):
            return (self._folder(machine_id) / "boot").read_text(encoding="ascii")
        return ""

    def _remove_folder(self, machine_id: str) -> None:
        """What the machine left in it is never followed: rmtree works with held folders, and so does rm."""
        folder = self._folder(machine_id)
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            return
        except (OSError, RecursionError) as error:
            # Folders in folders, deeper than Python can go or hold open: a machine's root could never be deleted.
            command = ["rm", "-rf", "--one-file-system", "--", str(folder)]
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    command, capture_output=True, check=False, timeout=REMOVE_LIMIT_S, env={"PATH": ENGINE_PATH}
                )
            if folder.exists():
                raise CapacityError(f"the machine's folder can't be removed: {error}", code="disk.error") from error

    def _place_agent(self, version: str) -> Path:
        """The folder of that agent version, which machines mount read-only; made on first use, then never changed."""
        place = self.data / "agents" / version
        if place.is_dir():
            return place
        if version != agent_package.VERSION:
            raise Refused(f"there is no agent {version[:20]!r} here", code="agent.unknown")
        try:
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            new = place.with_name(f"{version}.{os.getpid()}.{time.monotonic_ns()}")
            new.mkdir(mode=0o755)
            for name in ("main.py", "agent.py"):
                (new / name).write_bytes((agent_package.FOLDER / name).read_bytes())
                (new / name).chmod(0o644)
            try:
                new.rename(place)
            except OSError:  # somebody else was quicker
                shutil.rmtree(new)
        except OSError as error:
            raise CapacityError(f"the agent can't be placed: {error}", code="disk.full") from error
        return place


class _Facts(msgspec.Struct, frozen=True):
    """What the engine says of one container."""

    engine_id: str
    state: str
    address: str

    @classmethod
    def inspected(cls, row: dict[str, Any]) -> _Facts:
        return cls(row["Id"], row["State"]["Status"], _address(row))

    @classmethod
    def listed(cls, row: dict[str, Any]) -> _Facts:
        return cls(row["Id"], row["State"], _address(row))


def _address(row: dict[str, Any]) -> str:
    networks: Iterable[dict[str, Any]] = ((row.get("NetworkSettings") or {}).get("Networks") or {}).values()
    return next((network["IPAddress"] for network in networks if network.get("IPAddress")), "")


def memory_total() -> int:
    return _meminfo("MemTotal")


def memory_available() -> int:
    return _meminfo("MemAvailable")


def _meminfo(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    assert found
    return int(found[1]) << 10


def _unhealthy(code: str, why: str, then: str) -> Health:
    return Health(ok=False, code=code, why=why, next=then)


def _checked(machine_id: str) -> None:
    if not stream.MACHINE_ID.fullmatch(machine_id):
        raise Refused("a machine's id is 32 hex digits", code="machine.bad-id")


@contextlib.contextmanager
def _fine_when(*codes: int) -> Iterator[None]:
    """These answers of the engine are no errors."""
    import docker.errors

    try:
        yield
    except docker.errors.APIError as error:
        if cast("int", error.status_code) not in codes:
            raise
