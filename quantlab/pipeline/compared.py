"""Two chosen runs and their item tables -> `Versus`. Reads the ledger, runs nothing."""

from __future__ import annotations

from pathlib import PurePath

from quantlab.chosen import Chosen
from quantlab.errors import BadInput
from quantlab.judge import Items
from quantlab.pipeline.assemble import Table, items_by_task
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
    return versus(
        before.run,
        after.run,
        left,
        right,
        names=(before.name, after.name),
        max_slower=max_slower,
        engines=(_engines(before), _engines(after)),
    )


def _engines(side: Chosen) -> dict[str, str]:
    """Recipe -> version of the engine that measured it, from the ledger's entries; those that are not here are left
    out."""
    found: dict[str, str] = {}
    for candidate in side.run.candidates:
        for stage in ("throughput", "accuracy", "fidelity", "canary"):
            entry = side.ledger.find(stage, candidate.identities[stage]) if stage in candidate.identities else None
            version = entry.spec.get("artifact", {}).get("engine_version") if entry else None
            if version:
                found.setdefault(candidate.recipe_name, version)
    return found


def _in_order(table: Table) -> Table:
    """By the items' names: slices of an early run arrive in a random order, and both sides must have one."""
    rows = sorted(range(len(table.columns["id"])), key=lambda row: str(table.columns["id"][row]))
    return Table({name: [values[row] for row in rows] for name, values in table.columns.items()})


def _items(side: Chosen, candidate: Candidate) -> dict[str, Items] | str:
    """Items by task, or why they are not here."""
    found = candidate.accuracy
    if found is None:
        return "it was not scored"
    known, whole = sum(task.n for task in found.tasks), sum(count for _, count in found.sizes)
    if found.part is not None and known != whole:
        return (
            f"it was scored until certain, {known:,} of {whole:,} items, and what is known when a run stops itself is "
            "no fair sample; run it in full (--no-early) to compare"
        )
    for name in (found.items, *found.more):
        relative = PurePath(name)
        if relative.is_absolute() or ".." in relative.parts or not side.ledger.path(name).is_file():
            return "the table of its items is not here; copy files/ of its ledger along"
    try:
        return {task: _in_order(table).items() for task, table in items_by_task(side.ledger, found).items()}
    except (OSError, ValueError, KeyError) as error:
        return f"the table of its items cannot be read ({type(error).__name__}: {error}); score it again"
