"""SECURITY.md's promises name tests that exist: a renamed test must not leave a promise behind."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def named_in(text: str) -> tuple[set[str], set[str]]:
    """Files and functions that the table of promises names."""
    table = text.split("## Promises")[1].split("\n## ", maxsplit=1)[0]
    cells = [
        row.rsplit("|", 2)[1] for row in table.splitlines() if row.startswith("| ") and not row.startswith("| ---")
    ]
    words = {word for cell in cells[1:] for word in re.findall(r"`([^`]+)`", cell)}
    return {word for word in words if "/" in word}, {word for word in words if word.startswith("test_")}


def test_each_promise_names_tests_that_exist() -> None:
    files, functions = named_in((ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(files) >= 8
    assert len(functions) >= 10
    assert not [name for name in files if not (ROOT / name).is_file()]
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^(?:async )?def (test_\w+)", sources, re.MULTILINE))
    assert not functions - defined


def test_each_row_of_the_table_has_a_test() -> None:
    table = (ROOT / "SECURITY.md").read_text("utf-8").split("## Promises")[1].split("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")][2:]
    assert len(rows) > 15
    assert not [row for row in rows if "`" not in row.rsplit("|", 2)[1]]
