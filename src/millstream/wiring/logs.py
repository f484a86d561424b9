"""Logs on stderr: one line an event, its facts as fields. Secrets have no text, so none can get in."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Json(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "role": self.role,
            "event": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _Text(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        facts = "  ".join(f"{name}={_plain(value)}" for name, value in _facts(record).items() if value != "")
        line = f"{_rfc3339(record.created)} {self.role:9} {record.levelname.lower():7} {record.getMessage()}  {facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line.rstrip()


def set_up(role: str, form: str, level: str) -> None:
    """Log to stderr as `form` (text, json, auto) from `level` on."""
    json_form = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(role) if json_form else _Text(role))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("millstream").setLevel(level.upper())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _plain(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text, ensure_ascii=False)


def _rfc3339(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03}Z"
