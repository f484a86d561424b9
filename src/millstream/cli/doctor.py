"""`doctor`: one row a check, what was looked at, what was found, and the command that mends it."""

from __future__ import annotations

import gzip
import ipaddress
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli import health
from millstream.cli.here import Here, Trouble, command, nearest, rfc3339, seconds, size, table, talk
from millstream.model.codes import NO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.wiring import Settings

MEMORY_BYTES_MIN: Final = 2 << 30  # a small builder's desktop with a browser, and the service
DISK_BYTES_MIN: Final = 5 << 30  # a base image as a tarball and in the engine, and one machine's writes
IMAGE_AGE_S_MAX: Final = 60 * 86400.0  # Debian's security suite moves every few days
# The container escapes of November 2025; fixed in these releases of runc, and by distributions in older ones.
RUNC_FIXED: Final = ((1, 2, 8), (1, 3, 3))
RUNC_HOLES: Final = ("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881")
PLACES: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin:/usr/lib/podman"
UID_RANGE_FIX: Final = "millstream doctor --fix host.no-uid-range"


@dataclass(frozen=True, slots=True)
class Check:
    """One row. `fix` is a shell command; empty: nothing that a command could mend."""

    code: str
    looked_at: str
    found: str
    ok: bool = True
    fix: str = ""


@dataclass(slots=True)
class Host:
    """Where the checks look. Tests point it at a made-up host."""

    settings: Settings
    root: Path = field(default_factory=lambda: Path("/"))
    path: str = PLACES

    def read(self, name: str) -> str:
        with suppress(OSError):
            return (self.root / name).read_text(encoding="utf-8", errors="replace")
        return ""

    def which(self, program: str) -> str | None:
        return shutil.which(program, path=self.path)


def checks(host: Host) -> Iterator[Check]:
    """All that can be known without an engine."""
    yield _python()
    yield _exposed(host.settings)
    yield _disk(host)
    if host.settings.capacity != "containers":
        return
    yield _system()
    yield _memory(host)
    yield _cgroups(host)
    if not host.settings.engine:
        yield from _prepared()
        yield _runc(host)
    yield _guard(host)
    yield _confined(host.settings)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("host.python", sys.executable, found, sys.version_info >= (3, 11), "apt-get install -y python3")


def _exposed(settings: Settings) -> Check:
    open_to = [place for place in (settings.listen, settings.edge) if not _loopback(place)]
    if not open_to:
        return Check("host.exposed", f"{settings.listen}, {settings.edge}", "this host only")
    if settings.tls_certificate:
        return Check("host.exposed", ", ".join(open_to), "reachable from outside, with TLS")
    return Check("host.exposed", ", ".join(open_to), "reachable from outside, in clear text", ok=False)


def _confined(settings: Settings) -> Check:
    from millstream.wiring.confine import shortfall

    found = "; ".join(shortfall(settings))
    return Check(
        "confine.partial", "api and edge", found or "can't reach the engine when they are taken over", not found
    )


def _loopback(place: str) -> bool:
    host = place.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _disk(host: Host) -> Check:
    folder = host.settings.data
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    machines = host.settings.capacity == "containers"
    least = DISK_BYTES_MIN if machines else 64 << 20
    # Said on every run, since nothing else would tell: image builders give sudo.
    shared = "; any machine's root can fill it, machines have no disk limit yet" if machines else ""
    return Check("host.disk", str(folder), f"{size(free)} free; {size(least)} are wanted{shared}", free >= least)


def _system() -> Check:
    return Check("host.system", "uname", f"{os.uname().sysname} {os.uname().release}", sys.platform == "linux")


def _memory(host: Host) -> Check:
    found = re.search(r"^MemTotal:\s+(\d+) kB", host.read("proc/meminfo"), re.MULTILINE)
    total = int(found[1]) * 1024 if found else 0
    return Check("host.memory", "/proc/meminfo", size(total), total >= MEMORY_BYTES_MIN)


def _cgroups(host: Host) -> Check:
    unified = host.read("sys/fs/cgroup/cgroup.controllers").split()
    wanted = ("memory", "cpu", "pids")
    if all(name in unified for name in wanted):
        return Check("host.cgroups", "/sys/fs/cgroup", "version 2")
    if all((host.root / "sys/fs/cgroup" / name).is_dir() for name in wanted):
        return Check("host.cgroups", "/sys/fs/cgroup", "version 1")
    return Check("host.cgroups", "/sys/fs/cgroup", "no memory, cpu and pids controllers", ok=False)


def _prepared() -> Iterator[Check]:
    """What the embedded engine needs of the host: the driver's own checks, the good ones shown too."""
    from millstream.capacity.containers import host as containers

    found = {health.code: health for health in containers.check_host()}
    for code, looked_at, good in (
        ("host.not-root", "user id", f"{os.geteuid()}"),
        ("host.packages", ", ".join(containers.TOOLS), "all there"),
        ("host.no-uid-range", ", ".join(map(str, containers.RANGE_FILES)), f"a range for {containers.RANGE_USER}"),
    ):
        bad = found.get(code)
        if bad is None:
            yield Check(code, looked_at, good)
            continue
        fix = {
            "host.packages": "apt-get update && " + bad.next.replace("apt-get install", "apt-get install -y"),
            "host.no-uid-range": UID_RANGE_FIX,
        }.get(code, "")
        yield Check(code, looked_at, bad.why, ok=False, fix=fix)


def _runc(host: Host) -> Check:
    program = host.which("runc")
    if program is None:
        return Check("host.old-runtime", "runc", "not installed", ok=True)
    said = _output([program, "--version"])
    found = re.search(r"runc version (\d+)\.(\d+)\.(\d+)(\S*)", said)
    if found is None:
        return Check("host.old-runtime", program, "its version can't be read", ok=False)
    version = (int(found[1]), int(found[2]), int(found[3]))
    text = found[0].removeprefix("runc version ")
    fixed = any(version[:2] == least[:2] and version >= least for least in RUNC_FIXED) or version >= (1, 4, 0)
    if fixed:
        return Check("host.old-runtime", program, text)
    # Distributions mend old versions; their changelog names the holes that they closed.
    told = ""
    with suppress(OSError):
        told = gzip.decompress((host.root / "usr/share/doc/runc/changelog.Debian.gz").read_bytes()).decode(
            errors="replace"
        )
    if all(hole in told for hole in RUNC_HOLES):
        return Check("host.old-runtime", program, f"{text}, with the distribution's fixes")
    return Check(
        "host.old-runtime",
        program,
        f"{text}, without the fixes for {', '.join(RUNC_HOLES)}; machines' user namespaces stand between",
        ok=False,
        fix="apt-get update && apt-get install -y --only-upgrade runc",
    )


def _guard(host: Host) -> Check:
    program = host.which("nft")
    if program is None:
        return Check("network.no-guard", "nft", "not installed", ok=False, fix="apt-get install -y nftables")
    if os.geteuid() != 0:
        return Check("network.no-guard", program, "can't be tried without root")
    result = subprocess.run([program, "list", "tables"], capture_output=True, text=True, check=False, timeout=10)
    found = "works" if result.returncode == 0 else result.stderr.strip()[:200]
    return Check("network.no-guard", program, found, result.returncode == 0)


def _output(arguments: list[str]) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=False).stdout
    return ""


def engine_checks(settings: Settings, engine: dict[str, Any]) -> Iterator[Check]:
    """The engine and its base images, by asking; `engine` is filled with what programs want to know."""
    from millstream.capacity.containers.engine import answers
    from millstream.capacity.driver import CapacityError, Refused
    from millstream.cli.image import engine_of

    found = engine_of(settings)
    engine["url"] = found.url
    # One that only the check has started ends with it.
    ours = found.embedded is not None and not answers(found.embedded.socket)
    try:
        if found.embedded is not None:
            found.embedded.ensure()
        engine["kind"] = found.kind
        with found.calls(limit_s=10.0) as api:
            engine["version"] = str(api.version(api_version=False).get("Version", ""))
        yield Check("engine.no-answer", found.url, f"{engine['kind']} {engine['version']}")
        yield from _images(settings, engine)
    except (CapacityError, Refused) as error:
        fix = "apt-get install -y podman runc" if error.code in {"engine.missing", "engine.no-runtime"} else ""
        yield Check(error.code, found.url, str(error), ok=False, fix=fix)
    finally:
        found.close(stop_engine=ours)


def _images(settings: Settings, engine: dict[str, Any]) -> Iterator[Check]:
    from millstream import wiring

    driver = wiring.make_driver(settings)
    try:
        images = driver.images()
        engine["images"] = [image.reference for image in images]
        if not images:
            yield Check("image.none", "base images", "none", ok=False, fix="millstream image build")
        for image in images:
            age_s = time.time() - image.created
            yield Check(
                "image.old",
                image.reference,
                f"{image.name}, {seconds(age_s) if age_s < 86400 else f'{age_s / 86400:.0f} days'} old",
                age_s < IMAGE_AGE_S_MAX,
                "millstream image build --fresh",
            )
        healthy = driver.health()
        if not healthy.ok and healthy.code != "image.none":
            yield Check(healthy.code, "a create, as the service would try it", healthy.why, ok=False)
    finally:
        driver.close()


def service_checks(here: Here) -> Iterator[Check]:
    """The store and the running service."""
    from millstream.store.store import StoreError

    path = here.data / "millstream.db"
    if not path.exists():
        yield Check("store.absent", str(path), "not made yet: the first serve makes it")
        return
    try:
        found = here.store().read().one("integrity")[0]
        yield Check("store.damaged", str(path), "whole" if found == "ok" else str(found), found == "ok")
    except StoreError as error:
        yield Check(error.code, str(path), str(error), ok=False)
    service = here.service()
    if not service:
        yield Check("service.not-running", str(here.data), "no service runs here now")
        return
    said = health.of(service)
    yield Check(
        said.code if not said.ok else "service.not-ready",
        f"{service['api']}, {service['edge']}",
        "ready" if said.ok else said.why,
        said.ok,
    )


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from millstream.model.codes import CODES

    return [code for code in CODES if code.startswith(incomplete)]


@command(
    name="doctor",
    params=[
        click.Argument(["only"], nargs=-1, metavar="[CHECK]...", shell_complete=_complete),
        click.Option(["--fix"], is_flag=True, help="Show and run the commands that mend what was found."),
        click.Option(["--engine"], metavar="URL", help="The socket of an engine of yours. Default: the service's."),
        click.Option(["--capacity"], metavar="NAME", help="containers or simulated. Default: the service's."),
    ],
    examples=["millstream doctor", "millstream doctor --fix", "millstream doctor --fix host engine"],
)
def doctor_command(here: Here, *, only: tuple[str, ...], fix: bool, engine: str | None, capacity: str | None) -> int:
    """Say what this host has and lacks, and the command that mends it.

    CHECK is a code, or its first word, such as host or engine: then only those count. The exit code is 1 when
    something is found.
    """
    flags = {name: value for name, value in (("engine", engine), ("capacity", capacity)) if value is not None}
    settings = here.serving_settings(**flags)
    found, told = _look(here, settings, only)
    if fix and _mend([check for check in found if not check.ok]):
        found, told = _look(here, settings, only)
    bad = [check for check in found if not check.ok]
    body = {
        "ok": not bad,
        "at": rfc3339(time.time()),
        "capacity": settings.capacity,
        "engine": told,
        "checks": [
            {
                "code": c.code,
                "looked_at": c.looked_at,
                "found": c.found,
                "ok": c.ok,
                "fix": _command(c.fix) if c.fix else None,
            }
            for c in found
        ],
    }
    lines = table([("ok" if c.ok else "BAD", c.code, c.looked_at, c.found) for c in found])
    for check in bad:
        from millstream.model import codes

        entry = codes.of(check.code)
        lines += ["", f"{check.code}: {entry.what}", f"  why    {entry.why}"]
        lines += [f"  next   {_command(check.fix) if check.fix else entry.next}"]
    lines += [
        "",
        f"{len(bad)} of {len(found)} checks found something." if bad else f"All {len(found)} checks are good.",
    ]
    here.answer("doctor", body, lines)
    return NO if bad else 0


def _look(here: Here, settings: Settings, only: tuple[str, ...]) -> tuple[list[Check], dict[str, Any]]:
    engine: dict[str, Any] = {"url": settings.engine or None, "kind": None, "version": None, "images": []}
    found = list(checks(Host(settings)))
    if settings.capacity == "containers":
        found += engine_checks(settings, engine)
    found += service_checks(here)
    if not only:
        return found, engine
    chosen = [check for check in found if any(check.code == name or check.code.startswith(f"{name}.") for name in only)]
    if not chosen:
        meant = nearest(only[0], [check.code for check in found])
        raise Trouble(
            "usage.unknown", what=f"there is no check {only[0]}", why=f"did you mean {meant}?" if meant else ""
        )
    return chosen, engine


def _mend(bad: list[Check]) -> bool:
    """Run what mends, each command shown first. Whether anything ran."""
    done: set[str] = set()
    for check in bad:
        if not check.fix or check.fix in done:
            continue
        done.add(check.fix)
        line = _command(check.fix)
        talk(f"$ {line}")
        if check.fix == UID_RANGE_FIX and os.geteuid() == 0:
            from millstream.capacity.containers.host import prepare_host

            for changed in prepare_host():
                talk(f"  {changed}")
        else:
            subprocess.run(["/bin/sh", "-c", line], stdout=sys.stderr, check=False)
    return bool(done)


def _command(fix: str) -> str:
    """The command as this user must give it."""
    if fix.startswith("millstream image"):
        return fix
    import shlex

    return fix if os.geteuid() == 0 else f"sudo sh -c {shlex.quote(fix)}"
