"""From walks to a `Run`: comparisons, verdicts, flipped items, the answer in two sentences, the notes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from quantlab import anchors, catalog, judge, looks
from quantlab.categories import categories
from quantlab.ledgers import Ledger
from quantlab.pipeline import answers, flips
from quantlab.pipeline.ask import STAGES, Ask, Resolved
from quantlab.pipeline.entry import now
from quantlab.pipeline.headline import summary
from quantlab.pipeline.walk import Walk
from quantlab.records import (
    SCHEMA,
    Accuracy,
    Candidate,
    Comparison,
    Flip,
    Host,
    Run,
    Verdict,
)

FLIPS_KEPT = 400
"""Flipped items kept for the report, a recipe; the Parquet files hold all."""


def assemble(resolved: Resolved, walks: Sequence[Walk], host: Host, ledger: Ledger) -> Run:
    """Judge every walk against the first and put the run together."""
    tables = {walk.name: {} if walk.compared else items_by_task(ledger, walk.accuracy) for walk in walks}
    candidates = [_candidate(resolved, walks[0], walk, tables) for walk in walks]
    return Run(
        schema=SCHEMA,
        model=resolved.model,
        engine=resolved.ask.engine,
        suite_name=resolved.suite.name,
        suite=resolved.suite_record,
        grid_name=resolved.grid.name,
        grid=resolved.grid_record,
        policy_name=resolved.policy_name,
        policy=resolved.policy,
        candidates=tuple(candidates),
        host=host,
        created=now(),
        command=resolved.ask.command or command(resolved.ask),
        summary=summary(resolved.model.word, candidates, host),
        notes=tuple(dict.fromkeys([*_notes(resolved, walks), *answers.notes(resolved.suite_record, candidates)])),
    )


def command(ask: Ask) -> str:
    """The command line that repeats `ask`."""
    words = ["quantlab", "run", *ask.recipes, "--model", ask.model, "--suite", ask.suite, "--grid", ask.grid]
    words += ["--policy", ask.policy, "--engine", ask.engine]
    if ask.stages != STAGES:
        words += [word for stage in ask.stages for word in ("--stage", stage)]
    for flag, value in (
        ("--calibration-set", ask.calibration_set),
        ("--max-drop", ask.max_drop),
        ("--scope", ask.scope),
        ("--threads", ask.threads or None),
        ("--seed", ask.seed or None),
        ("--gpus", ask.gpus or None),
        ("--device", None if ask.config.device == "auto" else ask.config.device),
        ("--dtype", None if ask.config.dtype == "auto" else ask.config.dtype),
        ("--tp", None if ask.config.tensor_parallel == 1 else ask.config.tensor_parallel),
        ("--pp", None if ask.config.pipeline_parallel == 1 else ask.config.pipeline_parallel),
        ("--flow", None if ask.config.flow == "auto" else ask.config.flow),
    ):
        words += [flag, f"{value}"] if value is not None else []
    if ask.layerwise:
        words.append("--layerwise")
    if ask.early is not None:
        words.append("--early" if ask.early else "--no-early")
    return shlex.join(words)


def _candidate(resolved: Resolved, baseline: Walk, walk: Walk, tables: dict[str, dict[str, Table]]) -> Candidate:
    first = walk is baseline
    comparison = None if first else _comparison(resolved, baseline, walk, tables)
    verdict = (
        Verdict(status="baseline", reason="what the others are compared with.")
        if first
        else judge.verdict(
            resolved.policy,
            comparison=comparison,
            accuracy=walk.accuracy,
            fidelity=walk.fidelity,
            canary=walk.canary,
            verification=walk.verification,
            failure=walk.failure,
            failed_stage=walk.at,
            refusal=walk.refusal,
        )
    )
    changed = _flips(comparison, *(walk.compared or (tables[baseline.name], tables[walk.name])))
    return Candidate(
        recipe_name=walk.name,
        recipe=walk.recipe,
        verdict=msgspec.structs.replace(verdict, scope=resolved.policy.claims),
        calibrated=walk.calibrated,
        verification=walk.verification,
        canary=walk.canary,
        fidelity=walk.fidelity,
        accuracy=walk.accuracy,
        throughput=walk.throughput,
        comparison=comparison,
        failure=walk.failure,
        failed_stage=walk.at if walk.failure else "",
        flips=flips.most_telling(changed, FLIPS_KEPT),
        flipped=len(changed),
        identities=walk.identities,
    )


def _comparison(
    resolved: Resolved, baseline: Walk, walk: Walk, tables: dict[str, dict[str, Table]]
) -> Comparison | None:
    if (early := walk.comparison) is not None:
        complete = early.look is not None and early.look.scored == early.look.items
        return _by_kind(resolved, early, *walk.compared) if complete and walk.compared else early
    if baseline.accuracy is None or walk.accuracy is None:
        return None
    left, right = tables[baseline.name], tables[walk.name]
    raw = judge.compare(baseline.accuracy, walk.accuracy, _items(left), _items(right), resolved.policy)
    found = _by_kind(resolved, raw, left, right)
    whole = found.suite.difference
    if resolved.policy.claims == "population" or whole is None:
        return found
    return looks.on_suite(found, looks.exact(whole.value, found.suite.n, resolved.policy))


def _by_kind(resolved: Resolved, found: Comparison, left: dict[str, Table], right: dict[str, Table]) -> Comparison:
    """Kinds of items ranked. Only where the whole suite is known: an early stop bends what each kind lost so far."""
    kinds = {task: table.columns["kind"] for task, table in left.items()}
    ranked = categories(found, _items(left), _items(right), kinds, resolved.policy)
    return msgspec.structs.replace(found, categories=ranked)


def _items(tables: dict[str, Table]) -> dict[str, judge.Items]:
    return {task: table.items() for task, table in tables.items()}


def _flips(comparison: Comparison | None, left: dict[str, Table], right: dict[str, Table]) -> list[Flip]:
    """Of the tasks that are comparable: where something else differs, a changed answer says nothing."""
    if comparison is None:
        return []
    metrics = {one.task: one.metric for one in comparison.tasks if one.difference is not None}
    before, after = ({name: table.columns for name, table in side.items()} for side in (left, right))
    return flips.flips(before, after, metrics)


@dataclass(frozen=True)
class Table:
    """The Parquet columns of one task, in the order the items were asked."""

    columns: dict[str, list[Any]]

    def items(self) -> judge.Items:
        import numpy as np

        return judge.Items(
            ids=self.columns["id"],
            digests=self.columns["prompt_digest"],
            correct=np.asarray(self.columns["correct"], dtype=np.float64),
            answers=self.columns["answer"],
            clusters=self.columns["cluster"],
            tokens=self.columns["tokens"],
            bos=self.columns["bos"],
            prompts=self.columns["prompt"],
            questions=self.columns.get("question_digest", []),
            nll=self._nll(),
        )

    def _nll(self) -> Any:
        """float64 [n]: what the right answers cost, or None where some have no likelihood."""
        import numpy as np

        from quantlab.score.answers import right_nll

        pairs = zip(self.columns["loglikelihoods"], self.columns["right"], strict=True)
        costs = [right_nll(likelihoods, right) for likelihoods, right in pairs]
        return None if any(cost is None for cost in costs) else np.asarray(costs, dtype=np.float64)


def items_by_task(ledger: Ledger, accuracy: Accuracy | None) -> dict[str, Table]:
    """Item results by task, read from the ledger's Parquet; slices one after the other."""
    if accuracy is None:
        return {}
    import pyarrow as pa
    import pyarrow.parquet as pq

    read = [pq.read_table(ledger.path(name)) for name in (accuracy.items, *accuracy.more)]
    columns = pa.concat_tables(read, promote_options="default").to_pydict()
    places: dict[str, list[int]] = {}
    for place, task in enumerate(columns["task"]):
        places.setdefault(task, []).append(place)
    return {
        task: Table({name: [values[place] for place in rows] for name, values in columns.items()})
        for task, rows in places.items()
    }


def _notes(resolved: Resolved, walks: Sequence[Walk]) -> list[str]:
    """What the reader must know before believing a number."""
    notes = list(resolved.notes)
    if resolved.suite_record.synthetic:
        notes.append(
            f"Suite {resolved.suite.name} is made of generated items: it compares precisions with each other, "
            f"its scores are not comparable with published ones."
        )
    if walks[0].accuracy is not None and walks[0].recipe.format == "bf16":
        notes += anchors.notes(walks[0].accuracy, resolved.suite_record, catalog.published_scores(resolved.model))
    if resolved.policy.early:
        notes.append(
            f"Verdicts are about suite {resolved.suite.name} in full and were taken as soon as they were certain: the "
            f"items came in the random order of seed {resolved.ask.seed}. They say nothing about other items. KL is "
            f"that of a screen of a few hundred positions."
        )
    for walk in walks:
        if walk.throughput is not None and walk.throughput.numerics == "emulated":
            notes.append(
                f"{walk.name} was computed by emulation on this device: its scores are those of the format, "
                f"its speed is not."
            )
        if walk.throughput is not None and walk.throughput.source:
            notes.append(f"{walk.name}: its speed is by {walk.throughput.source}, on the artifact that was scored.")
        stages = {
            "canary": walk.canary,
            "reference": walk.reference,
            "fidelity": walk.fidelity,
            "accuracy": walk.accuracy,
        }
        notes += [f"{walk.name}, {name}: {note}" for name, stage in stages.items() if stage for note in stage.notes]
        made = walk.calibrated.notes if walk.calibrated else ()
        notes += [f"{walk.name}: {text}" for text in dict.fromkeys((*walk.notes, *made))]
    if "Q4_1" in resolved.model.summary:
        notes.append(
            "The 16-bit weights of this model come out of a 4-bit file, so the baseline already carries that damage."
        )
    return notes
