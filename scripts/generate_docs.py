"""Write the reference pages from the code: docs/reference/*.md and docs/coverage.md. A test holds them current."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).resolve().parent.parent / "docs"
MADE = "<!-- Made by scripts/generate_docs.py from the code. -->\n"


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command, click.Context]]:
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=f"{path} {name}")
        yield f"{path} {name}", command, inner
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def cli() -> str:
    from millstream.cli.main import root
    from millstream.model.codes import EXITS

    parts = [
        "# The command line\n",
        MADE,
        "The answer goes to standard output, all other talk to standard error. With `--json` the answer is one object",
        "with a `schema` that carries its version (a stream: one object a line), and an error one on standard error.",
        "Names, units and meanings in these objects change only with a note in the changelog.\n",
        "```\n" + root.get_help(click.Context(root, info_name="millstream")) + "\n```\n",
        "Exit codes:\n",
        *(f"- `{code}`: {text}" for code, text in EXITS.items()),
        "",
    ]
    for path, command, context in commands(root, "millstream"):
        parts += [f"## {path}\n", "```\n" + command.get_help(context) + "\n```\n"]
    parts += ["## What can go wrong\n", "Every error names its code; [codes](codes.md) says what each means.\n"]
    return "\n".join(parts)


def codes() -> str:
    from millstream.model.codes import CODES

    parts = [
        "# Codes\n",
        MADE,
        "Errors, health checks, reasons and log events carry one of these. `millstream explain CODE` says the same.\n",
    ]
    for code, entry in CODES.items():
        parts += [f"### {code}\n", f"{entry.what}. *Why:* {entry.why}. *Next:* {entry.next}. Exit code {entry.exit}.\n"]
    return "\n".join(parts)


def configuration() -> str:
    from millstream.wiring.settings import Settings

    parts = [
        "# Configuration\n",
        MADE,
        "A setting comes from the command line, else from its variable, else from the TOML file of `--config` (or",
        "`MILLSTREAM_CONFIG`), else it has its default. `millstream explain SETTING` shows its value and its origin.\n",
        "| setting | variable | default | what it is |",
        "| --- | --- | --- | --- |",
    ]
    for item in fields(Settings):
        default = item.default if item.default not in ("", ()) else "none"
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        parts.append(f"| `{item.name}` | `MILLSTREAM_{item.name.upper()}` | `{shown}` | {item.metadata['help']} |")
    parts += [
        "",
        "## What can go wrong\n",
        "- [`settings.invalid`](codes.md#settingsinvalid): the error names the setting and its origin.\n",
    ]
    return "\n".join(parts)


def coverage() -> str:
    from millstream.cli.coverage import NOT_BUILT, PARTIAL, REFUSED, WORKS
    from millstream.cli.coverage import coverage as found

    known = found()
    counts = known["counts"]
    operations = known["operations"]
    parts = [
        "# Coverage\n",
        MADE,
        f"{counts[WORKS]} operations work, {counts[PARTIAL]} in part, {counts[REFUSED]} are refused ({NOT_BUILT}).",
        "`millstream coverage --json` lists each member too. What is not listed as partial works.\n",
        "| operation | | what falls short |",
        "| --- | --- | --- |",
    ]
    for name, one in operations.items():
        if one["status"] != REFUSED:
            short = "<br>".join(f"`{m['name']}`: {m['why']}" for m in one["members"] if m["status"] == PARTIAL)
            parts.append(f"| {name} | {one['status']} | {short} |")
    refused = [name for name, one in operations.items() if one["status"] == REFUSED]
    parts += ["", "## Refused\n", ", ".join(refused) + ".\n"]
    return "\n".join(parts)


PAGES = {
    "reference/cli.md": cli,
    "reference/codes.md": codes,
    "reference/configuration.md": configuration,
    "coverage.md": coverage,
}


def main() -> int:
    for name, make in PAGES.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
