"""What a person reads when there is no picture, and the fixed table of files behind the one that shows it."""

from __future__ import annotations

import hashlib
import html
import json
import mimetypes
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millstream.gateway.session import Target

_FOLDER = Path(__file__).parent / "static"
_SERVED = frozenset((".js", ".css", ".svg"))
_DOING = {
    "PENDING": "is starting",
    "UPDATING_AGENT": "is updating its agent",
    "UPDATING": "is being updated",
    "REBOOTING": "is restarting",
    "SNAPSHOTTING": "is being made into an image",
    "STOPPING": "is shutting down",
    "STOPPED": "is stopped",
    "DELETING": "is being deleted",
    "FAILED": "has failed",
    "PENDING_QUALIFICATION": "is being qualified",
    "PENDING_SYNCING_APPS": "is waiting for its applications",
    "SYNCING_APPS": "is getting its applications",
    "PENDING_IMAGE_IMPORT": "is importing its image",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """A page without a picture: its status, its readable code, what happened, what next."""

    status: int
    code: str
    title: str
    text: str
    next: str = ""
    ended_at: int | None = None  # shown in the reader's own time zone
    wait: bool = False  # the page looks again by itself


_NEW_LINK = "Ask whoever gave you this link for a new one."

UNKNOWN = Notice(404, "edge.not-found", "There is nothing here", "This address leads to no page of this service.")
WRONG_HOST = Notice(
    421,
    "edge.wrong-host",
    "Not at this name",
    "This service doesn't answer to the name in the address bar.",
    "Open it at the address that its operator has set.",
)
NO_TICKET = Notice(
    403,
    "ticket.missing",
    "This desktop opens with a link",
    "A desktop is opened with a link made for one person.",
    "Open the link that you were given; it works once. If you did, ask for a new one.",
)
FORGED = Notice(
    403,
    "ticket.forged",
    "This link isn't whole",
    "The link was cut off or changed on its way, so it can't be trusted.",
    "Copy the whole link again. " + _NEW_LINK,
)
FOREIGN = Notice(403, "ticket.foreign", "This link isn't for this desktop", "It was made for another one.", _NEW_LINK)
USED = Notice(
    410,
    "ticket.used",
    "This link has been used",
    "A link opens one desktop in one browser, once. This one was opened before, perhaps by you in another browser.",
    "Go back to that browser, or ask for a new link: opening it here takes the desktop over.",
)
WITHDRAWN = Notice(
    403,
    "ticket.withdrawn",
    "This link was withdrawn",
    "The access key that it was made with is no longer valid.",
    _NEW_LINK,
)
EARLIER_RUN = Notice(
    403,
    "ticket.earlier-run",
    "The desktop was restarted since",
    "Your way in was for its earlier run.",
    _NEW_LINK,
)
GONE = Notice(410, "machine.gone", "This desktop is gone", "It was deleted, and nothing of it is kept.")
TOO_MANY = Notice(
    429,
    "ticket.too-many-wrong",
    "Too many wrong links",
    "Too many links that aren't whole came from your network.",
    "Wait a minute. A right link still works.",
)
FULL = Notice(
    503,
    "edge.full",
    "Too many desktops at once",
    "This edge shows as many desktops as it may.",
    "Try again in a minute.",
)
TOO_OFTEN = Notice(
    429,
    "edge.too-often",
    "Opened too often",
    "This desktop was opened too many times within a minute.",
    "Try again in a minute.",
)
NOT_NOW = Notice(
    503,
    "edge.not-now",
    "Not now",
    "The service can't look up this desktop at the moment.",
    "Try again in a minute.",
    wait=True,
)
BUG = Notice(500, "edge.bug", "That went wrong", "It is our mistake; the log says more.", "Try again.")
METHOD = Notice(405, "edge.method", "Not like this", "This address doesn't take that kind of request.")
FOREIGN_PAGE = Notice(
    403, "edge.foreign-origin", "Not from there", "Another web page asked for this desktop, so it was refused."
)


def expired(at: int) -> Notice:
    return Notice(
        410, "ticket.expired", "This link has expired", "This link worked until {time}.", _NEW_LINK, ended_at=at
    )


def not_running(target: Target) -> Notice:
    """Why there is no picture of a machine that exists."""
    if not target.display:
        return Notice(
            501,
            "machine.no-display",
            f"{target.name} has no display",
            "This service runs with simulated capacity: the API does all that it does with real machines, but there is "
            "no machine behind it and so no desktop to show.",
            "For a real desktop start the service with --capacity containers.",
        )
    doing = _DOING.get(target.state, f"is {target.state.lower().replace('_', ' ')}")
    what_next = (
        "This page opens the desktop by itself as soon as it runs."
        if target.coming
        else "Ask whoever runs it to start it, then open a new link."
    )
    return Notice(409, "machine.not-running", f"{target.name} {doing}", target.reason, what_next, wait=target.coming)


class Pages:
    """All that a browser can load. Reads its files once; there is no listing and no path to walk."""

    def __init__(self, prefix: str) -> None:
        files = {
            path.relative_to(_FOLDER).as_posix(): path.read_bytes()
            for path in sorted(_FOLDER.rglob("*"))
            if path.suffix in _SERVED and path.is_file()
        }
        # The folder's name is its content's digest: cached for ever, never stale after an upgrade.
        digest = hashlib.sha256(b"".join(hashlib.sha256(body).digest() for body in files.values())).hexdigest()[:12]
        self.files = {
            f"/static/{digest}/{name}": (body, mimetypes.guess_type(name)[0] or "application/octet-stream")
            for name, body in files.items()
        }
        static = f"{prefix}/static/{digest}"
        modules = (name for name in files if name.startswith("novnc/"))
        preload = "\n".join(f'<link rel="modulepreload" href="{static}/{name}">' for name in modules)
        self._notice = Template((_FOLDER / "notice.html").read_text("utf-8")).safe_substitute(static=static)
        self._stream = Template((_FOLDER / "stream.html").read_text("utf-8")).safe_substitute(
            static=static, preload=preload
        )

    def stream(self, target: Target, *, clipboard_bytes_max: int, view_only: bool) -> str:
        return Template(self._stream).substitute(
            name=html.escape(target.name),
            clipboard_bytes_max=clipboard_bytes_max,
            view_only="true" if view_only else "false",
        )

    def notice(self, notice: Notice) -> str:
        return Template(self._notice).substitute(
            title=html.escape(notice.title),
            text=_with_time(html.escape(notice.text), notice.ended_at),
            next=html.escape(notice.next),
            code=html.escape(notice.code),
            wait="true" if notice.wait else "false",
        )


def as_json(notice: Notice) -> str:
    """The same for a page that is already open."""
    return json.dumps(
        {
            "code": notice.code,
            "title": notice.title,
            "text": notice.text,
            "next": notice.next,
            "ended_at": notice.ended_at,
        }
    )


def _with_time(text: str, at: int | None) -> str:
    if at is None:
        return text
    when = time.gmtime(min(at, 253_402_300_799))  # the last second of the year 9999
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", when)
    return text.replace("{time}", f'<time datetime="{stamp}">{time.strftime("%Y-%m-%d %H:%M", when)} UTC</time>')
