"""From walks to a `Run`: comparisons, verdicts, a sample of flipped items, the answer in two sentences, the notes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from quantlab import anchors, catalog, judge, looks
from quantlab.ledgers import Ledger
from quantlab.pipeline.ask import STAGES, Ask, Resolved
from quantlab.pipeline.entry import now
from quantlab.pipeline.walk import Walk
from quantlab.records import (
    SCHEMA,
    Accuracy,
    Candidate,
    Comparison,
    Host,
    Run,
    Verdict,
)

FLIPS_SHOWN = 60
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
        summary=summary(resolved.model.word, candidates),
        notes=tuple(dict.fromkeys(_notes(resolved, walks))),
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
        ("--device", None if ask.config.device == "auto" else ask.config.device),
        ("--dtype", None if ask.config.dtype == "auto" else ask.config.dtype),
        ("--tp", None if ask.config.tensor_parallel == 1 else ask.config.tensor_parallel),
        ("--pp", None if ask.config.pipeline_parallel == 1 else ask.config.pipeline_parallel),
        ("--flow", None if ask.config.flow == "auto" else ask.config.flow),
    ):
        words += [flag, f"{value}"] if value is not None else []
    if ask.early is not None:
        words.append("--early" if ask.early else "--no-early")
    return shlex.join(words)


def summary(model: str, candidates: Sequence[Candidate]) -> str:
    """The answer in two sentences: what may be shipped, and what may not."""
    by_status: dict[str, list[Candidate]] = {}
    for each in candidates:
        by_status.setdefault(each.verdict.status, []).append(each)
    accepted = sorted(by_status.get("accept", []), key=lambda each: _bits(each))
    if accepted:
        first = (
            f"Ship {accepted[0].recipe_name}: of the accepted precisions of {model} it stores the fewest bits "
            f"({_bits(accepted[0]):.2f} per weight). {_sentence(accepted[0].verdict.reason)}"
        )
    else:
        scope = "on this suite" if candidates[-1].verdict.scope == "suite" else "beyond this suite"
        first = f"Stay with {candidates[0].recipe_name}: no other precision of {model} was accepted {scope}."
    rest = [
        f"{each.recipe_name}: {each.verdict.status}"
        for each in candidates
        if each.verdict.status not in ("baseline", "accept")
    ]
    return first + (f" Not accepted: {'; '.join(rest)}." if rest else "")


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def _bits(candidate: Candidate) -> float:
    return candidate.calibrated.checkpoint.bits_per_weight if candidate.calibrated else 16.0


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
        flips=_flips(comparison, *(walk.compared or (tables[baseline.name], tables[walk.name]))) if comparison else (),
        identities=walk.identities,
    )


def _comparison(
    resolved: Resolved, baseline: Walk, walk: Walk, tables: dict[str, dict[str, Table]]
) -> Comparison | None:
    if walk.comparison is not None or baseline.accuracy is None or walk.accuracy is None:
        return walk.comparison
    left = {task: table.items() for task, table in tables[baseline.name].items()}
    right = {task: table.items() for task, table in tables[walk.name].items()}
    found = judge.compare(baseline.accuracy, walk.accuracy, left, right, resolved.policy)
    whole = found.suite.difference
    if resolved.policy.claims == "population" or whole is None:
        return found
    return looks.on_suite(found, looks.exact(whole.value, found.suite.n, resolved.policy))


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
        )


def items_by_task(ledger: Ledger, accuracy: Accuracy | None) -> dict[str, Table]:
    """Item results by task, read from the ledger's Parquet."""
    if accuracy is None:
        return {}
    import pyarrow.parquet as pq

    columns = pq.read_table(ledger.path(accuracy.items)).to_pydict()
    places: dict[str, list[int]] = {}
    for place, task in enumerate(columns["task"]):
        places.setdefault(task, []).append(place)
    return {
        task: Table({name: [values[place] for place in rows] for name, values in columns.items()})
        for task, rows in places.items()
    }


def _flips(comparison: Comparison, left: dict[str, Table], right: dict[str, Table]) -> tuple[dict[str, str], ...]:
    """Items whose correctness changed, of comparable tasks: both directions and all tasks are represented."""
    by_kind: dict[tuple[str, str], list[dict[str, str]]] = {}
    for task in (row.task for row in comparison.tasks if not row.incomparable):
        a, b = left[task].columns, right[task].columns
        for place, (before, after) in enumerate(zip(a["correct"], b["correct"], strict=True)):
            if (before > 0.5) != (after > 0.5):
                way = "regressed" if before > after else "improved"
                by_kind.setdefault((task, way), []).append(_flip(a, b, place, way))
    return tuple(_round_robin([by_kind[key] for key in sorted(by_kind)], FLIPS_SHOWN))


def _flip(a: dict[str, list[Any]], b: dict[str, list[Any]], place: int, way: str) -> dict[str, str]:
    return {
        "task": str(a["task"][place]),
        "id": str(a["id"][place]),
        "direction": way,
        "prompt": str(a["prompt"][place]),
        "right": _words(a, "right", place),
        "baseline": _words(a, "answer", place),
        "candidate": _words(b, "answer", place),
    }


def _words(columns: dict[str, list[Any]], column: str, place: int) -> str:
    """An answer as a reader knows it: the text of the choice, not its number."""
    value, choices = str(columns[column][place]), json.loads(columns["choices"][place] or "[]")
    return str(choices[int(value)]).strip() if value.isdigit() and int(value) < len(choices) else value


def _round_robin(rows: Sequence[list[dict[str, str]]], most: int) -> list[dict[str, str]]:
    taken: list[dict[str, str]] = []
    depth = 0
    while len(taken) < most and any(len(row) > depth for row in rows):
        taken += [row[depth] for row in rows if len(row) > depth]
        depth += 1
    return taken[:most]


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
