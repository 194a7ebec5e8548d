"""Sentences about answers to questions about pictures: what the right one costs, and what can be guessed.

The one suite that needs no hub is nearly solved by the model trained for it, so its accuracy hides damage. Nats and
changed answers stand in the notes, where nobody overlooks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantlab.records import Accuracy, Candidate, Cell, Comparison, Suite, TaskScore, Throughput
from quantlab.shares import mean_score


def notes(suite: Suite, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Of a suite about pictures; nothing of any other."""
    if suite.modality != "vision":
        return
    for each in candidates:
        if each.accuracy is not None and each.accuracy.controls:
            yield _controls(each.recipe_name, each.accuracy)
        if each.throughput is not None:
            yield from _speeds(each.recipe_name, each.throughput)
        if each.comparison is not None:
            yield from _costs(each.recipe_name, each.comparison)


def _controls(name: str, accuracy: Accuracy) -> str:
    """ "bf16, controls: right picture 99.7 %; another picture 58 %; no picture 40 %." Of the tasks that have controls;
    in an early run the controls are those of its first slice."""
    asked = {one.task.partition(", ")[0] for one in accuracy.controls}
    means = {"its own picture": _mean([one for one in accuracy.tasks if one.task in asked] or accuracy.tasks)}
    size = 0
    for words, ending in (("another one's picture", "shuffled images"), ("no picture", "no images")):
        if same := [one for one in accuracy.controls if one.task.endswith(ending)]:
            means[words], size = _mean(same), sum(one.n for one in same)
    listed = "; ".join(f"with {words} {100 * mean:.1f} %" for words, mean in means.items())
    early = "" if accuracy.part is None else f" The controls were asked about the first {size:,} items."
    return f"{name}, controls (mean of tasks): {listed}. What the last ones score is guessed.{early}"


def _speeds(name: str, throughput: Throughput) -> Iterator[str]:
    """One sentence for the largest cell with pictures that was timed, beside the same without."""
    timed = [one for one in throughput.pictures if one.cell.valid and one.cell.decode_tokens_per_second]
    if not timed:
        return
    one = max(timed, key=lambda each: each.cell.batch)
    shape = one.cell.isl, one.cell.osl, one.cell.batch
    same = next((cell for cell in throughput.cells if (cell.isl, cell.osl, cell.batch) == shape and cell.valid), None)
    parts = [f"{one.images} pictures a prompt ({one.image_tokens:,} image tokens), {shape[0]} in, {shape[1]} out"]
    parts += [f"batch {shape[2]}: {_rate(one.cell)} tokens/s decoding"]
    parts += [f"{_rate(same)} without pictures"] if same else []
    encoder = one.encoder_images_per_second
    parts += [f"the encoder does {encoder.value:.3g} images/s"] if encoder else []
    how = "" if throughput.numerics == "native" else f" ({throughput.numerics})"
    yield f"{name}{how}: {', '.join(parts)}."


def _rate(cell: Cell) -> str:
    rate = cell.decode_tokens_per_second
    return f"{rate.value:.3g}" if rate else "no"


def _mean(scores: Sequence[TaskScore]) -> float:
    return mean_score(scores) or 0.0


def _costs(name: str, comparison: Comparison) -> Iterator[str]:
    """One sentence for all tasks."""
    parts = [
        f"{task.task} {task.nll_change.value:+.4f} [{task.nll_change.low:+.4f}, {task.nll_change.high:+.4f}] beside "
        f"{task.nll_baseline:.4f}"
        for task in comparison.tasks
        if task.nll_change is not None and task.nll_baseline is not None
    ]
    if parts:
        whole = comparison.suite
        yield (
            f"{name}: nats that the right answer costs, more than the baseline: {'; '.join(parts)}. Answers that "
            f"became wrong: {whole.regressed}, right: {whole.improved}, other wrong: {whole.churn}, of {whole.n:,}."
        )
