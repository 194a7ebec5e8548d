"""Model -> published scores. A baseline that is far from what its maker published is measured wrongly, more often than
not: another template, other shots, a prompt that was cut. So the figures stand in a file, each with its source.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantlab.catalog import strict
from quantlab.catalog.files import builtin
from quantlab.catalog.models import models
from quantlab.catalog.strict import Complaint
from quantlab.records import Model, Published, PublishedScore

FILE = Path("evals/published.yaml")


def published_scores(model: Model) -> tuple[tuple[PublishedScore, float], ...]:
    """(row, percent of `model`), in the order of the file; none for a model that the catalog does not know.

    The file in the working directory goes before the built-in one.

    Raises:
        BadInput: a fault in the file, with line and field.
    """
    word = next((each.word for each in models() if _same(each, model)), None)
    return tuple((row, row.percent[word]) for row in everything().accuracy if word in row.percent)


def everything() -> Published:
    """The whole file. Raises BadInput."""
    return strict.load(FILE if FILE.is_file() else builtin() / FILE, Published, sense)


def sense(record: Published) -> Iterator[Complaint]:
    """A score is a share of a known model with a page that says so; a task without a name cannot be held against."""
    known = [each.word for each in models()]
    for index, row in enumerate(record.accuracy):
        for word, value in row.percent.items():
            if word not in known:
                hint = strict.nearest(word, known)
                yield ("accuracy", index, "percent"), f"no model is called {word!r}.", hint
            if not 0 <= value <= 100:
                yield ("accuracy", index, "percent"), f"{value} is not a score in percent.", "Write 49.3 for 49.3 %."
        if not row.source.startswith("https://"):
            yield ("accuracy", index, "source"), "is no page.", "Write the URL of the page that states the score."
        if row.shots < 0:
            yield ("accuracy", index, "shots"), f"{row.shots} is too small.", "The least is 0."
        if row.metric and not row.task:
            yield ("accuracy", index, "metric"), "is the metric of no task.", "Name the task, or leave it out."


def _same(known: Model, model: Model) -> bool:
    return (known.source, known.location.lower()) == (model.source, model.location.lower())
