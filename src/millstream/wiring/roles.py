"""The three roles, each runnable alone: api (programs), edge (people), reconcile (machines).

Each loads what it needs when it runs: what is imported at the top here, all of them and their watcher hold in memory.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from typing import TYPE_CHECKING

from millstream.model.records import Health
from millstream.reconcile.health import of_service
from millstream.reconcile.wake import WakeSocket
from millstream.wiring.build import make_driver, make_service, open_store, ticket_keys
from millstream.wiring.confine import confine
from millstream.wiring.settings import Settings, SettingsError, address

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable, Coroutine
    from typing import Any

    from millstream.gateway.session import Target
    from millstream.store.store import Store, Tx

log = logging.getLogger("millstream.role")


def api(settings: Settings, ready: Callable[[], None]) -> None:
    """Answer programs until SIGTERM. Raises OSError, StoreError."""
    import millstream.resources  # noqa: F401 - registers the handlers
    from millstream.api.app import App
    from millstream.api.server import Door, Limits
    from millstream.api.throttle import Throttle

    tls = tls_context(settings)  # read while its files can be seen
    confine("api", settings)
    store = open_store(settings, role="api")
    wake = WakeSocket(run_folder(settings))
    app = App(
        store,
        make_service(settings, store),
        knock=wake.knock,
        health=lambda: of_service(store, wake, time.time(), settings.image),
        skew_s=settings.skew_s,
        metrics_token=settings.metrics_token,
        answers_kept=settings.answers_kept,
        throttle=Throttle(reads_per_s=settings.throttle_reads_per_s, writes_per_s=settings.throttle_writes_per_s),
    )
    app.door = door = Door(app, Limits(hosts=frozenset(settings.hosts)))
    host, port = address(settings.listen)

    async def main(stop: asyncio.Event) -> None:
        await door.serve(host, port, tls=tls, ready=ready, stop=stop)

    _run(main)
    store.close()


def edge(settings: Settings, ready: Callable[[], None]) -> None:
    """Carry people's streams until SIGTERM. Raises OSError, StoreError."""
    from millstream.capacity.registry import STREAMS
    from millstream.gateway.server import serve
    from millstream.gateway.session import EdgeSettings

    tls = tls_context(settings)
    confine("edge", settings)
    store = open_store(settings, role="edge")
    wake = WakeSocket(run_folder(settings))
    host, port = address(settings.edge)
    edge_settings = EdgeSettings(
        host=host,
        port=port,
        public_url=settings.edge_url,
        tls=tls,
        hosts=settings.hosts,
        proxies=settings.proxies,
        metrics_token=settings.metrics_token,
    )
    sessions = StoredSessions(
        store,
        lambda: of_service(store, wake, time.time(), settings.image),
        display=settings.capacity != "simulated",
    )

    async def main(stop: asyncio.Event) -> None:
        await serve(edge_settings, sessions, STREAMS[settings.capacity](settings.data), ready, stop)

    _run(main)
    store.close()


def reconcile(settings: Settings, ready: Callable[[], None]) -> None:
    """Bring machines to what is wanted until SIGTERM. The only role that holds the engine."""
    from millstream.lifecycle.machine import Limits
    from millstream.reconcile.loop import Reconciler

    confine("reconcile", settings)
    store = open_store(settings, role="reconcile")
    driver = make_driver(settings)
    limits = Limits(start_s=settings.start_s, silent_s=settings.silent_s, attempts_s=settings.attempts_s)
    reconciler = Reconciler(store, driver, limits=limits, threads=settings.threads)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    WakeSocket(run_folder(settings)).listen(reconciler.wake)
    thread = threading.Thread(target=reconciler.run, args=(ready,), name="reconcile")
    thread.start()
    while thread.is_alive() and not stopping.is_set():
        stopping.wait(0.5)
    reconciler.stop()
    thread.join()
    driver.end()
    store.close()


ROLES = {"api": api, "edge": edge, "reconcile": reconcile}


class StoredSessions:
    """The gateway's view of the rows. See `millstream.gateway.session.Sessions`."""

    def __init__(self, store: Store, health: Callable[[], Health], *, display: bool) -> None:
        self._store = store
        self._health = health
        self._display = display

    def target(self, machine_id: str) -> Target | None:
        from millstream.gateway.session import Target

        row = self._store.read().one("stream_target", machine_id=machine_id)
        if row is None:
            return None
        wanted_running = row["wanted"] == "RUNNING"
        return Target(
            machine_id=machine_id,
            name=row["name"],
            account=row["account"],
            state=row["state"],
            generation=f"{row['started_at'] or 0:.6f}",
            running=wanted_running and row["state"] == "RUNNING",
            reason=json.loads(row["error"])["message"] if row["error"] else "",
            coming=wanted_running and row["state"] in {"PENDING", "REBOOTING", "UPDATING_AGENT"},
            display=self._display,
        )

    def key_alive(self, key_id: str) -> bool:
        row = self._store.read().one("key", key_id=key_id)
        return row is not None and row["revoked"] is None

    def ticket_keys(self) -> tuple[bytes, ...]:
        return ticket_keys(self._store.read())

    def use_ticket(self, nonce: str, expires_at: int) -> bool:
        return self._store.write(lambda tx: tx.run("use_ticket", nonce=nonce, expires=expires_at) == 1).result()

    def seen(self, machine_id: str, viewers: int, last_input: float | None) -> None:
        def work(tx: Tx) -> None:
            tx.run("set_viewing", machine_id=machine_id, viewers=viewers, last_input=last_input, at=time.time())

        self._store.write(work).result()

    def health(self) -> Health:
        return self._health()


def run_folder(settings: Settings) -> Any:
    folder = settings.data / "run"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The context that both addresses speak TLS with. Raises SettingsError for files that don't do."""
    if not settings.tls_certificate:
        return None
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"{settings.tls_certificate} and {settings.tls_key} can't be used: {error}",
            next_step="give a PEM certificate and its own key",
        ) from error
    return context


def _run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run until SIGTERM or SIGINT."""
    import asyncio

    import uvloop

    async def until_told() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    uvloop.run(until_told())
