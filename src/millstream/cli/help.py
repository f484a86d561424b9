"""`help` and `completion`: text that needs no service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from millstream.cli.here import Here, Trouble, command, nearest, table
from millstream.model import codes

if TYPE_CHECKING:
    from collections.abc import Callable

SHELLS: Final = ("bash", "zsh", "fish")


def _exit_codes() -> list[str]:
    return ["What a command's exit code means:", "", *table([(str(c), t) for c, t in codes.EXITS.items()], indent="  ")]


def _errors() -> list[str]:
    lines = [
        "Every error has a code, and four lines on standard error: what, why, next, more.",
        "With --json it is one object on standard error with the same parts.",
        "millstream explain CODE says more. The codes:",
        "",
    ]
    return lines + table([(code, entry.what) for code, entry in codes.CODES.items()], indent="  ")


def _environment() -> list[str]:
    from dataclasses import fields

    from millstream.wiring.settings import Settings

    lines = [
        "A setting comes from the command line, else from MILLSTREAM_NAME, else from the file of",
        "--config (TOML, or MILLSTREAM_CONFIG), else it has its default. The settings:",
        "",
    ]
    rows = [(f"MILLSTREAM_{item.name.upper()}", str(item.metadata["help"])) for item in fields(Settings)]
    lines += table(rows, indent="  ")
    return [
        *lines,
        "",
        "Also: NO_COLOR, ACCESSIBLE=1 or TERM=dumb keep progress to lines that are only added;",
        "MILLSTREAM_IMAGE_CACHE names a folder where built base images are shared by data folders.",
    ]


def _accessibility() -> list[str]:
    return [
        "Output is plain text without colour, borders or pager; nothing is said by position alone.",
        "Progress is drawn over only on a terminal. With ACCESSIBLE=1 (or NO_COLOR, TERM=dumb, or when",
        "standard error is no terminal) it comes as lines that are only added: when a step starts, every",
        "10 s while it goes on, and when it ends.",
        "No command asks a question without a terminal, and every question has an option that answers it.",
    ]


TOPICS: Final[dict[str, Callable[[], list[str]]]] = {
    "exit-codes": _exit_codes,
    "errors": _errors,
    "environment": _environment,
    "settings": _environment,
    "accessibility": _accessibility,
}


@command(
    name="help",
    params=[click.Argument(["topic"], nargs=-1)],
    examples=["millstream help", "millstream help exit-codes", "millstream help keys create"],
)
def help_command(here: Here, *, topic: tuple[str, ...]) -> None:
    """Help on a command, or on a topic such as exit-codes.

    Topics: exit-codes, errors, environment, settings, accessibility.
    """
    from millstream.cli.main import COMMANDS, root

    if len(topic) == 1 and topic[0] in TOPICS:
        lines = TOPICS[topic[0]]()
    else:
        found: click.Command = root
        context = click.Context(root, info_name="millstream")
        for word in topic:
            inner = found.get_command(context, word) if isinstance(found, click.Group) else None
            if inner is None:
                meant = nearest(word, [*COMMANDS, *TOPICS])
                raise Trouble(
                    "usage.unknown",
                    what=f"there is no help on {' '.join(topic)}",
                    why=f"did you mean {meant}?" if meant else "",
                    next_step=f"millstream help {meant}".rstrip(),
                )
            found, context = inner, click.Context(inner, info_name=word, parent=context)
        lines = found.get_help(context).splitlines()
    here.answer("help", {"topic": " ".join(topic), "text": "\n".join(lines)}, lines)


@command(
    name="completion",
    params=[click.Argument(["shell"], type=click.Choice(SHELLS))],
    examples=[
        'eval "$(millstream completion bash)"                                    in ~/.bashrc',
        "millstream completion fish > ~/.config/fish/completions/millstream.fish",
    ],
)
def completion_command(here: Here, *, shell: str) -> None:
    """Print the completion script of bash, zsh or fish.

    It completes commands, options, states and the names of what exists now.
    """
    from click.shell_completion import get_completion_class

    from millstream.cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None
    maker = kind(root, {}, "millstream", "_MILLSTREAM_COMPLETE")
    script = maker.source_template % maker.source_vars()
    here.answer("completion", {"shell": shell, "script": script}, script.splitlines())
