"""Coverage is the truth: derived from the handlers, complete over the model, and what the docs show."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from millstream.cli.coverage import PARTIAL, REFUSED, WORKS, coverage
from millstream.model import shapes
from millstream.model.shape import Structure
from millstream.resources import partial

REPOSITORY = Path(__file__).resolve().parents[2]
FOUND = coverage()


def members_of(shape: str) -> set[str]:
    found = shapes.SHAPES[shape]
    assert isinstance(found, Structure)
    return set(found.members)


def test_all_operations_and_all_members_are_there() -> None:
    assert len(FOUND["operations"]) == 90
    assert set(FOUND["operations"]) == set(shapes.OPERATIONS)
    for name, one in FOUND["operations"].items():
        said = {(member["of"], member["name"]) for member in one["members"]}
        operation = shapes.OPERATIONS[name]
        for kind, shape in (("input", operation.input), ("output", operation.output)):
            assert {(kind, member) for member in members_of(shape)} <= said
    assert sum(FOUND["counts"].values()) == 90


def test_what_has_no_handler_is_refused_and_nothing_else() -> None:
    for name, one in FOUND["operations"].items():
        assert (one["status"] == REFUSED) == (shapes.OPERATIONS[name].handler is None)
        assert {member["status"] for member in one["members"]} <= (
            {REFUSED} if one["status"] == REFUSED else {WORKS, PARTIAL}
        )


def test_what_falls_short_names_members_of_the_model_with_a_reason() -> None:
    for name, members in partial.PARTIAL.items():
        operation = shapes.OPERATIONS[name]
        known = members_of(operation.input) | members_of(operation.output)
        assert {path.partition(".")[0] for path in members} <= known, name
        assert all(why.strip() and len(why) > 10 for why in members.values())
        assert FOUND["operations"][name]["status"] == PARTIAL


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate_docs", REPOSITORY / "scripts/generate_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()


@pytest.mark.parametrize("page", GENERATOR.PAGES)
def test_generated_pages_are_current(page: str) -> None:
    assert (REPOSITORY / "docs" / page).read_text(encoding="utf-8") == GENERATOR.PAGES[page](), "make docs"


def pages() -> list[Path]:
    return [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def anchors(file: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
