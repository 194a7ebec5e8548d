"""What the sequential verdict costs and what it guarantees, simulated with the very code that decides a run.

    python benchmarks/sequential.py --dated 2026-11-24

Every simulated suite is a finite set of N items with an exact number of right -> wrong and wrong -> right
flips: 5.9 % of the items as FP8 flipped them on the demo model, 16 % as INT4-AWQ did. Three ways to draw:

  items     single items in random order. Correlation between items is then irrelevant: the order is all
            the randomness there is, so the flips are simply shuffled.
  clusters  whole clusters of 1 to 12 items (a passage, an image) whose flips share a latent Gaussian effect
            (intra-cluster correlation 0.1 on the latent scale).
  guided    single items, those likely to flip first. ASSUMES that flip rates vary like a gamma(1/2) variable
            and are known up to a factor exp(+-0.5), as from the baseline's own uncertainty: an illustration,
            not a measurement.

Part 1, guarantee: the true drop is exactly the margin, so every acceptance is false. The verdict is looked up
after every batch of 25 items. Beside it a paired z-test at the same alpha (with finite-population
correction), also looked at after every batch: what happens to those who peek at a fixed-n test.
Part 2, price: median share of the suite used until the verdict, against the share a fixed-n paired one-sided
z-test needs for power 0.8 (looked at once, at an n that must be known beforehand; it misses one in five).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from quantlab.score.betting import Units, evidence

Floats = npt.NDArray[np.float64]

ALPHA, POWER, BATCH = 0.05, 0.8, 25
CHUNK = 60_000  # items simulated at once: they stay in the cache of one core
FLIPS = {"FP8": 0.059, "INT4-AWQ": 0.16}
SIZES = (2_000, 14_042)
MARGINS = (0.01, 0.02)
DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
LARGEST_CLUSTER, CORRELATION = 12, 0.1
FIRST_LOOK = 100  # of the peeking z-test, which would be worse still from the start
RESULTS = Path(__file__).parent / "results" / "sequential.json"


@dataclass(frozen=True)
class Case:
    """One cell: a kind of suite, a true drop and a margin, all as fractions; the drop is a whole number of
    items."""

    items: int
    precision: str
    drawing: str
    margin: float
    drop: float

    @property
    def flipped(self) -> tuple[int, int]:
        """Items (right -> wrong, wrong -> right): their difference is the drop, their sum the flip rate."""
        net = round(self.drop * self.items)
        both = max(round(FLIPS[self.precision] * self.items), net)
        return (both + (both - net) % 2 + net) // 2, (both + (both - net) % 2 - net) // 2

    @property
    def whole(self) -> Case:
        """The same case with margin and drop rounded to whole items, so that the null is exact."""
        n = self.items
        return replace(self, margin=round(self.margin * n) / n, drop=round(self.drop * n) / n)


def draw(case: Case, suites: int, rng: np.random.Generator) -> tuple[Floats, Units]:
    """Totals and units [suites, units] in order of arrival of `suites` fresh suites."""
    differences = np.zeros((suites, case.items))
    worse, better = case.flipped
    if case.drawing == "clusters":
        return _clusters(case, suites, rng)
    differences[:, :worse], differences[:, worse : worse + better] = -1, 1
    ones = np.ones_like(differences)
    if case.drawing == "items":
        return rng.permuted(differences, axis=1), Units(ones, ones, ones)
    return _guided(differences, worse + better, rng)


def _clusters(case: Case, suites: int, rng: np.random.Generator) -> tuple[Floats, Units]:
    sizes = rng.integers(1, LARGEST_CLUSTER + 1, case.items)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), case.items)) + 1]
    sizes[-1] -= sizes.sum() - case.items
    labels, starts = np.repeat(np.arange(len(sizes)), sizes), np.cumsum(sizes) - sizes
    shared = rng.standard_normal((suites, len(sizes)))[:, labels]
    own = rng.standard_normal((suites, case.items))
    latent = math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * own
    worse, better = case.flipped
    ranked = np.argpartition(latent, (worse, case.items - better - 1), axis=1)
    differences = np.zeros_like(latent)
    np.put_along_axis(differences, ranked[:, :worse], -1.0, axis=1)
    np.put_along_axis(differences, ranked[:, case.items - better :], 1.0, axis=1)
    totals = np.add.reduceat(differences, starts, axis=1)
    order = np.argsort(rng.exponential(size=totals.shape) / sizes, axis=1)
    masses = sizes[order].astype(np.float64)
    return np.take_along_axis(totals, order, axis=1), Units(masses, masses, masses)


def _guided(differences: Floats, flips: int, rng: np.random.Generator) -> tuple[Floats, Units]:
    """`differences` has its flips first; they are given to items in proportion to a hidden rate, guessed with
    error."""
    shape = differences.shape
    rate = rng.gamma(0.5, size=shape) + 1e-12
    rank = np.argsort(rng.exponential(size=shape) / rate, axis=1)
    mixed = np.concatenate([rng.permuted(differences[:, :flips], axis=1), differences[:, flips:]], axis=1)
    values = np.empty(shape)
    np.put_along_axis(values, rank, mixed, axis=1)
    guess = np.sqrt(rate * np.exp(0.5 * rng.standard_normal(shape)))
    chances = 0.5 + 0.5 * guess / guess.mean(axis=1, keepdims=True)
    order = np.argsort(rng.exponential(size=shape) / chances, axis=1)
    ones = np.ones(shape)
    return np.take_along_axis(values, order, axis=1), Units(ones, np.take_along_axis(chances, order, axis=1), ones)


def first_crossing(totals: Floats, units: Units, null: float, margin: float) -> npt.NDArray[np.int64]:
    """[suites] index of the draw at which the null falls; number of units where it never does.

    Short prefixes first: most suites are decided early, and only the others are followed to the end.
    """
    count = totals.shape[-1]
    crossed = np.full(len(totals), count, dtype=np.int64)
    for drawn in (count // 16, count // 4, count):
        open_ = np.flatnonzero(crossed == count)
        part = Units(units.masses[open_], units.chances[open_], units.items[open_])
        hit = evidence(totals[open_, :drawn], part, null, margin) >= -math.log(ALPHA)
        crossed[open_] = np.where(hit.any(axis=1), hit.argmax(axis=1), count)
    return crossed


def items_at(units: Units, crossed: npt.NDArray[np.int64], items: int) -> Floats:
    """[suites] items scored when the verdict is noticed: batches are finished first; the suite is the end."""
    arrived = np.cumsum(units.items, axis=1)
    last = np.minimum(crossed, arrived.shape[1] - 1)[:, None]
    used = np.take_along_axis(arrived, last, axis=1)[:, 0]
    return np.asarray(np.minimum(np.ceil(used / BATCH) * BATCH, items))


def peeking_z(totals: Floats, units: Units, margin: float, items: int) -> int:
    """How many of the suites a fixed-n paired z-test accepts at some look after a batch, before the suite
    ends.

    Ratio estimate with the variance between units, and the finite-population correction.
    """
    arrived = np.cumsum(units.items, axis=1)
    excess = totals + margin * units.items
    count = np.arange(1, totals.shape[1] + 1)
    mean = np.cumsum(excess, axis=1) / count
    variance = np.maximum(np.cumsum(excess**2, axis=1) / count - mean**2, 1e-12)
    z = mean / np.sqrt(variance / count * np.maximum(1 - arrived / items, 1e-12))
    looked = np.diff(arrived // BATCH, axis=1, prepend=0) > 0
    looks = looked & (arrived >= FIRST_LOOK) & (arrived < items)
    return int(((z > ndtri(1 - ALPHA)) & looks).any(axis=1).sum())


def fixed_share(case: Case, between: float) -> float:
    """Share of the suite a one-sided paired z-test needs for power 0.8, without replacement; `between`: see
    `price`."""
    if case.drop == case.margin:
        return 1.0
    infinite = (float(ndtri(1 - ALPHA) + ndtri(POWER)) / (case.drop - case.margin)) ** 2 * between
    return infinite / (1 + infinite / case.items) / case.items


def _chunks(case: Case, suites: int, rng: np.random.Generator) -> Iterator[tuple[Floats, Units]]:
    size = CHUNK // case.items
    for start in range(0, suites, size):
        yield draw(case, min(size, suites - start), rng)


def guarantee(case: Case, suites: int, rng: np.random.Generator) -> dict[str, object]:
    """False acceptances with the drop exactly at the margin."""
    accepted = peeked = 0
    for totals, units in _chunks(case, suites, rng):
        accepted += int((first_crossing(totals, units, -case.margin, case.margin) < totals.shape[1]).sum())
        if case.drawing != "guided":
            peeked += peeking_z(totals, units, case.margin, case.items)
    naive = None if case.drawing == "guided" else peeked / suites
    return {**asdict(case), "suites": suites, "false_acceptance": accepted / suites, "peeking_z": naive}


def price(case: Case, suites: int, rng: np.random.Generator) -> dict[str, object]:
    """Share of the suite used until the verdict: median, 90th percentile, and what fixed n would need."""
    used, wrong, between = [], 0, []
    for totals, units in _chunks(case, suites, rng):
        accept = first_crossing(totals, units, -case.margin, case.margin)
        regress = first_crossing(-totals, units, case.margin, case.margin)
        used.append(items_at(units, np.minimum(accept, regress), case.items) / case.items)
        first_is_accept = accept < regress
        truly = case.drop < case.margin
        wrong += int((first_is_accept != truly)[np.minimum(accept, regress) < totals.shape[1]].sum())
        between.append(((totals + case.drop * units.masses) ** 2).sum(axis=1).mean() / case.items)
    share = np.concatenate(used)
    return {
        **asdict(case),
        "suites": suites,
        "median_share": float(np.median(share)),
        "p90_share": float(np.quantile(share, 0.9)),
        "fixed_share": fixed_share(case, float(np.mean(between))),
        "wrong": wrong / suites,
    }


def simulate(suites: int, seed: int) -> dict[str, list[dict[str, object]]]:
    rng = np.random.default_rng(seed)
    guarantees, prices = [], []
    for items in SIZES:
        for precision in FLIPS:
            for drawing in ("items", "clusters", "guided"):
                for margin in MARGINS:
                    null = Case(items, precision, drawing, margin, margin).whole
                    guarantees.append(guarantee(null, suites if items == SIZES[0] else suites // 4, rng))
                    few = max(20, suites // (10 if items == SIZES[0] else 20))
                    for drop in DROPS:
                        prices.append(price(Case(items, precision, drawing, margin, drop).whole, few, rng))
    return {"guarantee": guarantees, "price": prices}


def markdown(found: dict[str, list[dict[str, object]]]) -> str:
    lines = [
        "| drawing | suite | flips | margin | suites | falsely accepted | peeking z-test |",
        "|" + "---|" * 7,
    ]
    for row in found["guarantee"]:
        naive = "-" if row["peeking_z"] is None else f"{row['peeking_z']:.1%}"
        place = f"{row['drawing']} | {row['items']:,} | {row['precision']} | {row['margin']:.1%}"
        lines.append(f"| {place} | {row['suites']:,} | {row['false_acceptance']:.1%} | {naive} |")
    head = " | ".join(f"{drop:.1%}" for drop in DROPS)
    lines += ["", f"| drawing | suite | flips | margin | {head} |", "|" + "---|" * (4 + len(DROPS))]
    rows = iter(found["price"])
    for first in rows:
        group = [first, *(next(rows) for _ in DROPS[1:])]
        cells = " | ".join(f"{row['median_share']:.0%} ({row['fixed_share']:.0%})" for row in group)
        place = f"{first['drawing']} | {first['items']:,} | {first['precision']} | {first['margin']:.1%}"
        lines.append(f"| {place} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=int, default=4_000, help="simulated suites of 2,000 items a null case")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--dated", default="", help="date written into the results")
    parser.add_argument("--into", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    start = time.process_time()
    found = simulate(chosen.suites, chosen.seed)
    settings = {"dated": chosen.dated, "seed": chosen.seed, "alpha": ALPHA, "batch": BATCH}
    seconds = round(time.process_time() - start, 1)
    chosen.into.parent.mkdir(parents=True, exist_ok=True)
    chosen.into.write_text(json.dumps({**settings, "cpu_seconds": seconds, **found}, indent=1) + "\n")
    print(markdown(found))
    print(f"\n{seconds} CPU seconds; written to {chosen.into.name}")


if __name__ == "__main__":
    main()
