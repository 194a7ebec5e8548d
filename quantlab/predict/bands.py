"""How far a prediction may be off, as data: bands.json, one band a kind of prediction.

`low` and `high` multiply the tokens a second that the model says; about 80 % of cells lie between. A band stands on the
literature until enough cells were predicted that the model had not seen; then it stands on those:

    python benchmarks/prediction.py --bands        corrects the file from all cells below benchmarks/results/gpu

Cells of one model on one GPU err together, so each model and GPU weighs the same, however many cells it has; and the
literature weighs as one more. With fewer than five models and GPUs a band can therefore only be widened.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("bands.json")
TAIL = 0.1
"""Outside at either end."""
LEAST_ERROR = 0.05
"""Two leases of one H100 differed by 0.5 to 10 %: no interval is narrower."""


@dataclass(frozen=True, slots=True)
class Band:
    """Factors on predicted tokens a second, and what they stand on."""

    low: float
    high: float
    prior_low: float
    """What the literature or a first look said, before our own cells did."""
    prior_high: float
    basis: str
    cells: int = 0
    """Held-out cells behind `low` and `high`; 0: the prior alone."""
    groups: int = 0

    @property
    def width(self) -> float:
        """Half of it, in logarithms."""
        return math.log(self.high / self.low) / 2


Bands = Mapping[str, Band]


@cache
def shipped() -> Bands:
    """The bands of bands.json."""
    return {name: Band(**band) for name, band in json.loads(FILE.read_text()).items()}


def corrected(bands: Bands, errors: Iterable[tuple[str, str, float]]) -> dict[str, Band]:
    """Bands after looking at predictions of cells that the model had not seen.

    Args:
        bands: as they are; their priors are kept.
        errors: (band, model and GPU, logarithm of observed over predicted tokens a second).

    Returns:
        All bands, in their order.
    """
    seen = list(errors)
    return {name: _corrected(band, [each[1:] for each in seen if each[0] == name]) for name, band in bands.items()}


def _corrected(band: Band, errors: list[tuple[str, float]]) -> Band:
    groups = Counter(group for group, _ in errors)
    share = 1 / (len(groups) + 1)
    weighed = [(error, share / groups[group]) for group, error in errors]
    weighed += [(math.log(end), share / 2) for end in (band.prior_low, band.prior_high)]
    low, high = _tail(sorted(weighed)), _tail(sorted(weighed, reverse=True))
    middle, least = (low + high) / 2, max((high - low) / 2, LEAST_ERROR)
    ends = (round(math.exp(middle - least), 3), round(math.exp(middle + least), 3))
    return Band(*ends, band.prior_low, band.prior_high, band.basis, len(errors), len(groups))


def _tail(weighed: list[tuple[float, float]]) -> float:
    """The first error, from the end they start at, that leaves less than TAIL of the weight outside."""
    outside = 0.0
    for error, weight in weighed:
        outside += weight
        if outside >= TAIL - 1e-9:
            return error
    return weighed[-1][0]


def write(bands: Bands, path: Path = FILE) -> None:
    """Replace the file."""
    path.write_text(json.dumps({name: asdict(band) for name, band in bands.items()}, indent=1) + "\n")
