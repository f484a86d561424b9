"""Image builders as rows: the document that Describe answers is kept ready for both wires."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from millstream.model import document

if TYPE_CHECKING:
    from millstream.model import shapes as aws
    from millstream.store.machines import MachineRow
    from millstream.store.store import Tx


def render(asked: dict[str, Any], row: MachineRow) -> aws.ImageBuilder:
    """The document of one image builder: what was asked for, and what its machine has come to.

    `asked` holds the members that do not change while the machine moves.
    """
    shown: dict[str, Any] = dict(asked)
    machine, facts = row.machine, row.facts
    shown["State"] = machine.state
    if facts.address and machine.state not in {"STOPPED", "PENDING"}:
        shown["NetworkAccessConfiguration"] = {
            "EniPrivateIpAddress": facts.address,
            "EniId": facts.interface_id,
        }
        if facts.addresses6:
            shown["NetworkAccessConfiguration"]["EniIpv6Addresses"] = list(facts.addresses6)
    if machine.error is not None:
        shown["ImageBuilderErrors"] = [
            {
                "ErrorCode": machine.error.code,
                "ErrorMessage": machine.error.message,
                "ErrorTimestamp": machine.error.at,
            }
        ]
        if machine.state == "FAILED":
            gone = machine.error.code == "IMAGE_NOT_FOUND"
            shown["StateChangeReason"] = {
                "Code": "IMAGE_UNAVAILABLE" if gone else "INTERNAL_ERROR",
                "Message": machine.error.message,
            }
    return shown  # type: ignore[return-value]  # built member by member; the wire tests hold it to the shape


def asked_of(tx: Tx, machine_id: str) -> tuple[int, dict[str, Any]] | None:
    row = tx.one("builder_of_machine", machine_id=machine_id)
    return (row["id"], msgspec.json.decode(row["asked"])) if row is not None else None


def save(tx: Tx, builder_id: int, asked: dict[str, Any], row: MachineRow) -> aws.ImageBuilder:
    """Write the document anew for both wires."""
    shown = render(asked, row)
    tx.run(
        "save_builder",
        id=builder_id,
        asked=msgspec.json.encode(asked).decode(),
        json=document.encode_json("ImageBuilder", shown),
        cbor=document.encode_cbor("ImageBuilder", shown),
    )
    return shown


def refresh(tx: Tx, row: MachineRow) -> None:
    """After the executor changed a machine: its image builder's document follows, in the same transaction."""
    found = asked_of(tx, row.machine.id)
    if found is not None:
        save(tx, found[0], found[1], row)
