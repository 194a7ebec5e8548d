"""What a repair will take, said before anything is computed (`quantlab repair --dry-run`).

The first round scores all layers. How many the others ask again is known only when its costs are: what is said of them
is the most that they can take.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from quantlab import fetch, kept
from quantlab import host as machine
from quantlab.errors import Refused
from quantlab.ledgers import Ledger
from quantlab.pipeline import searching
from quantlab.pipeline.ask import resolve
from quantlab.pipeline.finished import require_none
from quantlab.pipeline.repair_ask import STAGES, RepairAsk, budget_of, check, formats_of
from quantlab.pipeline.run import plans_of
from quantlab.plans import Plan
from quantlab.records.formats import finer
from quantlab.records.repair import TOGETHER, SearchPoint
from quantlab.sizes import Sizes, sizes


def foretold(wanted: RepairAsk, ledger: Ledger) -> list[str]:
    """What would be searched, in which formats, under which budget, and how long that takes, in sentences.

    Weights that are not here are not fetched.

    Raises:
        BadInput, Refused: what `repair` would refuse before it starts.
    """
    stages = tuple(each for each in STAGES if each in wanted.ask.stages)
    resolved = resolve(dataclasses.replace(wanted.ask, stages=stages))
    require_none(resolved, "repair")
    found, recipe = resolved.recipes[-1]
    check(resolved, recipe, found.name)
    weights, here = fetch.local(resolved.model, resolved.home), machine.describe()
    plan = dict(plans_of(resolved, weights, here, ledger))[found.name]
    if plan.refusals:
        raise Refused(" ".join(plan.refusals), place=plan.recipe)
    known = sizes(resolved.model, Path(weights.path) if weights else None, recipe)
    if not known.layers:
        cure = f"Fetch it first: quantlab plan --model {resolved.model.word}."
        raise Refused("its layers are not known yet, so nothing can be said.", place=resolved.model.word, cure=cure)
    formats = formats_of(wanted.keep, recipe, plan.group_size)
    bits = budget_of(wanted.bits, found.name, recipe, known.layers, formats, plan.group_size)
    smaller = len(set(formats) & set(finer(recipe.format)))
    return [
        _searched(known, found.name, formats, bits, plan),
        _passes(wanted, smaller),
        *_seconds(wanted, known, formats, smaller, here.cores, cpu=not here.gpus or wanted.ask.config.device == "cpu"),
        *_calibrating(found.name, plan, smaller),
    ]


def _searched(known: Sizes, name: str, formats: tuple[str, ...], bits: float, plan: Plan) -> str:
    groups = kept.groups(layer.name for layer in known.layers)
    own = f"{name} in groups of {plan.group_size}" if plan.group_size else name
    return (
        f"{len(known.layers)} layers in {len(groups)} groups that change together; {own}, layers may be kept in "
        f"{' or '.join(formats)}; budget {bits:g} bits a weight, scales included."
    )


def _passes(wanted: RepairAsk, smaller: int) -> str:
    """`smaller`: formats of smaller groups: the search asks once in each instead of near the margin."""
    batches = -(-wanted.samples // TOGETHER)
    rounds = 1 + smaller if smaller else wanted.rounds
    each = "one at the recipe and one in each size of smaller groups, " if smaller else ""
    return (
        f"Search: {rounds} round(s), {each}over {wanted.samples} sequences of {wanted.length} tokens, each "
        f"{batches} x (16 bit forward, quantized forward and backward): "
        f"{2 * batches * rounds} forward and {batches * rounds} backward passes. "
        f"Curve: at most {wanted.points} mixtures on held-out text. Verdict: the suite."
    )


def _seconds(
    wanted: RepairAsk, known: Sizes, formats: tuple[str, ...], smaller: int, cores: int, *, cpu: bool
) -> list[str]:
    """A sentence a kind of round; nothing honest can be said of a GPU beforehand."""
    if not cpu:
        return ["How long it takes on a GPU cannot be said beforehand."]
    scored = 1 + sum(word != "bf16" for word in formats) - smaller
    tokens = wanted.samples * wanted.length
    said = ["First round, " + searching.estimate(known, SearchPoint(), scored, tokens, cores)]
    if smaller:
        said.append("Each size of groups, " + searching.estimate(known, SearchPoint(), 2, tokens, cores))
    elif wanted.rounds > 1:
        whole = SearchPoint(halfway=tuple(layer.name for layer in known.layers))
        most = searching.estimate(known, whole, scored, tokens, cores)
        said.append("Each further round at most, if every layer is contested, " + most)
    return said


def _calibrating(name: str, plan: Plan, smaller: int) -> list[str]:
    if plan.seconds is None:
        return []
    also = "each size of groups and the new recipe" if smaller else "the new recipe"
    return [f"Calibrating {name} takes about {plan.seconds:.0f} s (an estimate), and {also} as long again."]
