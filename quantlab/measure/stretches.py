"""Fidelity by position: where in a long context does a precision hurt?

A mean over positions hides it. The key/value cache is rounded once a token and read by every later one, so the
rounding of N tokens is attended to at position N; rotary scaling is wrong, if it is wrong, beyond the original
context only. Both are invisible in windows of 512 tokens, and a tenth of a mean over 4,096.

Stretches double in length (32 to 64, 64 to 128 ...), because what a model gains from context goes with its logarithm:
a sound one predicts better from stretch to stretch. The price is that the first stretches hold few positions; the
interval says so. Windows are the clusters: positions of one window share its text.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from quantlab.measure.estimates import CONFIDENCE
from quantlab.records import Number
from quantlab.records.stretches import Stretch
from quantlab.score.paired import mean_with_error

Floats = npt.NDArray[np.float64]
LEAST = 32
"""Where the first stretch ends at the earliest: a stretch of one position says nothing."""


def edges(burn_in: int, length: int) -> list[int]:
    """First positions of the stretches of a window, and its end: [32, 64, 128, 256, 512] for 512 tokens."""
    found = [burn_in]
    while found[-1] < length:
        found.append(min(length, max(2 * found[-1], LEAST)))
    return found


def stretches(burn_in: int, base: Floats, candidate: Floats, kl: Floats) -> tuple[Stretch, ...]:
    """The stretches of all windows.

    Args:
        burn_in: positions before the first that is scored.
        base: float64 [windows, positions], nats of the text's own tokens under the baseline.
        candidate: the same under the candidate.
        kl: the same for KL(baseline || candidate).
    """
    bounds = edges(burn_in, burn_in + base.shape[1])
    return tuple(
        _stretch(start, stop, *(part[:, start - burn_in : stop - burn_in] for part in (base, candidate, kl)))
        for start, stop in pairwise(bounds)
    )


def _stretch(start: int, stop: int, base: Floats, candidate: Floats, kl: Floats) -> Stretch:
    return Stretch(
        start=start,
        stop=stop,
        nll_baseline=float(base.mean()),
        nll=_mean(candidate),
        change=_mean(candidate - base),
        kl=_mean(kl),
    )


def _mean(values: Floats) -> Number:
    """Mean [windows, positions] with its interval; without one where there is a single window of a single position."""
    windows, each = values.shape
    labels: Any = np.repeat(np.arange(windows), each) if windows > 1 else None
    groups = windows if windows > 1 else each
    flat = values.ravel()
    if groups < 2:
        return Number(value=float(flat.mean()), unit="nats", n=flat.size, better="lower")
    mean, error = mean_with_error(flat, labels)
    half = float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2)) * error
    return Number(
        value=mean,
        unit="nats",
        n=flat.size,
        standard_error=error,
        low=mean - half,
        high=mean + half,
        confidence=CONFIDENCE,
        better="lower",
    )
