"""The same cell of a throughput grid in two runs: which moved by more than its repeats do. Pure."""

from __future__ import annotations

import math

from quantlab.records import Candidate, Cell, Number
from quantlab.records.versus import SpeedPair

Key = tuple[int, int, int]


def speed_pairs(old: Candidate, new: Candidate, max_slower: float, refusal: str) -> tuple[SpeedPair, ...]:
    """Every cell that either run has, in the order of the grid.

    Args:
        old: the recipe in the earlier run.
        new: in the later run.
        max_slower: percent of speed that a cell may lose.
        refusal: why no cell can be judged; "" where they can.
    """
    left, right = _cells(old), _cells(new)
    kinds = [each.throughput.numerics for each in (old, new) if each.throughput]
    if not refusal and len(kinds) == 2 and kinds != ["native", "native"]:
        refusal = f"{' and '.join(dict.fromkeys(k for k in kinds if k != 'native'))}: not the format's own speed"
    return tuple(_pair(key, left.get(key), right.get(key), max_slower, refusal) for key in sorted({*left, *right}))


def _cells(candidate: Candidate) -> dict[Key, Cell]:
    timed = candidate.throughput.cells if candidate.throughput else ()
    return {(cell.isl, cell.osl, cell.batch): cell for cell in timed}


def _pair(key: Key, old: Cell | None, new: Cell | None, max_slower: float, refusal: str) -> SpeedPair:
    isl, osl, batch = key
    before, after = _rate(old), _rate(new)
    why = _missing(old, "earlier") or _missing(new, "later")
    if before is None or after is None:
        return SpeedPair(isl=isl, osl=osl, batch=batch, before=before, after=after, why=why)
    ratio, apart = after.value / before.value, _apart(before, after)
    why = refusal or ("" if apart is not None else "one repeat has no spread")
    finding = "not judged" if why else "same"
    if not why and apart:
        finding = "faster" if ratio > 1 else "slower" if ratio < 1 - max_slower / 100 else "same"
    return SpeedPair(
        isl=isl,
        osl=osl,
        batch=batch,
        before=before,
        after=after,
        ratio=ratio,
        overlap=None if apart is None else not apart,
        finding=finding,  # type: ignore[arg-type]
        why=why,
    )


def _rate(cell: Cell | None) -> Number | None:
    """Tokens a second, where they are a speed: finite and above zero, in a cell that is valid."""
    rate = cell.tokens_per_second if cell is not None and cell.valid else None
    return rate if rate is not None and math.isfinite(rate.value) and rate.value > 0 else None


def _missing(cell: Cell | None, side: str) -> str:
    if cell is None:
        return f"the {side} run has no such cell"
    if not cell.valid:
        return f"invalid in the {side} run: {cell.reason}"
    return "" if _rate(cell) else f"the {side} run has no speed here"


def _apart(before: Number, after: Number) -> bool | None:
    """Whether two spreads of repeats have nothing in common; None where one has no spread."""
    if before.n < 2 or after.n < 2 or None in (before.low, before.high, after.low, after.high):
        return None
    assert before.low is not None
    assert before.high is not None
    assert after.low is not None
    assert after.high is not None
    return after.high < before.low or after.low > before.high
