"""A data folder with many settled image builders, written in bulk with the documents that the product would write."""

from __future__ import annotations

import random
import sqlite3
import time
from typing import TYPE_CHECKING, Final

import msgspec

from millstream.model import document, names
from millstream.model.identity import Key
from millstream.model.records import Machine, MachineSpec, Wanted
from millstream.store import image_builders
from millstream.store.machines import Facts, MachineRow
from millstream.wiring.build import open_store, root_key, signing_keys
from millstream.wiring.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACCOUNT: Final = "000000000000"
REGION: Final = "us-east-1"
_MARK: Final = "bench-builder-0000000"  # every name is as long as this one, so documents are made by replacing it
_MACHINE: Final = "0" * 32


def fill(folder: Path, builders: int, *, simulated: bool = False) -> tuple[Key, list[str]]:
    """The root key, and up to a thousand of the names in any order.

    With `simulated`, the simulated driver holds the machines too: settled, with nothing to do.
    """
    settings = Settings(data=folder, capacity="simulated")
    store = open_store(settings)
    key = root_key(store, ACCOUNT)
    signing_keys(store)
    store.close()
    connection = sqlite3.connect(folder / "millstream.db", isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO machine (id, owner, wanted, state, spec, asked_at, made, started_at, facts, stepped_at) "
        "VALUES (?, ?, 'RUNNING', 'RUNNING', ?, ?, 1, ?, ?, ?)",
        _machines(builders),
    )
    connection.executemany(
        "INSERT INTO image_builder (account, region, name, arn, machine_id, asked, json, cbor) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        _builders(builders),
    )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    if simulated:
        _hold(folder, builders)
    chosen = random.Random(1).sample(range(builders), min(builders, 1000))
    return key, [_name(at) for at in chosen]


def _name(at: int) -> str:
    return f"bench-builder-{at:07}"


def _row() -> tuple[MachineRow, dict[str, object]]:
    arn = names.arn(REGION, ACCOUNT, "image-builder", _MARK)
    spec = MachineSpec(
        id=_MACHINE,
        owner=arn,
        image="debian-12-desktop",
        vcpus=2,
        memory_bytes=4 * 1024**3,
        disk_bytes=200 * 1000**3,
        internet=False,
        administrator=True,
        agent_version="07-01-2025",
    )
    now = time.time()
    machine = Machine(
        id=_MACHINE,
        owner=arn,
        wanted=Wanted.RUNNING,
        state="RUNNING",
        spec=spec,
        asked_at=now,
        made=True,
        started_at=now,
    )
    facts = Facts("simulated-1", "10.64.0.1", (), "eni-0123456789abcdef0", "07-01-2025")
    asked: dict[str, object] = {
        "Name": _MARK,
        "Arn": arn,
        "ImageArn": "arn:aws:appstream:us-east-1::image/debian-12-desktop",
        "Description": "The desktop on which the accounting applications are installed",
        "DisplayName": "Accounting",
        "InstanceType": "stream.standard.medium",
        "Platform": "UBUNTU_PRO_2404",
        "CreatedTime": now,
        "EnableDefaultInternetAccess": False,
        "AppstreamAgentVersion": "07-01-2025",
        "RootVolumeConfig": {"VolumeSizeInGb": 200},
        "LatestAppstreamAgentVersion": "TRUE",
        "DisableIMDSV1": False,
    }
    return (
        MachineRow(machine, facts, waiting="", stepped_at=now, working=False, due=None),
        asked,
    )


def _machines(count: int) -> Iterator[tuple[object, ...]]:
    row, _ = _row()
    spec, facts = msgspec.json.encode(row.machine.spec).decode(), msgspec.json.encode(row.facts).decode()
    at_s = row.machine.asked_at
    for at in range(count):
        machine_id, name = f"{at:032x}", _name(at)
        own = spec.replace(_MARK, name).replace(_MACHINE, machine_id)
        yield machine_id, row.machine.owner.replace(_MARK, name), own, at_s, at_s, facts, at_s


def _builders(count: int) -> Iterator[tuple[object, ...]]:
    row, asked = _row()
    shown = image_builders.render(asked, row)
    as_json = document.encode_json("ImageBuilder", shown)
    as_cbor = document.encode_cbor("ImageBuilder", shown)
    text, mark = msgspec.json.encode(asked).decode(), _MARK.encode()
    for at in range(count):
        name = _name(at)
        own = name.encode()
        yield (
            ACCOUNT,
            REGION,
            name,
            row.machine.owner.replace(_MARK, name),
            f"{at:032x}",
            text.replace(_MARK, name),
            as_json.replace(mark, own),
            as_cbor.replace(mark, own),
        )


def _hold(folder: Path, count: int) -> None:
    from millstream.capacity.simulated import SimulatedDriver

    SimulatedDriver(folder).close()  # makes its table
    connection = sqlite3.connect(folder / "simulated.db", isolation_level=None)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO held (id, owner, internet, boots, running, ready_at, agent_version) VALUES (?, ?, 0, 1, 1, 0, ?)",
        ((f"{at:032x}", names.arn(REGION, ACCOUNT, "image-builder", _name(at)), "07-01-2025") for at in range(count)),
    )
    connection.execute("COMMIT")
    connection.close()
