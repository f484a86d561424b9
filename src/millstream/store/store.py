"""The memory: SQLite in the data folder. One call, one transaction; calls that arrive together share one commit.

Knows SQL and files; knows nothing of AWS, machines or time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import sqlite3
import threading
import uuid
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")
Row = sqlite3.Row

_HERE: Final = Path(__file__).parent
# How long a writer waits for another role's commit before it says that the store is busy.
BUSY_S: Final = 10.0
# Pages that a reading connection keeps: SQLite's default. The api asks for more, so that the inner pages of a large
# store's trees stay at hand; they are taken as they are needed.
CACHE_BYTES: Final = 2 << 20
# Calls that share one commit: enough that the disk's sync is no limit, few enough that none waits long.
BATCH_MAX: Final = 256


class StoreError(Exception):
    """The store can't be used now, or not by this version. `code` is readable, `next` names one step that helps."""

    def __init__(self, message: str, *, code: str, next_step: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.next = next_step


class Tx:
    """One transaction's hands: named queries with named parameters. Each may raise StoreError."""

    __slots__ = ("_connection", "_queries")

    def __init__(self, connection: sqlite3.Connection, queries: Mapping[str, str]) -> None:
        self._connection = connection
        self._queries = queries

    def one(self, query: str, /, **parameters: object) -> Any:
        """The first row, or None."""
        try:
            return self._connection.execute(self._queries[query], parameters).fetchone()
        except sqlite3.OperationalError as error:
            raise _store_error(error) from error

    def all(self, query: str, /, **parameters: object) -> list[Any]:
        try:
            return self._connection.execute(self._queries[query], parameters).fetchall()
        except sqlite3.OperationalError as error:
            raise _store_error(error) from error

    def tuples(self, query: str, /, **parameters: object) -> list[Any]:
        """As `all`, for pages of documents: rows without names cost a seventh less."""
        cursor = self._connection.cursor()
        cursor.row_factory = None
        try:
            return cursor.execute(self._queries[query], parameters).fetchall()
        except sqlite3.OperationalError as error:
            raise _store_error(error) from error

    def run(self, query: str, /, **parameters: object) -> int:
        """How many rows it changed."""
        try:
            return self._connection.execute(self._queries[query], parameters).rowcount
        except sqlite3.OperationalError as error:
            raise _store_error(error) from error


class Store:
    """One data folder's memory. `write` may be called from any thread; `read` gives each thread its own connection.

    `synchronous`: FULL makes each commit durable against a loss of power before it is acknowledged; NORMAL keeps it
    through any death of a process, and is what the reconciler uses: all that it writes can be seen again.
    """

    def __init__(self, folder: Path, *, synchronous: str = "FULL", cache_bytes: int = CACHE_BYTES) -> None:
        if synchronous not in {"FULL", "NORMAL"}:
            raise ValueError(synchronous)
        self.folder = folder
        self._path = folder / "millstream.db"
        self._synchronous = synchronous
        self._cache_bytes = cache_bytes
        self._queries = _named_queries()
        self._local = threading.local()
        self._queue: queue.SimpleQueue[tuple[Callable[[Tx], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()
        self.commits = 0
        self.commit_hook: Callable[[str], None] = lambda _moment: None  # tests crash here, before and after

    # -- opening -----------------------------------------------------------------------------------------------------

    def open(self, *, adopt: bool = False) -> None:
        """Make or migrate the store. Raises StoreError for one of a newer version, a copy, or a damaged one.

        `adopt`: take a copied or moved data folder for a new one of its own.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = not self._path.exists()
        if fresh:  # made with the right mode before SQLite opens it
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        try:
            with contextlib.closing(self._connect()) as connection:
                self._migrate(connection)
                self._check_home(connection, adopt=adopt)
        except sqlite3.OperationalError as error:  # full, busy, not ours to write: nothing is damaged
            raise _store_error(error) from error
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self._path} can't be read: {error}",
                code="store.damaged",
                next_step="restore the data folder from a backup, or serve with another --data",
            ) from error

    def _migrate(self, connection: sqlite3.Connection) -> None:
        steps = _migrations()
        newest = len(steps)
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > newest:
            raise _newer(self._path, found, newest)
        if found == newest:
            return
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            for number in range(found, newest):
                # All steps in one transaction: an upgrade that is cut off has not happened.
                for statement in _statements(steps[number]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={number + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _check_home(self, connection: sqlite3.Connection, *, adopt: bool) -> None:
        """A folder that was copied would share machines with its original: refused until it is adopted."""
        info = self.folder.stat()
        here = json.dumps([str(self.folder.resolve()), info.st_dev, info.st_ino])
        found = connection.execute(self._queries["meta"], {"key": "home"}).fetchone()
        if found is None or (adopt and found["value"] != here):
            new = {"home": here, "data_id": uuid.uuid4().hex[:12]}
            connection.execute("BEGIN IMMEDIATE")
            for key, value in new.items():
                connection.execute(self._queries["set_meta"], {"key": key, "value": value})
            connection.execute("COMMIT")
        elif found["value"] != here:
            raise StoreError(
                f"{self.folder} is a copy of, or was moved from, {json.loads(found['value'])[0]}; "
                "its machines belong to that folder",
                code="store.copied",
                next_step="move it back, or add --adopt to start it as a folder of its own (without those machines)",
            )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=BUSY_S, cached_statements=256
        )
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self) -> Tx:
        """For one statement: each sees the newest commit. Raises StoreError when no file can be opened."""
        found: Tx | None = getattr(self._local, "tx", None)
        if found is None:
            try:
                connection = self._connect()
                connection.execute("PRAGMA query_only=ON")
                connection.execute(f"PRAGMA cache_size=-{self._cache_bytes >> 10}")
            except sqlite3.OperationalError as error:
                raise _store_error(error) from error
            self._local.connection = connection
            found = self._local.tx = Tx(connection, self._queries)
        return found

    def version(self) -> int:
        """A number that changes, for this thread, with every commit of anybody else's: threads read, others write."""
        return int(self.read().one("version")[0])

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Tx]:
        """For several statements that must see the same moment."""
        tx = self.read()
        connection: sqlite3.Connection = self._local.connection
        connection.execute("BEGIN")
        try:
            yield tx
        finally:
            connection.execute("COMMIT")

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, work: Callable[[Tx], T]) -> Future[T]:
        """Run `work` in a transaction; the future is done when that is committed, or holds what `work` raised.

        `work` may be run once only. Raises nothing itself; the future may hold StoreError (disk full, busy).
        """
        future: Future[T] = Future()
        if self._writer is None:
            with self._starting:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write_loop, name="store", daemon=True)
                    self._writer.start()
        self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Commit what waits, then stop. The calling thread's own connection goes too: none may live through a fork."""
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join()
            self._writer = None
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.__dict__.clear()

    def _write_loop(self) -> None:
        connection: sqlite3.Connection | None = None
        last = False
        while not last:
            batch: list[tuple[Callable[[Tx], Any], Future[Any]]] = []
            item = self._queue.get()
            while True:
                if item is None:
                    last = True
                    break
                # A caller who went away meanwhile (a role that ends) was told nothing: nothing is done.
                if item[1].set_running_or_notify_cancel():
                    batch.append(item)
                if len(batch) == BATCH_MAX:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if not batch:
                continue
            if connection is None:
                try:
                    connection = self._connect()
                except sqlite3.Error as error:  # no file can be opened now: said to these, tried again for the next
                    for _, future in batch:
                        future.set_exception(_store_error(error))
                    continue
            self._commit(connection, Tx(connection, self._queries), batch)
        if connection is not None:
            connection.close()

    def _commit(
        self, connection: sqlite3.Connection, tx: Tx, batch: list[tuple[Callable[[Tx], Any], Future[Any]]]
    ) -> None:
        done: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                connection.execute("SAVEPOINT call")
                try:
                    result, error = work(tx), None
                except BaseException as raised:  # handed to the caller
                    result, error = None, raised
                    if not connection.in_transaction:  # SQLite gave up the whole: disk full, I/O error
                        raise
                    connection.execute("ROLLBACK TO call")
                connection.execute("RELEASE call")
                done.append((future, result, error))
            self.commit_hook("before")
            connection.execute("COMMIT")
            self.commits += 1
            self.commit_hook("after")
        except BaseException as error:  # handed to the callers
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            told = _store_error(error) if isinstance(error, sqlite3.Error) else error
            for _, future in batch:
                future.set_exception(told)
            return
        for future, result, raised_by_work in done:
            if raised_by_work is None:
                future.set_result(result)
            else:
                future.set_exception(raised_by_work)


def _store_error(error: sqlite3.Error) -> StoreError:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return StoreError(f"the store can't be written: {text}", code="store.disk-full", next_step="free disk space")
    if "locked" in text or "busy" in text:
        return StoreError(f"the store is busy: {text}", code="store.busy", next_step="try again")
    return StoreError(f"the store failed: {text}", code="store.failed", next_step="see the log; millstream doctor")


def _newer(path: Path, found: int, newest: int) -> StoreError:
    return StoreError(
        f"{path} was written by a newer Millstream (store version {found}; this one knows {newest})",
        code="store.newer",
        next_step="install that version again, or serve with another --data",
    )


def _named_queries() -> dict[str, str]:
    text = _HERE.joinpath("queries.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    return {
        name: "\n".join(line for line in sql.splitlines() if not line.startswith("--")).strip().rstrip(";")
        for name, sql in zip(parts[1::2], parts[2::2], strict=True)
    }


def _migrations() -> list[str]:
    files = sorted(_HERE.joinpath("migrations").glob("*.sql"))
    return [file.read_text(encoding="utf-8") for file in files]


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip() and not statement.lstrip().startswith("--"):
        raise ValueError(f"a migration ends in the middle of a statement: {statement.strip()[:60]}")
