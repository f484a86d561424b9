"""Every wrong way for every operation of the model in both protocols, against the running service: refused, nothing done."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import cbor2
import pytest
from botocore.auth import SigV4Auth
from tests.door import ways
from tests.door.ways import ODD_BUT_RIGHT, WRONG, Wire
from tests.siege.siege_world import Answer, Line, Service, cbor_wire, json_wire, new_builder, service, wait_until

from millstream import wiring
from millstream.model.shapes import OPERATIONS
from millstream.wiring.settings import Settings

Body = dict[str, Any]
PROTOCOLS: dict[str, tuple[Callable[[str, str, bytes], Wire], Callable[[Body], bytes]]] = {
    "json": (json_wire, lambda body: json.dumps(body).encode()),
    "cbor": (cbor_wire, cbor2.dumps),
}
# Bodies with which the call would do something, for what there is and for what there is not.
NAMED: dict[str, Callable[[str], Body]] = {
    "CreateImageBuilder": new_builder,
    "CreateImageBuilderStreamingURL": lambda name: {"Name": name},
    "DeleteImageBuilder": lambda name: {"Name": name},
    "DescribeImageBuilders": lambda name: {"Names": [name]},
    "ListTagsForResource": lambda name: {"ResourceArn": arn(name)},
    "StartImageBuilder": lambda name: {"Name": name},
    "StopImageBuilder": lambda name: {"Name": name},
    "TagResource": lambda name: {"ResourceArn": arn(name), "Tags": {"got": "in"}},
    "UntagResource": lambda name: {"ResourceArn": arn(name), "TagKeys": ["kept"]},
    "UpdateImageBuilder": lambda name: {"Name": name, "Description": "got in"},
}


class Caller(ways.Caller):
    """Signs each request once: most ways begin with the same right signature."""

    def sign(self, wire: Wire, signer: type[Any] = SigV4Auth) -> Wire:
        return _signed(self, wire, signer)  # type: ignore[arg-type]  # mypy: a class has a hash


@functools.lru_cache(4096)
def _signed(caller: Caller, wire: Wire, signer: type[Any]) -> Wire:
    return ways.Caller.sign(caller, wire, signer)


BARE = {"DescribeImages"}  # works without a member
NOT_BUILT = {"UnknownOperationException", "ValidationException"}  # it is validated before
# What a stranger may be told: that the signature is missing, incomplete, wrong or unknown, or what no signature is
# needed to see: such a path, method or header is none of ours.
OF_THE_SIGNATURE = {
    "MissingAuthenticationTokenException",
    "IncompleteSignatureException",
    "InvalidSignatureException",
    "UnrecognizedClientException",
}
OF_THE_FRAME = {
    (400, "BadRequestException"),
    (404, "UnknownOperationException"),
    (405, "UnknownOperationException"),
    (421, "MisdirectedRequestException"),
    (400, "UnknownOperationException"),
}


def arn(name: str) -> str:
    return f"arn:aws:appstream:us-east-1:000000000000:image-builder/{name}"


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Service, Caller, Caller]]:
    """Two builders, one running and one stopped, and two keys: a lasting one and a temporary one."""
    with service(log_level="warning") as running:
        running.create("there")
        running.create("asleep")
        assert running.call("StopImageBuilder", {"Name": "asleep"}).status == 200
        assert running.call("TagResource", NAMED["TagResource"]("there") | {"Tags": {"kept": "yes"}}).status == 200
        wait_until(lambda: running.states() == {"there": "RUNNING", "asleep": "STOPPED"})
        store = wiring.open_store(Settings(data=running.data))
        key = store.write(lambda tx: wiring.new_key(tx, "000000000000", "guest", expires_at=2e9)).result()
        store.close()
        root = Caller(**asdict(running.root()))
        assert key.session_token is not None
        guest = replace(root, key_id=key.key_id, secret=key.secret.reveal(), token=key.session_token.reveal())
        yield running, root, guest


def body_for(operation: str, name: str) -> Body:
    return NAMED[operation](name) if operation in NAMED else {"Name": name}


def refused(answer: Answer, caller: Caller) -> bool:
    """By the service's own words for it, and with nothing of the key in them."""
    assert caller.secret.encode() not in answer.body
    assert not caller.token or caller.token.encode() not in answer.body
    return (answer.status == 400 and answer.code in OF_THE_SIGNATURE) or (answer.status, answer.code) in OF_THE_FRAME


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_way_in(world: tuple[Service, Caller, Caller], protocol: str) -> None:
    running, root, guest = world
    make, encode = PROTOCOLS[protocol]
    before = running.wishes()
    now = time.time()
    tried = 0
    let_in = []
    for number, (name, way) in enumerate(WRONG.items()):
        caller = replace((root, guest)[number % 2], now=now)
        for operation in OPERATIONS:
            attempt = way(make(running.listen, operation, encode(body_for(operation, "there"))), caller)
            answer = running.line.send(attempt.raw())
            tried += 1
            if not refused(answer, caller):
                let_in.append((name, operation, answer.status, answer.code, answer.body[:200]))
    assert not let_in, f"{len(let_in)} of {tried}: {let_in[:5]}"
    assert tried == len(WRONG) * len(OPERATIONS) >= 100 * 90
    assert running.wishes() == before


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stranger_learns_nothing_of_what_exists(world: tuple[Service, Caller, Caller], protocol: str) -> None:
    running, root, _ = world
    make, encode = PROTOCOLS[protocol]
    caller = replace(root, now=time.time())
    for way_name, way in WRONG.items():
        for operation in NAMED:
            seen = set()
            for name in ("there", "asleep", "nowhere"):
                wire = make(running.listen, operation, encode(body_for(operation, name)))
                seen.add(running.line.send(way(wire, caller).raw()).without_ids())
            assert len(seen) == 1, (way_name, operation, seen)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_honest_are_let_in(world: tuple[Service, Caller, Caller], protocol: str) -> None:
    running, root, guest = world
    make, encode = PROTOCOLS[protocol]
    callers = [replace(caller, now=time.time()) for caller in (root, guest)]
    operations = [name for name in OPERATIONS if name not in NAMED or OPERATIONS[name].reads]
    for name, way in ODD_BUT_RIGHT.items():
        for number, operation in enumerate(operations):
            wire = make(running.listen, operation, encode(body_for(operation, "there") if operation in NAMED else {}))
            answer = running.line.send(way(wire, callers[number % 2]).raw())
            # Past the signature: done, not found in that Region, or not built yet.
            done = {"", "ResourceNotFoundException"} if operation in NAMED or operation in BARE else NOT_BUILT
            assert answer.code in done, (name, operation, answer)
            assert not answer.code or answer.status in {400, 404}, (name, operation, answer)


def test_signed_then_unsigned_on_one_connection(world: tuple[Service, Caller, Caller]) -> None:
    """Who called before on a connection counts for nothing; pipelined, too."""
    running, root, _ = world
    caller = replace(root, now=time.time())
    read = json_wire(running.listen, "DescribeImageBuilders", b"{}")
    delete = json_wire(running.listen, "DeleteImageBuilder", b'{"Name":"there"}')
    line = Line(running.port)
    for _ in range(3):
        assert line.send(caller.sign(read).raw()).status == 200
        assert line.send(delete.raw()).code == "MissingAuthenticationTokenException"
    first = line.send(caller.sign(read).raw() + delete.raw())
    second = line._answer()
    assert first.status == 200
    assert second is not None
    assert second.code == "MissingAuthenticationTokenException"
    line.close()
    assert running.states()["there"] == "RUNNING"


def test_a_revoked_key_is_refused_within_a_second(world: tuple[Service, Caller, Caller]) -> None:
    running, root, _ = world
    store = wiring.open_store(Settings(data=running.data))
    key = store.write(lambda tx: wiring.new_key(tx, "000000000000", "short")).result()
    short = replace(root, key_id=key.key_id, secret=key.secret.reveal(), now=time.time())
    assert running.call("DescribeImageBuilders", caller=short).status == 200
    store.write(lambda tx: tx.run("revoke_key", key_id=key.key_id, now=1.0)).result()
    store.close()
    wait_until(lambda: running.call("DescribeImageBuilders", caller=short).status == 400, 1.0, "the key to be refused")
    assert running.call("DescribeImageBuilders", caller=short).code == "UnrecognizedClientException"


def test_another_account_sees_nothing_of_it(world: tuple[Service, Caller, Caller]) -> None:
    running, root, _ = world
    store = wiring.open_store(Settings(data=running.data))
    key = store.write(lambda tx: wiring.new_key(tx, "111122223333", "other")).result()
    store.close()
    other = replace(root, key_id=key.key_id, secret=key.secret.reveal(), now=time.time())
    before = running.wishes()
    assert running.call("DescribeImageBuilders", {}, other).document == {"ImageBuilders": []}
    for operation in NAMED:
        if operation == "CreateImageBuilder":
            continue
        there, nowhere = (running.call(operation, body_for(operation, n), other) for n in ("there", "nowhere"))
        assert there.code == nowhere.code == "ResourceNotFoundException", operation
        assert there.body.replace(b"there", b"nowhere") == nowhere.body
    token = running.call("DescribeImageBuilders", {"MaxResults": 1}).document["NextToken"]
    assert running.call("DescribeImageBuilders", {"NextToken": token}, other).code == "ValidationException"
    assert running.wishes() == before


@contextlib.contextmanager
def far_away() -> Iterator[str]:
    """An address of this host that is not loopback."""
    name = "ms-siege0"
    subprocess.run(["ip", "link", "add", name, "type", "veth"], check=True, capture_output=True)
    try:
        subprocess.run(["ip", "addr", "add", "198.51.100.7/32", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        yield "198.51.100.7"
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def get(line: Line, path: str, host: str, *more: str) -> Answer:
    head = "".join(f"{header}\r\n" for header in (f"Host: {host}", *more))
    return line.send(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())


def test_metrics_are_for_this_host_or_with_the_token() -> None:
    with far_away() as address, contextlib.ExitStack() as stack:
        running = stack.enter_context(service(metrics_token="m3tr1cs"))
        near = Line(running.port)
        assert b"millstream_up 1" in get(near, "/metrics", running.listen).body
        for header in ("X-Forwarded-For: 1.2.3.4", "Forwarded: for=1.2.3.4", "Via: 1.1 proxy"):
            assert get(near, "/metrics", running.listen, header).status == 403
        near.close()
        running.stop()
        running.listen = f"{address}:{running.port}"
        running.start()
        far = Line(running.port, address)
        host = running.listen
        assert get(far, "/metrics", host).status == 403
        assert get(far, "/metrics", host, "Authorization: Bearer wrong").status == 403
        assert get(far, "/metrics", host, "Authorization: Bearer").status == 403
        assert get(far, "/metrics", host, "Authorization: Bearer m3tr1cs").status == 200
        assert get(far, "/healthz", host).status == 200
        far.close()


def test_the_health_page_says_nothing_secret(world: tuple[Service, Caller, Caller]) -> None:
    running, root, guest = world
    for port in (running.port, running.edge_port):
        answer = running.health(port)
        assert answer.status == 200
        for secret in (root.secret, root.key_id, guest.secret, guest.token or "", str(running.data), "there"):
            assert secret.encode() not in answer.body
        assert len(answer.body) < 300


def test_metrics_hold_no_name_of_a_caller(world: tuple[Service, Caller, Caller]) -> None:
    """Labels are the model's words: what callers invent is no label."""
    running, root, _ = world
    for word in ("Invented", "DescribeImageBuilders\r\nX: y", "A" * 100):
        wire = json_wire(running.listen, word.split("\r")[0], b"{}")
        running.line.send(replace(root, now=time.time()).sign(wire).raw())
    text = get(Line(running.port), "/metrics", running.listen).body.decode()
    assert "Invented" not in text
    assert "AAAA" not in text
    assert "there" not in text
    assert root.key_id not in text
