"""What is known and what is asked: a cell of a throughput grid, the work in it, and an answer with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from quantlab.predict.links import Link

ENCODER_EFFICIENCY = 0.28
"""Of the data sheet's 16-bit operations: 11B's encoder took 66 ms for four tiles (18.6 TFLOP) on an H200, as long for
each of a batch of 16 (benchmarks/results/gpu/2026-11-25-h200)."""
Tier = Literal["measured", "interpolated", "fit", "transfer", "kernels", "roofline"]


@dataclass(frozen=True, slots=True)
class Point:
    """Tokens in, tokens out, sequences at once."""

    isl: int
    osl: int
    batch: int
    images: int = 0
    """Of each sequence."""

    @property
    def context(self) -> float:
        """Tokens in the cache, averaged over the steps."""
        return self.isl + self.osl / 2


@dataclass(frozen=True, slots=True)
class Work:
    """What one GPU must do, and what its data sheet promises."""

    weight_bytes: float
    """Read by every decode step."""
    cache_bytes: float
    """KV cache of one token of one sequence."""
    token_flops: float
    """Operations for one token."""
    bandwidth: float
    """Bytes a second."""
    flops: float | None
    """Operations a second in the format that multiplies; None where the data sheet has none."""
    layers: int
    """Decoder layers: each costs launches and gaps that neither bandwidth nor operations explain."""
    exchanges: int = 0
    """All-reduces of a step: two a layer where GPUs share layers, and one of the embedding."""
    token_message: float = 0.0
    """Bytes of one token in an all-reduce: the residual stream in 16 bit."""
    link: Link | None = None
    """Between the GPUs of a layer; None: one GPU, or the link is not known."""
    image_bytes: float = 0.0
    """Keys and values of one image, read by every step."""
    image_flops: float = 0.0
    """Of one image before the first token: encoder, and its keys and values in the cross-attention layers. 16 bit."""
    image_rate: float | None = None
    """Operations a second in 16 bit."""

    @property
    def weights_seconds(self) -> float:
        return self.weight_bytes / self.bandwidth

    def sequence_seconds(self, point: Point) -> float:
        """One token of one sequence at the data sheet's speed: multiplying, and reading its cache."""
        cached = point.context * self.cache_bytes + point.images * self.image_bytes
        return self.compute_seconds + cached / self.bandwidth

    def prompt_seconds(self, point: Point) -> float:
        """Prompts of the whole batch at the data sheet's operations."""
        return point.batch * point.isl * self.compute_seconds

    def image_seconds(self, point: Point) -> float:
        """Images of the whole batch, as fast as the encoder was measured to be."""
        if not self.image_rate:
            return 0.0
        return point.batch * point.images * self.image_flops / (ENCODER_EFFICIENCY * self.image_rate)

    def talk_seconds(self, tokens: float) -> float:
        """All-reduces of one pass over `tokens` tokens; 0 where the link is not known."""
        return self.exchanges * self.link.seconds(tokens * self.token_message) if self.link else 0.0

    def whole_talk_seconds(self, point: Point) -> float:
        """All-reduces from the call to the last token."""
        return self.talk_seconds(point.batch * point.isl) + max(point.osl - 1, 1) * self.talk_seconds(point.batch)

    @property
    def compute_seconds(self) -> float:
        return self.token_flops / self.flops if self.flops else 0.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured or published cell. Seconds are those of the whole batch, from the call to the last token."""

    point: Point
    work: Work
    engine: str
    """Name without version: cells of one engine may be compared."""
    format: str
    group: str
    """Model and GPU: "3b h100 x1"."""
    seconds: float
    low: float
    """Fastest repeat; equal to `seconds` where there is one only."""
    high: float
    first_seconds: float | None = None
    """Time to the first token."""
    step_seconds: float | None = None
    """Time per output token after the first."""
    provenance: Literal["measured", "published"] = "measured"
    source: str = ""
    joules_per_token: float | None = None
    """Measured draw of all GPUs, where it was valid."""

    @property
    def sound(self) -> bool:
        """Every time that is given is a time."""
        given = [self.seconds, self.low, self.high, self.first_seconds, self.step_seconds]
        return all(math.isfinite(each) and each > 0 for each in given if each is not None)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all sequences over the whole time."""
        return self.point.batch * self.point.osl / self.seconds


@dataclass(frozen=True, slots=True)
class Kernels:
    """What tables of measured kernels say of a cell: their sum, without the host."""

    first_seconds: float
    step_seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """The cell that is asked about."""

    point: Point
    work: Work
    engine: str
    format: str
    group: str
    kernels: Kernels | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A speed with about 80 % between `low` and `high`; tokens a second of all sequences, prefill included."""

    tokens_per_second: float
    low: float
    high: float
    tier: Tier
    provenance: Literal["measured", "published", "predicted"]
    basis: str
    """One sentence: from how many cells, which held-out error, which source."""
    step_seconds: float | None = None
    first_seconds: float | None = None
    """Indicative wherever it is predicted."""
    rankable: bool = True
    """False: too unsure to rank a precision by."""
    joules_per_token: float | None = None
    """Measured, never predicted."""
    band: str = ""
    """Name of the error that was added (bands.py); empty where the cells alone gave it."""

    @property
    def spread(self) -> float:
        """Half the interval's width, in logarithms."""
        return math.log(self.high / self.low) / 2
