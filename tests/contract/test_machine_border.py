"""What a machine is held by: limits, uids, networks, its folder. Seen from inside, as its root sees it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.engine_fixture import data_folder, gone, inside, machine_spec, ready, until

from millstream.capacity.containers import stream
from millstream.capacity.containers.driver import ContainersDriver
from millstream.capacity.containers.network import MACHINE_MAC, resolvers
from millstream.capacity.containers.stream import ContainerStreams
from millstream.capacity.driver import CapacityError, Refused
from millstream.model.records import MachineSpec, Observed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["podman", "docker"])
def driver(request: pytest.FixtureRequest) -> ContainersDriver:
    found: ContainersDriver = request.getfixturevalue(f"{request.param}_driver")
    return found


@pytest.fixture
def machine(driver: ContainersDriver, new_machine: Callable[..., MachineSpec]) -> MachineSpec:
    return up(driver, new_machine(driver))


@pytest.fixture(scope="module")
def resting(driver: ContainersDriver) -> Iterator[MachineSpec]:
    """A machine that several tests look at and none changes: a desktop's start is seconds of a core."""
    spec = up(driver, machine_spec())
    yield spec
    gone(driver, spec.id)


def up(driver: ContainersDriver, spec: MachineSpec) -> MachineSpec:
    driver.acquire(spec)
    driver.start(spec)
    ready(driver, spec)
    return spec


@pytest.fixture
def host_service() -> Iterator[int]:
    """A port of this host that listens on all its addresses, of both families."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port: int = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 2):
            pass  # it is there
        yield port


LINK_LOCAL = "169.254.99.77"  # as 169.254.169.254, where clouds answer; that one may be in use here


@pytest.fixture
def outside_address() -> Iterator[str]:
    """An address beyond this host: a network namespace behind a link, which listens on port 80."""
    name, address = f"tst{os.getpid()}", "203.0.113.77"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b netns {name}",
        f"ip addr add 203.0.113.78/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add {address}/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
        f"ip -n {name} route add default via 203.0.113.78",
        f"ip -n {name} addr add {LINK_LOCAL}/32 dev {name}b",
        f"ip route add {LINK_LOCAL}/32 via {address}",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True, capture_output=True)
        server = subprocess.Popen(
            ["ip", "netns", "exec", name, "python3", "-m", "http.server", "80"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until(lambda: _connects(address, 80), bool, 10)
            yield address
        finally:
            server.kill()
            server.wait()
    finally:
        subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _connects(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), 1):
            return True
    except OSError:
        return False


def reach(driver: ContainersDriver, spec: MachineSpec, targets: list[tuple[str, int]]) -> dict[str, str]:
    """What a connection from inside to each target comes to: `open`, or the error's name."""
    script = f"""
import json, socket
def attempt(host, port):
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as s:
            s.settimeout(0.7)
            s.connect(where)
            return "open"
    except Exception as error:
        return type(error).__name__
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(16) as pool:
    targets = {targets!r}
    print(json.dumps(dict(zip([f"{{h}} {{p}}" for h, p in targets], pool.map(lambda t: attempt(*t), targets)))))
"""
    return json.loads(inside(driver, spec.id, f"python3 -I -c '{script.replace(chr(39), chr(34))}'"))  # type: ignore[no-any-return]


def bridge_addresses(bridge: str) -> list[str]:
    rows = json.loads(subprocess.run(["ip", "-json", "addr", "show", bridge], capture_output=True, check=True).stdout)
    return [a["local"] + ("%eth0" if a["family"] == "inet6" else "") for row in rows for a in row["addr_info"]]


def host_addresses() -> list[str]:
    rows = json.loads(subprocess.run(["ip", "-json", "addr"], capture_output=True, check=True).stdout)
    return [a["local"] for row in rows for a in row["addr_info"] if a["family"] == "inet" and a["local"] != "127.0.0.1"]


# --- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("internet", [False, True])
def test_no_address_of_the_host_answers(
    driver: ContainersDriver, new_machine: Callable[..., MachineSpec], host_service: int, internet: bool
) -> None:
    spec = up(driver, new_machine(driver, internet=internet))
    addresses = bridge_addresses(driver.network.bridges[internet]) + host_addresses()
    assert len(addresses) > 2
    targets = [(address, host_service) for address in addresses]
    assert "open" not in reach(driver, spec, targets).values()

    # Would this test notice? Without the guard the host is open.
    for family in ("inet", "bridge"):
        subprocess.run(["nft", "delete", "table", family, driver.network.table], check=True)
    assert "open" in reach(driver, spec, targets).values()
    time.sleep(2.1)  # a guard seen two seconds ago is believed
    assert driver.health().ok, "health puts the guard back"
    assert "open" not in reach(driver, spec, targets).values()


@pytest.mark.parametrize("internet", [False, True])
def test_neighbours_do_not_answer(
    driver: ContainersDriver, new_machine: Callable[..., MachineSpec], internet: bool
) -> None:
    one, two = (up(driver, new_machine(driver, internet=internet)) for _ in range(2))
    other = up(driver, new_machine(driver, internet=not internet))
    inside(driver, two.id, "python3 -I -m http.server --bind :: 8080 >/dev/null 2>&1 &")
    local6 = re.findall(r"inet6 (fe80[0-9a-f:]+)", inside(driver, two.id, "ip -6 addr show eth0"))
    address = driver.look(two.id).address
    until(lambda: reach(driver, two, [(address, 8080)]), lambda seen: "open" in seen.values(), 10)
    targets = [(address, 8080), *((f"{a}%eth0", 8080) for a in local6)]
    assert "open" not in reach(driver, one, targets).values()
    assert "open" not in reach(driver, other, targets).values()


def test_no_way_out_and_no_names_without_internet_access(
    driver: ContainersDriver, resting: MachineSpec, outside_address: str
) -> None:
    assert reach(driver, resting, [(outside_address, 80)]) != {f"{outside_address} 80": "open"}
    hosts = "/etc/resolv.conf /etc/hosts"
    assert not set(resolvers()) & set(inside(driver, resting.id, f"cat {hosts}").split()), (
        "the host's resolvers are its own"
    )
    assert reach(driver, resting, [("www.debian.org", 80)]) == {"www.debian.org 80": "gaierror"}
    if driver.engine.kind == "podman":  # Docker 20.10 names its bridge as the way out; there the guard alone stops
        assert "default" not in inside(driver, resting.id, "ip route; ip -6 route show default")


def test_the_outside_answers_with_internet_access(
    driver: ContainersDriver, new_machine: Callable[..., MachineSpec], outside_address: str
) -> None:
    spec = up(driver, new_machine(driver, internet=True))
    assert _connects(LINK_LOCAL, 80), "this host reaches it"
    # A cloud tells its host's credentials to whoever asks there through the host.
    found = reach(driver, spec, [(outside_address, 80), (LINK_LOCAL, 80)])
    assert found.pop(f"{outside_address} 80") == "open"
    assert set(found.values()) <= {"TimeoutError", "OSError"}, found
    assert "nameserver" in inside(driver, spec.id, "cat /etc/resolv.conf")


def test_a_machine_cannot_send_under_another_address(driver: ContainersDriver, resting: MachineSpec) -> None:
    assert MACHINE_MAC in inside(driver, resting.id, "cat /sys/class/net/eth0/address")
    tried = inside(driver, resting.id, "ip link set eth0 address 02:00:00:00:00:01 2>&1; echo $?")
    assert tried.strip().endswith(("1", "2")), tried
    raw = "python3 -I -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)' 2>&1"
    assert "PermissionError" in inside(driver, resting.id, raw)


def test_nothing_starts_without_the_guard(
    podman_driver: ContainersDriver, new_machine: Callable[..., MachineSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = new_machine(podman_driver)
    podman_driver.acquire(spec)
    monkeypatch.setattr("millstream.capacity.containers.network.ENGINE_PATH", "/nowhere")
    podman_driver.network._guarded_at = float("-inf")
    with pytest.raises(CapacityError) as refusal:
        podman_driver.start(spec)
    assert refusal.value.code == "network.no-guard"
    assert podman_driver.health().code == "network.no-guard"
    assert podman_driver.look(spec.id).observed is Observed.STOPPED


# --- limits and rights ---------------------------------------------------------------------------------------------


def test_limits_as_seen_inside(driver: ContainersDriver, resting: MachineSpec) -> None:
    script = """
    for f in memory/memory.limit_in_bytes memory.max; do cat /sys/fs/cgroup/$f 2>/dev/null; done; echo --
    for f in memory/memory.memsw.limit_in_bytes memory.swap.max; do cat /sys/fs/cgroup/$f 2>/dev/null; done; echo --
    for f in cpu/cpu.cfs_quota_us cpu.max; do cat /sys/fs/cgroup/$f 2>/dev/null; done; echo --
    for f in pids/pids.max pids.max; do cat /sys/fs/cgroup/$f 2>/dev/null; done; echo --
    ulimit -Hc; ulimit -Hn; df -B1 --output=size /dev/shm | tail -1
    """
    memory, swap, cpu, pids, rest = (part.split() for part in inside(driver, resting.id, script).split("--"))
    assert memory[0] == str(resting.memory_bytes)
    assert not swap or swap[0] in {str(resting.memory_bytes), "0"}, "no swap"
    assert cpu[0] == "100000"
    assert pids[0] == "4096"
    assert rest[0] == "0", "no core dumps"
    assert int(rest[1]) == 16384
    assert int(rest[2]) <= 256 << 20


def test_memory_beyond_the_limit_ends_the_greedy_program_only(driver: ContainersDriver, resting: MachineSpec) -> None:
    greedy = "python3 -I -c 'x = bytearray(3 << 30)' >/dev/null 2>&1; echo ended $?"
    assert "ended 137" in inside(driver, resting.id, greedy)
    ready(driver, resting)


def test_root_inside_is_nobody_outside(driver: ContainersDriver, resting: MachineSpec) -> None:
    first, start, length = inside(driver, resting.id, "cat /proc/self/uid_map").split()
    assert (first, length) == ("0", "65536")
    assert int(start) >= 100_000
    status = inside(driver, resting.id, "cat /proc/1/status")
    assert re.search(r"^CapInh:\s0+$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s2$", status, re.MULTILINE)
    effective = int(re.search(r"^CapEff:\s([0-9a-f]+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    forbidden = {"net_admin": 12, "net_raw": 13, "sys_module": 16, "sys_ptrace": 19, "sys_admin": 21, "mknod": 27}
    assert not {name for name, bit in forbidden.items() if effective >> bit & 1}
    devices = set(inside(driver, resting.id, "ls /dev").split())
    assert not devices & {"fuse", "kvm", "dri", "uinput", "vda", "sda", "mem", "kmsg", "net"}


def test_ranges_of_machines_do_not_overlap(
    podman_driver: ContainersDriver, new_machine: Callable[..., MachineSpec]
) -> None:
    specs = [up(podman_driver, new_machine(podman_driver)) for _ in range(5)]
    starts = sorted(int(inside(podman_driver, spec.id, "cat /proc/self/uid_map").split()[1]) for spec in specs)
    assert all(b - a >= 65536 for a, b in pairwise(starts))


@pytest.mark.parametrize("administrator", [False, True])
def test_only_an_administrator_becomes_root(
    driver: ContainersDriver, new_machine: Callable[..., MachineSpec], administrator: bool
) -> None:
    spec = up(driver, new_machine(driver, administrator=administrator))
    answer = until(lambda: inside(driver, spec.id, "sudo -n id -u 2>&1", user="1000:1000"), bool)
    assert (answer.strip() == "0") is administrator, answer


def test_the_persons_programs_cannot_touch_the_display_engine(driver: ContainersDriver, resting: MachineSpec) -> None:
    tried = inside(
        driver,
        resting.id,
        "ls /run/millstream 2>&1; ls /run/millstream/engine 2>&1; kill -9 $(pidof Xtigervnc) 2>&1; echo >> /opt/millstream/agent/agent.py",
        user="1000:1000",
    )
    assert tried.count("ermission denied") + tried.count("not permitted") >= 3, tried
    assert "Read-only" in inside(driver, resting.id, "touch /opt/millstream/agent/x 2>&1")


def test_a_limit_above_the_host_is_capped(podman_driver: ContainersDriver) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert podman_driver.memory_given(1 << 50) < total
    assert podman_driver.vcpus_given(1024.0) <= (os.cpu_count() or 1)
    assert podman_driver.memory_given(1 << 30) == 1 << 30


def test_short_memory_is_refused_with_its_reason(
    podman_driver: ContainersDriver, new_machine: Callable[..., MachineSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = new_machine(podman_driver)
    monkeypatch.setattr(podman_driver, "memory_reserve_bytes", 1 << 50)
    with pytest.raises(Refused, match="memory is short on this host") as refusal:
        podman_driver.acquire(spec)
    assert refusal.value.code == "host.memory-short"
    assert podman_driver.look(spec.id).observed is Observed.ABSENT


def test_nothing_secret_in_what_the_engine_tells(driver: ContainersDriver, resting: MachineSpec) -> None:
    cookie = inside(driver, resting.id, "od -An -tx1 /run/millstream/cookie | tr -d ' \\n'")[-32:]
    assert re.fullmatch("[0-9a-f]{32}", cookie)
    with driver.engine.calls() as api:
        told = json.dumps(api.inspect_container(f"ms-{resting.id}"))
    assert cookie not in told
    assert "AWS" not in told
    environment = inside(driver, resting.id, "tr '\\0' '\\n' < /proc/1/environ")
    assert not re.search(r"proxy|token|secret|key|passw", environment, re.IGNORECASE), environment
    assert cookie not in inside(driver, resting.id, "cat /proc/*/cmdline | tr '\\0' ' '")


def test_two_machines_share_no_secret_of_their_image(
    driver: ContainersDriver, new_machine: Callable[..., MachineSpec]
) -> None:
    script = "cat /etc/machine-id; od -An -tx1 /run/millstream/cookie | tr -d ' \\n' | tail -c 32"
    one, two = (inside(driver, up(driver, new_machine(driver)).id, script).split() for _ in range(2))
    assert len(one) == 2
    assert not set(one) & set(two)


HOSTILE = {
    "USER": "nobody",
    "WORKDIR": "/link/to/somewhere",
    "ENTRYPOINT": '["/evil"]',
    "CMD": '["evil"]',
    "VOLUME": "/evil",
    "ENV": "MILLSTREAM_ADMINISTRATOR=7",
}


def test_an_image_says_nothing_about_how_it_is_started(
    driver: ContainersDriver, new_machine: Callable[..., MachineSpec], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("/etc")
    subprocess.run(["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "image.tar"), "link"], check=True)
    changes = [f"{key} {value}" for key, value in HOSTILE.items()]
    with driver.engine.calls() as api:
        tar = (tmp_path / "image.tar").read_bytes()
        api.import_image_from_stream(
            iter([tar]), "millstream/hostile", tag="1", changes=[*changes, "LABEL millstream.image=hostile"]
        )
    try:
        spec = new_machine(driver, image="hostile", administrator=False)
        driver.acquire(spec)
        with driver.engine.calls() as api:
            said = api.inspect_container(f"ms-{spec.id}")
        assert said["Config"]["User"] in {"0:0", "root", "0"}
        assert said["Config"]["WorkingDir"] == "/"
        assert "evil" not in json.dumps(
            [said["Config"]["Entrypoint"], said["Config"]["Cmd"], said["Path"], said["Args"]]
        )
        assert "MILLSTREAM_ADMINISTRATOR=0" in said["Config"]["Env"]
        assert "MILLSTREAM_ADMINISTRATOR=7" not in said["Config"]["Env"]
        gone(driver, spec.id)
        with driver.engine.calls() as api:
            assert not api.volumes()["Volumes"]
    finally:
        driver.remove_image("hostile")


# --- the folder and its sockets --------------------------------------------------------------------------------------


def test_the_display_greets(driver: ContainersDriver, resting: MachineSpec) -> None:
    with ContainerStreams(driver.data).open_stream(resting.id, "rfb") as connection:
        assert connection.gettimeout() is None
        assert connection.recv(12) == b"RFB 003.008\n"
    with pytest.raises(CapacityError):
        ContainerStreams(driver.data).open_stream(resting.id, "../agent")


@pytest.mark.parametrize(
    "trap",
    [
        "ln -s {target} rfb.sock",
        "ln -s .. x; ln -s x/../../../../../{target} rfb.sock",
        "mkfifo rfb.sock",
        "touch rfb.sock",
        "mkdir rfb.sock",
    ],
)
def test_a_socket_that_became_something_else_leads_nowhere(
    driver: ContainersDriver, machine: MachineSpec, trap: str, tmp_path: Path
) -> None:
    target = tmp_path / "host.sock"
    with socket.socket(socket.AF_UNIX) as victim:
        victim.bind(str(target))
        victim.listen()
        victim.settimeout(0.2)
        inside(driver, machine.id, f"cd /run/millstream/engine && rm -rf rfb.sock && {trap.format(target=target)}")
        with pytest.raises(CapacityError) as refusal:
            ContainerStreams(driver.data).open_stream(machine.id, "rfb")
        assert refusal.value.code == "stream.no-display"
        with pytest.raises(TimeoutError):
            victim.accept()


def test_only_the_host_s_root_enters_a_machine_s_folder(
    podman_driver: ContainersDriver, new_machine: Callable[..., MachineSpec]
) -> None:
    spec = new_machine(podman_driver)
    podman_driver.acquire(spec)
    folder = podman_driver.data / stream.MACHINES / spec.id
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == 0


@pytest.mark.parametrize(
    "said",
    [
        "b'x' * 10_000_000",
        "b'[' * 60000 + b'\\n'",
        'b\'{"ready": "yes"}\\n\'',
        "b'\\xff\\xfe\\n'",
        "b''",
        'b\'{"ready": true, "version": 7}\\n\'',
    ],
)
def test_what_a_hostile_agent_says_is_silence(driver: ContainersDriver, machine: MachineSpec, said: str) -> None:
    stop_agent(driver, machine)
    liar = f"""
import os, socket
os.path.exists("/run/millstream/engine/agent.sock") and os.unlink("/run/millstream/engine/agent.sock")
s = socket.socket(socket.AF_UNIX); s.bind("/run/millstream/engine/agent.sock"); s.listen()
while True:
    c, _ = s.accept()
    try: c.sendall({said}); c.close()
    except OSError: pass
"""
    with driver.engine.calls() as api:
        order = api.exec_create(f"ms-{machine.id}", ["python3", "-I", "-c", liar])
        api.exec_start(order["Id"], detach=True)
    began = time.monotonic()
    seen = until(lambda: driver.look(machine.id), lambda s: s.observed is Observed.SILENT)
    assert time.monotonic() - began < 10
    assert seen.agent_version == ""
    assert len(seen.reason) < 100


def stop_agent(driver: ContainersDriver, spec: MachineSpec) -> None:
    """Freeze the agent, so that its init does not start another."""
    inside(driver, spec.id, "kill -STOP $(pgrep -P 1 -f main.py | head -1)")


def test_a_frozen_agent_makes_the_machine_silent(driver: ContainersDriver, resting: MachineSpec) -> None:
    stop_agent(driver, resting)
    began = time.monotonic()
    seen = driver.look(resting.id)
    assert seen.observed is Observed.SILENT
    assert time.monotonic() - began < 2
    assert seen.address, "what the engine knows is still told"
    inside(driver, resting.id, "kill -CONT $(pgrep -P 1 -f main.py | head -1)")
    ready(driver, resting)


# --- what dies comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "victim", ["$(pgrep -P 1 -f main.py | head -1)", "$(pidof Xtigervnc)", "$(pidof xfce4-session)"]
)
def test_what_dies_inside_comes_back(driver: ContainersDriver, machine: MachineSpec, victim: str) -> None:
    until(lambda: inside(driver, machine.id, "pidof xfce4-session"), lambda pids: bool(pids.strip()))
    before = inside(driver, machine.id, f"echo {victim}").strip()
    inside(driver, machine.id, f"kill -9 {victim}")
    until(lambda: inside(driver, machine.id, f"echo {victim}").strip(), lambda pid: pid not in ("", before))
    ready(driver, machine)
    assert len(inside(driver, machine.id, "pidof Xtigervnc").split()) == 1
    until(lambda: inside(driver, machine.id, "pidof xfce4-session").split(), lambda pids: len(pids) == 1)
    with ContainerStreams(driver.data).open_stream(machine.id, "rfb") as connection:
        assert connection.recv(12) == b"RFB 003.008\n"


def test_a_container_removed_behind_our_back(driver: ContainersDriver, machine: MachineSpec) -> None:
    def removed() -> bool:
        try:
            with driver.engine.calls() as api:
                api.remove_container(f"ms-{machine.id}", force=True)
        except CapacityError as error:
            return " 404" in str(error)
        return True

    until(removed, bool)
    assert driver.look(machine.id).observed is Observed.REMNANT, "its folder is left"
    assert driver.survey().sightings[machine.id].observed is Observed.REMNANT
    driver.release(machine.id)
    assert driver.look(machine.id).observed is Observed.ABSENT


def test_a_stopped_machine_keeps_its_disk_and_loses_its_temporary_files(
    driver: ContainersDriver, machine: MachineSpec
) -> None:
    inside(driver, machine.id, "echo kept > /home/ImageBuilderAdmin/file; echo lost > /tmp/file")
    began = time.monotonic()
    driver.stop(machine.id)
    assert time.monotonic() - began < 12
    driver.start(machine)
    ready(driver, machine)
    assert inside(driver, machine.id, "cat /home/ImageBuilderAdmin/file /tmp/file 2>/dev/null").split() == ["kept"]


def test_a_release_leaves_no_network_namespace(
    driver: ContainersDriver, new_machine: Callable[..., MachineSpec]
) -> None:
    for internet in (False, True, False):
        spec = up(driver, new_machine(driver, internet=internet))
        with driver.engine.calls() as api:
            place = Path(api.inspect_container(f"ms-{spec.id}")["NetworkSettings"]["SandboxKey"])
        assert place.exists()
        gone(driver, spec.id)
        if driver.engine.kind == "podman":  # Docker sweeps up the empty files a minute later
            assert not place.exists()
        assert str(place) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


def test_many_machines_are_released_at_once(driver: ContainersDriver, new_machine: Callable[..., MachineSpec]) -> None:
    specs = [new_machine(driver) for _ in range(8)]
    for spec in specs:
        driver.acquire(spec)
        driver.start(spec)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda spec: gone(driver, spec.id), specs))
    left = driver.survey().sightings
    assert not {spec.id for spec in specs} & set(left)


# --- the engine itself -----------------------------------------------------------------------------------------------


def test_an_engine_that_is_gone_is_told_at_once_and_comes_back(
    podman_driver: ContainersDriver, new_machine: Callable[..., MachineSpec]
) -> None:
    spec = up(podman_driver, new_machine(podman_driver))
    podman = podman_driver.engine.embedded
    assert podman
    pid = podman.pid()
    assert pid
    os.kill(pid, signal.SIGKILL)

    def looked() -> Observed:
        began = time.monotonic()
        try:
            return podman_driver.look(spec.id).observed
        except CapacityError as error:
            assert error.code == "engine.no-answer"  # noqa: PT017 - it may answer again already
            return Observed.UNKNOWN
        finally:
            assert time.monotonic() - began < 5

    until(looked, lambda seen: seen is Observed.READY)
    assert podman.pid() not in (None, pid)


def test_an_engine_that_hangs_is_told_in_time(tmp_path: Path) -> None:
    folder = data_folder("hang")
    try:
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(str(folder / "deaf.sock"))
            deaf.listen()
            driver = ContainersDriver(folder, f"unix://{folder}/deaf.sock")
            began = time.monotonic()
            with pytest.raises(CapacityError):
                driver.look("0" * 32)
            assert time.monotonic() - began < 15
            assert not driver.health().ok
            driver.close()
    finally:
        shutil.rmtree(folder)


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    driver = ContainersDriver(tmp_path, f"unix://{tmp_path}/none.sock")
    began = time.monotonic()
    for verb in (driver.survey, driver.images, lambda: driver.look("0" * 32), lambda: driver.release("0" * 32)):
        with pytest.raises(CapacityError) as refusal:
            verb()
        assert refusal.value.code == "engine.no-answer"
    assert driver.health().code == "engine.no-answer"
    assert time.monotonic() - began < 5
    driver.close()


def test_the_second_service_adopts_the_engine(
    podman_driver: ContainersDriver, new_machine: Callable[..., MachineSpec]
) -> None:
    spec = up(podman_driver, new_machine(podman_driver))
    assert podman_driver.engine.embedded
    pid = podman_driver.engine.embedded.pid()
    second = ContainersDriver(podman_driver.data, image_cache=podman_driver.image_cache)
    assert second.look(spec.id).observed is Observed.READY
    assert second.engine.embedded
    assert second.engine.embedded.pid() == pid
    second.close()
    assert podman_driver.look(spec.id).observed is Observed.READY


def test_data_folders_do_not_see_each_other(
    docker_driver: ContainersDriver, docker_url: str, new_machine: Callable[..., MachineSpec]
) -> None:
    spec = new_machine(docker_driver)
    docker_driver.acquire(spec)
    folder = data_folder("other")
    try:
        other = ContainersDriver(folder, docker_url)
        assert other.survey().sightings == {}
        other.purge()
    finally:
        shutil.rmtree(folder)
    assert docker_driver.look(spec.id).observed is Observed.STOPPED


def test_purge_leaves_nothing_on_the_host(engine_host: None, image_cache: Path) -> None:
    folder = data_folder("purge")
    driver = ContainersDriver(folder, image_cache=image_cache)
    spec = machine_spec()
    driver.acquire(spec)
    driver.start(spec)
    driver.purge()
    shutil.rmtree(folder)
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    mounts = open("/proc/self/mountinfo").read()  # noqa: PTH123, SIM115 - one read
    commands = subprocess.run(["ps", "axo", "args"], capture_output=True, text=True, check=True).stdout
    for place, what in (("links", links), ("tables", tables), ("mounts", mounts), ("processes", commands)):
        assert driver.id not in what, place
        assert str(folder) not in what, place
