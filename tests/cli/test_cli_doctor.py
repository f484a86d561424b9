"""Each check of doctor, broken once on a made-up host, says so; what can be mended is mended."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from millstream import wiring
from millstream.capacity.containers import host as containers
from millstream.cli import doctor
from millstream.cli.doctor import Check, Host, checks
from millstream.cli.main import run
from millstream.model import codes

if TYPE_CHECKING:
    from tests.cli.cli_shell import Shell


def program(folder: Path, name: str, says: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which all is well."""
    root, tools = tmp_path / "root", tmp_path / "tools"
    (root / "etc").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:       16384000 kB\n")
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    for name in ("subuid", "subgid"):
        (root / "etc" / name).write_text("containers:1000000000:131072000\n")
    for name in containers.TOOLS:
        program(tools, name, name)
    program(tools, "runc", "runc version 1.3.4")
    monkeypatch.setattr(containers, "ENGINE_PATH", str(tools))
    monkeypatch.setattr(containers, "RANGE_FILES", (root / "etc/subuid", root / "etc/subgid"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    settings = wiring.settings(data=str(tmp_path / "data"), capacity="containers")
    return Host(settings, root=root, path=str(tools))


def found(host: Host) -> dict[str, Check]:
    return {check.code: check for check in checks(host)}


def test_all_is_well_on_a_good_host(made_up: Host) -> None:
    assert {check.code: check.found for check in found(made_up).values() if not check.ok} in (
        {},
        {"host.disk": "little"},
    )


def test_every_check_is_in_the_table(made_up: Host) -> None:
    assert set(found(made_up)) <= set(codes.CODES)


def test_little_memory(made_up: Host) -> None:
    (made_up.root / "proc/meminfo").write_text("MemTotal:         512000 kB\n")
    assert not found(made_up)["host.memory"].ok


def test_no_control_groups_and_those_of_version_one(made_up: Host) -> None:
    controllers = made_up.root / "sys/fs/cgroup/cgroup.controllers"
    controllers.write_text("cpuset\n")
    assert not found(made_up)["host.cgroups"].ok
    for name in ("memory", "cpu", "pids"):
        (controllers.parent / name).mkdir()
    assert found(made_up)["host.cgroups"].found == "version 1"


def test_missing_programs_name_their_packages(made_up: Host) -> None:
    (Path(made_up.path) / "mmdebstrap").unlink()
    check = found(made_up)["host.packages"]
    assert not check.ok
    assert check.fix.startswith("apt-get update && apt-get install -y")
    assert check.fix.endswith("mmdebstrap")


def test_a_range_of_user_ids_is_given_when_there_is_none(made_up: Host) -> None:
    (made_up.root / "etc/subuid").write_text("ann:100000:65536\n")
    before = found(made_up)["host.no-uid-range"]
    assert not before.ok
    doctor._mend([before])
    assert found(made_up)["host.no-uid-range"].ok
    assert (made_up.root / "etc/subuid").read_text().startswith("ann:100000:65536\n")


@pytest.mark.parametrize(
    ("version", "ok"),
    [("1.1.5", False), ("1.2.7", False), ("1.2.8", True), ("1.3.2", False), ("1.3.3", True), ("1.4.0", True)],
)
def test_old_runtimes_are_named(made_up: Host, version: str, ok: bool) -> None:
    program(Path(made_up.path), "runc", f"runc version {version}")
    check = found(made_up)["host.old-runtime"]
    assert check.ok is ok
    assert version in check.found


def test_an_old_runtime_with_the_distributions_fixes_is_good(made_up: Host) -> None:
    program(Path(made_up.path), "runc", "runc version 1.1.5+ds1")
    log = made_up.root / "usr/share/doc/runc/changelog.Debian.gz"
    log.parent.mkdir(parents=True)
    log.write_bytes(gzip.compress(b"runc (1.1.5+ds1-1+deb12u2)\n" + "\n".join(doctor.RUNC_HOLES[:2]).encode()))
    assert not found(made_up)["host.old-runtime"].ok
    log.write_bytes(gzip.compress("\n".join(doctor.RUNC_HOLES).encode()))
    assert found(made_up)["host.old-runtime"].ok


@pytest.mark.parametrize(
    ("flags", "ok"),
    [
        ({}, True),
        ({"listen": "[::1]:8400"}, True),
        ({"listen": "localhost:8400"}, True),
        ({"listen": "0.0.0.0:8400"}, False),
        ({"edge": "192.0.2.1:8401"}, False),
        ({"edge": "0.0.0.0:8401", "tls_certificate": "c", "tls_key": "k"}, True),
    ],
)
def test_listening_to_the_world_without_tls_is_found(flags: dict[str, str], ok: bool, tmp_path: Path) -> None:
    settings = wiring.settings(data=str(tmp_path), capacity="simulated", **flags)
    assert found(Host(settings))["host.exposed"].ok is ok


def test_an_engine_that_does_not_answer_is_found(service: Shell, tmp_path: Path) -> None:
    said = service("doctor", "--capacity", "containers", "--engine", f"unix://{tmp_path}/none.sock", "--json")
    assert said.code == codes.NO
    assert said.json["engine"] == {"url": f"unix://{tmp_path}/none.sock", "kind": None, "version": None, "images": []}
    assert "engine.no-answer" in {check["code"] for check in said.json["checks"] if not check["ok"]}


def test_a_running_simulated_service_is_well(service: Shell) -> None:
    said = service("doctor", "--json")
    assert (said.code, said.json["ok"]) == (0, True)
    assert "service.not-ready" in {check["code"] for check in said.json["checks"]}


def test_only_what_is_asked_for(service: Shell) -> None:
    rows = service("doctor", "host", "--json").json["checks"]
    assert {row["code"].split(".")[0] for row in rows} == {"host"}
    assert service("doctor", "hots").code == codes.USAGE


def test_other_users_are_shown_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert doctor._command("echo a >> /etc/b") == "sudo sh -c 'echo a >> /etc/b'"
    assert doctor._command("millstream image build") == "millstream image build"


def test_fix_shows_each_command_and_looks_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mended = tmp_path / "mended"

    def one(_host: Any) -> list[Check]:
        return [Check("host.disk", "x", "bad", mended.exists(), f"touch {mended}")]

    monkeypatch.setattr(doctor, "checks", one)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("MILLSTREAM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MILLSTREAM_CAPACITY", "simulated")
    assert run(["doctor"]) == codes.NO
    assert run(["doctor", "--fix"]) == 0
    assert f"$ touch {mended}" in capfd.readouterr().err
