"""Positions of a window, stretch by stretch: what a long context costs."""

from __future__ import annotations

import msgspec

from quantlab.records.numbers import Number


class Stretch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tokens from `start` to before `stop` of every window, under baseline and candidate."""

    start: int
    """Tokens that stand before the first one that is predicted."""
    stop: int
    nll_baseline: float
    """Mean negative log-likelihood of the text's own tokens in nats, of the baseline; exp of it is its perplexity."""
    nll: Number
    """The same of the candidate."""
    change: Number
    """Candidate minus baseline in nats, with its paired interval; windows are the clusters."""
    kl: Number
    """Mean KL(baseline || candidate) in nats."""
