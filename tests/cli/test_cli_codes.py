"""One table of codes: whatever the source says stands in it, and it reads as people need it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from millstream.cli.main import COMMANDS, root
from millstream.model import codes

SOURCE = Path(codes.__file__).parents[1]
# The ways in which the source names a code: as an argument, in a health answer, in a log's fields, as a check, on a page.
USES = (
    re.compile(r"""\bcode=["']([a-z]+\.[a-z][a-z-]*)["']"""),
    re.compile(r"""["']code["']:\s*["']([a-z]+\.[a-z][a-z-]*)["']"""),
    re.compile(r"""\bHealth\(\s*(?:ok=)?False,\s*["']([a-z]+\.[a-z][a-z-]*)["']"""),
    re.compile(r"""\b(?:Trouble|Check)\(\s*["']([a-z]+\.[a-z][a-z-]*)["']"""),
    re.compile(r"""\bNotice\(\s*\d+,\s*["']([a-z]+\.[a-z][a-z-]*)["']"""),
)


def used() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in SOURCE.rglob("*.py"):
        if path.name != "codes.py":
            text = path.read_text(encoding="utf-8")
            found |= {code: path.name for pattern in USES for code in pattern.findall(text)}
    return found


def test_every_code_of_the_source_is_explained() -> None:
    assert {code: where for code, where in used().items() if code not in codes.CODES} == {}


def test_the_search_finds_codes() -> None:
    assert {
        "store.newer",
        "engine.no-answer",
        "host.exposed",
        "usage.unknown",
        "reconcile.stuck",
        "ticket.expired",
    } <= set(used())


def test_no_code_is_explained_that_nothing_says() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py") if path.name != "codes.py")
    assert [code for code in codes.CODES if f'"{code}"' not in text] == []


def test_options_and_commands_in_texts_are_real() -> None:
    options, commands = {"--help"}, set(COMMANDS)
    for name in COMMANDS:
        command = root.get_command(click.Context(root), name)
        assert command is not None
        for one in (command, *getattr(command, "commands", {}).values()):
            options |= {name for parameter in one.params for name in parameter.opts}
    options |= {"--userns-remap", "--only-upgrade"}  # of dockerd, of apt-get
    texts = " ".join(text for entry in codes.CODES.values() for text in entry[:3])
    assert set(re.findall(r"--[a-z][a-z-]*", texts)) <= options
    assert set(re.findall(r"\bmillstream ([a-z]+)", texts)) <= commands


@pytest.mark.parametrize("code", codes.CODES)
def test_texts_say_which_and_what_next(code: str) -> None:
    entry = codes.CODES[code]
    assert re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*", code)
    for text in entry[:3]:
        assert text
        assert text == text.strip()
        assert not text.endswith(".")
        assert len(text) <= 140
        assert not re.search(r"\b(please|sorry|oops|invalid|simply|just)\b", text, re.IGNORECASE)
    assert entry.what[0].islower() or entry.what.split()[0] in {"Python", "OCI"}
    assert entry.exit in codes.EXITS
