"""lm-eval's samples -> one row an item, in the order they were asked.

An average hides what quantization does, so every item is kept: what was asked (and a digest of the token ids
that went to the model, by which two runs are known to be comparable), what was answered and how sure the
model was. From these rows come flips, churn, paired statistics and the comparability gate; nothing of them
can be got back from a mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.errors import BadInput, Broken
from quantlab.measure.adapter import key
from quantlab.measure.blocks import Sent
from quantlab.measure.tasks import LoadedTask
from quantlab.measure.vqa import guessed
from quantlab.records import digest

ID_FIELDS = ("id", "question_id", "questionId")
"""Fields of a document that may name it; its number where none is unique."""
KIND_FIELDS = ("kind", "answer_type", "question_type")
"""Fields of a document that say which kind of question it is: ours, VQAv2's, MMMU's."""
CLUSTER_FIELDS = ("cluster", "subject", "category")
"""Fields of a document that say which items share a passage or a subject; each item alone where there is
none."""
NO_ANSWER = ("", "[invalid]", "[no answer]")
"""What lm-eval's filters return where they find no answer."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row; the fields are the columns of items.parquet."""

    task: str
    id: str
    cluster: str
    kind: str
    """Which kind of question it is, for tables; empty where the document does not say."""
    prompt: str
    """Rendered text, few-shot examples and chat template included."""
    prompt_digest: str
    """SHA-256 of the token ids that were sent, all choices."""
    question_digest: str
    """SHA-256 of the item's own text and choices, before few-shot examples and template came to it."""
    tokens: int
    """Of all requests of the item."""
    bos: int
    """BOS tokens at the start of the prompt."""
    choices: str
    """JSON list of strings; "[]" where an answer is generated."""
    right: str
    """Index of the right choice (a JSON list where there are several), or the text."""
    answer: str
    """Index of the chosen choice, or the text after the filter."""
    correct: float
    """The metric on this item, in [0, 1]."""
    loglikelihoods: list[float]
    """Of the choices, in nats; empty where an answer is generated."""
    answered: bool
    """All log-likelihoods are finite, or the filter found an answer."""


def rows(loaded: LoadedTask, samples: Sequence[dict[str, Any]], sent: Mapping[str, Sent]) -> list[Item]:
    """The items of one task.

    Args:
        loaded: the task.
        samples: lm-eval's, of all filters.
        sent: the adapter's record of what went out, by `adapter.key`.
    """
    mine = [sample for sample in samples if sample["filter"] == loaded.filter]
    names, clusters = _labels(loaded.documents)
    return [_row(loaded, names[one["doc_id"]], clusters[one["doc_id"]], one, sent) for one in mine]


def _row(loaded: LoadedTask, name: str, cluster: str, sample: dict[str, Any], sent: Mapping[str, Sent]) -> Item:
    doc = sample["doc"]
    went = [sent[key(arguments)] for arguments in sample["arguments"]]
    answer = (_text if loaded.task.OUTPUT_TYPE == "generate_until" else _choice)(loaded, sample)
    return Item(
        task=loaded.name,
        id=name,
        cluster=cluster,
        kind=next((str(doc[field]) for field in KIND_FIELDS if doc.get(field)), ""),
        prompt=str(sample["arguments"][0][0]),
        prompt_digest=digest([one.digest for one in went]),
        question_digest=digest(str(loaded.task.doc_to_text(doc)), answer["choices"]),
        tokens=sum(one.tokens for one in went),
        bos=went[0].bos,
        correct=_share(loaded, name, sample[loaded.metric]),
        **answer,
    )


def _choice(loaded: LoadedTask, sample: dict[str, Any]) -> dict[str, Any]:
    """Columns of an item that is answered by likelihood, as `ConfigurableTask.process_results` judges it."""
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    answered = all(math.isfinite(value) for value in likelihoods)
    if loaded.task.OUTPUT_TYPE != "multiple_choice":
        greedy = bool(sample["filtered_resps"][0][1])
        right = str(sample["target"])
        return {
            "choices": "[]",
            "right": right,
            "answer": right if greedy else "",
            "loglikelihoods": likelihoods,
            "answered": answered,
        }
    choices = [str(choice) for choice in loaded.task.doc_to_choice(sample["doc"])]
    target = loaded.task.doc_to_text(sample["doc"]) if loaded.task.multiple_input else sample["target"]
    return {
        "choices": json.dumps(choices, ensure_ascii=False),
        "right": _index(target, choices),
        "answer": str(preferred(likelihoods, choices, loaded.metric)),
        "loglikelihoods": likelihoods[: len(choices)],
        "answered": answered,
    }


def preferred(likelihoods: Sequence[float], choices: Sequence[str], metric: str) -> int:
    """Index of the choice that `metric` takes for the answer; lm-eval's rules, ties to the first.

    acc: the likeliest. acc_norm: the likeliest a character. acc_bytes: the likeliest a byte. acc_mutual_info:
    the one that gains most from its context (the second half of `likelihoods` is without context).
    """
    import numpy as np

    values = np.array(likelihoods[: len(choices)])
    if metric == "acc_norm":
        values = values / np.array([float(len(choice)) for choice in choices])
    elif metric == "acc_bytes":
        values = values / np.array([float(len(choice.encode())) for choice in choices])
    elif metric == "acc_mutual_info":
        values = values - np.array(likelihoods[len(choices) :])
    return int(np.argmax(values))


def _index(target: Any, choices: list[str]) -> str:
    if isinstance(target, list):
        return json.dumps(target)
    return str(choices.index(target) if isinstance(target, str) and target in choices else target)


def _text(loaded: LoadedTask, sample: dict[str, Any]) -> dict[str, Any]:
    """Columns of an item whose answer is generated."""
    response = sample["filtered_resps"][0]
    nothing = {*NO_ANSWER, *_fallbacks(loaded)}
    found = response is not None and str(response).strip() not in nothing
    found = found and not guessed(loaded.task, sample["doc"], response)
    return {
        "choices": "[]",
        "right": str(sample["target"]),
        "answer": str(response) if found else "",
        "loglikelihoods": [],
        "answered": found,
    }


def _fallbacks(loaded: LoadedTask) -> list[str]:
    """What the task's own filters return where they find nothing."""
    steps = [step for entry in loaded.task.get_config("filter_list") or [] for step in entry["filter"]]
    return [str(step["fallback"]) for step in steps if "fallback" in step]


def _share(loaded: LoadedTask, name: str, value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise BadInput(
            f"the metric {loaded.metric} gives {number:g} on item {name}: not a share.",
            place=f"task {loaded.name}",
            cure="Choose a metric between 0 and 1 in the suite.",
        )
    return number


def _labels(docs: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Ids and clusters of *all* documents of a task: an item is called the same in a slice and in the full run."""
    names = _ids(docs)
    return names, _clusters(docs, names)


def _ids(docs: list[dict[str, Any]]) -> list[str]:
    for field in ID_FIELDS:
        names = [str(doc.get(field, "")) for doc in docs]
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(number) for number in range(len(docs))]


def _clusters(docs: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Labels of what belongs together. A task that is all one subject (MMLU's are) has no clusters within."""
    field = next((field for field in CLUSTER_FIELDS if any(doc.get(field) not in (None, "") for doc in docs)), "")
    labels = [str(doc.get(field) or name) for doc, name in zip(docs, names, strict=True)]
    return labels if len(set(labels)) > 1 else names


def write(items: Sequence[Item], path: Path) -> None:
    """All rows as one Parquet file, in one step. The same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from quantlab import disk

    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("task", "id", "cluster", "kind")),
            *((name, pa.string()) for name in ("prompt", "prompt_digest", "question_digest")),
            ("tokens", pa.int32()),
            ("bos", pa.int32()),
            *((name, pa.string()) for name in ("choices", "right", "answer")),
            ("correct", pa.float64()),
            ("loglikelihoods", pa.list_(pa.float64())),
            ("answered", pa.bool_()),
        ]
    )
    columns = {name: [getattr(item, name) for item in items] for name in schema.names}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd")
    disk.write(path, sink.getvalue().to_pybytes())


def require_agreement(loaded: LoadedTask, items: Sequence[Item], value: float) -> None:
    """Our rows must give lm-eval's own number, and a multiple-choice answer its own correctness.

    Raises:
        Broken: they do not: lm-eval changed, or a task counts in a way that this file does not know.
    """
    mean = sum(item.correct for item in items) / len(items)
    odd = [item.id for item in items if _contradicts(loaded, item)]
    if abs(mean - value) > 1e-9 or odd:
        raise Broken(
            f"the items give {mean:.6f}, lm-eval {value:.6f}; answer and score differ on {len(odd)} items.",
            place=f"task {loaded.name}",
            cure="Use the lm-eval version of constraints.txt, or another metric.",
        )


def _contradicts(loaded: LoadedTask, item: Item) -> bool:
    if loaded.metric not in ("acc", "acc_norm", "acc_bytes") or not item.loglikelihoods or not item.answered:
        return False
    if loaded.task.OUTPUT_TYPE != "multiple_choice" or callable(loaded.task.get_config("process_results")):
        return False
    right = json.loads(item.right)
    return bool(int(item.answer) in (right if isinstance(right, list) else [right])) != bool(item.correct)
