"""Records as pandas frames, for the questions that a notebook asks: a row a precision, a layer, a cell, an item.

`Ledger.frame()` has a row a stage. These go one step deeper. Columns keep the records' names and units; a number that
was not measured is missing, never zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.records import Candidate, Number, Run, Throughput
from quantlab.shares import mean_score

if TYPE_CHECKING:
    import pandas as pd


def candidates(run: Run) -> pd.DataFrame:
    """One row a recipe: `difference` in points with `low` and `high`, `kl` in nats, `bytes` of the checkpoint,
    `tokens_per_second` of the best valid cell and whether it is the format's own (`numerics`)."""
    import pandas as pd

    return pd.DataFrame([_candidate(each) for each in run.candidates])


def _candidate(one: Candidate) -> dict[str, Any]:
    suite = one.comparison.suite if one.comparison else None
    difference = suite.difference if suite else None
    checkpoint = one.calibrated.checkpoint if one.calibrated else None
    fidelity, speed = one.fidelity, one.throughput
    valid = [cell for cell in speed.cells if cell.valid] if speed else []
    speeds = [cell.tokens_per_second.value for cell in valid if cell.tokens_per_second]
    return {
        "recipe": one.recipe_name,
        "verdict": one.verdict.status,
        "score": mean_score(one.accuracy.tasks) if one.accuracy else None,
        "difference": difference.value if difference else None,
        "low": difference.low if difference else None,
        "high": difference.high if difference else None,
        "regressed": suite.regressed if suite else None,
        "improved": suite.improved if suite else None,
        "kl": fidelity.kl.value if fidelity else None,
        "top1": fidelity.top1.value if fidelity else None,
        "perplexity_ratio": fidelity.perplexity_ratio.value if fidelity else None,
        "bits_per_weight": checkpoint.bits_per_weight if checkpoint else None,
        "bytes": checkpoint.bytes if checkpoint else None,
        "tokens_per_second": max(speeds, default=None),
        "numerics": speed.numerics if speed else None,
    }


def damage(run: Run) -> pd.DataFrame:
    """One row a quantized layer of every recipe: `output_error` and `weight_error` as shares, `outlier` as a ratio; see
    docs/damage.md."""
    import pandas as pd

    rows = [
        {
            "recipe": one.recipe_name,
            "layer": layer.layer,
            "kind": layer.kind,
            "depth": layer.depth,
            "bits": layer.bits,
            "weight_error": layer.weight_error,
            "output_error": layer.output_error,
            "outlier": layer.outlier,
            "outlier_channel": layer.outlier_channel,
        }
        for one in run.candidates
        if one.verification
        for layer in one.verification.damage
    ]
    return pd.DataFrame(rows)


def flips(run: Run) -> pd.DataFrame:
    """One row an item that a recipe answers otherwise than the baseline, the most surprising first (docs/damage.md)."""
    import msgspec
    import pandas as pd

    rows = [{"recipe": one.recipe_name, **msgspec.to_builtins(flip)} for one in run.candidates for flip in one.flips]
    columns = ["recipe", "task", "id", "direction", "prompt", "right", "baseline", "candidate", "surprise"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def items(ledger: Ledger, identity: str) -> pd.DataFrame:
    """One row an item that was asked, out of the Parquet file of an accuracy entry; `choices` is a list again.

    Raises:
        BadInput: no done accuracy entry of that identity.
    """
    import pandas as pd

    entry = ledger.find("accuracy", identity)
    if entry is None:
        raise BadInput(
            f"no accuracy entry {identity[:12]!r}.", place=str(ledger.root), cure="See `ql.ledger().frame()`."
        )
    found = pd.read_parquet(ledger.path(entry.files["items.parquet"]))
    return found.assign(choices=found["choices"].map(json.loads))


def cells(folders: Iterable[Path | str]) -> pd.DataFrame:
    """One row a throughput cell of the ledgers at or below `folders`: `tokens_per_second` with the spread of its
    repeats, `joules_per_token`, and `reason` where the cell does not count."""
    import pandas as pd

    from quantlab.decide.evidence import ledgers_in

    rows: list[dict[str, Any]] = []
    for book in (book for folder in folders for book in ledgers_in(Path(folder))):
        for entry in book.entries("throughput"):
            if entry.status == "done":
                rows += _cells(entry.model, entry.recipe, entry.started, book.result(entry))
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["model", "recipe", "batch", "tokens_per_second"])


def _cells(model: str, recipe: str, started: str, result: Throughput) -> Sequence[dict[str, Any]]:
    def value(number: Number | None) -> float | None:
        return number.value if number else None

    return [
        {
            "model": model,
            "recipe": recipe,
            "device": result.device,
            "numerics": result.numerics,
            "isl": cell.isl,
            "osl": cell.osl,
            "batch": cell.batch,
            "tokens_per_second": value(cell.tokens_per_second),
            "low": cell.tokens_per_second.low if cell.tokens_per_second else None,
            "high": cell.tokens_per_second.high if cell.tokens_per_second else None,
            "decode_tokens_per_second": value(cell.decode_tokens_per_second),
            "tpot_seconds": value(cell.tpot_seconds),
            "joules_per_token": value(cell.power.joules_per_token) if cell.power else None,
            "valid": cell.valid,
            "reason": cell.reason,
            "started": started,
        }
        for cell in result.cells
    ]
