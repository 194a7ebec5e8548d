"""How often a verdict accepts wrongly where flips are few, go one way, or lie in few clusters.

    python benchmarks/few_clusters.py [--samples 2000]

Each sample is a suite of one task whose true drop lies exactly at the margin of 2 points, so that every acceptance is
wrong; 2.5 % are allowed. Losses of a cluster share a rate that is drawn from a beta distribution with the named
correlation; gains have one rate. Beside it the share that is accepted rightly, where nothing is lost on balance
(flips that go one way: where 0.4 points are), with a correlation of 0.02. `t`: the clustered t interval alone.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.special import stdtrit

from quantlab.score.paired import paired

MARGIN, LEVEL = 0.02, 0.975
CASES = ((5, 20), (5, 100), (8, 100), (12, 20), (12, 100), (20, 20), (20, 100), (50, 20))
CORRELATIONS = (0.0, 0.02, 0.05, 0.1)


def accepted(
    rng: np.random.Generator, samples: int, clusters: int, size: int, drop: float, gains: float, correlation: float
) -> tuple[float, float]:
    """Shares of samples that the t interval alone, and the interval of the verdict, accept."""
    labels, found = np.repeat(np.arange(clusters), size), np.zeros(2)
    for _ in range(samples):
        rate, spread = gains + drop, (1 - correlation) / max(correlation, 1e-9)
        rates = rng.beta(rate * spread, (1 - rate) * spread, clusters) if correlation else np.full(clusters, rate)
        draws = rng.random(clusters * size)
        lost = draws < np.repeat(rates, size)
        won = draws > 1 - gains
        base, cand = np.where(won, 0.0, 1.0), np.where(lost, 0.0, 1.0)
        one = paired(base, cand, clusters=labels)
        assert one.low is not None
        assert one.standard_error is not None
        alone = one.difference - float(stdtrit(clusters - 1.0, LEVEL)) * one.standard_error
        found += alone > -MARGIN, one.low > -MARGIN
    return float(found[0] / samples), float(found[1] / samples)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=2000)
    samples, rng = parser.parse_args().samples, np.random.default_rng(0)
    heads = [f"wrong, {each:g}" for each in CORRELATIONS]
    print(f"| clusters of items | flips | {' | '.join(heads)} | right |")
    print(f"|---|---|{'--:|' * (len(heads) + 1)}")
    for clusters, size in CASES:
        for name, gains, kept in (("one way, 2 %", 0.0, 0.004), ("both ways, 6 %", 0.02, 0.0)):
            cells = [accepted(rng, samples, clusters, size, MARGIN, gains, each) for each in CORRELATIONS]
            cells.append(accepted(rng, samples, clusters, size, kept, 0.03 if gains else 0.0, 0.02))
            said = " | ".join(f"{100 * before:.1f} -> {100 * after:.1f}" for before, after in cells)
            print(f"| {clusters} x {size} | {name} | {said} |", flush=True)


if __name__ == "__main__":
    main()
