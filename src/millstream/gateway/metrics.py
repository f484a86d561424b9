"""Counters of one edge, as Prometheus reads them. Labels are words of ours, never a caller's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

_HELP = {
    "millstream_edge_messages_total": "Messages by engine, way, kind and verdict (passed, or why not).",
    "millstream_edge_bytes_total": "Bytes to (down) and from (up) viewers.",
    "millstream_edge_refused_total": "People not let in, by reason.",
    "millstream_edge_streams_total": "Streams opened.",
    "millstream_edge_closed_total": "Streams ended, by reason.",
    "millstream_edge_paused_total": "Times a machine was paused for a slow viewer.",
    "millstream_edge_errors_total": "Requests that failed by our own mistake.",
}


class Metrics:
    """`count("refused", reason="forged")`, then `text()`."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        self._counts[f"millstream_edge_{name}_total", tuple(labels.items())] += n

    def text(self, gauges: Mapping[str, float]) -> str:
        lines = []
        for name, help_text in _HELP.items():
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} counter"]
            for (counted, labels), n in sorted(self._counts.items()):
                if counted == name:
                    inside = ",".join(f'{key}="{value}"' for key, value in labels)
                    lines.append(f"{name}{{{inside}}} {n}" if inside else f"{name} {n}")
        for name, value in gauges.items():
            lines += [f"# TYPE millstream_edge_{name} gauge", f"millstream_edge_{name} {value:g}"]
        return "\n".join(lines) + "\n"
