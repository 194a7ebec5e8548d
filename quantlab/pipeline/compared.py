"""Two chosen runs and their item tables -> `Versus`. Reads the ledger, runs nothing."""

from __future__ import annotations

from pathlib import PurePath

from quantlab.chosen import Chosen
from quantlab.errors import BadInput
from quantlab.judge import Items
from quantlab.pipeline.assemble import items_by_task
from quantlab.records import Candidate
from quantlab.records.versus import Versus
from quantlab.versus import MAX_SLOWER, versus


def compared(before: Chosen, after: Chosen, max_slower: float = MAX_SLOWER) -> Versus:
    """Hold one run against another.

    Raises:
        BadInput: both are the same run, or the share of speed is none.
    """
    if before.run == after.run:
        raise BadInput(
            "the same run twice: nothing can differ.",
            place=f"report --compare {before.name} {after.name}",
            cure="Name two runs; `quantlab ls runs` lists them.",
        )
    if not 0 <= max_slower < 100:
        raise BadInput(
            f"{max_slower:g} is no loss of speed.", place="--max-slower", cure="Give percent from 0 to below 100."
        )
    left, right = ({each.recipe_name: _items(side, each) for each in side.run.candidates} for side in (before, after))
    return versus(before.run, after.run, left, right, names=(before.name, after.name), max_slower=max_slower)


def _items(side: Chosen, candidate: Candidate) -> dict[str, Items] | str:
    """Items by task, or why they are not here."""
    found = candidate.accuracy
    if found is None:
        return "it was not scored"
    if found.part is not None or found.more:
        return "it was scored until certain, so the items known are no fair sample; run it in full to compare"
    relative = PurePath(found.items)
    if relative.is_absolute() or ".." in relative.parts or not side.ledger.path(found.items).is_file():
        return f"the table of its items is not here ({found.items}); copy the ledger's files/ along"
    return {task: table.items() for task, table in items_by_task(side.ledger, found).items()}
