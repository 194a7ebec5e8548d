"""How far a prediction may be off, as data: bands.json, one band a kind of prediction.

`low` and `high` multiply the tokens a second that the model says; about 80 % of cells lie between. A band stands on the
literature until enough cells were predicted that the model had not seen; then it stands on those:

    python benchmarks/prediction.py --bands        corrects the file from all cells below benchmarks/results/gpu

Cells of one model on one GPU err together, so a number of cells says little: a band is replaced only where LEAST_CELLS
of LEAST_GROUPS models and GPUs speak, and only ever widened where there are fewer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("bands.json")
LEAST_CELLS, LEAST_GROUPS = 12, 3
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
    prior = Band(band.prior_low, band.prior_high, band.prior_low, band.prior_high, band.basis)
    if not errors:
        return prior
    groups = {group for group, _ in errors}
    low, high = _ends(sorted(error for _, error in errors))
    if len(errors) < LEAST_CELLS or len(groups) < LEAST_GROUPS:
        low, high = min(low, math.log(prior.low)), max(high, math.log(prior.high))
    middle, least = (low + high) / 2, max((high - low) / 2, LEAST_ERROR)
    ends = (round(math.exp(middle - least), 3), round(math.exp(middle + least), 3))
    return Band(*ends, band.prior_low, band.prior_high, band.basis, len(errors), len(groups))


def _ends(ordered: list[float]) -> tuple[float, float]:
    """Order statistics that leave TAIL outside at either end, also for the next one; the extremes where there are
    few."""
    rank = max(math.floor(TAIL * (len(ordered) + 1)), 1)
    return ordered[rank - 1], ordered[-rank]


def write(bands: Bands, path: Path = FILE) -> None:
    """Replace the file."""
    path.write_text(json.dumps({name: asdict(band) for name, band in bands.items()}, indent=1) + "\n")
