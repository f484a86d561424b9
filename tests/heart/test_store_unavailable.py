"""A store that can't be used now is said to the caller as 503, for reads, writes and keys, and mends itself."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from tests.door.ways import Caller, Wire
from tests.heart.heart_world import ACCOUNT, SERVICE, SMALL, a_folder

import millstream.resources  # noqa: F401 - registers the handlers
from millstream.api.app import App
from millstream.api.http import Response
from millstream.capacity.simulated import SimulatedDriver
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
