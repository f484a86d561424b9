"""A store that can't be used now is said to the caller as 503, for reads, writes and keys, and mends itself."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.door.ways import Caller, Wire
from tests.heart.heart_world import ACCOUNT, SERVICE, SMALL, a_folder

import millstream.resources  # noqa: F401 - registers the handlers
from millstream.api.app import App
from millstream.api.http import Request, Response
from millstream.capacity.simulated import SimulatedDriver
from millstream.cli import health
from millstream.model.records import Health
from millstream.reconcile.loop import Reconciler
from millstream.store.store import Store
from millstream.wiring.build import new_key


def ask(app: App, caller: Caller, operation: str, **document: Any) -> tuple[int, dict[str, Any]]:
    wire = Wire(
        "POST",
        "/",
        (
            ("Host", "127.0.0.1"),
            ("Content-Type", "application/x-amz-json-1.1"),
            ("X-Amz-Target", f"PhotonAdminProxyService.{operation}"),
        ),
        json.dumps(document).encode(),
    )

    async def answered() -> Response:
        answer = app(caller.sign(wire).request())
        return answer if isinstance(answer, Response) else await answer

    answer = asyncio.run(answered())
    return answer.status, json.loads(answer.body)


def rename(folder: Path, old: str, new: str) -> None:
    """What another program or a bad disk might do to a table."""
    with sqlite3.connect(folder / "millstream.db") as connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")


@pytest.mark.parametrize("lost", ["image_builder", "access_key"])
def test_reading_and_writing_answer_503_and_mend_themselves(lost: str) -> None:
    with a_folder() as folder:
        store = Store(folder)
        store.open()
        key = store.write(lambda tx: new_key(tx, ACCOUNT, "test")).result()
        driver = SimulatedDriver(folder)
        Reconciler(store, driver)._report_health()
        app = App(store, SERVICE, knock=lambda: True, health=lambda: Health(ok=True))
        caller = Caller(key.key_id, key.secret.reveal(), time.time())
        assert ask(app, caller, "CreateImageBuilder", Name="b", **SMALL)[0] == 200
        rename(folder, lost, "elsewhere")
        app.keys._until = 0.0  # keys are remembered for half a second
        for operation, document in (
            ("DescribeImageBuilders", {}),
            ("DescribeImageBuilders", {"Names": ["b"]}),
            ("DeleteImageBuilder", {"Name": "b"}),
        ):
            status, told = ask(app, caller, operation, **document)
            assert (status, told["__type"]) == (503, "ServiceUnavailableException"), told
            app.keys._until = 0.0
        rename(folder, "elsewhere", lost)
        assert ask(app, caller, "DescribeImageBuilders", Names=["b"])[0] == 200

        def full(moment: str) -> None:
            if moment == "before":
                raise sqlite3.OperationalError("database or disk is full")

        store.commit_hook = full
        status, told = ask(app, caller, "DeleteImageBuilder", Name="b")
        assert (status, told["__type"]) == (503, "ServiceUnavailableException")
        assert "store.disk-full" in json.dumps(told)
        assert ask(app, caller, "DescribeImageBuilders", Names=["b"])[1]["ImageBuilders"][0]["State"] == "PENDING"
        store.commit_hook = lambda _moment: None
        assert ask(app, caller, "DeleteImageBuilder", Name="b")[1]["ImageBuilder"]["State"] == "DELETING"
        store.close()
        driver.close()


def test_who_am_i_is_503_too_when_the_keys_cant_be_read() -> None:
    with a_folder() as folder:
        store = Store(folder)
        store.open()
        key = store.write(lambda tx: new_key(tx, ACCOUNT, "test")).result()
        app = App(store, SERVICE, knock=lambda: True, health=lambda: Health(ok=True))
        caller = Caller(key.key_id, key.secret.reveal(), time.time(), service="sts")
        form = (("Host", "127.0.0.1"), ("Content-Type", "application/x-www-form-urlencoded"))
        wire = Wire("POST", "/", form, b"Action=GetCallerIdentity&Version=2011-06-15")
        answer = app(caller.sign(wire).request())
        assert isinstance(answer, Response)
        assert answer.status == 200
        rename(folder, "access_key", "elsewhere")
        app.keys._until = 0.0
        answer = app(caller.sign(wire).request())
        assert isinstance(answer, Response)
        assert answer.status == 503
        assert b"<Code>ServiceUnavailable</Code>" in answer.body
        store.close()


@pytest.mark.parametrize("ok", [True, False])
def test_the_health_of_both_addresses_is_read_by_the_command_line(ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wait --ready`, `serve --detach` and `doctor` tell the reason, not only that there is one."""
    told = Health(ok=True) if ok else Health(ok=False, code="engine.no-answer", why="silent for 5 s", next="doctor")
    with a_folder() as folder:
        store = Store(folder)
        store.open()
        app = App(store, SERVICE, knock=lambda: True, health=lambda: told)
        answer = app(Request.of(b"GET", b"/healthz", ()))
        assert isinstance(answer, Response)
        raw = b"HTTP/1.1 %d X\r\n\r\n%b" % (answer.status, answer.body)
        monkeypatch.setattr(health, "_get", lambda *_: raw)
        assert health.ask("http://127.0.0.1:1") == told
        store.close()


def test_a_flood_of_unsigned_calls_is_no_flood_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    with a_folder() as folder:
        store = Store(folder)
        store.open()
        key = store.write(lambda tx: new_key(tx, ACCOUNT, "test")).result()
        app = App(store, SERVICE, knock=lambda: True, health=lambda: Health(ok=True))
        known, stranger = (
            Caller(key.key_id, secret, time.time()) for secret in (key.secret.reveal(), "not the key's secret")
        )
        with caplog.at_level("INFO", "millstream"):
            for _ in range(20):
                assert ask(app, stranger, "DescribeImageBuilders")[0] == 400
            assert not caplog.records
            assert ask(app, known, "DescribeImageBuilders", Names=["absent"])[0] == 404
        assert [record.message for record in caplog.records] == ["refused"], "who has a key is told in the log"
        assert vars(caplog.records[0])["key_id"] == key.key_id
        assert 'outcome="InvalidSignatureException"} 20' in app.metrics()
        store.close()


def test_a_store_in_trouble_is_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has no key makes the store be asked for one: that fills no log while it can't answer."""
    with a_folder() as folder:
        store = Store(folder)
        store.open()
        app = App(store, SERVICE, knock=lambda: True, health=lambda: Health(ok=True))
        rename(folder, "access_key", "elsewhere")
        stranger = Caller("AKIASTRANGERSTRANGER", "not a key's secret", time.time())
        body = b"Action=GetCallerIdentity&Version=2011-06-15"
        form = (("Host", "127.0.0.1"), ("Content-Type", "application/x-www-form-urlencoded"))
        with caplog.at_level("INFO", "millstream"):
            began = time.monotonic()
            for _ in range(20):
                assert ask(app, stranger, "DescribeImageBuilders")[0] == 503
                answer = app(replace(stranger, service="sts").sign(Wire("POST", "/", form, body)).request())
                assert isinstance(answer, Response)
                assert answer.status == 503
        assert 1 <= len(caplog.records) <= 1 + time.monotonic() - began
        assert app.calls["query", "-", "ServiceUnavailableException"] == 20
        store.close()
