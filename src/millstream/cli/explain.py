"""`explain`: what anything is called, what it means, and for a resource what it has been through and waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from millstream.cli import names
from millstream.cli.here import Here, Trouble, command, moment, nearest, rfc3339, seconds, table
from millstream.model import codes

if TYPE_CHECKING:
    from millstream.store.store import Store

NOUNS: Final = {
    "image-builder": "A machine with a desktop that is made from an image, worked on, and deleted with all its "
    "capacity. Its name is free again the moment that Describe says not found.",
    "machine": "What a driver holds for a resource: a container (or a simulated row), its volume, address and folder. "
    "Its name at the driver is an id that is never used twice.",
    "image": "What a machine starts from. Base images are built on this host from Debian's packages: "
    "millstream image list.",
    "survey": "One look at all that a driver holds, beside all that the rows know: millstream survey.",
    "step": "One named piece of waiting. Steps are stored, and those of a resource add up to what its owner "
    "waited for.",
    "ticket": "What a streaming URL carries: signed, for one machine, good once and for a limited time.",
    "data folder": "Everything of one service: store, engine, images, machines. Delete it (after the machines are "
    "gone) and nothing is left.",
}
STATES: Final = {
    "PENDING": "It is being made or started; next it is RUNNING, or FAILED with a reason.",
    "UPDATING_AGENT": "Its agent is being replaced by a newer one. Not shown yet.",
    "RUNNING": "Agent and display answer: streaming URLs work.",
    "STOPPING": "It is being shut down; its disk stays.",
    "STOPPED": "It is off. Its disk is kept; StartImageBuilder brings it back as it was.",
    "REBOOTING": "The machine stopped by itself, or its person restarted it; it is being started again.",
    "SNAPSHOTTING": "An image is being made of it. Not shown yet.",
    "DELETING": "Its capacity is being released. It is gone when the driver says so, and what it waits for is shown.",
    "FAILED": "It can't become what was asked for; its errors say why. Delete it.",
}


@command(
    name="explain",
    params=[click.Argument(["what"], nargs=-1, required=True, shell_complete=names.complete)],
    examples=[
        "millstream explain my-builder",
        "millstream explain engine.no-answer",
        "millstream explain RUNNING",
        "millstream explain DeleteImageBuilder",
        "millstream explain listen",
    ],
)
def explain_command(here: Here, *, what: tuple[str, ...]) -> None:
    """Explain a resource, a code, a state, an operation or a setting.

    A resource (by name or ARN): its state, what it waits for, and its timeline, also when it is gone. An operation:
    how much of it works. A setting: its value and where that comes from.
    """
    text = " ".join(what)
    found = _known(here, text) or _resource(here, text)
    if found is None:
        raise _nothing(here, text)
    kind, body, lines = found
    here.answer("explain", {"kind": kind, "name": text, **body}, lines)


Told = tuple[str, dict[str, Any], list[str]]


def _known(here: Here, text: str) -> Told | None:
    """Words of ours and of the API."""
    if text in codes.CODES:
        entry = codes.CODES[text]
        body = {"what": entry.what, "why": entry.why, "next": entry.next, "exit_code": entry.exit}
        lines = [f"{text}: {entry.what}", f"  why    {entry.why}", f"  next   {entry.next}"]
        return "code", body, [*lines, f"  exit   {entry.exit}: {codes.EXITS[entry.exit]}"]
    state = _state(text)
    if state is not None:
        return state
    if text in NOUNS:
        return "noun", {"what": NOUNS[text]}, [f"{text}: {NOUNS[text]}"]
    operation = _operation(text)
    return operation if operation is not None else _setting(here, text)


def _state(text: str) -> Told | None:
    from millstream.lifecycle.machine import STATES as ALL
    from millstream.lifecycle.machine import TRANSITIONS

    if text.upper() not in ALL:
        return None
    state = text.upper()
    what = STATES.get(state, "A state of the API that this service does not show yet.")
    into = [{"from": was or None, "by": by} for was, by, to in TRANSITIONS if to == state]
    out = [{"to": to or "gone", "by": by} for was, by, to in TRANSITIONS if was == state]
    lines = [f"{state}: {what}"]
    lines += table([("from", step["from"] or "nothing", step["by"] or "") for step in into], indent="  ")
    lines += table([("to", step["to"] or "", step["by"]) for step in out], indent="  ")
    return "state", {"what": what, "into": into, "out_of": out}, lines


def _operation(text: str) -> Told | None:
    from millstream.model import shapes

    by_fold = {name.casefold().replace("-", ""): name for name in shapes.OPERATIONS}
    name = by_fold.get(text.casefold().replace("-", "").replace("_", ""))
    if name is None:
        return None
    from millstream.cli.coverage import coverage, member_lines

    one = coverage()["operations"][name]
    errors = sorted(shapes.OPERATIONS[name].errors)
    lines = [f"{name}: {one['status']}" + (f" ({one['why']})" if one["why"] else ""), *member_lines(one)]
    return (
        "operation",
        {"operation": name, **one, "errors": errors},
        [*lines, f"  errors  {', '.join(errors) or 'none of its own'}"],
    )


def _setting(here: Here, text: str) -> Told | None:
    from dataclasses import fields

    from millstream.wiring.settings import Settings, origins

    name = text.removeprefix("--").removeprefix("MILLSTREAM_").replace("-", "_").lower()
    known = {item.name: item for item in fields(Settings)}
    if name not in known:
        return None
    value = getattr(here.serving_settings(), name) if known[name].repr else "***"
    shown = (
        [str(part) for part in value]
        if isinstance(value, tuple)
        else value
        if isinstance(value, (int, float))
        else str(value)
    )
    origin = origins(data=here.given_data, config=here.given_config).get(name, "default")
    text_help = str(known[name].metadata["help"])
    body = {"what": text_help, "value": shown, "origin": origin, "variable": f"MILLSTREAM_{name.upper()}"}
    return "setting", body, [f"{name}: {text_help}", f"  value  {shown!r}", f"  from   {origin}"]


def _resource(here: Here, text: str) -> Told | None:
    if not (here.data / "millstream.db").exists():
        return None
    store = here.store()
    try:
        named = names.resolve(store.read(), text, gone_too=True)
    except Trouble as trouble:
        if trouble.code == "resource.absent":
            return _image(store, text)
        raise
    return _timeline(store, named)


def _image(store: Store, text: str) -> Told | None:
    row = store.read().one("base_image", name=text)
    if row is None:
        return None
    body = {"reference": row["reference"], "digest": row["digest"], "created": rfc3339(row["created"])}
    return (
        "image",
        body,
        [f"{text}: {row['description']}", f"  reference  {row['reference']}", f"  made       {moment(row['created'])}"],
    )


def _timeline(store: Store, named: names.Named) -> Told:
    from millstream.cli.events import cells, shown
    from millstream.store import steps

    tx = store.read()
    told = steps.newest(tx, named.arn, most=1000)
    row = named.row
    body: dict[str, Any] = {"resource": named.arn, "state": row.machine.state if row else "gone"}
    lines = [f"{named.name}: {body['state']}   {named.arn}"]
    if row is not None:
        machine = row.machine
        body |= {
            "wanted": machine.wanted,
            "machine_id": machine.id,
            "image": machine.spec.image,
            "engine_id": row.facts.engine_id,
            "address": row.facts.address,
            "waiting_for": row.waiting,
            "working": row.working,
            "error": {"code": machine.error.code, "message": machine.error.message} if machine.error else None,
        }
        lines.append(f"  wanted    {machine.wanted}   machine {machine.id[:12]} from {machine.spec.image}")
        if row.facts.address:
            lines.append(f"  address   {row.facts.address}")
        if row.working:
            lines.append(f"  in work   since {seconds(time.time() - row.stepped_at)}")
        if row.waiting:
            lines.append(f"  waits for {row.waiting}")
        if machine.error is not None:
            lines.append(f"  error     {machine.error.code}: {machine.error.message}")
    body["timeline"] = [shown(number, step) for number, step in told]
    lines += ["", *table([cells(step, resource=False) for _, step in told], indent="  ")]
    return "resource", body, lines


def _nothing(here: Here, text: str) -> Trouble:
    from dataclasses import fields

    from millstream.model import shapes
    from millstream.wiring.settings import Settings

    known = [*codes.CODES, *STATES, *NOUNS, *shapes.OPERATIONS, *(item.name for item in fields(Settings))]
    if (here.data / "millstream.db").exists():  # last, so that of two words alike the resource is meant
        known += [row["name"] for row in here.store().read().all("builder_names", most=5000)]
    meant = nearest(text, known)
    return Trouble(
        "resource.absent",
        what=f"nothing is called {text}",
        why=(f"did you mean {meant}? " if meant else "")
        + "it is no resource here, code, state, operation, setting or noun",
        next_step=f"millstream explain {meant}" if meant else "millstream help errors",
    )
