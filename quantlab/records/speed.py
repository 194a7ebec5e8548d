"""How fast, and at what draw: the cells of a throughput grid."""

from __future__ import annotations

from typing import Literal

from quantlab.records.load import Knee, LoadCell
from quantlab.records.numbers import Number
from quantlab.records.power import Percentiles, Power
from quantlab.records.results import Result


class Cell(Result, frozen=True, kw_only=True):
    """One throughput cell. A cell that fails a check keeps its place, with the reason."""

    isl: int
    osl: int
    batch: int
    valid: bool = True
    reason: str = ""
    ttft_seconds: Number | None = None
    """Time to the first token: the prefill of the whole batch."""
    tpot_seconds: Number | None = None
    """Time per output token after the first, of one sequence."""
    prefill_tokens_per_second: Number | None = None
    decode_tokens_per_second: Number | None = None
    """All sequences together."""
    tokens_per_second: Number | None = None
    """Output tokens over the whole time, prefill included."""
    bandwidth_share: Number | None = None
    """Bytes that a decode step must read over what the memory could deliver; None where the bandwidth is unknown."""
    compute_share: Number | None = None
    """Time that a prefill's operations need at the GPU's dense peak over the time it took; None where that peak is not
    known."""
    ttft_percentiles: Percentiles | None = None
    tpot_percentiles: Percentiles | None = None
    variation: float | None = None
    """Coefficient of variation of the counted runs' total time: standard deviation over mean."""
    discarded: int = 0
    """Runs taken for warm-up beyond the grid's own, because they were slower than those that followed."""
    power: Power | None = None
    """None where the driver keeps no counters."""


class PictureCell(Result, frozen=True, kw_only=True):
    """A cell whose prompts hold pictures: decoding also reads the pictures' keys and values, step after step."""

    images: int
    """Pictures in each prompt; `cell.isl` counts their image tokens, one each, and not what the model looks at."""
    image_tokens: int = 0
    """Vectors of its pictures that the cross-attention layers of one sequence look at: tiles x (patches + 1)."""
    cell: Cell
    """Its time to the first token holds decoding the files, cutting them into tiles, the encoder and the prefill."""
    encoder_images_per_second: Number | None = None
    """Vision tower and projector, all pictures of the batch together, tiles ready on the device."""


class Throughput(Result, frozen=True, kw_only=True):
    """A grid on one artifact."""

    grid: str
    cells: tuple[Cell, ...]
    numerics: Literal["native", "emulated", "simulated"]
    device: str
    """"cpu: AMD EPYC, 2 threads", "NVIDIA H100 80GB HBM3"."""
    pictures: tuple[PictureCell, ...] = ()
    """The same with pictures in the prompt, where the grid asks for them; `cells` time text alone, which runs through
    no cross-attention layer."""
    peak_bytes: int = 0
    """Peak resident memory of the child; GPU memory where the device is one."""
    seconds: float = 0.0
    source: str = ""
    """The engine's own benchmark that took the times; empty: quantlab's static batches on the session."""
    load: tuple[LoadCell, ...] = ()
    """The sweep over requests in flight."""
    knees: tuple[Knee, ...] = ()
    """Where each sweep stops paying."""
