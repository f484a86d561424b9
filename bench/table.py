"""Figures and how they are shown."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `ratio` is compared with `wanted` as `sense` says."""

    name: str
    ours: str
    floor: str
    ratio: float | None
    wanted: float | None
    sense: str = "<="
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.ratio is None or self.wanted is None:
            return None
        return self.ratio <= self.wanted if self.sense == "<=" else self.ratio >= self.wanted

    @property
    def verdict(self) -> str:
        match self.met:
            case None:
                return "shown" if self.ratio is not None else "not measured"
            case True:
                return "met"
            case False:
                assert self.ratio is not None
                assert self.wanted is not None
                factor = self.ratio / self.wanted if self.sense == "<=" else self.wanted / self.ratio
                return f"missed by {factor - 1:.0%}"

    def row(self) -> list[str]:
        ratio = "" if self.ratio is None else f"{self.ratio:.3g}"
        wanted = "" if self.wanted is None else f"{'≤' if self.sense == '<=' else '≥'} {self.wanted:g}"
        return [self.name, self.ours, self.floor, ratio, wanted, self.verdict]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


HEAD = ["figure", "ours", "floor", "ratio", "wanted", "verdict"]


def as_text(figures: Iterable[Figure]) -> str:
    shown = list(figures)
    rows = [HEAD, *(figure.row() for figure in shown)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    lines = []
    for row, figure in zip(rows, [None, *shown], strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if figure is not None and figure.note:
            lines.append(f"    {figure.note}")
    return "\n".join(lines)


def as_markdown(figures: Iterable[Figure]) -> str:
    shown = list(figures)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(figure.row()) + " |" for figure in shown]
    notes = [f"- {figure.name}: {figure.note}" for figure in shown if figure.note]
    return "\n".join([*lines, "", *notes])


def median(values: Iterable[float]) -> float:
    return statistics.median(values)
