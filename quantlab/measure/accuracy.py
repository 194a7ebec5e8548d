"""A suite on one session, through lm-eval: scores for people and one row an item for the statistics.

lm-eval's `evaluate` runs each task with our session behind it, so prompts, few-shot examples, filters and
metrics are lm-eval's and a baseline score can be held against anybody's. Afterwards its number and ours must
agree.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quantlab.errors import BadInput
from quantlab.measure import Bench, Measured
from quantlab.measure.adapter import SessionLM
from quantlab.measure.controls import controlled
from quantlab.measure.estimates import estimate
from quantlab.measure.items import Item, require_agreement, rows, write
from quantlab.measure.journal import Journal
from quantlab.measure.part import Chosen, draw_of, prompts_as_in_full
from quantlab.measure.seeing import SeeingLM, Shelf
from quantlab.measure.tasks import LoadedTask, load
from quantlab.records import Accuracy, Number, TaskScore, digest
from quantlab.score.answers import right_nll
from quantlab.score.draw import Draw
from quantlab.score.paired import mean_with_error


def accuracy(bench: Bench) -> Measured:
    """Run the suite's tasks in order, or of each task what belongs to the part that is asked for.

    Returns:
        The record and {"items.parquet": path}; columns as in `items.Item`.

    Raises:
        BadInput: a task, file or metric that cannot be used, or a prompt that does not fit.
        NoAccess: data that are not on this machine.
        Broken: lm-eval's score and the items disagree.
    """
    started = time.monotonic()
    spec = bench.spec
    tasks_folder = Path(spec.tasks_folder) if spec.tasks_folder else None
    tasks = load(bench.suite, bench.beside_suite(""), tasks_folder, bench.folder)
    chosen, draw = _chosen(bench, tasks)
    asked = [one for one in tasks if chosen is None or one.name in chosen]
    total = sum(one.items for one in tasks) if chosen is None else sum(len(each) for each in chosen.values())
    scores: list[TaskScore] = []
    items: list[Item] = []
    with Journal(bench.folder / "journal.jsonl", _binding(bench)) as journal:
        lm = _model(bench, journal)
        for loaded in asked:
            mine = None if chosen is None else chosen[loaded.name]
            lm.report(loaded.name, _teller(bench, loaded, mine, len(items), total))
            score, new = _run(lm, loaded, mine)
            scores.append(score)
            items += new
        controls = controlled(bench, lm, tasks_folder, _run, chosen)
    path = bench.folder / "items.parquet"
    write(items, path)
    record = Accuracy(
        suite=spec.suite_name,
        tasks=tuple(scores),
        items=path.name,
        seconds=round(time.monotonic() - started, 3),
        requests=lm.requests,
        controls=controls,
        part=None if spec.part is None else (spec.part[0], spec.part[0] + total),
        sizes=draw.sizes if draw else (),
        words=draw.words if draw else (),
    )
    return record, {path.name: str(path.resolve())}


def _model(bench: Bench, journal: Journal) -> SessionLM:
    """The adapter, with eyes for a suite that asks about pictures."""
    budget = bench.spec.config.token_budget
    if bench.suite.modality == "text":
        return SessionLM(bench.session, bench.tokenizer, journal, budget)
    return SeeingLM(bench.session, bench.tokenizer, journal, budget, Shelf(bench.checkpoint))


def _chosen(bench: Bench, tasks: Sequence[LoadedTask]) -> tuple[dict[str, Chosen] | None, Draw | None]:
    """Documents by task where a part of the suite is asked for, and the order it is a part of."""
    part = bench.spec.part
    if part is None:
        return None, None
    draw = draw_of(tasks, bench.spec.seed)
    found = {task: Chosen(numbers) for task, numbers in draw.documents(*part).items()}
    if not found:
        raise BadInput(f"the suite has {draw.total} items, none from the {part[0]}th on.", place="accuracy")
    return found, draw


def _run(lm: SessionLM, loaded: LoadedTask, chosen: Chosen | None = None) -> tuple[TaskScore, list[Item]]:
    from lm_eval.evaluator import evaluate

    started = time.monotonic()
    if isinstance(lm, SeeingLM):
        lm.look(loaded)
    if loaded.ask.chat_template and not lm.tokenizer.chat_template:
        raise BadInput(
            "the model has no chat template.", place=f"task {loaded.name}", cure="Set `chat_template: false`."
        )
    with prompts_as_in_full(loaded, chosen):
        result = evaluate(
            lm,
            {"tasks": {loaded.name: loaded.task}},
            limit=loaded.ask.limit if chosen is None else None,
            samples=None if chosen is None else {loaded.name: chosen},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=loaded.ask.chat_template,
            fewshot_as_multiturn=True,
        )
    items = rows(loaded, result["samples"][loaded.name], lm.sent)
    theirs = result["results"][loaded.name][f"{loaded.metric},{loaded.filter}"]
    require_agreement(loaded, items, float(theirs))
    return _score(lm, loaded, items, round(time.monotonic() - started, 3)), items


def _score(lm: SessionLM, loaded: LoadedTask, items: Sequence[Item], seconds: float) -> TaskScore:
    return TaskScore(
        task=loaded.name,
        metric=loaded.metric if loaded.filter == "none" else f"{loaded.metric},{loaded.filter}",
        n=len(items),
        score=_number([item.correct for item in items], [item.cluster for item in items]),
        chance=_chance(items),
        nll=_nll(items),
        broken=sum(not item.answered for item in items),
        prompts_digest=digest([[item.id, item.prompt_digest] for item in items]),
        shots=int(loaded.task.get_config("num_fewshot")),
        chat_template=loaded.ask.chat_template,
        truncated=0,
        length=_length(loaded),
        longest=max(-(-item.tokens // max(1, len(json.loads(item.choices)))) for item in items),
        group="" if loaded.ask.task == loaded.name else loaded.ask.task,
        template_digest=digest(lm.tokenizer.chat_template) if loaded.ask.chat_template else "",
        decoding=lm.decoding,
        seconds=seconds,
    )


def _length(loaded: LoadedTask) -> int | None:
    """Tokens that the task's own metadata say its prompts have, where it asks about lengths."""
    said = (loaded.task.get_config("metadata") or {}).get("length")
    return said if isinstance(said, int) else None


def _number(correct: list[float], clusters: list[str]) -> Number:
    """The mean with its clustered standard error; without one where there is a single cluster."""
    if len(set(clusters)) < 2:
        return Number(value=sum(correct) / len(correct), unit="share", n=len(correct))
    mean, error = mean_with_error(correct, clusters)
    return estimate(mean, error, len(set(clusters)), "share", len(correct), high=1.0)


def _nll(items: Sequence[Item]) -> Number | None:
    """What the right answers cost: it moves long before an answer flips. None where some have no finite likelihood."""
    costs = [right_nll(item.loglikelihoods, item.right) for item in items]
    known = [cost for cost in costs if cost is not None]
    clusters = [item.cluster for item in items]
    if len(known) < len(items) or len(set(clusters)) < 2:
        return None
    mean, error = mean_with_error(known, clusters)
    return estimate(mean, error, len(set(clusters)), "nats", len(known), better="lower")


def _chance(items: Sequence[Item]) -> float | None:
    """Score of guessing: right choices over choices, averaged over the items."""
    shares = []
    for item in items:
        choices = json.loads(item.choices)
        if not choices:
            return None
        right = json.loads(item.right)
        shares.append((len(right) if isinstance(right, list) else 1) / len(choices))
    return sum(shares) / len(shares)


def _teller(
    bench: Bench, loaded: LoadedTask, chosen: Chosen | None, before: int, total: int
) -> Callable[[int, int], None]:
    """Turns requests answered into items done."""
    part, mine = bench.spec.part, loaded.items if chosen is None else len(chosen)
    text = loaded.name if part is None else f"{loaded.name}, items {part[0]} to {part[0] + total} in random order"

    def tell(done: int, requests: int) -> None:
        bench.reporter.progress("accuracy", before + mine * done / requests, total, text)

    return tell


def _binding(bench: Bench) -> str:
    """Everything besides the requests that can change an answer."""
    artifact = bench.spec.artifact
    parts: list[Any] = [
        artifact.engine,
        artifact.engine_version,
        artifact.numerics,
        artifact.checkpoint.digest,
    ]
    return digest(*parts, bench.spec.config, bench.session.device)
