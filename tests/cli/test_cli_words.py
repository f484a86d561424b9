"""What a newcomer reads: every command has help, a place in the docs, the common options; help is quick."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from millstream.cli.main import COMMANDS, root, run
from millstream.model import codes

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "help"


def every_command(group: click.Group = root, path: str = "millstream") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from every_command(command, f"{path} {name}")


ALL = dict(every_command())
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}


def page(path: str) -> str:
    words = path.split()[1:]
    context = click.Context(root, info_name="millstream")
    command: click.Command = root
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None
        command, context = found, click.Context(found, info_name=word, parent=context)
    return command.get_help(context) + "\n"


@pytest.mark.parametrize("path", ["millstream", *ALL])
def test_help_pages_are_reviewed(path: str) -> None:
    golden = GOLDEN / f"{path.replace(' ', '-')}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(page(path), encoding="utf-8")
    assert page(path) == golden.read_text(encoding="utf-8"), "UPDATE_GOLDEN=1 writes it anew"


def test_no_golden_page_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {path.replace(" ", "-") for path in ["millstream", *ALL]}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_page_says_what_the_command_says(name: str) -> None:
    command = ALL[f"millstream {name}"]
    said = (command.help or "").strip().split("\n")[0].rstrip(".")
    assert COMMANDS[name][2] == said


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_takes_the_common_options_and_shows_an_example(path: str) -> None:
    command = LEAVES[path]
    options = {option for param in command.params for option in param.opts}
    assert {"--json", "--data", "--config"} <= options
    assert all(param.help for param in command.params if isinstance(param, click.Option) and param.metavar != "TYPE")
    assert command.examples  # type: ignore[attr-defined]  # ours


@pytest.mark.parametrize("path", ["millstream", *ALL])
def test_help_fits_a_terminal_of_eighty_eight(path: str) -> None:
    assert [line for line in page(path).splitlines() if len(line) > 88] == []


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_and_option_stands_in_the_reference(path: str) -> None:
    reference = (REPOSITORY / "docs/reference/cli.md").read_text(encoding="utf-8")
    section = reference.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
    assert section
    for param in LEAVES[path].params:
        if isinstance(param, click.Option):
            assert param.opts[0] in section


def cpu_s(*arguments: str) -> float:
    """CPU time of one run, the least of five: what else runs on this machine costs none of it."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took)


def test_the_first_help_page_takes_a_tenth_of_a_second() -> None:
    assert cpu_s("-m", "millstream.cli.main", "--help") - cpu_s("-c", "pass") <= 0.1


@pytest.mark.parametrize(
    "words", [["--help"], ["keys", "create", "--help"], ["explain", "--help"], ["completion", "bash"]]
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from millstream.cli.main import run; run(sys.argv[1:]);"
        "heavy = {'aiohttp', 'botocore', 'docker', 'sqlite3', 'uvloop', 'msgspec'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("topic", ["exit-codes", "errors", "environment", "accessibility", "settings"])
def test_topics(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", topic]) == 0
    said = capsys.readouterr().out
    wanted = {
        "exit-codes": map(str, codes.EXITS),
        "errors": codes.CODES,
        "environment": ["MILLSTREAM_LISTEN", "NO_COLOR"],
    }
    assert all(word in said for word in wanted.get(topic, [""]))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_MILLSTREAM_COMPLETE" in capsys.readouterr().out
