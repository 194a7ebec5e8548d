"""Half-widths of a difference where flips are few, go one way, or lie in few clusters.

A t interval takes its error from the flips that were seen. Where all of them are losses, mean and error are low
together: a sample that happens to show few losses also claims to be sure of it. Exact bounds for proportions have no
such trap, and Korn and Graubard (Survey Methodology 24, 1998; the rule of NCHS for rare proportions in surveys) carry
them over to clusters: the bound of Clopper and Pearson, not on n items but on

    n_eff = n / max(1, design effect) * (t_{n-1} / t_{clusters-1})^2

The drop is the share of losses minus the share of gains, so its bound takes the losses' upper bound and leaves the
gains as they are; the gain's bound the other way round. Where flips go both ways the t interval is the wider one and
nothing changes; without any flip this is the "rule of three".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

from quantlab.score.moments import Floats, Moments


@dataclass(frozen=True)
class Part:
    """A task's part in a difference."""

    weight: float
    items: int
    clusters: int
    lost: float
    """Share of the score that got worse: of items where scores are 0 or 1."""
    won: float
    """Share that got better."""
    variance: float
    """Of its own mean difference; 0 where it is not known."""
    single: float
    """What that variance would be, were all items independent."""

    def losses(self, level: float) -> float:
        """How much larger the drop may be, at a one-sided level."""
        return self.weight * (self._upper(self.lost, level) - self.lost)

    def gains(self, level: float) -> float:
        """How much larger the gain may be."""
        return self.weight * (self._upper(self.won, level) - self.won)

    def _upper(self, share: float, level: float) -> float:
        """Clopper and Pearson's upper bound of a share, on the effective number of items."""
        design = max(1.0, self.variance / self.single) if self.single > 0 else 1.0
        many, few = (float(stdtrit(units - 1.0, level)) for units in (self.items, self.clusters))
        count = self.items / design * ((many / few) ** 2 if few else 1.0)
        left = count * (1 - share)
        return float(betaincinv(count * share + 1, left, level)) if left > 0 else 1.0


def part(weight: float, found: Moments, base: Floats, cand: Floats) -> Part:
    """Of one task: its moments, and scores [n] in [0, 1]."""
    change, n = cand - base, found.items
    single = float(change.var(ddof=1)) / n if n > 1 else 0.0
    lost, won = float(np.maximum(-change, 0).mean()), float(np.maximum(change, 0).mean())
    return Part(weight, n, found.clusters, lost, won, found.variance or 0.0, single)


def half_widths(error: float | None, degrees: float, level: float, parts: Sequence[Part]) -> tuple[float, float] | None:
    """Towards the drop and towards the gain: t times error at a one-sided level; at least what it would be with the
    exact bound in place of the error of one task. Of several tasks the one that counts most, not their sum: many tasks
    with few flips each are well known together."""
    if error is None:
        return None
    quantile = float(stdtrit(degrees, level))
    down, up = [quantile * error], [quantile * error]
    for each in parts:
        others = quantile * math.sqrt(max(0.0, error**2 - each.weight**2 * each.variance))
        down.append(math.hypot(each.losses(level), others))
        up.append(math.hypot(each.gains(level), others))
    return max(down), max(up)
