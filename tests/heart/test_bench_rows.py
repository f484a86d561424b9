"""The rows that the benchmarks store in bulk are rows as the handlers write them: Describe reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from bench.rows import ACCOUNT, REGION, fill

from millstream.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_in_bulk_are_rows(tmp_path: Path) -> None:
    _, names = fill(tmp_path / "data", 30, simulated=True)
    store = Store(tmp_path / "data")
    rows = store.read().tuples("page_json", account=ACCOUNT, region=REGION, after="", most=100)
    assert len(rows) == 30
    assert {name for name, _ in rows} == set(names)
    assert all(msgspec.json.decode(document)["Name"] == name for name, document in rows)
    assert {row["state"] for row in store.read().all("machines_after", after="", most=100)} == {"RUNNING"}
