"""From measurements to a verdict. Pure: the same measurements and policy give the same words, on any machine.

Two precisions answer the same items, so their answers are paired: the difference of two accuracies has a far smaller
error than either accuracy (Miller 2024, arXiv:2411.00640). The verdict is a non-inferiority test on that paired
difference: accept when the whole interval lies above -max_drop, regression when it lies below, insufficient between.
KL, perplexity and the canary are screens for collapse and explanations, never the verdict.

That interval speaks about all items like these, beyond the suite. A policy with scope suite claims less and is decided
with fewer items: looks.py.

A difference is only formed between comparable scores: comparable.py says what differs and how to mend it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from quantlab.comparable import Items, incomparable
from quantlab.records import (
    Accuracy,
    Canary,
    Comparison,
    Failure,
    Fidelity,
    Number,
    Policy,
    TaskComparison,
    TaskScore,
    Verdict,
    Verification,
)

if TYPE_CHECKING:
    import numpy as np

    from quantlab.score.paired import Paired

__all__ = ["Items", "compare", "incomparable", "verdict"]


def compare(
    baseline: Accuracy,
    candidate: Accuracy,
    left: Mapping[str, Items],
    right: Mapping[str, Items],
    policy: Policy,
) -> Comparison:
    """Baseline and candidate, task by task and as a suite (the mean over tasks, weighed as shares.py says).

    `left` and `right` hold the items by task name.
    """
    from quantlab.score.paired import paired, suite
    from quantlab.shares import shares, words_of

    before = {score.task: score for score in baseline.tasks}
    rows: list[TaskComparison] = []
    usable: dict[str, tuple[np.ndarray, np.ndarray, Sequence[str] | None]] = {}
    for score in candidate.tasks:
        base, a, b = before[score.task], left[score.task], right[score.task]
        why = incomparable(base, score, a, b)
        if why:
            rows.append(_withheld(base, score, why))
            continue
        usable[score.task] = (a.correct, b.correct, a.clusters)
        found = paired(
            a.correct,
            b.correct,
            confidence=policy.confidence,
            clusters=a.clusters,
            baseline_answers=a.answers,
            candidate_answers=b.answers,
        )
        rows.append(_with_nats(_row(score.task, score.metric, found, policy), a, b, policy))
    refused = [row for row in rows if row.incomparable]
    if refused:
        whole = _withheld_suite(baseline, candidate, rows, f"{refused[0].task}: {refused[0].incomparable}")
    else:
        weights = shares(words_of(candidate.tasks))
        whole = _row("all", "mean of tasks", suite(usable, weights, confidence=policy.confidence), policy, rows)
    return Comparison(suite=whole, tasks=tuple(rows))


def verdict(
    policy: Policy,
    *,
    comparison: Comparison | None = None,
    accuracy: Accuracy | None = None,
    fidelity: Fidelity | None = None,
    canary: Canary | None = None,
    verification: Verification | None = None,
    failure: Failure | None = None,
    failed_stage: str = "",
    refusal: str = "",
) -> Verdict:
    """The answer for one recipe, from whatever is known about it; the first reason that applies wins."""
    from quantlab import looks

    if refusal:
        return Verdict(status="infeasible", reason=refusal)
    if verification is not None and not verification.passed:
        bad = next(check for check in verification.checks if not check.passed)
        return Verdict(
            status="anomalous", reason=f"the export failed the check {bad.name}: {bad.finding}", rung="verify"
        )
    if canary is not None and not canary.passed:
        return Verdict(status="regression", reason=f"collapsed, found by the canary: {canary.reason}", rung="canary")
    if fidelity is not None and (collapse := _collapse(fidelity, policy)):
        return Verdict(status="regression", reason=collapse, rung="fidelity")
    if failure is not None:
        return Verdict(status="infeasible", reason=f"{failed_stage} failed: {failure.problem}")
    if comparison is None or accuracy is None:
        return Verdict(status="insufficient", reason="no accuracy was measured, so no verdict is given.")
    if not comparison.suite.incomparable and (broken := _broken(accuracy, policy)):
        return Verdict(status="anomalous", reason=broken)
    if comparison.look is not None and comparison.suite.difference is not None:
        return looks.verdict(comparison.look, policy, comparison.population)
    return _by_difference(comparison.suite, policy)


def collapsed(canary: Canary | None, fidelity: Fidelity | None, policy: Policy) -> bool:
    """No language model any more: nothing more needs to be measured."""
    broken = canary is not None and not canary.passed
    return broken or (fidelity is not None and fidelity.collapsed(policy.collapse_kl, policy.collapse_top1))


def _collapse(fidelity: Fidelity, policy: Policy) -> str:
    if not fidelity.collapsed(policy.collapse_kl, policy.collapse_top1):
        return ""
    kl, top1 = fidelity.kl.value, fidelity.top1.value
    found = f"collapsed, found by the fidelity screen over {fidelity.positions:,} positions: "
    if not kl <= policy.collapse_kl:
        return found + f"mean KL {kl:.2f} nats is above {policy.collapse_kl:g}."
    return found + f"the same next token in {top1:.0%} of positions, below {policy.collapse_top1:.0%}."


def _broken(accuracy: Accuracy, policy: Policy) -> str:
    for task in accuracy.tasks:
        if task.n and task.broken / task.n > policy.max_broken_items:
            return f"{task.broken} of {task.n} items of {task.task} gave no answer that could be scored."
    return ""


def _by_difference(whole: TaskComparison, policy: Policy) -> Verdict:
    if whole.difference is None:
        return Verdict(status="anomalous", reason=f"not comparable with the baseline: {whole.incomparable}")
    low, high = whole.difference.low, whole.difference.high
    if low is None or high is None:
        return Verdict(status="insufficient", reason="one item per task gives no interval.")
    span = f"beyond this suite: {whole.difference.value:+.1f} points [{low:+.1f}, {high:+.1f}]"
    level = f"{policy.confidence:.0%} interval over {whole.n:,} paired items"
    if low > policy.max_gain:
        return Verdict(status="anomalous", reason=f"{span} is a gain too good to be true ({level}).")
    if low > -policy.max_drop:
        return Verdict(
            status="accept",
            reason=f"{span}: the drop is surely below {policy.max_drop:g} points ({level}).",
            rung="accuracy",
        )
    if high < -policy.max_drop:
        return Verdict(
            status="regression",
            reason=f"{span}: the drop is surely above {policy.max_drop:g} points ({level}).",
            rung="accuracy",
        )
    return _undecided(whole.difference, low, high, policy, span, level)


def _undecided(difference: Number, low: float, high: float, policy: Policy, span: str, level: str) -> Verdict:
    from quantlab.score.paired import items_for_margin

    more = items_for_margin(
        difference.value / 100,
        (difference.standard_error or 0) / 100,
        difference.n,
        margin=policy.max_drop / 100,
        confidence=policy.confidence,
        half_width=(max(difference.value - low, high - difference.value)) / 100,
    )
    then = f"about {more:,} more items would decide it" if more else "no number of items decides a tie at the margin"
    return Verdict(
        status="insufficient",
        reason=f"{span} holds {-policy.max_drop:g} points ({level}); {then}.",
        items_needed=more,
    )


def _row(task: str, metric: str, found: Paired, policy: Policy, parts: Sequence[TaskComparison] = ()) -> TaskComparison:
    """`found` is in fractions; a difference is shown in points, because it is a difference of percentages."""
    confidence = policy.confidence
    return TaskComparison(
        task=task,
        metric=metric,
        n=found.n,
        baseline=Number(value=found.baseline_score, unit="share", n=found.n, standard_error=found.baseline_error),
        candidate=Number(value=found.candidate_score, unit="share", n=found.n, standard_error=found.candidate_error),
        difference=Number(
            value=100 * found.difference,
            unit="points",
            n=found.n,
            standard_error=_points(found.standard_error),
            low=_points(found.low),
            high=_points(found.high),
            confidence=confidence,
        ),
        recovery=_recovery(found, confidence),
        regressed=found.regressed,
        improved=found.improved,
        churn=sum(part.churn for part in parts) if parts else (found.churn or 0),
        detectable_drop=_points(found.minimal_detectable_drop),
    )


def _with_nats(row: TaskComparison, a: Items, b: Items, policy: Policy) -> TaskComparison:
    import msgspec

    from quantlab.score.nats import change

    if a.nll is None or b.nll is None:
        return row
    found = change(a.nll, b.nll, a.clusters, policy.confidence)
    if found is None:
        return row
    number = Number(
        value=found.mean,
        unit="nats",
        n=row.n,
        standard_error=found.error,
        low=found.low,
        high=found.high,
        confidence=policy.confidence,
        better="lower",
    )
    return msgspec.structs.replace(row, nll_baseline=float(a.nll.mean()), nll_change=number)


def _recovery(found: Paired, confidence: float) -> Number | None:
    if found.recovery is None:
        return None
    return Number(
        value=found.recovery,
        unit="share",
        n=found.n,
        low=found.recovery_low,
        high=found.recovery_high,
        confidence=confidence,
    )


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _withheld(base: TaskScore, score: TaskScore, why: str) -> TaskComparison:
    return TaskComparison(
        task=score.task,
        metric=score.metric,
        n=score.n,
        baseline=base.score,
        candidate=score.score,
        incomparable=why,
    )


def _withheld_suite(
    baseline: Accuracy, candidate: Accuracy, rows: Sequence[TaskComparison], why: str
) -> TaskComparison:
    from quantlab.shares import mean_score

    n, asked = sum(row.n for row in rows), {row.task for row in rows}

    def mean(accuracy: Accuracy) -> Number:
        return Number(value=mean_score([one for one in accuracy.tasks if one.task in asked]) or 0.0, unit="share", n=n)

    return TaskComparison(
        task="all",
        metric="mean of tasks",
        n=n,
        baseline=mean(baseline),
        candidate=mean(candidate),
        incomparable=why,
    )
