"""Verdicts from measurements: each status, its boundary, and that nothing incomparable is subtracted."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from quantlab import judge
from quantlab.judge import Items
from quantlab.records import (
    Accuracy,
    Canary,
    Check,
    Failure,
    Fidelity,
    Number,
    Policy,
    TaskScore,
    Verification,
)

POLICY = Policy(summary="test", max_drop=2.0)


def items(correct: np.ndarray, answers: list[str] | None = None) -> Items:
    n = len(correct)
    return Items(
        ids=[f"i{place}" for place in range(n)],
        digests=[f"d{place}" for place in range(n)],
        correct=correct.astype(float),
        answers=answers or [str(int(value)) for value in correct],
        clusters=[f"c{place}" for place in range(n)],
    )


def accuracy(correct: np.ndarray, task: str = "t", broken: int = 0, **more: object) -> Accuracy:
    score = Number(value=float(correct.mean()), unit="share", n=len(correct))
    row = TaskScore(task=task, metric="acc", n=len(correct), score=score, broken=broken, **more)  # type: ignore[arg-type]
    return Accuracy(suite="s", tasks=(row,), items="items.parquet")


def flipped(n: int, regressed: int, improved: int) -> tuple[np.ndarray, np.ndarray]:
    """Baseline right in the first 70 %; the candidate loses `regressed` of them and gains `improved` others."""
    baseline = (np.arange(n) < 0.7 * n).astype(float)
    candidate = baseline.copy()
    candidate[:regressed] = 0
    candidate[n - improved :] = 1
    return baseline, candidate


def verdict_of(n: int, regressed: int, improved: int) -> judge.Verdict:
    baseline, candidate = flipped(n, regressed, improved)
    comparison = judge.compare(
        accuracy(baseline), accuracy(candidate), {"t": items(baseline)}, {"t": items(candidate)}, POLICY
    )
    return judge.verdict(POLICY, comparison=comparison, accuracy=accuracy(candidate))


@pytest.mark.parametrize(
    ("n", "regressed", "improved", "status"),
    [
        (2000, 49, 32, "accept"),  # FP8 on the demo model: -0.85 points
        (2000, 180, 70, "regression"),  # INT4-AWQ on it: -5.5 points
        (2000, 90, 40, "insufficient"),  # -2.5 points, the interval holds -2
        (2000, 0, 200, "anomalous"),  # +10 points is no success
        (60, 2, 1, "insufficient"),  # too few items
        (2000, 0, 0, "accept"),  # identical answers
    ],
)
def test_the_paired_interval_decides(n: int, regressed: int, improved: int, status: str) -> None:
    found = verdict_of(n, regressed, improved)
    assert found.status == status
    assert "points" in found.reason
    assert f"{n:,} paired items" in found.reason


def test_insufficient_says_how_many_more_items_would_decide() -> None:
    found = verdict_of(2000, 90, 40)
    assert found.items_needed is not None
    assert 500 < found.items_needed < 100_000
    assert f"{found.items_needed:,} more items" in found.reason


def test_points_and_shares_are_not_mixed_up() -> None:
    baseline, candidate = flipped(1000, 60, 10)
    found = judge.compare(
        accuracy(baseline), accuracy(candidate), {"t": items(baseline)}, {"t": items(candidate)}, POLICY
    )
    row = found.tasks[0]
    assert row.baseline.value == pytest.approx(0.7)
    assert row.difference is not None
    assert row.difference.value == pytest.approx(-5.0)
    assert row.difference.unit == "points"
    assert (row.regressed, row.improved) == (60, 10)
    assert row.difference.low is not None
    assert row.difference.high is not None
    assert row.difference.low < -5.0 < row.difference.high
    assert row.recovery is not None
    assert row.recovery.value == pytest.approx(0.65 / 0.7)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda it: replace(it, ids=it.ids[::-1]), "another order"),
        (lambda it: replace(it, digests=[*it.digests[:-1], "other"]), "rendered prompts differ"),
        (
            lambda it: replace(
                it,
                **{name: getattr(it, name)[:-1] for name in ("ids", "digests", "correct", "answers", "clusters")},
            ),
            "items against",
        ),
    ],
)
def test_items_that_differ_are_named_and_give_no_difference(change: object, named: str) -> None:
    baseline, candidate = flipped(200, 5, 5)
    found = judge.compare(
        accuracy(baseline),
        accuracy(candidate),
        {"t": items(baseline)},
        {"t": change(items(candidate))},  # type: ignore[operator]
        POLICY,
    )
    assert named in found.tasks[0].incomparable
    assert found.tasks[0].difference is None
    assert found.suite.difference is None
    verdict = judge.verdict(POLICY, comparison=found, accuracy=accuracy(candidate))
    assert verdict.status == "anomalous"
    assert named in verdict.reason


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [("chat_template", True, "chat template"), ("shots", 5, "few-shot"), ("metric", "acc_norm", "metric")],
)
def test_settings_that_differ_are_named(field: str, value: object, named: str) -> None:
    baseline, candidate = flipped(200, 5, 5)
    scored = accuracy(candidate)
    changed = msgspec.structs.replace(scored, tasks=(msgspec.structs.replace(scored.tasks[0], **{field: value}),))
    found = judge.compare(accuracy(baseline), changed, {"t": items(baseline)}, {"t": items(candidate)}, POLICY)
    assert named in found.tasks[0].incomparable


def fidelity(kl: float, top1: float) -> Fidelity:
    def number(value: float, unit: str) -> Number:
        return Number(value=value, unit=unit, n=1000)

    return Fidelity(
        text_digest="x",
        positions=1000,
        kl=number(kl, "nats"),
        kl_percentiles={},
        top1=number(top1, "share"),
        perplexity=number(20.0, "perplexity"),
        perplexity_ratio=number(1.1, "ratio"),
    )


def test_collapse_is_a_regression_whatever_else_is_known() -> None:
    assert judge.verdict(POLICY, fidelity=fidelity(9.0, 0.5)).status == "regression"
    assert judge.verdict(POLICY, fidelity=fidelity(0.1, 0.01)).status == "regression"
    assert judge.verdict(POLICY, fidelity=fidelity(float("nan"), 0.9)).status == "regression"
    canary = Canary(passed=False, reason="the same three tokens repeat", prompts=())
    found = judge.verdict(POLICY, canary=canary, fidelity=fidelity(0.01, 0.99))
    assert found.status == "regression"
    assert "same three tokens" in found.reason


def test_kl_within_bounds_is_never_the_verdict() -> None:
    assert judge.verdict(POLICY, fidelity=fidelity(0.03, 0.9)).status == "insufficient"


def test_broken_items_failed_checks_failures_and_refusals() -> None:
    baseline, candidate = flipped(2000, 10, 10)
    compared = judge.compare(
        accuracy(baseline), accuracy(candidate), {"t": items(baseline)}, {"t": items(candidate)}, POLICY
    )
    broken = judge.verdict(POLICY, comparison=compared, accuracy=accuracy(candidate, broken=100))
    assert (broken.status, "100 of 2000" in broken.reason) == ("anomalous", True)
    checks = (Check(name="size", passed=True, finding="ok"), Check(name="scales", passed=False, finding="3 are zero"))
    failed = judge.verdict(POLICY, verification=Verification(checks=checks))
    assert (failed.status, "3 are zero" in failed.reason) == ("anomalous", True)
    died = judge.verdict(POLICY, failure=Failure(kind="StageFailed", problem="killed"), failed_stage="calibrate")
    assert (died.status, died.reason) == ("infeasible", "calibrate failed: killed")
    refused = judge.verdict(POLICY, refusal="needs FP8 units")
    assert (refused.status, refused.reason) == ("infeasible", "needs FP8 units")
