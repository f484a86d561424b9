"""Put together what the roles and the commands need: store, keys, driver."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

from millstream.capacity.registry import DRIVERS
from millstream.model.agent import AGENT_VERSION
from millstream.model.identity import Key, Secret
from millstream.store.store import CACHE_BYTES, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.capacity.driver import Driver
    from millstream.resources.call import Service
    from millstream.store.store import Tx
    from millstream.wiring.settings import Settings


def open_store(settings: Settings, *, role: str = "command", adopt: bool = False) -> Store:
    """The data folder's store, made or migrated. Raises StoreError.

    The reconciler's commits need no sync of their own: all that it writes can be seen again.
    """
    store = Store(
        settings.data,
        synchronous="NORMAL" if role == "reconcile" else settings.synchronous,
        cache_bytes=16 << 20 if role == "api" else CACHE_BYTES,
    )
    store.open(adopt=adopt)
    return store


def make_driver(settings: Settings) -> Driver:
    """The capacity driver. Raises CapacityError when its engine can't be had."""
    options: dict[str, Any] = {}
    if settings.capacity == "simulated":
        options = {
            name: getattr(settings, f"simulated_{name}") for name in ("acquire_s", "start_s", "stop_s", "release_s")
        }
    return DRIVERS[settings.capacity](settings.data, settings.engine or None, options)


def root_key(store: Store, account: str) -> Key:
    """The root key, made at the first start. It is in the store and nowhere else."""

    def work(tx: Tx) -> str:
        found = tx.one("meta", key="root_key")
        if found is not None:
            return str(found["value"])
        return new_root_key(tx, account).key_id

    key_id = store.write(work).result()
    row = store.read().one("key", key_id=key_id)
    return Key(row["key_id"], Secret(row["secret"]), row["account"], row["principal"])


def new_root_key(tx: Tx, account: str) -> Key:
    """Make the key that is the root key from now on. The one before it is not touched."""
    key = new_key(tx, account, "root", principal=f"arn:aws:iam::{account}:root")
    tx.run("set_meta", key="root_key", value=key.key_id)
    return key


def new_key(
    tx: Tx,
    account: str,
    name: str,
    *,
    principal: str = "",
    key_id: str = "",
    secret: str = "",
    expires_at: float | None = None,
    now: Callable[[], float] = time.time,
) -> Key:
    """Make a key, or keep one that was brought along. With `expires_at` it is temporary and has a session token."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
    temporary = expires_at is not None
    key = Key(
        key_id or ("ASIA" if temporary else "AKIA") + "".join(secrets.choice(alphabet) for _ in range(16)),
        Secret(secret or secrets.token_urlsafe(30)),
        account,
        principal or f"arn:aws:iam::{account}:user/{name}",
        Secret(secrets.token_urlsafe(96)) if temporary else None,
        expires_at,
    )
    tx.run(
        "add_key",
        key_id=key.key_id,
        secret=key.secret.reveal(),
        account=account,
        name=name,
        principal=key.principal_arn,
        session_token=key.session_token.reveal() if key.session_token else None,
        created=now(),
        expires=expires_at,
    )
    return key


def signing_keys(store: Store) -> tuple[list[bytes], bytes]:
    """The ticket keys, the one in use first, and the key of page tokens; made at the first start."""

    def work(tx: Tx) -> tuple[list[bytes], bytes]:
        if tx.one("meta", key="ticket_keys") is None:
            tx.run("set_meta", key="ticket_keys", value=json.dumps([secrets.token_hex(32)]))
            tx.run("set_meta", key="token_key", value=secrets.token_hex(32))
        return list(ticket_keys(tx)), bytes.fromhex(tx.one("meta", key="token_key")["value"])

    return store.write(work).result()


def ticket_keys(tx: Tx) -> tuple[bytes, ...]:
    """The keys that tickets are checked with, the one in use first; two while rotating."""
    return tuple(bytes.fromhex(text) for text in json.loads(tx.one("meta", key="ticket_keys")["value"]))


def make_service(settings: Settings, store: Store) -> Service:
    """What the API's handlers need to know of the settings."""
    from millstream.resources.call import Service

    tickets, tokens = signing_keys(store)
    return Service(
        public_url=settings.edge_url,
        ticket_key=tickets[0],
        token_key=tokens,
        agent_version=AGENT_VERSION,
        default_image=settings.image,
        aliases=settings.image_aliases,
        image_builders_max=settings.image_builders_max,
    )
