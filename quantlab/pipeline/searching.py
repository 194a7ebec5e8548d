"""The search of a repair, around its stages: how long a round takes, and which mixtures its costs give."""

from __future__ import annotations

from collections.abc import Sequence

from quantlab import budget
from quantlab.costs import FLOPS_A_CORE
from quantlab.errors import BadInput
from quantlab.records.repair import GroupCost, SearchPoint
from quantlab.sizes import Sizes


def estimate(known: Sizes, point: SearchPoint, formats: int, tokens: int, cores: int) -> str:
    """How long a round takes on a CPU, in a sentence.

    Every layer computes forward for 16 bit, forward and backward in the model; each scored one once more in 16 bit and
    in the formats that the model does not hold. One halfway computes twice forward and its scored formats all over.
    """
    linear = sum(one.outputs * one.inputs for one in known.layers)
    near = sum(one.outputs * one.inputs for one in known.layers if one.name in set(point.halfway))
    scored = near * (2 + formats) if point.halfway else linear * formats
    head = known.shape.vocabulary * known.shape.hidden if known.shape else 0
    seconds = 2 * (3 * linear + scored + 3 * head) * tokens / (FLOPS_A_CORE * cores)
    what = f"{len(point.halfway)} layers near the margin" if point.halfway else "every layer"
    return (
        f"search: {tokens:,} tokens forward and backward, and {what} in {formats} formats: about {seconds:.0f} s on "
        f"{cores} idle cores, and reading the exports (an estimate)."
    )


def choices(
    groups: Sequence[GroupCost], base: str, formats: Sequence[str], bits: float, points: int
) -> list[budget.Choice]:
    """Mixtures from few bits to the budget, the chosen one last.

    Raises:
        BadInput: not even the smallest group fits.
    """
    own = budget.mean_bits(groups, base, {})
    targets = [own + (bits - own) * place / points for place in range(1, points + 1)]
    found = [budget.choose(groups, base, formats, target) for target in targets]
    if not found[-1]:
        extra = min(group.bits[word] - group.bits[base] for group in groups for word in formats)
        least = extra / budget.weights(groups)
        raise BadInput(
            f"no group of layers fits: the recipe takes {own:.2f} bits and the smallest group {least:.3f} more.",
            place=f"--bits {bits:g}",
            cure=f"Allow at least {own + least + 0.005:.2f}, or another format with --keep.",
        )
    return [each for place, each in enumerate(found) if each and each not in found[:place]]
