"""A suite of several tasks, met in one random order that every process can work out for itself.

An early run scores slices of that order. The child that measures knows the tasks' documents, the parent that decides
knows only how many there are; both work out the same order from the tasks' sizes and the seed, so nothing but two
numbers (begin, end) names a slice, and a slice is the same on every machine.

A suite's score is the mean over its tasks, weighed as shares.py says. So an item weighs (share of its task) / (size of
its task), and is drawn next with a chance in that proportion: small tasks are met sooner, and the mass left shrinks
evenly.

Places count through the suite: first the items of the first task, in the task's own order, then those of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quantlab.score.betting import Floats
from quantlab.score.sequential import Ints, NonInferiority, order
from quantlab.shares import shares


@dataclass(frozen=True)
class Draw:
    """The order in which a suite's items are met. ValueError on tasks without items."""

    sizes: tuple[tuple[str, int], ...]
    """(task, number of its items), in the suite's order."""
    seed: int
    words: tuple[str, ...] = ()
    """The suite's word for each task, where some are tasks of a group; () where each is named itself."""

    def __post_init__(self) -> None:
        if not self.sizes or min(size for _, size in self.sizes) < 1:
            raise ValueError(f"every task of a drawn suite needs items: {self.sizes}")
        if self.words and len(self.words) != len(self.sizes):
            raise ValueError(f"{len(self.sizes)} tasks but {len(self.words)} words of the suite for them")

    @property
    def total(self) -> int:
        """Items of the whole suite."""
        return sum(size for _, size in self.sizes)

    @cached_property
    def weights(self) -> Floats:
        """[total] weight of each item in the mean over tasks: 1 / size where no task is one of a group."""
        words = self.words or tuple(task for task, _ in self.sizes)
        even = len(set(words)) == len(words)  # then the same bits as ever, and so the same order
        parts = [1.0] * len(words) if even else shares(words)
        return np.concatenate([np.full(size, part / size) for part, (_, size) in zip(parts, self.sizes, strict=True)])

    @cached_property
    def arrival(self) -> Ints:
        """[total] places in order of arrival."""
        return order(self.total, self.seed, chances=self.weights)

    def places(self, begin: int, end: int) -> Ints:
        """Places of the items that arrive from the `begin`-th to before the `end`-th, ascending."""
        return np.sort(self.arrival[begin:end])

    def documents(self, begin: int, end: int) -> dict[str, list[int]]:
        """The same slice as document numbers by task, ascending; tasks without items in it are left out."""
        places, first = self.places(begin, end), 0
        found: dict[str, list[int]] = {}
        for task, size in self.sizes:
            own = places[(places >= first) & (places < first + size)] - first
            if len(own):
                found[task] = own.tolist()
            first += size
        return found

    def test(self, margin: float, alphas: tuple[float, float]) -> NonInferiority:
        """The sequential test over this order. alphas: chances of a wrong acceptance, of a wrong regression."""
        return NonInferiority(
            margin=margin,
            items=self.total,
            alpha=alphas[0],
            alpha_regression=alphas[1],
            seed=self.seed,
            weights=self.weights,
        )


def ends(first: int, growth: float, total: int) -> Sequence[int]:
    """How many items are known at each look: `first`, then `growth` times as many, and at last all.

    Counts and not shares of the suite: what decides is the number of flips seen, whatever the suite's size, so the
    first slices of a suite are the same slices whatever its size too. ValueError on a growth that does not grow.
    """
    if first < 1 or not growth > 1:
        raise ValueError(f"looks need a first one of at least 1 item and must grow: {first}, {growth}")
    found, size = [first], float(first)
    while found[-1] < total:
        size *= growth
        found.append(max(found[-1] + 1, round(size)))
    return [*found[:-1], total]
