"""Whether a create would succeed now, asked from any role: the rows, the disk, and whether somebody reconciles."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Final

from millstream.model.records import Health
from millstream.store.store import StoreError

if TYPE_CHECKING:
    from millstream.reconcile.wake import WakeSocket
    from millstream.store.store import Store

STALE_S: Final = 30.0
DISK_FREE_BYTES_MIN: Final = 64 * 1024 * 1024


def of_service(store: Store, wake: WakeSocket, now: float, image: str) -> Health:
    """`image`: the base image that a create needs. Never raises for what an operator can mend."""
    try:
        with store.snapshot() as tx:
            row = tx.one("health", role="reconcile")
            known = tx.one("base_image", name=image)
        free = os.statvfs(store.folder)
    except (StoreError, sqlite3.Error, OSError) as error:
        return Health(ok=False, code="store.failed", why=str(error), next="millstream doctor")
    if free.f_bavail * free.f_frsize < DISK_FREE_BYTES_MIN:
        why = f"the data folder's disk has {free.f_bavail * free.f_frsize >> 20} MiB free; 64 are needed"
        return Health(ok=False, code="store.disk-full", why=why, next="free disk space")
    if row is None or not wake.knock():
        return Health(
            ok=False, code="reconcile.absent", why="no reconcile role answers", next="millstream serve, or reconcile"
        )
    if abs(now - row["at"]) > STALE_S:
        why = f"the reconcile role has not reported for {abs(now - row['at']):.0f} s"
        return Health(ok=False, code="reconcile.stuck", why=why, next="look into its log; millstream doctor")
    if not row["ok"]:
        return Health(ok=False, code=row["code"], why=row["why"], next=row["next"])
    if known is None:
        return Health(ok=False, code="image.none", why=f"there is no base image {image}", next="millstream image build")
    return Health(ok=True)
