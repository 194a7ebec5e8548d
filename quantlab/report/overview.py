"""Several runs on one page: a table over models and recipes, each row a way into its run's own page. Pure.

Nothing is pooled and nothing ranked across runs: a score belongs to its suite, a speed to its device and grid, and
the table names all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlab.records import Cell, Run
from quantlab.report import figures, rows
from quantlab.report.clean import clean, line
from quantlab.report.rows import Row

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Place:
    """One recipe of one run."""

    run: Run
    stem: str
    """File name of its run's page, without the ending."""
    row: Row

    @property
    def kl(self) -> float | None:
        found = self.row.candidate.fidelity
        return found.kl.value if found else None

    @property
    def device(self) -> str:
        timed, gpus = self.row.candidate.throughput, self.run.host.gpus
        return timed.device if timed else gpus[0].name if gpus else "cpu"

    @property
    def speeds(self) -> list[Cell]:
        """The first and the last cell of the grid; one where they are the same."""
        return list({rows.key(cell): cell for cell in self.row.ends if cell is not None}.values())

    @property
    def fastest(self) -> float | None:
        """For sorting: the last cell's speed, where it is valid."""
        last = self.speeds[-1] if self.speeds else None
        return last.tokens_per_second.value if last and last.valid and last.tokens_per_second else None

    @property
    def speed(self) -> str:
        """Tokens a second in the grid's first and last cell."""
        return "; ".join(f"{figures.rate(c, self.row.mark)} at {c.batch}" for c in self.speeds) or figures.NOTHING


def places(runs: Sequence[tuple[str, Run]]) -> list[Place]:
    """All recipes of all runs: models together, the newest run first, recipes as in the run."""
    newest = sorted(runs, key=lambda each: each[1].created, reverse=True)
    ordered = sorted(newest, key=lambda each: each[1].model.word)
    return [Place(run, stem, row) for stem, run in ordered for row in rows.rows(run)]


def summary(runs: Sequence[tuple[str, Run]]) -> str:
    """What the page holds, counted."""
    models = list(dict.fromkeys(run.model.word for _, run in runs))
    found: list[str] = [candidate.verdict.status for _, run in runs for candidate in run.candidates]
    counts = [f"{found.count(status)} {status}" for status in rows.STATUSES if found.count(status)]
    word = "run" if len(runs) == 1 else "runs"
    of = models[0] if len(models) == 1 else f"{len(models)} models"
    return f"{len(runs)} {word} of {of}: {', '.join(counts) or 'no recipe'}."


def to_html(runs: Sequence[tuple[str, Run]]) -> str:
    """One self-contained page that links to its neighbours."""
    from quantlab.report.html import page

    runs = [(stem, clean(run)) for stem, run in runs]
    return page("overview.html", places=places(runs), summary=summary(runs), runs=runs)


HEADER = ["model", "recipe", "verdict", "difference, points", "KL, nats", "size", "tokens/s at batch"]


def _cells(place: Place) -> list[str]:
    row = place.row
    drop = figures.difference(row.difference) or figures.NOTHING
    found = [place.run.model.word, row.name + row.mark, row.status, drop, figures.three(place.kl)]
    return [line(each) for each in [*found, figures.size(row.bytes), place.speed]]


def to_markdown(runs: Sequence[tuple[str, Run]]) -> str:
    """The table, with links."""
    from quantlab.report.markdown import table, text

    runs = [(stem, clean(run)) for stem, run in runs]
    body = [
        [*(text(value) for value in _cells(place)), text(place.device), f"[{text(place.run.created)}]({place.stem}.md)"]
        for place in places(runs)
    ]
    return f"# Precision reports\n\n{text(summary(runs))}\n\n{table([*HEADER, 'device', 'run'], body)}\n"


def plain(runs: Sequence[tuple[str, Run]]) -> list[dict[str, object]]:
    """The table as data, exact and not cleaned; the runs themselves lie beside it, each under its name."""
    return [
        {
            "run": place.stem,
            "created": place.run.created,
            "model": place.run.model.word,
            "engine": place.run.engine,
            "suite": place.run.suite_name,
            "device": place.device,
            "recipe": place.row.name,
            "verdict": place.row.status,
            "difference": place.row.difference,
            "kl_nats": place.kl,
            "bytes": place.row.bytes,
            "numerics": place.row.how,
            "cells": place.speeds,
        }
        for place in places(runs)
    ]


def terminal(runs: Sequence[tuple[str, Run]], console: Console) -> None:
    """The table on a screen."""
    from rich.table import Table
    from rich.text import Text

    runs = [(stem, clean(run)) for stem, run in runs]
    grid = Table(*HEADER, box=None, pad_edge=False)
    for column in grid.columns:
        column.overflow = "fold"
    grid.columns[2].min_width = max(map(len, rows.STATUSES))
    for place in places(runs):
        grid.add_row(*(Text(value) for value in _cells(place)))
    console.print(grid)
    console.print(Text(line(summary(runs))))
