"""Two networks for a data folder, and the guard that makes them safe.

`inside` has no way out; `outside` reaches other hosts through this one. On neither can a machine reach this host, at
any of its addresses, nor another machine. The engine makes the networks; the guard is our own nftables tables, so that
it holds whatever the engine's own rules are.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from millstream.capacity.containers.engine import ENGINE_PATH, folder_id
from millstream.capacity.driver import CapacityError

if TYPE_CHECKING:
    from millstream.capacity.containers.engine import Engine

# Each network is a /20: 4,094 addresses, four times the machines that one host is planned for.
POOL: Final = ipaddress.IPv4Network("10.90.0.0/16")
PREFIX: Final = 20
MACHINE_MAC: Final = "52:4d"  # locally administered; the bridge guard knows our machines by it
GUARD_FRESH_S: Final = 2.0  # a guard seen that recently is taken to stand; asking costs 4 ms
DEFAULT_MTU: Final = 1500
FAMILIES: Final = ("inet", "bridge")
# Where other engines keep what isn't the outside world: ours (of other data folders, too), Docker's, Podman's, …
OTHER_BRIDGES: Final = ("ms*", "docker*", "br-*", "podman*", "cni-*", "virbr*", "lxdbr*", "lxcbr*", "incusbr*")
# Where clouds tell a host, and whoever asks from it, its credentials: link-local, and what Azure and Alibaba chose.
METADATA: Final = tuple(map(ipaddress.IPv4Network, ("169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32")))


class Network:
    """The two networks of one data folder at one engine."""

    def __init__(self, data: Path, engine: Engine) -> None:
        self.engine = engine
        self.id = folder_id(data)
        self.bridges = {False: f"ms{self.id}i", True: f"ms{self.id}o"}  # 11 of the 15 letters that Linux gives
        self.table = f"millstream_{self.id}"
        self._lock = threading.Lock()
        self._guarded_at = float("-inf")
        self._installed = ""  # the guard as the kernel listed it when we had installed it
        self._known: set[bool] = set()

    def name(self, *, internet: bool) -> str:
        return f"millstream-{self.id}-{'outside' if internet else 'inside'}"

    def ensure(self, *, internet: bool) -> None:
        """Make the network if it isn't there. Raises CapacityError."""
        with self._lock:
            if internet in self._known:
                return
            with self.engine.calls() as api:
                names = {network["Name"] for network in api.networks(filters={"label": f"millstream.data={self.id}"})}
            if self.name(internet=internet) not in names:
                self._make(internet)
            self._known.add(internet)

    def forget(self) -> None:
        """What was known of the engine's networks may be wrong: somebody removed one."""
        with self._lock:
            self._known.clear()

    def guard(self) -> None:
        """The guard stands when this returns. Raises CapacityError `network.no-guard`: then nothing may start."""
        with self._lock:
            if time.monotonic() - self._guarded_at < GUARD_FRESH_S:
                return
            if not self._installed or self._listing() != self._installed:
                _nft(guard_rules(self.table, self.bridges[False], self.bridges[True], local_resolvers(), resolvers()))
                self._installed = self._listing()
            if not self._installed:
                raise CapacityError("the network guard does not hold", code="network.no-guard")
            self._guarded_at = time.monotonic()

    def purge(self) -> None:
        """Take networks and guard from the host; for when no machine is left. Raises CapacityError."""
        with self._lock:
            self._known.clear()
            with self.engine.calls() as api:
                for network in api.networks(filters={"label": f"millstream.data={self.id}"}):
                    api.remove_network(network["Id"] if self.engine.kind == "docker" else network["Name"])
            self._guarded_at, self._installed = float("-inf"), ""
            fresh = "".join(
                f"table {family} {self.table} {{}}\ndelete table {family} {self.table}\n" for family in FAMILIES
            )
            _nft(fresh)

    def _make(self, internet: bool) -> None:
        subnet = self._free_subnet()
        bridge, name = self.bridges[internet], self.name(internet=internet)
        labels = {"millstream.data": self.id}
        mtu = str(way_out_mtu())
        with self.engine.calls() as api:
            if self.engine.kind == "podman":
                # The Docker API can neither name Podman's bridge nor turn its resolver off.
                body = {
                    "name": name,
                    "driver": "bridge",
                    "network_interface": bridge,
                    "internal": not internet,
                    "dns_enabled": False,
                    "ipv6_enabled": False,
                    "labels": labels,
                    "options": {"mtu": mtu},
                    "subnets": [{"subnet": str(subnet), "gateway": str(subnet[1])}],
                }
                response = api.post(f"{api.base_url}/v4.0.0/libpod/networks/create", json=body, timeout=20)
                if response.status_code != 200:
                    raise CapacityError(f"the engine made no network: {response.text[:300]}", code="network.refused")
                return
            from docker.types import IPAMConfig, IPAMPool

            api.create_network(
                name,
                driver="bridge",
                internal=not internet,
                labels=labels,
                ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=str(subnet), gateway=str(subnet[1]))]),
                options={
                    "com.docker.network.bridge.name": bridge,
                    "com.docker.network.bridge.enable_icc": "false",
                    "com.docker.network.driver.mtu": mtu,
                },
            )

    def _free_subnet(self) -> ipaddress.IPv4Network:
        """The first of our pool's subnets that no route of this host and no network of the engine touches."""
        taken = host_routes()
        with self.engine.calls() as api:
            for network in api.networks():
                for row in (network.get("IPAM") or {}).get("Config") or []:
                    if row.get("Subnet") and ":" not in row["Subnet"]:
                        taken.append(ipaddress.IPv4Network(row["Subnet"], strict=False))
        subnets = list(POOL.subnets(new_prefix=PREFIX))
        # Two data folders that start together look in different places first.
        begin = int(self.id, 16) % len(subnets)
        for subnet in subnets[begin:] + subnets[:begin]:
            if not any(subnet.overlaps(other) for other in taken):
                return subnet
        raise CapacityError(f"no free subnet is left in {POOL}", code="network.no-subnet")

    def _listing(self) -> str:
        """Our tables as the kernel lists them, without counters; empty if one of them is missing."""
        # One question each: nft 1.0.6 does not find the second of two tables of one name.
        parts = [_run(["nft", "-s", "list", "table", family, self.table]).stdout for family in FAMILIES]
        return "".join(parts) if all(parts) else ""


def mac_of(machine_id: str) -> str:
    """The machine's address on its bridge. Without NET_RAW and NET_ADMIN it can't send under another one."""
    digest = hashlib.sha256(f"mac {machine_id}".encode()).hexdigest()
    return ":".join([MACHINE_MAC, *(digest[i : i + 2] for i in range(0, 8, 2))])


def interface_id(machine_id: str, started: str) -> str:
    """`eni-` and 17 hex digits: one for each start of a machine, the same for as long as it runs."""
    return "eni-" + hashlib.sha256(f"eni {machine_id} {started}".encode()).hexdigest()[:17]


def guard_rules(table: str, inside: str, outside: str, local: list[str], resolvers: list[str]) -> str:
    """The nftables program of the guard. It replaces itself whole, so there is no moment without it.

    `resolvers` are those of this host, `local` the ones of them that are this host itself; either may be asked for
    names, also where a cloud's is at the address of its metadata. The networks have no IPv6, so none is passed on.

    Names of bridges that don't exist yet are fine: rules go by name, so the guard stands before the network does.
    """
    ours = f'{{ "{inside}", "{outside}" }}'

    def asks(addresses: list[str]) -> str:
        return "".join(
            f'    iifname "{outside}" ip daddr {address} {protocol} dport 53 accept\n'
            for address in addresses
            for protocol in ("udp", "tcp")
        )

    near = [ip for ip in resolvers if any(ipaddress.IPv4Address(ip) in network for network in METADATA)]
    metadata = ", ".join(map(str, METADATA))
    strangers = ", ".join(f'"{name}"' for name in OTHER_BRIDGES)
    fresh = "".join(f"table {family} {table} {{}}\ndelete table {family} {table}\n" for family in FAMILIES)
    return f"""{fresh}
table inet {table} {{
  chain input {{
    type filter hook input priority -150; policy accept;
{asks(local)}    iifname {ours} drop
  }}
  chain forward {{
    type filter hook forward priority -150; policy accept;
    iifname "{inside}" drop
    oifname "{inside}" drop
    iifname "{outside}" meta nfproto ipv6 drop
{asks(near)}    iifname "{outside}" ip daddr {{ {metadata} }} drop
    iifname "{outside}" oifname {{ {strangers} }} drop
    oifname "{outside}" ct state != {{ established, related }} drop
  }}
}}
table bridge {table} {{
  chain forward {{
    type filter hook forward priority -150; policy accept;
    ether saddr & ff:ff:00:00:00:00 == {MACHINE_MAC}:00:00:00:00 drop
  }}
}}
"""


def local_resolvers() -> list[str]:
    """Resolvers that this host asks and that are this host itself, at an address that a machine can name."""
    local = '[{"type":"local"'
    return [ip for ip in resolvers() if _run(["ip", "-json", "route", "get", ip]).stdout.startswith(local)]


def resolvers() -> list[str]:
    """The IPv4 resolvers of this host that a machine can use: not those on the loopback."""
    servers: list[str] = []
    # systemd-resolved writes itself into the first and the true ones into the second.
    for place in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if place.exists():
            text = place.read_text(encoding="utf-8", errors="replace")
            servers += re.findall(r"^nameserver\s+([0-9.]+)\s*$", text, re.MULTILINE)
    return [address for address in dict.fromkeys(servers) if not address.startswith("127.")]


def host_routes() -> list[ipaddress.IPv4Network]:
    """What this host routes somewhere, the default route aside. Empty when it can't be asked."""
    routes = []
    for row in json.loads(_run(["ip", "-json", "-4", "route", "show", "table", "all"]).stdout or "[]"):
        target = row.get("dst", "default")
        if target != "default":
            routes.append(ipaddress.IPv4Network(target, strict=False))
    return routes


def way_out_mtu() -> int:
    """The MTU of the way out: a bridge with a larger one loses big packets when paths say nothing."""
    rows = json.loads(_run(["ip", "-json", "-4", "route", "show", "default"]).stdout or "[]")
    for row in rows:
        place = Path("/sys/class/net") / str(row.get("dev")) / "mtu"
        if place.exists():
            return min(DEFAULT_MTU, int(place.read_text(encoding="ascii")))
    return DEFAULT_MTU


def _nft(program: str) -> None:
    done = _run(["nft", "-f", "-"], program)
    if done.returncode:
        raise CapacityError(
            f"the network guard can't be installed: {done.stderr.strip()[:300]}", code="network.no-guard"
        )


def _run(command: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of the host; a missing one or a slow one is a failed one."""
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=10, check=False, env={"PATH": ENGINE_PATH}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
