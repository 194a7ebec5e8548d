"""Which layers to keep in more bits, under a budget of bits: the groups that save the most KL for a bit.

The shares of groups are taken to add up (calibrate/sensitivity.py), which makes it the knapsack problem. The best
ratio first is within one group of its optimum, is explained in one sentence, and gives sets that grow with the budget:
whoever allows more bits keeps the same layers and some more. A group that saves nothing is never taken, so the fewest
layers are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from quantlab.records.repair import GroupCost, SearchPoint

Choice = dict[tuple[str, ...], str]
"""Layers of a group -> the format it is kept in."""
NEAR = 2.5
"""A group is contested while its savings a bit are within this factor of those of the last group that was kept. Shares
of 8 sequences have a standard error of about a quarter; keeping others changes them by as much again."""


@dataclass(frozen=True)
class Step:
    """One group goes from one format to a larger one."""

    group: GroupCost
    word: str
    extra_bits: int
    saved: float
    """Nats."""

    @property
    def ratio(self) -> float:
        return self.saved / self.extra_bits


def choose(groups: Sequence[GroupCost], base: str, formats: Sequence[str], bits: float) -> Choice:
    """The groups to keep so that all together take at most `bits` bits a weight.

    Args:
        groups: all groups that the recipe quantizes.
        base: the recipe's own format.
        formats: in which groups may be kept.
        bits: the budget.
    """
    left = bits * weights(groups) - sum(group.bits[base] for group in groups)
    now: dict[tuple[str, ...], str] = {group.layers: base for group in groups}
    while steps := [
        step for group in groups for step in _steps(group, now[group.layers], formats) if step.extra_bits <= left
    ]:
        best = max(steps, key=lambda step: step.ratio)
        now[best.group.layers] = best.word
        left -= best.extra_bits
    return {layers: word for layers, word in now.items() if word != base}


def _steps(group: GroupCost, now: str, formats: Sequence[str]) -> Iterable[Step]:
    for word in formats:
        extra, saved = group.bits[word] - group.bits[now], cost(group, now) - cost(group, word)
        if extra > 0 and saved > 0:
            yield Step(group, word, extra, saved)


def contested(groups: Sequence[GroupCost], base: str, formats: Sequence[str], choice: Choice) -> SearchPoint:
    """Where to ask again: what is surely kept stands kept, groups near the margin stand halfway; none without a choice.

    Args:
        choice: of `choose`.
    """
    ratios = {group.layers: max((step.ratio for step in _steps(group, base, formats)), default=0.0) for group in groups}
    margin = min((ratios[layers] for layers in choice), default=0.0)
    near = [layers for layers, ratio in ratios.items() if margin / NEAR < ratio < margin * NEAR]
    sure = {layers: word for layers, word in choice.items() if layers not in near}
    return SearchPoint(kept=by_format(sure), halfway=tuple(name for layers in near for name in layers))


def renewed(groups: Sequence[GroupCost], again: Sequence[GroupCost]) -> tuple[GroupCost, ...]:
    """`groups` with those that were asked again in place of their former selves."""
    newer = {group.layers: group for group in again}
    return tuple(newer.get(group.layers, group) for group in groups)


def at_its_own(groups: Sequence[GroupCost], there: Sequence[GroupCost], word: str) -> tuple[GroupCost, ...]:
    """`groups`, with the cost of `word` from `there`: the search at the model that has all layers in it."""
    own = {group.layers: group for group in there}
    return tuple(
        msgspec.structs.replace(
            group,
            bits=group.bits | {word: own[group.layers].bits[word]},
            kl=group.kl | {word: own[group.layers].kl[word]},
            errors=group.errors | {word: own[group.layers].errors[word]},
        )
        for group in groups
    )


def cost(group: GroupCost, word: str) -> float:
    """Nats that a group causes in a format."""
    return group.kl.get(word, 0.0)


def weights(groups: Sequence[GroupCost]) -> int:
    return sum(group.weights for group in groups)


def mean_bits(groups: Sequence[GroupCost], base: str, choice: Choice) -> float:
    """Stored bits a weight."""
    return sum(group.bits[choice.get(group.layers, base)] for group in groups) / weights(groups)


def predicted(groups: Sequence[GroupCost], base: str, choice: Choice) -> float:
    """Sum of the groups' shares, in nats."""
    return sum(cost(group, choice.get(group.layers, base)) for group in groups)


def by_format(choice: Choice) -> dict[str, tuple[str, ...]]:
    """Format -> names of the layers that are kept in it."""
    found: dict[str, tuple[str, ...]] = {}
    for layers, word in choice.items():
        found[word] = (*found.get(word, ()), *layers)
    return found
