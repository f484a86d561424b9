"""A busy day at log level debug; afterwards every place where a secret could have been left is searched for it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.door.ways import WRONG, Caller
from tests.siege.siege_world import Answer, Line, Service, cbor_wire, json_wire, new_builder, service, wait_until

from millstream import wiring
from millstream.gateway.session import EdgeSettings
from millstream.model import ticket
from millstream.model.identity import Key, Secret
from millstream.model.shapes import OPERATIONS
from millstream.resources.call import Service as ServiceFacts
from millstream.wiring.settings import Settings


@dataclass
class Day:
    """What was used, and everything that came back."""

    running: Service
    secrets: dict[str, str] = field(default_factory=dict)
    answers: list[tuple[str, Answer]] = field(default_factory=list)

    def call(self, operation: str, document: dict[str, object], caller: Caller) -> Answer:
        answer = self.running.call(operation, document, caller)
        self.answers.append((operation, answer))
        return answer


@pytest.fixture(scope="module")
def day() -> Iterator[Day]:
    with service(log_level="debug", metrics_token="m3tr1cs-t0k3n") as running:
        day = Day(running)
        root = running.root()
        store = wiring.open_store(Settings(data=running.data))
        key = store.write(lambda tx: wiring.new_key(tx, "000000000000", "guest", expires_at=2e9)).result()
        ticket_keys, token_key = wiring.build.signing_keys(store)
        store.close()
        assert key.session_token is not None
        guest = Caller(key.key_id, key.secret.reveal(), time.time(), token=key.session_token.reveal())
        day.secrets = {
            "root secret": root.secret,
            "guest secret": guest.secret,
            "session token": guest.token or "",
            "metrics token": "m3tr1cs-t0k3n",
            "ticket key": ticket_keys[0].hex(),
            "token key": token_key.hex(),
        }
        for number, caller in enumerate((root, guest)):
            work(day, caller, f"b{number}")
        for name, way in WRONG.items():
            wire = way(
                json_wire(running.listen, "DeleteImageBuilder", b'{"Name":"b0"}'), replace(guest, now=time.time())
            )
            day.answers.append((name, running.line.send(wire.raw())))
        visit(day, ticket_keys[0])
        for body in (b"{", b'{"Name":5}', b"\xff", b'{"Nobody":"knows"}'):
            for operation in OPERATIONS:
                signed = root.sign(json_wire(running.listen, operation, body))
                day.answers.append((operation, running.line.send(signed.raw())))
                signed = guest.sign(cbor_wire(running.listen, operation, body))
                day.answers.append((operation, running.line.send(signed.raw())))
        running.create("kept")  # so that there is something to find
        yield day


def work(day: Day, caller: Caller, name: str) -> None:
    """A builder's life, with what goes wrong in it."""
    arn = f"arn:aws:appstream:us-east-1:000000000000:image-builder/{name}"
    assert day.call("CreateImageBuilder", {**new_builder(name), "Tags": {"a": "b"}}, caller).status == 200
    day.call("CreateImageBuilder", dict(new_builder(name)), caller)
    wait_until(lambda: day.running.states().get(name) == "RUNNING")
    for validity in (60, 0, 604800):
        answer = day.call("CreateImageBuilderStreamingURL", {"Name": name, "Validity": validity}, caller)
        if answer.status == 200:
            day.secrets[f"ticket {len(day.secrets)}"] = answer.document["StreamingURL"].partition("?ticket=")[2]
    for operation in ("DescribeImageBuilders", "DescribeImages", "StopImageBuilder", "StartImageBuilder"):
        day.call(operation, {"Name": name} if operation[0] == "S" else {}, caller)
    wait_until(lambda: day.running.states().get(name) == "STOPPED")
    day.call("UpdateImageBuilder", {"Name": name, "Description": "x"}, caller)
    day.call("TagResource", {"ResourceArn": arn, "Tags": {"c": "d"}}, caller)
    day.call("ListTagsForResource", {"ResourceArn": arn}, caller)
    day.call("DeleteImageBuilder", {"Name": name}, caller)
    wait_until(lambda: name not in day.running.states())


def visit(day: Day, key: bytes) -> None:
    """People at the edge: with tickets and cookies, right and wrong."""
    line, port = Line(day.running.edge_port), day.running.edge_port
    head = f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    granted = ticket.Pass("0" * 32, "1.0", int(time.time()), day.running.root().key_id, "000000000000", "1" * 32)
    cookie = day.secrets["cookie"] = ticket.mint_pass(key, granted)
    tickets = [text for name, text in day.secrets.items() if name.startswith("ticket ") and len(text) > 100]
    assert len(tickets) >= 4
    for text in (*tickets, tickets[0][:-1], tickets[0] + "A"):
        for path in ("/stream/" + "0" * 32, "/stream/" + "0" * 31, "/x"):
            requests = [
                f"GET {path}/?ticket={text} HTTP/1.1\r\n{head}\r\n",
                f"GET {path}/state HTTP/1.1\r\n{head}Cookie: millstream={cookie}\r\n\r\n",
                f"POST {path}/enter HTTP/1.1\r\n{head}Content-Length: {len(text)}\r\n\r\n{text}",
                f"GET {path}/rfb HTTP/1.1\r\n{head}Cookie: millstream={cookie}; a={text}\r\n\r\n",
                f"GET /metrics?{text} HTTP/1.1\r\n{head}Authorization: Bearer m3tr1cs-t0k3n\r\n\r\n",
            ]
            day.answers += [(request[:20], line.send(request.encode())) for request in requests]
    line.send(b"GET /\x00" + tickets[0].encode() + b" HTTP/1.1\r\n\r\n")
    line.close()


def found_in(secrets: dict[str, str], text: bytes) -> list[str]:
    """Which secrets are in it; a part that is long enough to be of use counts."""
    return [name for name, secret in secrets.items() if secret[:24].encode() in text or secret[-24:].encode() in text]


def test_no_secret_in_the_log(day: Day) -> None:
    lines = day.running.log.read_bytes().splitlines()
    assert len(lines) > 500
    for line in lines:
        assert not found_in(day.secrets, line), line[:500]
    events = {entry["event"] for entry in day.running.logged()}
    assert {"call", "refused"} <= events  # the run was logged at all


def test_no_secret_in_an_answer(day: Day) -> None:
    for operation, answer in day.answers:
        whole = b"\n".join([answer.body, *(f"{n}: {v}".encode() for n, v in answer.headers.items())])
        leaked = found_in(day.secrets, whole)
        if operation == "CreateImageBuilderStreamingURL" and answer.status == 200:
            assert len(leaked) >= 1
            leaked = [name for name in leaked if not name.startswith("ticket ")]
        assert not leaked, (operation, answer)


def test_no_secret_in_arguments_or_environment(day: Day) -> None:
    assert day.running.process is not None
    given = {name: secret for name, secret in day.secrets.items() if name != "metrics token"}  # an operator's choice
    for pid in (day.running.process.pid, *day.running.roles().values()):
        assert not found_in(day.secrets, Path(f"/proc/{pid}/cmdline").read_bytes())
        assert not found_in(given, Path(f"/proc/{pid}/environ").read_bytes())


def test_only_the_owner_can_read_what_lies_in_the_data_folder(day: Day) -> None:
    data = day.running.data
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    seen = {path.name for path in data.rglob("*")}
    assert {"millstream.db", "millstream.db-wal", "millstream.db-shm", "simulated.db", "service.json"} <= seen
    for path in data.rglob("*"):
        if path.is_dir() or path == day.running.log:  # folders lie in a closed one; the log is the test's own file
            continue
        assert not path.lstat().st_mode & 0o077 or stat.S_ISSOCK(path.lstat().st_mode), path


def test_no_ticket_or_pass_is_stored(day: Day) -> None:
    given_out = {n: s for n, s in day.secrets.items() if n[-1].isdigit() or n == "cookie"}
    assert len(given_out) >= 5
    for path in day.running.data.glob("millstream.db*"):
        assert not found_in(given_out, path.read_bytes()), path
    assert not found_in(day.secrets, (day.running.data / "run" / "service.json").read_bytes())


@pytest.mark.parametrize(
    "command",
    ["keys list --json", "keys list", "survey --json", "events --json", "doctor --json", "explain kept"],
)
def test_no_command_shows_one(day: Day, command: str) -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "MILLSTREAM_"))}
    done = subprocess.run(
        [sys.executable, "-m", "millstream.cli.main", *command.split(), "--data", str(day.running.data)],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout
    assert not found_in(day.secrets, done.stdout + done.stderr)


def test_a_repr_shows_none(day: Day) -> None:
    secret = day.secrets["root secret"]
    facts = ServiceFacts("http://x", secret.encode(), secret.encode(), "01-01-2026")
    shown = [
        repr(Key("AKIA", Secret(secret), "0" * 12, "", Secret(secret))),
        repr(Settings(metrics_token=secret)),
        str(Settings(metrics_token=secret)),
        repr(EdgeSettings(metrics_token=secret)),
        repr(facts),
        json.dumps({"key": Secret(secret)}, default=str),
    ]
    for text in shown:
        assert secret not in text
    with pytest.raises(TypeError):
        json.dumps(Secret(secret))
