"""What an early run would have scored, replayed on a full run's results: how many items, in how many openings.

    python benchmarks/early.py LEDGER --orders 200

LEDGER holds a full run (`quantlab run fp8 int4_awq --model smollm2-135m`). Nothing is scored: the items' results are
met in many random orders, by the code that decides an early run. Every order gives a verdict, the number of items
after which it was certain, and for several growths of the looks how many items would have been scored and how often
the model opened. The verdict to agree with is the suite's own difference.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from quantlab.ledgers import Ledger
from quantlab.looks import next_look
from quantlab.records import Accuracy
from quantlab.score.draw import Draw, ends
from quantlab.score.sequential import NonInferiority, share

FIRST, GROWTHS = 200, (1.5, 2.0, 3.0)
RESULTS = Path(__file__).parent / "results" / "early.json"


def scores(ledger: Ledger) -> dict[str, tuple[Accuracy, np.ndarray]]:
    """Recipe -> (record, scores of all items in the suite's order); the newest full result of each."""
    import pyarrow.parquet as pq

    found = {}
    for entry in ledger.entries("accuracy"):
        record = ledger.result(entry)
        if isinstance(record, Accuracy) and record.part is None:
            found[entry.recipe] = (record, pq.read_table(ledger.path(record.items))["correct"].to_numpy())
    return found


def walk(test: NonInferiority, differences: np.ndarray, growth: float) -> tuple[int, int]:
    """(items scored, openings of the model) until it is decided."""
    places = ends(FIRST, growth, test.items)
    place = 0
    for openings in range(1, len(places) + 1):
        known = places[place]
        decision = test.decide(differences[:known])
        if decision.status != "undecided" or known == test.items:
            return known, openings
        place = next_look(places, place, known + decision.items_needed_estimate)
    raise AssertionError("the last look knows all items")


def replay(draw_sizes: tuple[tuple[str, int], ...], differences: np.ndarray, args: Any, others: int) -> dict[str, Any]:
    alpha = share(0.05, others)
    used: list[int] = []
    verdicts: Counter[str] = Counter()
    walks: dict[float, list[tuple[int, int]]] = {growth: [] for growth in GROWTHS}
    for seed in range(args.orders):
        draw = Draw(draw_sizes, seed)
        test, met = draw.test(args.margin / 100, (alpha, alpha)), differences[draw.arrival]
        decision = test.decide(met)
        used.append(decision.items_used)
        verdicts[decision.status] += 1
        for growth, found in walks.items():
            found.append(walk(test, met, growth))
    draw = Draw(draw_sizes, 0)
    points = 100 * float(draw.weights @ differences / draw.weights.sum())
    return {
        "points": points,
        "full_verdict": "accept" if points > -args.margin else "regression",
        "verdicts": dict(verdicts),
        "items": draw.total,
        "items_used": {"mean": fmean(used), "median": median(used), "seed_0": used[0]},
        "looks": {
            str(growth): {"scored": fmean(s for s, _ in found), "openings": fmean(o for _, o in found)}
            for growth, found in walks.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--margin", type=float, default=2.0, help="points")
    parser.add_argument("--baseline", default="bf16")
    args = parser.parse_args()
    found = scores(Ledger(args.ledger))
    record, before = found.pop(args.baseline)
    sizes = tuple((task.task, task.n) for task in record.tasks)
    result = {name: replay(sizes, after - before, args, len(found)) for name, (_, after) in found.items()}
    text = json.dumps({"orders": args.orders, "margin": args.margin, "candidates": result}, indent=1)
    RESULTS.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
