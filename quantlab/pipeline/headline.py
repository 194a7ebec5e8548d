"""The answer of a run in two or three sentences: what may be shipped, who serves it, and what may not.

An acceptance is about accuracy alone. A precision that no server loads, or none on the GPUs of this machine, is not
something to ship, however well it scores; it is named apart, with what stands in its way.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantlab import kept
from quantlab.records import FORMATS, Candidate, Gpu, Host, Recipe
from quantlab.records.finished import PRESET
from quantlab.records.formats import Capability


def summary(model: str, candidates: Sequence[Candidate], host: Host) -> str:
    """Of the accepted recipes that can be served, the one with the fewest bits; then all that were not accepted."""
    accepted = sorted((each for each in candidates if each.verdict.status == "accept"), key=_bits)
    hindered = {each.recipe_name: text for each in accepted if (text := hindrance(each.recipe, host.gpus))}
    able = [each for each in accepted if each.recipe_name not in hindered]
    said = [_ship(model, able[0], host) if able else _stay(model, candidates, bool(accepted))]
    if hindered:
        said.append(
            f"Accepted, but not to be shipped: {'; '.join(f'{name}: {why}' for name, why in hindered.items())}."
        )
    fine = ("baseline", "accept", "insufficient") if _unjudged(candidates) else ("baseline", "accept")
    rest = [each for each in candidates if each.verdict.status not in fine]
    if rest:
        said.append(f"Not accepted: {'; '.join(f'{each.recipe_name}: {each.verdict.status}' for each in rest)}.")
    return " ".join(said)


def hindrance(recipe: Recipe, gpus: Sequence[Gpu]) -> str:
    """Why a checkpoint of this recipe is nothing to serve; empty where somebody does.

    Args:
        recipe: what its layers are stored in.
        gpus: of this machine; none where the decision is for another one.
    """
    if recipe.export == "folded":
        return "it is a simulation in 16 bit"
    if _elsewhere(recipe):
        return ""
    where = [each.compute_capability for each in gpus if each.compute_capability]
    if not servers(recipe):
        return "no server loads it"
    if where and not any(takes(server, recipe, capability) for server in servers(recipe) for capability in where):
        return f"no server has kernels for it on {gpus[0].name}"
    return ""


def servers(recipe: Recipe) -> list[str]:
    """Engines that serve it on some GPU. Of a mixture: those that load all of its formats."""
    able = {"trtllm": _kernels(recipe), "vllm": _least(recipe)}
    return [server for server, yes in able.items() if yes]


def takes(server: str, recipe: Recipe, capability: str) -> bool:
    """On GPUs of this compute capability?"""
    if server == "trtllm":
        return capability in _kernels(recipe)
    least, (major, _, minor) = _least(recipe), capability.partition(".")
    return least is not None and (int(major), int(minor or 0)) >= least


def _kernels(recipe: Recipe) -> set[str]:
    """Compute capabilities for which TensorRT-LLM has kernels of every format."""
    return set.intersection(*(set(FORMATS[word].trtllm) for word in (recipe.format, *kept.others(recipe))))


def _least(recipe: Recipe) -> Capability | None:
    """The compute capability from which vLLM serves it; its way in takes one format a checkpoint."""
    return None if kept.others(recipe) else FORMATS[recipe.format].vllm


def _ship(model: str, best: Candidate, host: Host) -> str:
    least = f"of the accepted precisions of {model} it stores the fewest bits ({_bits(best):.2f} per weight)"
    reason = best.verdict.reason[:1].upper() + best.verdict.reason[1:]
    told = host.gpus or _elsewhere(best.recipe)
    served = "" if told else f" It is served by {_where(best.recipe)}."
    return f"Ship {best.recipe_name}: {least}. {reason}{served}"


def _stay(model: str, candidates: Sequence[Candidate], some: bool) -> str:
    if _unjudged(candidates):
        return f"No precision of {model} was judged: accuracy was not measured."
    first, scope = candidates[0].recipe_name, candidates[-1].verdict.scope
    if some:
        return f"Stay with {first}: no precision of {model} was accepted and can be served."
    return (
        f"Stay with {first}: no other precision of {model} was accepted "
        f"{'on this suite' if scope == 'suite' else 'beyond this suite'}."
    )


def _unjudged(candidates: Sequence[Candidate]) -> bool:
    """Nothing was scored, though there was something to score: only calibrated or timed."""
    return not any(each.accuracy for each in candidates) and any(
        each.verdict.status == "insufficient" for each in candidates
    )


def _where(recipe: Recipe) -> str:
    """ "TensorRT-LLM (compute capability 9.0) and vLLM (from compute capability 8.9)"."""
    said, least = [], _least(recipe)
    if known := _kernels(recipe):
        said.append(f"TensorRT-LLM (compute capability {', '.join(sorted(known, key=float))})")
    if least:
        said.append(f"vLLM (from compute capability {least[0]}.{least[1]})")
    return " and ".join(said)


def _elsewhere(recipe: Recipe) -> bool:
    """Made by others, in a layout of their own: the tables of ModelOpt's formats say nothing about who loads it."""
    return recipe.preset == PRESET


def _bits(candidate: Candidate) -> float:
    return candidate.calibrated.checkpoint.bits_per_weight if candidate.calibrated else 16.0
