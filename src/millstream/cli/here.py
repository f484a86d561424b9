"""What every command stands on: where the data is, how answers and errors are said, how the rest is reached."""

from __future__ import annotations

import functools
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.model import codes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from millstream.capacity.driver import Driver
    from millstream.store.store import Store
    from millstream.wiring import Settings


class Trouble(Exception):  # noqa: N818 - reads as what it is where it is raised
    """An error as people read it: `code` of `model.codes`, what is the matter, why, and one step that helps."""

    def __init__(self, code: str, *, what: str = "", why: str = "", next_step: str = "") -> None:
        entry = codes.of(code)
        super().__init__(what or entry.what)
        self.code = code
        self.what = what or entry.what
        self.why = why or entry.why
        self.next = next_step or entry.next
        self.exit = entry.exit


class Here:
    """One call of the command line: its common options, and the roads to settings, store, driver and service."""

    def __init__(self, *, as_json: bool = False, data: str | None = None, config: str | None = None) -> None:
        self.as_json = as_json
        self.given_data = data
        self.given_config = config

    def settings(self, **flags: Any) -> Settings:
        """Raises SettingsError."""
        from millstream import wiring

        given = {"data": self.given_data, "config": self.given_config, **flags}
        return wiring.settings(**{name: value for name, value in given.items() if value is not None})

    def serving_settings(self, **flags: Any) -> Settings:
        """As `settings`, but with the capacity, engine and addresses of the service that runs here, if one does."""
        found = self.service()
        names = ("capacity", "engine", "listen", "tls_certificate", "tls_key")
        known = {name: found[name] for name in names if found.get(name)}
        if found.get("edge_listen"):
            known["edge"] = found["edge_listen"]
        return self.settings(**(known | flags))

    @property
    def data(self) -> Path:
        return Path(self.settings().data)

    def store(self) -> Store:
        """The store of a data folder that exists: no command makes one by looking. Raises Trouble, StoreError."""
        from millstream import wiring

        settings = self.settings()
        if not (Path(settings.data) / "millstream.db").exists():
            raise Trouble(
                "store.absent",
                why=f"{settings.data} holds no store",
                next_step=f"millstream serve --data {settings.data}, or name the right folder with --data",
            )
        return wiring.open_store(settings, role="command")

    def driver(self) -> Driver:
        from millstream import wiring

        return wiring.make_driver(self.serving_settings())

    def service(self) -> dict[str, Any]:
        """What the service that runs here says of itself, or {} when none does."""
        return service_of(self.data)

    def answer(self, schema: str, body: dict[str, Any], lines: Iterable[str]) -> None:
        """The answer on stdout: `lines` for people, one object for programs."""
        if self.as_json:
            print(json.dumps({"schema": f"millstream.{schema}/1", **body}, ensure_ascii=False), flush=True)
        else:
            for line in lines:
                print(line, flush=True)


def service_of(data: Path) -> dict[str, Any]:
    """`run/service.json`, if the process that wrote it lives."""
    try:
        found: dict[str, Any] = json.loads((data / "run" / "service.json").read_bytes())
        with suppress(PermissionError):  # it lives, as somebody else
            os.kill(int(found["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def talk(text: str = "") -> None:
    """To people, beside the answer."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), indent: str = "") -> list[str]:
    """Aligned columns without borders."""
    everything = ([list(head)] if head and rows else []) + [list(row) for row in rows]
    if not everything:
        return []
    widths = [max(len(row[column]) for row in everything) for column in range(len(everything[0]))]
    return [
        (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in everything
    ]


def seconds(value: float) -> str:
    """A duration for people: `0.14 s`, `12 s`, `1 min 37 s`, `3 h 2 min`."""
    if value < 9.995:
        return f"{value:.2f} s" if value < 0.9995 else f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(at: float, *, now: float | None = None) -> str:
    """A time for people: `3 min ago` on a terminal, RFC 3339 elsewhere."""
    import time

    if sys.stdout.isatty():
        ago = (time.time() if now is None else now) - at
        if 0 <= ago < 48 * 3600:
            return "now" if ago < 1 else f"{seconds(float(int(ago))).replace('.0', '')} ago"
    return rfc3339(at)


def rfc3339(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(value: float) -> str:
    """Bytes for people: `590 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit in {"B", "kB", "MB"} else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or nothing."""
    import difflib

    by_fold = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(word.casefold(), by_fold, n=1, cutoff=0.5)
    return by_fold[found[0]] if found else ""


# -- commands --------------------------------------------------------------------------------------------------------

WIDTH: Final = 88


class Command(click.Command):
    """A command whose help reads: what it does, how it is called, options, examples. Plain text, one width."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def get_help(self, ctx: click.Context) -> str:
        formatter = click.HelpFormatter(width=WIDTH, max_width=WIDTH)
        self.format_help(ctx, formatter)
        return formatter.getvalue().rstrip("\n")

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  {example}\n")


class Group(Command, click.Group):
    """A command made of commands, like `keys`."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise unknown_command(f"{ctx.command_path} {name}", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        click.Group.format_options(self, ctx, formatter)


def unknown_command(shown: str, name: str, known: Iterable[str]) -> Trouble:
    meant = nearest(name, known)
    path = shown[: -len(name)]
    return Trouble(
        "usage.unknown",
        what=f"there is no command {shown.removeprefix('millstream ')!r}",
        why=f"did you mean {meant!r}?" if meant else "it is none of those that help lists",
        next_step=f"{path}{meant}" if meant else "millstream --help",
    )


JSON = click.Option(["--json", "as_json"], is_flag=True, help="One JSON object on stdout instead of text.")
DATA = click.Option(
    ["--data"],
    metavar="DIR",
    help="The data folder. Default: $MILLSTREAM_DATA or ~/.local/share/millstream.",
)
CONFIG = click.Option(["--config"], metavar="FILE", help="A configuration file (TOML).")
COMMON = (DATA, CONFIG, JSON)


def command(
    group: Group | None = None, *, name: str, examples: Sequence[str] = (), params: Sequence[click.Parameter] = ()
) -> Callable[[Callable[..., int | None]], Command]:
    """Make a command of `def f(here, …) -> exit code or None`, with the common options after its own."""

    def make(function: Callable[..., int | None]) -> Command:
        @functools.wraps(function)
        def call(*, as_json: bool, data: str | None, config: str | None, **values: Any) -> int:
            return function(Here(as_json=as_json, data=data, config=config), **values) or 0

        made = Command(
            name,
            callback=call,
            help=function.__doc__,
            short_help=(function.__doc__ or "").strip().split("\n")[0].rstrip("."),
            params=[*params, *COMMON],
            examples=examples,
        )
        if group is not None:
            group.add_command(made)
        return made

    return make
