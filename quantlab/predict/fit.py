"""The additive model fitted to cells, with the error it makes on cells it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from quantlab.predict.bands import LEAST_ERROR
from quantlab.predict.cells import Cell, Point, Work

LEAST_CELLS = 4
"""Fewer cannot give an 80 % interval by order statistic."""
COVERAGE, NEIGHBOURS = 0.8, 1.25
"""Of an interval; and what its width is multiplied by, because a cell that is left out leaves its neighbours there:
without it 14 of 20 cells were inside."""
REACH = 2.0
"""Batches and contexts up to this factor beyond the measured ones are answered."""
MODEL_REACH = 4.0
"""Models whose decode step reads up to this factor fewer or more bytes than the measured ones."""
PREFILL_EFFICIENCY, PROMPT_SHARE = 0.4, 0.5
"""Taken where only whole times are known and all prompts are shorter than this share of the answer: 1 to 2 % of
time."""

LEAST_READING = 1.0
"""Weights are read no faster than the data sheet says. Without this bound the INT4 cells of an H100, where launches
take longer than reading, give reading no time at all, and a GPU with a quarter of the bandwidth would lose nothing."""
FOUR_BIT = ("int4", "w4")
UNPACK_BATCHES = 3
"""With fewer batches nothing tells unpacking from a sequence's own work."""

SERVERS = ("vllm", "trtllm", "sglang")
"""Server engines: their layers run back to back, as one recorded graph."""


def is_server(engine: str) -> bool:
    """ "trtllm-0.6" is one too: a version that is an engine of its own."""
    return engine.partition("-")[0] in SERVERS


def is_four_bit(form: str) -> bool:
    """Weights of four bits are unpacked to 8 or 16 before they are multiplied."""
    return form.startswith(FOUR_BIT)


def unpacked(batch: int) -> float:
    """Share of the weights' unpacking that a step pays for.

    A matrix times one vector is unpacked in registers while the next weights are read, so it costs nothing. A matrix
    times several goes through the tensor units and is unpacked into shared memory first: a cost by weight, not by
    sequence, and nearly whole from a few sequences on. (b - 1) / b was the shape with the least residual of (b - 1) /
    (b - 1 + h), h = 1, 4, 16, 64, 256, for TensorRT-LLM 0.15; vLLM's Marlin hides it at every batch, and the fit gives
    it 0.
    """
    return 1 - 1 / batch


LAYER_STEP = 40e-6
"""Seconds a layer and step beside its bytes and operations, taken for server engines where the cells cannot tell: bf16
and FP8 of 3B on our H100 differ by their weights only and leave 1.3 ms for 28 layers, 46 us each."""


@dataclass(frozen=True)
class Coefficients:
    """Seconds that no hardware explains, and inverse efficiencies."""

    layer: float
    each: float
    """A sequence and step: scheduling and sampling, whatever the model."""
    weights: float
    sequence: float
    first: float
    prefill: float
    unpack: float = 0.0
    """Of four-bit weights, in times that reading them takes at the data sheet's bandwidth."""

    def step_seconds(self, work: Work, point: Point) -> float:
        """One decode step of the whole batch."""
        one = self.each + self.sequence * work.sequence_seconds(point)
        weights = self.weights + self.unpack * unpacked(point.batch)
        talk = work.talk_seconds(point.batch)
        return self.layer * work.layers + weights * work.weights_seconds + point.batch * one + talk

    def first_seconds(self, work: Work, point: Point) -> float:
        """Prefill of the whole batch."""
        beside = work.image_seconds(point) + work.talk_seconds(point.batch * point.isl)
        return self.first + self.prefill * work.prompt_seconds(point) + beside

    def seconds(self, work: Work, point: Point) -> float:
        """From the call to the last token."""
        return self.first_seconds(work, point) + max(point.osl - 1, 1) * self.step_seconds(work, point)


@dataclass(frozen=True)
class Fit:
    """A fitted model and what it is worth."""

    coefficients: Coefficients
    cells: tuple[Cell, ...]
    errors: tuple[float, ...]
    """Held-out logarithms of predicted over observed time: one a cell, or one a group and cell when groups are left
    out."""
    half_width: float
    """Half of the 80 % interval, in logarithms."""
    by_group: bool
    """The errors are of whole models or GPUs left out."""

    def outside(self, point: Point, work: Work) -> str:
        """Why the model says nothing there; empty inside its range."""
        sizes = [cell.work.weight_bytes for cell in self.cells]
        if not min(sizes) / MODEL_REACH <= work.weight_bytes <= max(sizes) * MODEL_REACH:
            return (
                f"{work.weight_bytes / 1e9:.2g} GB of weights a GPU are outside what was measured "
                f"({min(sizes) / 1e9:.2g} to {max(sizes) / 1e9:.2g} GB, and {MODEL_REACH:g} times beyond)."
            )
        if point.images and not any(cell.point.images for cell in self.cells):
            return "no cell with images was measured."
        batches = [cell.point.batch for cell in self.cells]
        contexts = [cell.point.context for cell in self.cells]
        for what, value, known in (("batch", point.batch, batches), ("a mean context of", point.context, contexts)):
            low, high = min(known), max(known)
            if not low / REACH <= value <= high * REACH:
                return (
                    f"{what} {value:g} is outside what was measured ({low:g} to {high:g}, and {REACH:g} times beyond); "
                    "measure a cell near it."
                )
        return ""

    @property
    def said(self) -> str:
        """The error in words."""
        worst = max(abs(each) for each in self.errors)
        what = "whole GPUs or models left out" if self.by_group else "cells left out one by one"
        return f"{len(self.cells)} cells, held-out error up to {100 * math.expm1(worst):.0f} % ({what})"


def fit(cells: Sequence[Cell], *, by_group: bool = False) -> Fit | str:
    """Fit the model to cells of one engine and precision.

    Args:
        cells: sound ones; at least LEAST_CELLS with two batches.
        by_group: leave whole groups out for the error, as for another GPU or model.

    Returns:
        The fit, or a sentence why there is none.
    """
    known = [cell for cell in cells if cell.sound]
    if len(known) < LEAST_CELLS or len({cell.point.batch for cell in known}) < 2:
        return f"{len(known)} cells are too few: {LEAST_CELLS} at two batches or more are needed."
    groups = sorted({cell.group for cell in known})
    by_group = by_group and len(groups) > 1
    errors = []
    for left in groups if by_group else range(len(known)):
        out = [cell for index, cell in enumerate(known) if left in (cell.group, index)]
        rest = [cell for cell in known if cell not in out]
        if len(rest) >= 2:
            found = _solve(rest)
            errors += [math.log(found.seconds(cell.work, cell.point) / cell.seconds) for cell in out]
    if len(errors) < LEAST_CELLS:
        return f"{len(errors)} held-out errors are too few: {LEAST_CELLS} are needed."
    width = half_width(errors) * (1 if by_group else NEIGHBOURS)
    return Fit(_solve(known), tuple(known), tuple(errors), max(width, LEAST_ERROR), by_group)


def half_width(errors: Sequence[float]) -> float:
    """The order statistic below which the next error lies with probability COVERAGE (split conformal)."""
    rank = math.ceil(COVERAGE * (len(errors) + 1))
    ordered = sorted(abs(each) for each in errors)
    return ordered[min(rank, len(ordered)) - 1]


def _solve(cells: Sequence[Cell]) -> Coefficients:
    """Non-negative least squares on relative errors: one row a known time, divided by that time.

    One model on one GPU cannot tell layers from weights: then LAYER_STEP is given. Where time to the first token and
    time per token are known, each is fitted alone. Where only whole times are, prefill is fitted with the rest if
    prompts are long enough to matter, and taken from the literature if not. What GPUs say to each other is not fitted
    but taken off.
    """
    split = all(cell.first_seconds is not None and cell.step_seconds is not None for cell in cells)
    several = len({round(cell.work.weights_seconds, 9) for cell in cells}) > 1
    varied = len({round(cell.work.sequence_seconds(cell.point), 12) for cell in cells}) > 1
    unpacks = is_four_bit(cells[0].format) and len({cell.point.batch for cell in cells}) >= UNPACK_BATCHES
    given = LAYER_STEP if not several and is_server(cells[0].engine) else 0.0
    free = not split and any(cell.point.isl > PROMPT_SHARE * cell.point.osl for cell in cells)
    first, prefill = _prefill(cells) if split else (0.0, 1 / PREFILL_EFFICIENCY)
    rows, times = [], []
    for cell in cells:
        work, point = cell.work, cell.point
        steps = 1 if split else max(point.osl - 1, 1)
        prompt = work.prompt_seconds(point)
        whole = (cell.step_seconds if split else cell.seconds) or math.inf
        talk = work.talk_seconds(point.batch)
        if not split:
            talk = work.whole_talk_seconds(point) + work.image_seconds(point)
        least = given * work.layers + LEAST_READING * work.weights_seconds
        known = whole - talk - steps * least - (0.0 if split or free else prefill * prompt)
        sequence = point.batch * work.sequence_seconds(point)
        alone, unpack = float(varied) * point.batch, float(unpacks) * work.weights_seconds * unpacked(point.batch)
        features = (float(several) * work.layers, alone, work.weights_seconds, sequence, unpack)
        rows.append([*(steps * feature / whole for feature in features), *([prompt / whole] if free else [])])
        times.append(max(known / whole, 1e-3))
    layer, each, weights, sequence, unpack, *fitted = _least_squares(rows, times)
    weights += LEAST_READING
    return Coefficients(layer + given, each, weights, sequence, first, fitted[0] if free else prefill, unpack)


def _least_squares(rows: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    return [float(each) for each in nnls(np.asarray(rows), np.asarray(times))[0]]


def _prefill(cells: Sequence[Cell]) -> tuple[float, float]:
    """Floor and inverse efficiency of the time to the first token."""
    rows, times = [], []
    for cell in cells:
        time, point = cell.first_seconds or math.inf, cell.point
        rows.append([1 / time, cell.work.prompt_seconds(point) / time])
        beside = cell.work.image_seconds(point) + cell.work.talk_seconds(point.batch * point.isl)
        times.append(max(1 - beside / time, 1e-3))
    first, prefill = _least_squares(rows, times)
    return first, prefill
