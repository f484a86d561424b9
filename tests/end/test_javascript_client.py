"""The AWS SDK for JavaScript v3, unmodified, does the main job on both wires: JSON, and rpc-v2-cbor as Terraform."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.end.end_world import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENTS = Path(__file__).resolve().parents[1] / "clients"


@pytest.fixture(scope="module")
def simulated() -> Iterator[Service]:
    made = Service("simulated", Path("unused"))
    made.start()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the pinned SDK installed beside the script."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    with (CLIENTS / ".npmrc").open() as lock:  # one installs, whatever runs beside it
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed, wanted = CLIENTS / "node_modules/.package-lock.json", CLIENTS / "package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            npm = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            run = subprocess.run(npm, cwd=CLIENTS, capture_output=True, text=True, timeout=200, check=False)
            assert run.returncode == 0, run.stderr
    return found


@pytest.mark.parametrize("protocol", ["json", "cbor"])
def test_the_javascript_sdk_does_the_main_job(protocol: str, node: str, simulated: Service) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "MILLSTREAM_PROTOCOL": protocol,
        "MILLSTREAM_IMAGE": "debian-12-desktop",
        **simulated.variables(),
    }
    script = str(CLIENTS / "image_builder.mjs")
    run = subprocess.run([node, script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["ok"] is True


def test_the_lock_names_no_host() -> None:
    lock = json.loads((CLIENTS / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    assert lock["packages"]["node_modules/@aws-sdk/client-appstream"]["integrity"]
