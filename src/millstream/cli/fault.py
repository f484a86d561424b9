"""`fault`: make the next step of a resource fail in a named way, so that every state and error can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli import names
from millstream.cli.here import Group, Here, Trouble, command, nearest, table
from millstream.lifecycle.actions import FAULT_STEPS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from millstream.store.store import Row, Tx

MOMENTS: Final = ("before", "after", "refused")
DEFAULT_ERROR: Final = "INTERNAL_SERVICE_ERROR"

fault_command = Group("fault", help="Make the next step of a resource fail on purpose.")


def _error_codes() -> tuple[str, ...]:
    from millstream.model.shapes import SHAPES

    values: tuple[str, ...] = SHAPES["FleetErrorCode"].values  # type: ignore[union-attr]  # an enumeration of the model
    return values


class Word(click.ParamType[str]):
    """One of a few words; a misspelt one is refused with the nearest."""

    name = "word"

    def __init__(self, kind: str, words: tuple[str, ...]) -> None:
        self.kind = kind
        self.words = words

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        if value in self.words:
            return str(value)
        meant = nearest(str(value), self.words)
        raise Trouble(
            "usage.unknown",
            what=f"there is no {self.kind} {value}",
            why=(f"did you mean {meant}? " if meant else "") + f"There are {', '.join(self.words)}",
            next_step="millstream fault add --help",
        )

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


@command(
    fault_command,
    name="add",
    params=[
        click.Argument(["resource"], shell_complete=names.complete),
        click.Argument(["step"], type=Word("step", FAULT_STEPS)),
        click.Argument(["moment"], type=Word("moment", MOMENTS), default="before"),
        click.Option(["--times"], type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="How often."),
        click.Option(
            ["--error-code"],
            metavar="CODE",
            help=f"With refused: the API's error code that the resource shows. Default: {DEFAULT_ERROR}.",
        ),
        click.Option(["--message"], help="The sentence that goes with it."),
        click.Option(
            ["--region"], metavar="REGION", help="For a name that is not taken yet. Default: the configured one."
        ),
    ],
    examples=[
        "millstream fault add my-builder release before --times 2",
        "millstream fault add my-builder start refused --error-code SUBNET_NOT_FOUND",
        "millstream fault add '*' acquire after",
    ],
)
def fault_add(
    here: Here,
    *,
    resource: str,
    step: str,
    moment: str,
    times: int,
    error_code: str | None,
    message: str | None,
    region: str | None,
) -> None:
    """Make the next STEP of RESOURCE fail.

    RESOURCE is a name (also one that is yet to be created), image-builder/NAME, an ARN, or '*' for whichever comes
    first. STEP: acquire, start, desktop, stop, release. MOMENT: before (not taken), after (taken, but its answer was
    lost) or refused (never: the resource goes FAILED). What fails before or after is tried again by itself, and so is
    every release, whatever it met.
    """
    if error_code is not None and moment != "refused":
        raise Trouble("usage.wrong", why="--error-code goes with refused: what is only put off shows no error code")
    code = error_code or DEFAULT_ERROR
    if code not in _error_codes():
        meant = nearest(code, _error_codes())
        raise Trouble(
            "usage.unknown",
            what=f"the API has no error code {code}",
            why=f"did you mean {meant}?" if meant else "",
            next_step="millstream explain CreateImageBuilder",
        )
    store = here.store()
    owner = _owner(here, store.read(), resource, region)
    text = message or f"A fault on request: {step} {moment}."

    def work(tx: Tx) -> Row:
        tx.run("add_fault", owner=owner, step=step, moment=moment, error_code=code, message=text, times=times)
        row: Row = tx.all("faults")[-1]
        return row

    row = store.write(work).result()
    here.answer("fault", shown(row), [f"fault {row['id']}: {_sentence(row)}"])


def _owner(here: Here, tx: Tx, resource: str, region: str | None) -> str:
    if resource == "*":
        return resource
    name = resource.removeprefix(f"{names.KIND}/")
    try:
        if region is None:
            return names.resolve(tx, resource).arn
    except Trouble as trouble:
        if trouble.code != "resource.absent":
            raise
    if resource.startswith("arn:"):
        return resource
    settings = here.settings()
    return f"arn:aws:appstream:{region or settings.region}:{settings.account}:{names.KIND}/{name}"


def shown(row: Row) -> dict[str, Any]:
    return {
        "number": row["id"],
        "resource": row["owner"],
        "step": row["step"],
        "moment": row["moment"],
        "error_code": row["error_code"] if row["moment"] == "refused" else None,
        "message": row["message"],
        "times": row["times"],
    }


def _sentence(row: Row) -> str:
    what = {
        "before": "fails before it is taken",
        "after": "is taken, but its answer is lost",
        "refused": f"is refused with {row['error_code']}",
    }[row["moment"]]
    often = "the next time" if row["times"] == 1 else f"the next {row['times']} times"
    return f"{row['step']} of {row['owner']} {what}, {often}"


@command(fault_command, name="list", examples=["millstream fault list"])
def fault_list(here: Here) -> None:
    """List the faults that wait to happen."""
    rows = here.store().read().all("faults")
    lines = table(
        [
            (str(row["id"]), row["owner"].rpartition(":")[2], row["step"], row["moment"], str(row["times"]))
            for row in rows
        ],
        head=("FAULT", "RESOURCE", "STEP", "MOMENT", "TIMES"),
    )
    here.answer("faults", {"faults": [shown(row) for row in rows]}, lines)


@command(
    fault_command,
    name="clear",
    params=[click.Argument(["number"], type=int, required=False)],
    examples=["millstream fault clear", "millstream fault clear 3"],
)
def fault_clear(here: Here, *, number: int | None) -> None:
    """Forget one fault by its number, or all."""
    cleared = here.store().write(lambda tx: tx.run("drop_faults", id=number)).result()
    if number is not None and not cleared:
        raise Trouble("fault.absent", what=f"there is no fault {number}")
    here.answer("faults_cleared", {"cleared": cleared}, [f"cleared {cleared}"])
