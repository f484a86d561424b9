"""Whether the service that runs here would serve a create now: its own two health checks, asked over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from millstream.model.records import Health

if TYPE_CHECKING:
    from millstream.cli.here import Here

LIMIT_S: Final = 3.0


def look(here: Here) -> Health:
    """Ready, or the first reason why not."""
    service = here.service()
    if not service:
        return Health(False, "service.not-running", f"no service runs on {here.data}", "millstream serve")
    for role in ("api", "edge"):
        found = ask(str(service[role]))
        if not found.ok:
            return found
    return Health(ok=True)


def ask(url: str) -> Health:
    """What `GET /healthz` says at one address."""
    import http.client
    import ssl
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # Nothing secret is sent, and the certificate may be the operator's own: whether it answers is the question.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 - as above
        connection = http.client.HTTPSConnection(host, port, timeout=LIMIT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + "/healthz")
        answer = connection.getresponse()
        body = answer.read(65536)
    except (OSError, http.client.HTTPException) as error:
        return Health(False, "service.no-answer", f"{url} does not answer: {error}", "see the service's log")
    finally:
        connection.close()
    if answer.status == 200:
        return Health(ok=True)
    try:
        said = json.loads(body)
        return Health(False, str(said["code"]), str(said.get("why", "")), str(said.get("next", "")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Health(False, "service.not-ready", f"{url}/healthz answered {answer.status}", "millstream doctor")
