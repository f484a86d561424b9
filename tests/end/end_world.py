"""The whole product as its users have it: `millstream serve` from the environment, and nothing imported from inside."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from tests.ports import free_port

MILLSTREAM = str(Path(sys.executable).parent / "millstream")
AWS = str(Path(sys.executable).parent / "aws")
READY_LIMIT_S = 180.0


@dataclass
class Service:
    """One service in a data folder of its own. `start` returns when it prints `ready`."""

    capacity: str
    image_cache: Path
    data: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ms-end-", dir="/tmp")))
    port: int = field(default_factory=free_port)
    edge_port: int = field(default_factory=free_port)
    before: tuple[str, ...] = ()  # a command that runs it, e.g. `ip netns exec`
    process: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MILLSTREAM_"))}
        return {**kept, "MILLSTREAM_IMAGE_CACHE": str(self.image_cache), "MILLSTREAM_LOG_LEVEL": "info"}

    def start(self, *arguments: str) -> None:
        with (self.data / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.before,
                    MILLSTREAM,
                    "serve",
                    *("--data", str(self.data), "--capacity", self.capacity),
                    *("--listen", f"127.0.0.1:{self.port}", "--edge", f"127.0.0.1:{self.edge_port}"),
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        said = b""
        until = time.monotonic() + READY_LIMIT_S
        while b"ready" not in said:
            said += self.process.stdout.read() or b""
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(timeout=40)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code

    def end(self) -> None:
        """Stop, and take away the folder with all that lies in it."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        if self.capacity == "containers":
            from millstream.capacity.containers.driver import ContainersDriver

            ContainersDriver(self.data, image_cache=self.image_cache).purge()
        shutil.rmtree(self.data)

    def log(self) -> str:
        return (self.data / "serve.log").read_text(errors="replace")[-6000:]

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.before, MILLSTREAM, *arguments, "--data", str(self.data)],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            env=self.environment(),
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def variables(self) -> dict[str, str]:
        """What `eval "$(millstream env)"` sets."""
        lines = self.command("env").stdout.splitlines()
        pairs = [shlex.split(line)[1].partition("=")[::2] for line in lines if line.startswith("export ")]
        return dict(pairs)

    def client(self) -> Any:
        variables = self.variables()
        session = boto3.Session(
            aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
            region_name=variables["AWS_DEFAULT_REGION"],
        )
        return session.client(
            "appstream",
            endpoint_url=variables["AWS_ENDPOINT_URL_APPSTREAM"],
            config=Config(retries={"total_max_attempts": 1}),
        )

    def survey(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("survey", "--json", check=False).stdout)
        return found

    def role_pids(self) -> dict[str, int]:
        """The roles' processes, by the lock file that each holds open: api, edge, reconcile."""
        assert self.process is not None
        watcher = self.process.pid
        if self.before:
            watcher = int(json.loads((self.data / "run/service.json").read_text())["pid"])
        children = Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()
        found = {}
        for pid in children:
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found[name] = int(pid)
        return found


def wait_for(condition: Any, limit_s: float = 30.0, what: str = "") -> Any:
    until = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until, f"not within {limit_s} s: {what or condition}"
        time.sleep(0.02)


def state_of(client: Any, name: str) -> str:
    """The builder's state, or `gone`."""
    try:
        found = client.describe_image_builders(Names=[name])["ImageBuilders"]
    except client.exceptions.ResourceNotFoundException:
        return "gone"
    return str(found[0]["State"])
