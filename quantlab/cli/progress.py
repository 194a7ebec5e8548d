"""What is seen while a run works: a line a finished stage and a bar for the one at work; no bar without a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quantlab.pipeline import Silent, Watcher
from quantlab.records import Event

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def watching(quiet: bool = False) -> Iterator[Watcher]:
    """A watcher on standard error, so that standard output stays the result's."""
    if quiet:
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield (watch := Bars(bars))
        watch.finish()


class Bars:
    """Draws on a rich Progress; where there is no terminal, the finished lines still come out."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._now: tuple[str, str] | None = None
        self._since = 0.0

    def stage(self, recipe: str, stage: str, *, cached: bool) -> None:
        self.finish()
        if cached:
            self._line(recipe, stage, "from the ledger")
            return
        self._begin(recipe, stage)

    def event(self, recipe: str, event: Event) -> None:
        if event.kind == "note":
            self.say(f"{recipe}: {event.text}" if recipe else event.text)
            return
        if self._now != (recipe, event.stage):
            self.finish()
            self._begin(recipe, event.stage)
        if self._task is not None:
            total = event.total or None
            self._bars.update(self._task, completed=event.done, total=total, description=self._label(event.text))

    def say(self, text: str) -> None:
        self._bars.console.print(f"  {text}", style="yellow", highlight=False, markup=False)

    def finish(self) -> None:
        """Close the stage at work with a line."""
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        if self._now is not None:
            self._line(*self._now, f"{time.monotonic() - self._since:.1f} s")
            self._now = None

    def _begin(self, recipe: str, stage: str) -> None:
        self._now, self._since = (recipe, stage), time.monotonic()
        self._task = self._bars.add_task(self._label(""), total=None)

    def _label(self, text: str) -> str:
        recipe, stage = self._now or ("", "")
        return f"{recipe:<10} {stage:<11} {text}".rstrip()

    def _line(self, recipe: str, stage: str, text: str) -> None:
        self._bars.console.print(f"{recipe:<10} {stage:<11} {text}", highlight=False, markup=False)
