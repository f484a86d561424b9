"""The built wheel, in an environment of its own with nothing of this checkout: it serves."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.cli.cli_shell import Shell, free_ports

from millstream import __version__

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_holds_what_is_no_python_too(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "millstream/py.typed",
        "millstream/store/queries.sql",
        "millstream/store/migrations/0001_start.sql",
        "millstream/cli/aws/appstream/2016-12-01/waiters-2.json",
        "millstream/capacity/containers/packages.txt",
        f"millstream-{__version__}.dist-info/licenses/LICENSE",
    } <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    in_tree = {
        str(path.relative_to(REPOSITORY / "src"))
        for path in (REPOSITORY / "src/millstream").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_tree <= names


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # As anyone would install it, but with the versions that we know.
    lock = (REPOSITORY / "requirements-serve.lock").read_text(encoding="utf-8")
    versions = tmp_path / "versions"
    versions.write_text("\n".join(re.findall(r"^[a-z0-9][^ \n]*==[^ \n]+", lock, re.MULTILINE)), encoding="utf-8")
    subprocess.run([*pip, "-c", str(versions), str(wheel)], check=True, capture_output=True, cwd=tmp_path)
    program = str(place / "bin/millstream")
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "serve" in shown.stdout
    shell = Shell(tmp_path / "data")
    api, edge = free_ports(2)
    serving = subprocess.Popen(
        [program, "serve", "--capacity", "simulated", "--listen", f"127.0.0.1:{api}", "--edge", f"127.0.0.1:{edge}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=shell.environment(),
        cwd=tmp_path,
    )
    try:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "ready\n"
        told = subprocess.run(
            [program, "demo"], capture_output=True, text=True, env=shell.environment(), cwd=tmp_path, check=False
        )
        assert told.returncode == 0, told.stderr
        assert "Nothing left." in told.stdout
    finally:
        serving.terminate()
        assert serving.wait(30) == 0
