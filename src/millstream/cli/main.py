"""`millstream`: finds the command, loads nothing else, and turns what goes wrong into four lines and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from millstream.cli.here import WIDTH, Group, Trouble, nearest, talk
from millstream.model import codes

if TYPE_CHECKING:
    from collections.abc import Sequence

# Word, group of the help page, module, what it does. The sentence stands here too so that help loads no command; a
# test holds it to the command's own.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "serve": ("start", "serve", "Run the service: api, edge and reconcile"),
    "demo": ("start", "demo", "Tell the main job as a story: a desktop from nothing to nothing"),
    "doctor": ("start", "doctor", "Say what this host has and lacks, and the command that mends it"),
    "env": ("start", "access", "Print the variables that point AWS tools at this service"),
    "events": ("see", "events", "Show what happened, step by step, with times"),
    "explain": ("see", "explain", "Explain a resource, a code, a state, an operation or a setting"),
    "survey": ("see", "survey", "Hold what the drivers hold beside what the rows know"),
    "coverage": ("see", "coverage", "List every operation and member: works, partial or refused"),
    "wait": ("see", "wait", "Wait until a resource is in a state, or the service is ready"),
    "api": ("run", "serve", "Run the api role alone: the programs' door"),
    "edge": ("run", "serve", "Run the edge role alone: the people's door"),
    "reconcile": ("run", "serve", "Run the reconcile role alone: the only one that holds the engine"),
    "keys": ("access", "access", "Make, import, list, revoke and replace access keys"),
    "image": ("images", "image", "Build, list and remove base images"),
    "fault": ("test", "fault", "Make the next step of a resource fail on purpose"),
    "help": ("help", "help", "Help on a command, or on a topic such as exit-codes"),
    "completion": ("help", "help", "Print the completion script of bash, zsh or fish"),
}


class Root(Group):
    """All commands by name; one is imported when it is called or asked for its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"millstream.cli.{COMMANDS[cmd_name][1]}")
        return getattr(module, f"{cmd_name}_command")  # type: ignore[no-any-return]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        lines = ["Millstream: your own application streaming, driven by the Amazon AppStream 2.0 API.", ""]
        lines += ["Usage: millstream COMMAND [OPTIONS]", ""]
        last = ""
        for name, (group, _, text) in COMMANDS.items():
            lines.append(f"{group if group != last else '':<9}{name:<12}{text}")
            last = group
        lines += [
            "",
            "Every command takes --help, --json and --data DIR (default ~/.local/share/millstream).",
            "Begin with: millstream serve, and in another shell: millstream demo",
        ]
        formatter.write("\n".join(lines) + "\n")


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from millstream import __version__

        print(f"millstream {__version__}")
        ctx.exit()


root = Root(
    "millstream",
    no_args_is_help=False,
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
        )
    ],
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(given))


def run(arguments: list[str]) -> int:
    """The exit code of one command line."""
    try:
        result = root.main(
            args=arguments or ["--help"],
            prog_name="millstream",
            standalone_mode=False,
            max_content_width=WIDTH,
        )
        sys.stdout.flush()
    except BrokenPipeError:  # `millstream events | head`: whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, click.Abort):
        talk()
        return codes.INTERRUPTED
    except BaseException as error:  # the outermost layer: everything becomes four lines
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        trouble = translate(error)
        tell(trouble, as_json="--json" in arguments)
        return trouble.exit
    return result if isinstance(result, int) else 0


def translate(error: BaseException) -> Trouble:
    """Any error as one that people can read."""
    match error:
        case Trouble():
            return error
        case click.UsageError():
            return _usage(error)
        case click.exceptions.FileError():
            return Trouble("usage.not-file", what=error.format_message())
        case PermissionError():
            return Trouble("access.denied", why=f"{error.filename or error}: permission denied")
    # Errors of the other floors say what they know: a code, a sentence, one step. They are told apart by these, so
    # that no floor is loaded only to be named here.
    code = getattr(error, "code", None)
    if isinstance(code, str) and code in codes.CODES:
        return Trouble(code, why=str(getattr(error, "why", "") or error), next_step=str(getattr(error, "next", "")))
    return _bug(error)


def _usage(error: click.UsageError) -> Trouble:
    path = error.ctx.command_path if error.ctx is not None else "millstream"
    next_step = f"{path} --help"
    if isinstance(error, click.NoSuchOption):
        known = [name for param in error.ctx.command.params for name in param.opts] if error.ctx is not None else []
        meant = nearest(error.option_name, known)
        return Trouble(
            "usage.unknown",
            what=f"{path.removeprefix('millstream ')} has no option {error.option_name}",
            why=f"did you mean {meant}?" if meant else "it is none of those that help lists",
            next_step=next_step,
        )
    text = error.format_message().rstrip(".")
    return Trouble("usage.wrong", why=text[:1].lower() + text[1:], next_step=next_step)


def _bug(error: BaseException) -> Trouble:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="millstream-", suffix=".trace", delete=False) as file:
        traceback.print_exception(error, file=file)
    return Trouble(
        "bug.unexpected",
        why=f"{type(error).__name__}: {str(error)[:200]}",
        next_step=f"report it with {file.name}",
    )


def tell(trouble: Trouble, *, as_json: bool) -> None:
    """The four lines, or the object, on stderr."""
    number = os.urandom(3).hex()
    if as_json:
        body: dict[str, Any] = {
            "schema": "millstream.error/1",
            "code": trouble.code,
            "what": trouble.what,
            "why": trouble.why,
            "next": trouble.next,
            "more": f"millstream explain {trouble.code}",
            "exit_code": trouble.exit,
            "id": number,
        }
        talk(json.dumps(body, ensure_ascii=False))
        return
    talk(f"error {trouble.code}: {trouble.what}")
    talk(f"  why    {trouble.why}")
    talk(f"  next   {trouble.next}")
    talk(f"  more   millstream explain {trouble.code}   (id {number})")


if __name__ == "__main__":
    main()
