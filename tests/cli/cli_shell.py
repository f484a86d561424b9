"""Calling the command as a person does, and simulated services to call it against."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("millstream"))


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err.splitlines()[-1])


@dataclass
class Shell:
    """A person at a terminal-less shell, with one data folder."""

    data: Path
    more: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MILLSTREAM_"))}
        kept["PATH"] = f"{Path(PROGRAM).parent}:{kept['PATH']}"
        return kept | {"MILLSTREAM_DATA": str(self.data)} | self.more

    def __call__(self, *words: str, given: str = "", **more: str) -> Said:
        done = subprocess.run(
            [PROGRAM, *words],
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environment() | more,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )


def serve(shell: Shell, *words: str) -> int:
    """Start a simulated service in the background; its process id."""
    api, edge = free_ports(2)
    said = shell(
        "serve", "--detach", "--json", "--capacity", "simulated", "--listen", f"127.0.0.1:{api}",
        "--edge", f"127.0.0.1:{edge}", *words,
    )  # fmt: skip
    assert said.code == 0, said
    return int(said.json["pid"])


def end(pid: int) -> None:
    """End a service and wait until it is gone."""
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        assert select.select([fd], [], [], 30)[0], "the service did not end"
    finally:
        os.close(fd)


def stock_client(shell: Shell) -> Any:
    import boto3

    variables = shell("env", "--json").json["variables"]
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        return boto3.session.Session().client("appstream")
    finally:
        os.environ.clear()
        os.environ.update(before)
