"""Whether the service that runs here would serve a create now: its own two health checks, asked over HTTP."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from millstream.model.records import Health

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.cli.here import Here

LIMIT_S: Final = 3.0
ANSWER_BYTES_MAX: Final = 65536
NOT_RUNNING: Final = Health(ok=False, code="service.not-running", why="no service runs here", next="millstream serve")


def look(here: Here) -> Health:
    """Ready, or the first reason why not."""
    service = here.service()
    if not service:
        return Health(
            ok=False, code="service.not-running", why=f"no service runs on {here.data}", next="millstream serve"
        )
    return of(service)


def of(service: Mapping[str, object]) -> Health:
    """Both addresses of `run/service.json`."""
    for role in ("api", "edge"):
        found = ask(str(service[role]))
        if not found.ok:
            return found
    return Health(ok=True)


def ask(url: str) -> Health:
    """What `GET /healthz` says at one address. Plain sockets: the service asks itself too, and stays small."""
    try:
        head, _, body = _get(url, "/healthz").partition(b"\r\n\r\n")
    except OSError as error:
        return Health(
            ok=False, code="service.no-answer", why=f"{url} does not answer: {error}", next="see the service's log"
        )
    status = head.split(b" ", 2)[1:2]
    if status == [b"200"]:
        return Health(ok=True)
    try:
        said = json.loads(body)
        return Health(ok=False, code=str(said["code"]), why=str(said.get("why", "")), next=str(said.get("next", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        why = f"{url}/healthz answered {b' '.join(status).decode(errors='replace') or 'nothing'}"
        return Health(ok=False, code="service.not-ready", why=why, next="millstream doctor")


def _get(url: str, path: str) -> bytes:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    connection: socket.socket = socket.create_connection((host, port), timeout=LIMIT_S)
    if parts.scheme == "https":
        import ssl

        # Nothing secret is sent, and the certificate may be the operator's own: whether it answers is the question.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = context.wrap_socket(connection, server_hostname=host)
    with connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while len(answer) < ANSWER_BYTES_MAX and (piece := connection.recv(16384)):
            answer += piece
    return answer
