"""A study of calibration: which set, how many samples, which length, and whether it matters."""

from __future__ import annotations

from quantlab.records.numbers import Number
from quantlab.records.results import Result


class StudyCell(Result, frozen=True, kw_only=True):
    """One set, number of samples and length, repeated with several seeds."""

    set: str
    samples: int
    length: int
    kl: tuple[float, ...]
    """Mean KL in nats on the held-out windows, a seed each."""
    mean: float
    above_best: Number | None
    """Mean KL minus that of the best cell, with the interval of the noise between seeds; None for the best itself."""
    seconds: float
    """Wall time of calibrating once, the mean over the seeds."""


class StudyAxis(Result, frozen=True, kw_only=True):
    """One question: do the values of one axis differ, the others averaged?"""

    axis: str
    """set, samples or length."""
    means: dict[str, float]
    """Value -> mean KL."""
    largest: float
    """Between the best and the worst, nats."""
    p_value: float
    """Chance that equal values show means as far apart, given the noise between seeds and the other axes."""


class Study(Result, frozen=True, kw_only=True):
    """What `quantlab study calibration` found."""

    model: str
    recipe_name: str
    seeds: int
    windows: int
    """Held-out windows on which KL was taken, the same for all."""
    cells: tuple[StudyCell, ...]
    """The best first."""
    axes: tuple[StudyAxis, ...]
    """Axes with more than one value."""
    noise: float
    """Standard deviation between seeds of a cell, pooled, in nats."""
    largest: float
    """Between the best cell and the worst, nats."""
    p_value: float
    """Chance that equal cells show means as far apart."""
    confidence: float
    answer: str
    """One or two sentences."""
