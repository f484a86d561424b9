"""Parts of the containers driver that need no engine: the host's preparation, the guard's text, image sources."""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.capacity.containers import engine, host, image, network
from millstream.capacity.containers.driver import ContainersDriver
from millstream.capacity.containers.stream import ContainerStreams
from millstream.capacity.driver import CapacityError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_range_is_added_once_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = (tmp_path / "subuid", tmp_path / "subgid")
    files[0].write_text("alice:100000:65536")  # no newline at the end: files edited by hand
    monkeypatch.setattr(host, "RANGE_FILES", files)
    monkeypatch.setattr(host, "LOCK", tmp_path / "lock")
    assert len(host.prepare_host()) == 2
    assert host.prepare_host() == []
    assert files[0].read_text() == f"alice:100000:65536\ncontainers:{host.RANGE_START}:{host.RANGE_LENGTH}\n"
    assert stat.S_IMODE(files[1].stat().st_mode) == 0o644


@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 2**28)), max_size=6))
def test_our_range_touches_no_other(ranges: list[tuple[int, int]]) -> None:
    text = "".join(f"u{i}:{first}:{length}\n" for i, (first, length) in enumerate(ranges))
    start = host.free_start(text)
    assert all(
        first + length <= start or first + length <= host.RANGE_START or start + host.RANGE_LENGTH <= first
        for first, length in ranges
    )


def test_addresses_are_stable_and_apart() -> None:
    assert network.mac_of("0" * 32) == network.mac_of("0" * 32) != network.mac_of("1" * 32)
    first_octet = int(network.mac_of("0" * 32)[:2], 16)
    assert first_octet & 0b11 == 0b10, "unicast, locally administered"
    assert network.interface_id("a", "1") != network.interface_id("a", "2")


def test_sources_are_debian_s_main_only() -> None:
    for stanza in image.debian_sources():
        fields = dict(line.split(": ", 1) for line in stanza.strip().splitlines())
        assert fields["Components"] == "main"
        assert set(fields["Suites"].split()) <= set(image.SUITES)
        assert "debian-archive" in fields["Signed-By"]
    assert any("bookworm-security" in stanza for stanza in image.debian_sources())


def test_the_recipe_is_named_by_its_content(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.recipe_digest()
    assert before == image.recipe_digest()
    monkeypatch.setattr(image, "EPOCH", image.EPOCH + 1)
    assert image.recipe_digest() != before


@pytest.mark.parametrize(
    "machine_id", ["", "..", "../../etc", "0" * 31, "0" * 33, "g" * 32, "0" * 31 + "\n", "0" * 31 + "/"]
)
def test_only_ids_are_dialled(tmp_path: Path, machine_id: str) -> None:
    with pytest.raises(CapacityError):
        ContainerStreams(tmp_path).open_stream(machine_id, "rfb")


@pytest.mark.parametrize("step", ["machine", "inside"])
def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path, step: str) -> None:
    machine_id, real = "a" * 32, tmp_path / "elsewhere"
    (real / "engine").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(real / "engine" / "rfb.sock"))
        server.listen()
        folder = tmp_path / "machines" / machine_id
        folder.parent.mkdir()
        if step == "machine":
            folder.symlink_to(real)
        else:
            folder.mkdir()
            (folder / "engine").symlink_to(real / "engine")
        with pytest.raises(CapacityError):
            ContainerStreams(tmp_path).open_stream(machine_id, "rfb")


def test_a_folder_of_any_depth_is_removed(tmp_path: Path) -> None:
    """A machine's root makes folders in folders: deeper than Python's stack, and than a process may hold open."""
    driver = ContainersDriver(tmp_path)
    driver._make_folder("a" * 32)
    outside = tmp_path / "outside"
    outside.mkdir()
    held = os.open(tmp_path / "machines" / ("a" * 32) / "engine", os.O_PATH)
    os.symlink(outside, "link", dir_fd=held)
    for _ in range(3000):
        os.mkdir("d", dir_fd=held)
        deeper = os.open("d", os.O_PATH, dir_fd=held)
        os.close(held)
        held = deeper
    os.close(held)
    driver._remove_folder("a" * 32)
    assert not list((tmp_path / "machines").iterdir())
    assert outside.is_dir()
    driver._remove_folder("a" * 32)
    driver.close()


def test_a_resolver_among_the_metadata_is_asked_for_names_only() -> None:
    rules = network.guard_rules("t", "i", "o", [], ["192.0.2.1", "169.254.169.254"])
    accepted = [line.strip() for line in rules.splitlines() if line.endswith("accept") and "policy" not in line]
    assert accepted == [f'iifname "o" ip daddr 169.254.169.254 {kind} dport 53 accept' for kind in ("udp", "tcp")]
    forward = rules[rules.index("chain forward") :]
    assert forward.index(accepted[0]) < forward.index("169.254.0.0/16")


def test_the_guard_is_looked_after_while_the_engine_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = ContainersDriver(tmp_path, f"unix://{tmp_path}/no.sock")
    guarded: list[bool] = []
    monkeypatch.setattr(driver.network, "guard", lambda: guarded.append(True))
    assert driver.health().code == "engine.no-answer"
    assert guarded
    driver.close()


def test_a_data_folder_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may be the first to need it: `image build`, before any service."""
    podman = engine.EmbeddedPodman(tmp_path / "data")
    for step in ("configure", "_start"):
        monkeypatch.setattr(podman, step, lambda: None)
    monkeypatch.setattr(engine, "share_namespaces_folder", lambda: None)
    monkeypatch.setattr(host, "prepare_host", list)
    podman.ensure()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
