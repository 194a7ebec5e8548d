"""Somebody else's scores, with their source: what a baseline is held against. The rows of evals/published.yaml."""

from __future__ import annotations

from quantlab.records.ask import Ask


class PublishedScore(Ask, frozen=True, kw_only=True):
    """One benchmark of one publisher, for the models it was published of, in 16 bit."""

    publisher: str
    """Who measured it."""
    benchmark: str
    """As the publisher calls it: "MMLU", "GSM8K (CoT)"."""
    shots: int
    """Few-shot examples, as stated."""
    stated: str
    """The metric, as stated: "macro_avg/acc"."""
    percent: dict[str, float]
    """Catalog word of a model -> score, in percent."""
    source: str
    """URL of the page that states it."""
    task: str | None = None
    """lm-eval task or group that asks the same items; null where none does, and the row is for reading."""
    metric: str | None = None
    """Metric of that task which counts the same thing, as a suite writes it; null: any."""
    differs: str = ""
    """How the publisher's way differs from that task's, one clause; empty where the task reproduces it."""


class Published(Ask, frozen=True, kw_only=True):
    """evals/published.yaml."""

    accuracy: tuple[PublishedScore, ...] = ()
    """Scores."""
