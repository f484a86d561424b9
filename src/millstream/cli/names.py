"""From what a person types (`b`, `image-builder/b`, an ARN) to the one resource that is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from millstream.cli.here import Here, Trouble, nearest

if TYPE_CHECKING:
    from millstream.store.machines import MachineRow
    from millstream.store.store import Tx

KIND = "image-builder"


@dataclass(frozen=True, slots=True)
class Named:
    """A resource by its ARN; `row` is None when it is gone and only its timeline is left."""

    arn: str
    row: MachineRow | None

    @property
    def name(self) -> str:
        return self.arn.rpartition("/")[2]


def resolve(tx: Tx, text: str, *, gone_too: bool = False) -> Named:
    """The resource. With `gone_too` also one that only its timeline remembers. Raises Trouble: absent, ambiguous."""
    from millstream.store import machines

    name = text.removeprefix(f"{KIND}/") if not text.startswith("arn:") else text.rpartition("/")[2]
    found = [row for row in tx.all("builders_named", name=name) if not text.startswith("arn:") or row["arn"] == text]
    if len(found) > 1:
        raise Trouble(
            "usage.ambiguous",
            what=f"{len(found)} image builders are named {name}",
            why=", ".join(row["arn"] for row in found),
        )
    if found:
        return Named(found[0]["arn"], machines.get(tx, found[0]["machine_id"]))
    if gone_too:
        past = tx.one("owner_named", name=name)
        if past is not None and (not text.startswith("arn:") or past["owner"] == text):
            return Named(past["owner"], None)
    meant = nearest(name, [row["name"] for row in tx.all("builder_names", most=5000)])
    raise Trouble(
        "resource.absent",
        what=f"there is no image builder {name}",
        why=f"did you mean {meant}?" if meant else "",
    )


def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Live names for the shell; silent when there is nothing to ask."""
    try:
        here = Here(data=ctx.params.get("data"), config=ctx.params.get("config"))
        names = [row["name"] for row in here.store().read().all("builder_names", most=200)]
    except Exception:
        return []
    return [name for name in names if name.startswith(incomplete)]
