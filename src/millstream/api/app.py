"""One call, from bytes to bytes: route, signature, decode, validate, handler in one transaction, answer.

Reads answer at once on the loop. Writes are handed to the store's writer, where calls that arrive together share
one commit; their answers go out when it is durable.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from millstream.api import signature, wire_query
from millstream.api.answers import Answers
from millstream.api.http import Request, Response
from millstream.api.route import route, unbuilt
from millstream.api.throttle import Throttle
from millstream.api.validate import validate
from millstream.model.errors import (
    InternalFailure,
    ServiceError,
    ServiceUnavailableException,
    ThrottlingException,
    UnknownRouteException,
)
from millstream.model.identity import Key, Secret
from millstream.resources.call import Call, Page, Service
from millstream.store.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from millstream.api.wire import Wire
    from millstream.model.identity import Identity
    from millstream.model.operation import Operation
    from millstream.model.records import Health
    from millstream.store.store import Store, Tx

log = logging.getLogger("millstream.api")

# A revoked key is refused within this time, in every process.
KEY_CACHE_S: Final = 0.5
KEY_CACHE_MAX: Final = 1000
STORE_TOLD_S: Final = 1.0  # between two lines about a store in trouble: each caller would bring one, without a key, too
_FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"forwarded", b"via")
_BUCKETS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Keys:
    """Access keys by id, remembered for half a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[str, Key | None] = {}
        self._until = 0.0

    def find(self, key_id: str) -> Key | None:
        now = time.monotonic()
        if now >= self._until:
            self._held.clear()
            self._until = now + KEY_CACHE_S
        if key_id in self._held:
            return self._held[key_id]
        row = self._store.read().one("key", key_id=key_id)
        key = None
        if row is not None and row["revoked"] is None:
            token = row["session_token"]
            key = Key(
                row["key_id"],
                Secret(row["secret"]),
                row["account"],
                row["principal"],
                Secret(token) if token else None,
                row["expires"],
            )
        if len(self._held) < KEY_CACHE_MAX:
            self._held[key_id] = key
        return key


class App:
    """The programs' application, as the HTTP server calls it."""

    def __init__(
        self,
        store: Store,
        service: Service,
        *,
        knock: Callable[[], bool],
        health: Callable[[], Health],
        clock: Callable[[], float] = time.time,
        skew_s: float = signature.SKEW_S,
        throttle: Throttle | None = None,
        answers_kept: int = 512,
        metrics_token: str = "",
    ) -> None:
        self.store = store
        self.service = service
        self.clock = clock
        self.skew_s = skew_s
        self.keys = Keys(store)
        self.throttle = throttle or Throttle()
        self.answers = Answers(store, answers_kept)
        self.metrics_token = metrics_token
        self.knock = knock
        self.health = health
        self.door: Any = None  # the server's counters, for the metrics page
        self.calls: dict[tuple[str, str, str], int] = {}  # wire, operation, outcome
        self.seconds: dict[str, list[float]] = {}  # operation: buckets, sum, count
        self.unknown_members = 0
        self._store_told_at = float("-inf")
        # Request ids are UUIDs: this process's own part, then a count. Names to search the log by, not hard to guess.
        life = secrets.token_hex(9)
        self._life = f"{life[:8]}-{life[8:12]}-4{life[12:15]}-a{life[15:18]}-"
        self._requests = secrets.randbits(40)

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        path = request.target.partition(b"?")[0]
        if request.method == b"GET" and path in {b"/healthz", b"/metrics"}:
            return self._operator(path, request)
        self._requests += 1
        request_id = f"{self._life}{self._requests:012x}"
        if wire_query.speaks_query(request):
            return self._sts(request, request_id)
        wire, operation = route(request.method, path, request.fields)
        if isinstance(operation, UnknownRouteException):
            return self._refuse(wire, "-", operation, request_id)
        try:
            identity = signature.verify(request, self.keys.find, self.clock(), service="appstream", skew_s=self.skew_s)
        except ServiceError as error:
            return self._refuse(wire, "-", error, request_id)
        except StoreError as error:
            return self._refuse(wire, "-", self._unavailable(error, request_id), request_id)
        if isinstance(operation, ServiceError):
            return self._refuse(wire, "-", operation, request_id, identity)
        if not self.throttle.admits(identity.key_id, reads=operation.reads):
            # Counted but not logged: a flood of calls is to be no flood of lines.
            self._count(wire, operation.name, ThrottlingException.code, None)
            return wire.error(ThrottlingException("Rate exceeded"), request_id)
        try:
            return self._call(wire, operation, identity, request.body, request_id)
        except ServiceError as error:
            return self._refuse(wire, operation.name, error, request_id, identity)
        except StoreError as error:
            return self._refuse(wire, operation.name, self._unavailable(error, request_id), request_id, identity)

    def _call(
        self, wire: Wire, operation: Operation[Any, Any], identity: Identity, body: bytes, request_id: str
    ) -> Response | Awaitable[Response]:
        began = time.perf_counter()
        question = (wire.NAME, operation.name, identity.account, identity.region, body)
        if operation.reads and (known := self.answers.find(question)) is not None:
            self._count(wire, operation.name, "ok", began)
            return wire.answer(known, request_id)
        document, unknown = wire.decode(operation, body)
        if unknown:
            # As the real service does: what it does not know it does not look at. It is counted and logged.
            self.unknown_members += len(unknown)
            log.info(
                "unknown members", extra={"operation": operation.name, "members": [name[:100] for name in unknown[:20]]}
            )
        validate(operation, document)
        handler = operation.handler
        if handler is None:
            raise unbuilt(operation)

        def work(tx: Tx) -> bytes:
            call = Call(tx, identity, self.clock(), request_id, self.service, wire.NAME)
            result = handler(call, document)
            if isinstance(result, Page):
                return wire.join(result.member, result.documents, result.next_token)
            return wire.encode(operation, result)

        if operation.reads:
            body = work(self.store.read())
            self.answers.keep(question, body)
            self._count(wire, operation.name, "ok", began)
            return wire.answer(body, request_id)
        return self._write(wire, operation, identity, work, request_id, began)

    async def _write(
        self,
        wire: Wire,
        operation: Operation[Any, Any],
        identity: Identity,
        work: Callable[[Tx], bytes],
        request_id: str,
        began: float,
    ) -> Response:
        """The answer when the commit is durable; then whoever reconciles is woken."""
        try:
            body = await asyncio.wrap_future(self.store.write(work))
        except ServiceError as error:
            return self._refuse(wire, operation.name, error, request_id, identity)
        except StoreError as error:
            return self._refuse(wire, operation.name, self._unavailable(error, request_id), request_id, identity)
        except Exception:
            log.exception("call", extra={"request_id": request_id, "operation": operation.name})
            told = InternalFailure(f"An internal error. The log has the details under request id {request_id}.")
            return self._refuse(wire, operation.name, told, request_id, identity)
        self.knock()
        self._count(wire, operation.name, "ok", began)
        log.info(
            "call",
            extra={
                "request_id": request_id,
                "operation": operation.name,
                "account": identity.account,
                "key_id": identity.key_id,
                "ms": round((time.perf_counter() - began) * 1000, 1),
            },
        )
        return wire.answer(body, request_id)

    def _refuse(
        self, wire: Wire, operation: str, error: ServiceError, request_id: str, identity: Identity | None = None
    ) -> Response:
        self._count(wire, operation, error.code, None)
        # Who has no key fills no disk: what is refused before its signature is right is counted, and no line at info.
        log.log(
            logging.INFO if identity else logging.DEBUG,
            "refused",
            extra={
                "request_id": request_id,
                "operation": operation,
                "code": error.code,
                "key_id": identity.key_id if identity else "",
            },
        )
        return wire.error(error, request_id)

    def _sts(self, request: Request, request_id: str) -> Response:
        outcome = "ok"
        try:
            identity = signature.verify(
                request, self.keys.find, self.clock(), service=wire_query.SERVICE, skew_s=self.skew_s
            )
            if not self.throttle.admits(identity.key_id, reads=True):
                raise ThrottlingException("Rate exceeded")
            answer = wire_query.answer(request, identity, request_id)
        except ServiceError as error:
            outcome, answer = error.code, wire_query.refuse(error, request_id)
        except StoreError as error:
            told = self._unavailable(error, request_id)
            outcome, answer = told.code, wire_query.refuse(told, request_id)
        key = ("query", "GetCallerIdentity" if outcome == "ok" else "-", outcome)
        self.calls[key] = self.calls.get(key, 0) + 1
        return answer

    def _unavailable(self, error: StoreError, request_id: str) -> ServiceUnavailableException:
        """The store can't be read or written now: said to the caller, who tries again, and to the log once a second."""
        now = time.monotonic()
        if now >= self._store_told_at + STORE_TOLD_S:
            self._store_told_at = now
            log.warning("store", extra={"request_id": request_id, "code": error.code, "why": str(error)})
        return ServiceUnavailableException(f"{error} ({error.code}). Try again.")

    # -- what operators read -----------------------------------------------------------------------------------------

    def _count(self, wire: Wire, operation: str, outcome: str, began: float | None) -> None:
        key = (wire.NAME, operation, outcome)
        self.calls[key] = self.calls.get(key, 0) + 1
        if began is None:
            return
        took_s = time.perf_counter() - began
        row = self.seconds.get(operation)
        if row is None:
            row = self.seconds[operation] = [0.0] * (len(_BUCKETS_S) + 3)
        row[bisect_left(_BUCKETS_S, took_s)] += 1
        row[-2] += took_s
        row[-1] += 1

    def _operator(self, path: bytes, request: Request) -> Response:
        if path == b"/healthz":
            health = self.health()
            told = json.dumps({"ok": health.ok, "code": health.code, "why": health.why, "next": health.next})
            return Response(200 if health.ok else 503, [("content-type", "application/json")], told.encode())
        if not self._may_read_metrics(request):
            return Response(403, [("content-type", "text/plain")], b"metrics are for this host, or with the token\n")
        return Response(200, [("content-type", "text/plain; version=0.0.4")], self.metrics().encode())

    def _may_read_metrics(self, request: Request) -> bool:
        """For this host, or with the token. What a proxy on this host passes on is not this host's."""
        given = request.fields.get(b"authorization", b"")
        if self.metrics_token and hmac.compare_digest(given, b"Bearer " + self.metrics_token.encode()):
            return True
        near = request.peer.startswith("127.") or request.peer == "::1"
        return near and not any(name in request.fields for name in _FORWARDED)

    def metrics(self) -> str:
        """Prometheus text."""
        lines = ["# TYPE millstream_api_calls_total counter"]
        for (wire, operation, outcome), count in sorted(self.calls.items()):
            lines.append(
                f'millstream_api_calls_total{{wire="{wire}",operation="{operation}",outcome="{outcome}"}} {count}'
            )
        lines.append("# TYPE millstream_api_call_seconds histogram")
        for operation, row in sorted(self.seconds.items()):
            label, total = f'operation="{operation}"', 0.0
            for bound, in_bucket in zip(_BUCKETS_S, row, strict=False):
                total += in_bucket
                lines.append(f'millstream_api_call_seconds_bucket{{{label},le="{bound}"}} {total:.0f}')
            lines.append(f'millstream_api_call_seconds_bucket{{{label},le="+Inf"}} {row[-1]:.0f}')
            lines.append(f"millstream_api_call_seconds_sum{{{label}}} {row[-2]:.6f}")
            lines.append(f"millstream_api_call_seconds_count{{{label}}} {row[-1]:.0f}")
        lines += ["# TYPE millstream_machines gauge"]
        lines += [f'millstream_machines{{state="{state}"}} {count}' for state, count in self.store.read().all("states")]
        lines += [
            "# TYPE millstream_store_commits_total counter",
            f"millstream_store_commits_total {self.store.commits}",
            "# TYPE millstream_api_unknown_members_total counter",
            f"millstream_api_unknown_members_total {self.unknown_members}",
            "# TYPE millstream_up gauge",
            f"millstream_up {int(self.health().ok)}",
        ]
        row = self.store.read().one("health", role="reconcile")
        for name, value in json.loads(row["figures"] if row is not None else "{}").items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE millstream_reconcile_{name} {kind}", f"millstream_reconcile_{name} {value}"]
        if self.door is not None:
            lines += ["# TYPE millstream_http_refused_total counter"]
            lines += [
                f'millstream_http_refused_total{{status="{status}"}} {count}'
                for status, count in sorted(self.door.counters.refused.items())
            ]
        return "\n".join(lines) + "\n"
