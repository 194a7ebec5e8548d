"""The baseline's scores held against published ones: a note for the reader, never a failure. Pure.

The baseline is the one number of a run that somebody else has measured too. When it is far off, both precisions were
probably asked wrongly, and their difference is one of wrong questions. When it is close, that is no proof, but the
usual faults (template, shots, cut prompts, another checkpoint) are unlikely: each of them costs more than 3 points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantlab.records import Accuracy, PublishedScore, Suite, SuiteTask, TaskScore

POINTS = 3.0
"""Gap that ordinary differences of prompts and rounding do not explain."""


def notes(baseline: Accuracy, suite: Suite, scores: Sequence[tuple[PublishedScore, float]]) -> Iterator[str]:
    """One sentence for every task of the suite whose score was published for the same number of shots.

    Args:
        baseline: the 16-bit baseline's scores.
        suite: which was asked.
        scores: what was published, with this model's figure in percent.
    """
    for task in suite.tasks:
        parts = [score for score in baseline.tasks if task.task in (score.task, score.group)]
        for row, percent in scores:
            if parts and row.task == task.task and {part.shots for part in parts} == {row.shots}:
                yield _note(task, parts, row, percent)


def _note(task: SuiteTask, parts: Sequence[TaskScore], row: PublishedScore, percent: float) -> str:
    """A group is the mean of its tasks, each weighing the same, as Meta's macro average."""
    own = 100 * sum(part.score.value for part in parts) / len(parts)
    gap = own - percent
    place = "within" if abs(gap) <= POINTS else "outside"
    some = f", first {task.limit} items only" + (" of each task" if len(parts) > 1 else "") if task.limit else ""
    text = (
        f"Baseline {row.benchmark} ({task.task}, {row.shots}-shot{some}): {own:.1f} %{_spread(parts)} against "
        f"{percent:g} % published by {row.publisher}, {gap:+.1f} points, {place} {POINTS:g} points."
    )
    if ways := _ways(parts[0].metric, row):
        text += f" The two count differently: {ways}."
    elif place == "outside":
        text += " Check chat template, shots, metric and weights before believing a difference."
    return f"{text} Source: {row.source}"


def _spread(parts: Sequence[TaskScore]) -> str:
    errors = [part.score.standard_error for part in parts]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return ""
    return f" ± {100 * sum(error**2 for error in known) ** 0.5 / len(errors):.1f}"


def _ways(metric: str, row: PublishedScore) -> str:
    """What makes the two numbers different quantities, in words."""
    other = f"{metric} here, {row.stated} there" if row.metric not in (None, metric) else ""
    return "; ".join(filter(None, (row.differs, other)))
