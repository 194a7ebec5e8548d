"""May the difference of two scores be formed at all? Asked of every task before a difference is shown.

Two scores of one model differ by points for reasons that have nothing to do with a precision: a second BOS costs 2
points on GSM8K (lm-evaluation-harness issue 1841), a chat template on one side only more, a prompt cut on the left
anything. A difference of such scores looks like every other difference. So it is not formed: the reader gets what
differs and how to mend it.

The first reason that applies is given, causes before symptoms. A doubled BOS, another template and another tokenizer
all show as other token ids; only where the cause is not known the ids themselves are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlab.records import TaskScore

if TYPE_CHECKING:
    import numpy as np

AGAIN = "Score both again with the same suite and the same quantlab."
GROSS = 0.10
"""Difference of two shares of unanswered items above which the scores measure the answers' form, not the answers."""
GROSS_ITEMS = 5
"""Least difference in items: in a task of ten, one item is no finding."""
EXCERPT = 24
"""Characters shown of each text where two prompts part."""


@dataclass(frozen=True)
class Items:
    """The items of one task on one checkpoint, in the order they were asked. All sequences have the same length;
    those with a default are empty where an older quantlab did not keep them."""

    ids: Sequence[str]
    digests: Sequence[str]
    """Digest of the token ids that were sent, all choices."""
    correct: np.ndarray
    """float64 [n], in 0..1."""
    answers: Sequence[str]
    clusters: Sequence[str]
    tokens: Sequence[int] = ()
    """Tokens of all requests of an item."""
    bos: Sequence[int] = ()
    """BOS tokens at the start of the prompt."""
    prompts: Sequence[str] = ()
    """Rendered text: few-shot examples, chat template and question."""
    nll: np.ndarray | None = None
    """float64 [n]: -log p of the right answer; None where answers are not chosen by likelihood."""
    questions: Sequence[str] = ()
    """Digest of the item's own text and choices, without few-shot examples and template."""


def incomparable(baseline: TaskScore, candidate: TaskScore, left: Items, right: Items) -> str:
    """Why no difference may be formed, with the cure; empty when the two are comparable."""
    return next(_reasons(baseline, candidate, left, right), "")


def _reasons(baseline: TaskScore, candidate: TaskScore, left: Items, right: Items) -> Iterator[str]:
    """Lazy: what comes later may rely on what came before being equal."""
    yield from _settings(baseline, candidate)
    yield from _same_items(left, right)
    yield from _bos(left, right)
    if list(left.digests) != list(right.digests):
        yield from _template(baseline, candidate)
        yield _prompts(candidate, left, right)
    if "" not in (baseline.decoding, candidate.decoding) and baseline.decoding != candidate.decoding:
        yield f"answers were generated {candidate.decoding} against {baseline.decoding}. {AGAIN}"
    yield from _unanswered(baseline, candidate)


def _settings(baseline: TaskScore, candidate: TaskScore) -> Iterator[str]:
    if baseline.metric != candidate.metric:
        yield f"metric {baseline.metric} against {candidate.metric}. {AGAIN}"
    if baseline.chat_template != candidate.chat_template:
        yield f"the chat template was applied to one of the two only. {AGAIN}"
    if baseline.shots != candidate.shots:
        yield f"{baseline.shots} few-shot examples against {candidate.shots}. {AGAIN}"
    if cut := baseline.truncated + candidate.truncated:
        yield f"{cut} prompts were cut to fit. Take fewer shots or a larger max_length, then score both again."


def _same_items(left: Items, right: Items) -> Iterator[str]:
    if len(left.ids) != len(right.ids):
        yield f"{len(left.ids)} items against {len(right.ids)}. {AGAIN}"
    elif list(left.ids) != list(right.ids):
        place = _first(left.ids, right.ids)
        what = "the items come in another order" if sorted(left.ids) == sorted(right.ids) else "the items differ"
        yield f"{what}, first {left.ids[place]} against {right.ids[place]}. {AGAIN}"


def _bos(left: Items, right: Items) -> Iterator[str]:
    if not left.bos or not right.bos or list(left.bos) == list(right.bos):
        return
    place = _first(left.bos, right.bos)
    count = sum(a != b for a, b in zip(left.bos, right.bos, strict=True))
    yield (
        f"the candidate's prompts begin with {right.bos[place]} BOS tokens against {left.bos[place]} of the "
        f"baseline's, in {count} of {len(left.bos)} items. Copy tokenizer.json and tokenizer_config.json of the "
        f"original model beside both checkpoints, then score both again."
    )


def _template(baseline: TaskScore, candidate: TaskScore) -> Iterator[str]:
    """Only asked where prompts differ: a template may be written in two ways and render the same."""
    kinds = {baseline.template_digest, candidate.template_digest}
    if len(kinds) > 1 and "" not in kinds:
        yield (
            "the chat templates of the two checkpoints differ. Copy chat_template.jinja and tokenizer_config.json of "
            "the original model beside both, then score both again."
        )


def _prompts(candidate: TaskScore, left: Items, right: Items) -> str:
    """What makes the token ids differ, as far as the records tell."""
    place = _first(left.digests, right.digests)
    item = f"first at item {left.ids[place]}"
    if sorted(left.digests) == sorted(right.digests):
        return f"the same prompts come in another order, {item}: the data were sorted anew. {AGAIN}"
    if not left.prompts or not right.prompts or left.prompts[place] == right.prompts[place]:
        return f"the rendered prompts differ, {item}: {_same_text(left, right, place)}"
    parted = _parted(left.prompts[place], right.prompts[place])
    return f"the rendered prompts differ, {item}: {_other_text(candidate, left, right, place)} ({parted}). {AGAIN}"


def _same_text(left: Items, right: Items, place: int) -> str:
    if left.questions and right.questions and left.questions[place] != right.questions[place]:
        return f"other choices to the same question. {AGAIN}"
    if left.prompts and right.prompts and left.tokens and right.tokens:
        return (
            f"the same text is {left.tokens[place]} tokens against {right.tokens[place]}, another tokenizer. "
            f"Copy the tokenizer files of the original model beside both checkpoints, then score both again."
        )
    return (
        "another tokenizer, template, BOS or few-shot choice. "
        "Compare the tokenizer files of the two checkpoints, then score both again."
    )


def _other_text(candidate: TaskScore, left: Items, right: Items, place: int) -> str:
    if not left.questions or not right.questions:
        return "another text"
    if left.questions[place] != right.questions[place]:
        return "the question is put in other words"
    return "other few-shot examples" if candidate.shots else "other words around the same question"


def _parted(a: str, b: str) -> str:
    """Where two texts part, with a little of both."""
    at = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, at - EXCERPT // 2)
    return f"{a[start : start + EXCERPT]!r} against {b[start : start + EXCERPT]!r}"


def _unanswered(baseline: TaskScore, candidate: TaskScore) -> Iterator[str]:
    """An answer that cannot be found is scored as wrong, so what it measures is the form."""
    before, after = (score.broken / max(1, score.n) for score in (baseline, candidate))
    if abs(after - before) > GROSS and abs(candidate.broken - baseline.broken) >= GROSS_ITEMS:
        yield (
            f"no answer was found in {after:.0%} of the candidate's items against {before:.0%} of the baseline's, so a "
            f"difference would measure the form of the answers. Read some of them; another filter of the task may find "
            f"them, or the candidate has lost the form itself."
        )


def _first(left: Sequence[object], right: Sequence[object]) -> int:
    return next(place for place, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
