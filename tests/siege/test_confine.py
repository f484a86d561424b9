"""Only the reconcile role can reach the engine: seen from outside, and tried from inside each role's own world."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.ports import free_port
from tests.siege.siege_world import ROLES, Service, service, wait_until

from millstream.wiring import confine
from millstream.wiring.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux")
DAC_OVERRIDE = 1 << confine.DAC_OVERRIDE
CONFINED = ("api", "edge")


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    """With an engine's socket where the embedded engine has its own, listening like one."""
    with service() as found, socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(found.data / "engine" / "engine.sock"))
        engine.listen()
        yield found


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mounts(pid: int) -> dict[str, set[str]]:
    lines = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return {line[4]: set(line[5].split(",")) for line in lines}


def inside(pid: int, attempt: str) -> str:
    """What a program of that role would meet: its mounts, its capabilities, its uid. The first line it prints."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        caps = {name: int(value, 16) for name, value in status(pid).items() if name.startswith("Cap")}
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        assert libc.setns(fd, 0x20000) == 0
        confine._drop_capabilities({n for n in range(41) if caps["CapEff"] >> n & 1})
        try:
            exec(attempt, {"os": os, "socket": socket, "Path": Path})  # noqa: S102 - our own text
            said = "done"
        except OSError as error:
            said = f"{type(error).__name__} {error.errno}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    os.waitpid(child, 0)
    return said


def test_a_confined_role_holds_no_capability(running: Service) -> None:
    for role in CONFINED:
        found = status(running.roles()[role])
        kept = DAC_OVERRIDE if role == "edge" else 0
        assert found["NoNewPrivs"] == "1"
        assert int(found["CapBnd"], 16) == int(found["CapPrm"], 16) == int(found["CapEff"], 16) == kept
        assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0


def test_a_confined_role_sees_no_more_than_it_needs(running: Service) -> None:
    for role in CONFINED:
        found = mounts(running.roles()[role])
        assert "ro" in found["/"]
        assert "ro" in found["/proc"]  # /proc/sys/kernel/core_pattern would be a way to be root again
        assert "rw" in found[str(running.data)]
        assert all("nodev" in options and "nosuid" in options for options in found.values())
        writable = [point for point, options in found.items() if "rw" in options]
        assert writable == [str(running.data)]
        covered = {Path(point).name for point in found if point.startswith(f"{running.data}/")}
        assert covered >= {"engine", "agents"} | ({"machines"} if role == "api" else set())


def test_a_confined_role_pins_no_mount_of_machines(running: Service) -> None:
    """A held mount would keep a machine's disk or network from being freed."""
    for role in CONFINED:
        kinds = set(re.findall(r" - (\S+) ", Path(f"/proc/{running.roles()[role]}/mountinfo").read_text()))
        assert "nsfs" not in kinds
        assert "cgroup2" not in kinds


def test_the_engine_can_be_dialled_by_the_reconciler_only(running: Service) -> None:
    path = f"{running.data}/engine/engine.sock"
    dial = f"socket.socket(socket.AF_UNIX).connect({path!r})"
    assert inside(running.roles()["reconcile"], dial) == "done"
    for role in CONFINED:
        pid = running.roles()[role]
        assert inside(pid, dial) == "FileNotFoundError 2"
        assert not Path(f"/proc/{pid}/root{path}").exists()
        assert Path(f"/proc/{pid}/root{running.data}/millstream.db").exists()


@pytest.mark.parametrize(
    "way",
    [
        "socket.socket(socket.AF_UNIX).connect('/proc/{reconcile}/root{data}/engine/engine.sock')",
        "open('/proc/{reconcile}/fd/2', 'w')",
        "open('/proc/{reconcile}/mem', 'rb')",
        "open('/proc/{watcher}/environ', 'rb')",
        "os.open('/proc/{reconcile}/ns/mnt', os.O_RDONLY)",
        "open('/proc/1/root/etc/passwd')",
        "open('/etc/cron.d/millstream-siege', 'w')",
        "open('/proc/sys/kernel/core_pattern', 'w').write('|/x')",
        "open('/proc/sysrq-trigger', 'w')",
        "open('{data}/agents/planted', 'w')",
        "os.rename('{data}/engine', '{data}/elsewhere')",
        "os.mknod('{data}/disk', 0o60600, os.makedev(254, 0))",
        "os.listdir('/dev')[0]; open('/dev/vda', 'rb')",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "os.chown('{data}/millstream.db', 1000, 1000)",
        "os.setuid(1000)",
    ],
)
def test_no_other_way_to_the_host(running: Service, way: str) -> None:
    roles = running.roles()
    assert running.process is not None
    names = {"reconcile": roles["reconcile"], "data": running.data, "watcher": running.process.pid}
    for role in CONFINED:
        said = inside(roles[role], way.format(**names))
        assert re.fullmatch(r"(PermissionError|FileNotFoundError|OSError|IndexError) (1|2|13|16|30)", said), (
            role,
            said,
        )


def test_no_role_dumps_core(running: Service) -> None:
    for pid in running.roles().values():
        assert re.search(r"Max core file size\s+0\s+0\s", Path(f"/proc/{pid}/limits").read_text())


def test_a_role_lets_go_of_the_watchers_open_files(tmp_path: Path) -> None:
    """The watcher may hold a connection to the engine: it is not among what a role begins with."""
    near, far = socket.socketpair()
    kept = os.open(tmp_path / "lock", os.O_CREAT)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        confine.let_go_of_files((kept, write))
        same = os.fstat(kept).st_ino == (tmp_path / "lock").stat().st_ino
        null = Path("/dev/null").stat().st_rdev
        os.write(write, f"{same} {os.fstat(near.fileno()).st_rdev == null}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"True True"
    near.close()
    far.settimeout(5)
    assert far.recv(1) == b""  # nobody else holds the other end
    for number in (kept, read, write):
        os.close(number)
    far.close()


def test_no_role_holds_another_ones_sockets(running: Service) -> None:
    held: dict[str, set[str]] = {}
    for role, pid in running.roles().items():
        links = {str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir()}
        held[role] = {link for link in links if link.startswith("socket:")}
        assert held[role]
    assert not held["api"] & held["edge"] | held["api"] & held["reconcile"] | held["edge"] & held["reconcile"]


def test_an_outside_engines_socket_is_covered(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    path = tmp_path / "engine" / "docker.sock"
    with service(engine=f"unix://{path}") as found, socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(path))  # made after the roles, as a restarted engine would
        engine.listen()
        dial = f"socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        assert inside(found.roles()["reconcile"], dial) == "done"
        for role in CONFINED:
            assert inside(found.roles()[role], dial) == "FileNotFoundError 2"


def test_it_still_works(running: Service) -> None:
    running.create("confined")
    assert running.health().status == running.health(running.edge_port).status == 200
    assert running.call("DeleteImageBuilder", {"Name": "confined"}).status == 200
    wait_until(lambda: not running.states(), what="the builder to be gone")
    assert not [line for line in running.logged() if line.get("code") == "confine.partial"]


def test_it_says_what_it_can_not_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert confine.shortfall(Settings(data=tmp_path)) == []
    assert "TCP" in confine.shortfall(Settings(data=tmp_path, engine="tcp://127.0.0.1:2375"))[0]
    assert "folder" in confine.shortfall(Settings(data=tmp_path / "d", engine=f"unix://{tmp_path}/d/../x.sock"))[0]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in confine.shortfall(Settings(data=tmp_path))[0]


def test_without_the_right_to_mount_it_says_so_and_works() -> None:
    """As in a container that was given no capability: what can be closed is closed, the rest is logged once a role."""
    with service(prelude="from millstream.wiring import confine; confine._drop_capabilities(set())") as found:
        found.create("unconfined")
        told = [line for line in found.logged() if line.get("code") == "confine.partial"]
        assert sorted(line["role"] for line in told) == sorted(CONFINED)
        assert all("unshare" in line["why"] for line in told)
        for role in CONFINED:
            held = status(found.roles()[role])
            assert held["NoNewPrivs"] == "1"
            assert int(held["CapPrm"], 16) == 0


def test_a_role_alone_is_confined_too(tmp_path: Path) -> None:
    """`millstream api`, as a supervisor starts it."""
    tmp_path.chmod(0o700)
    alone = subprocess.Popen(
        [sys.executable, "-m", "millstream.cli.main", "api", "--data", str(tmp_path)]  # noqa: RUF005 - two halves
        + ["--capacity", "simulated", "--listen", f"127.0.0.1:{free_port()}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert alone.stdout is not None
        assert alone.stdout.readline() == b"ready\n"
        assert int(status(alone.pid)["CapPrm"], 16) == 0
        assert [point for point, options in mounts(alone.pid).items() if "rw" in options] == [str(tmp_path)]
    finally:
        alone.terminate()
        _, said = alone.communicate(timeout=10)
    assert alone.returncode == 0, said


def test_roles_are_confined_before_they_listen() -> None:
    """Each role is confined before it opens the store, and the engine's holder is the one that keeps its rights."""
    assert set(confine.KEPT) == set(ROLES) - {"reconcile"}
    text = Path(confine.__file__).with_name("roles.py").read_text()
    for role in ROLES:
        body = text.split(f"def {role}(settings")[1].split("\ndef ")[0]
        assert -1 < body.index(f'confine("{role}", settings)') < body.index("open_store(")


def test_it_costs_little(running: Service) -> None:
    """CPU seconds, in children of our own, since nobody can do it twice."""
    took = []
    for _ in range(3):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            began = time.process_time()
            confine.confine("api", Settings(data=running.data))
            os.write(write, f"{time.process_time() - began:.6f}".encode())
            os._exit(0)
        os.close(write)
        took.append(float(os.read(read, 100)))
        os.close(read)
        os.waitpid(child, 0)
    assert min(took) < 0.01  # 2.5 ms on a quiet machine


def test_a_role_may_open_as_many_files_as_the_doors_promise(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from millstream.wiring import Settings, confine;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard));"
        "confine.confine('reconcile', Settings(data=Path(sys.argv[1])));"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE), hard)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    soft, still, hard = map(int, done.stdout.split())
    assert still == hard, "the host's own limit stands"
    assert soft == (confine.OPEN_FILES if hard == -1 else min(hard, confine.OPEN_FILES))
