"""`--engine auto`: the fastest engine that takes every recipe of the run on this machine, and why not the others.

One engine for all recipes, because a comparison of two precisions on two engines compares the engines. So an engine
that refuses one of them is passed over. torch is the last and takes what nobody else does. Nobody is chosen in silence:
the choice and each refusal are said on the screen and kept in the run.

auto is not the default. A default must not depend on what else is installed, and the engines of one line of this table
differ by more than speed: vllm hands out no distributions, so a run on it has no fidelity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec

from quantlab import probe
from quantlab.engines import ENGINES
from quantlab.errors import QuantlabError
from quantlab.pipeline.ask import AUTO, Resolved
from quantlab.pipeline.stage import Watcher
from quantlab.pipeline.station import Station
from quantlab.plans import Plan
from quantlab.records import Checkpoint, Host, Recipe

ORDER = ("trtllm", "vllm", "ortgenai", "torch")
"""Best first: as it is served on NVIDIA GPUs, on GPUs of others and by most people, on small machines, anywhere."""
WITHOUT_ENGINE = ("calibrate", "verify")
"""Stages that open no engine."""


def settled(
    resolved: Resolved,
    architecture: str,
    plans: Mapping[str, Plan],
    host: Host,
    watch: Watcher,
    finished: Mapping[str, Checkpoint] | None = None,
) -> Resolved:
    """`resolved` with an engine in the place of "auto"; as it is where a person named one.

    Args:
        architecture: of the weights; empty where nobody knows it yet.
        plans: recipe name -> plan. A recipe that the plan refuses is nobody's to take.
        finished: name -> checkpoint, of candidates that were made elsewhere.
    """
    ask = resolved.ask
    if ask.engine != AUTO:
        return resolved
    if not set(ask.stages) - set(WITHOUT_ENGINE):
        return dataclasses.replace(resolved, ask=dataclasses.replace(ask, engine=ORDER[-1]))
    wanted = [(found.name, recipe) for found, recipe in resolved.recipes if not plans[found.name].refusals]
    known = finished or {}
    checkpoints = {
        name: known.get(name) or _planned(name, recipe, plans[name], architecture) for name, recipe in wanted
    }
    here = msgspec.structs.replace(host, gpus=()) if ask.config.device == "cpu" else host
    notes: list[str] = []
    chosen = ORDER[-1]
    for name in (name for name in ORDER if name in ENGINES):
        why = _refusal(name, checkpoints, here, watch)
        if not why:
            chosen = name
            break
        notes.append(f"Engine auto passed over {name}: {why}")
    notes.append(f"Engine auto took {chosen}, for all recipes of this run.")
    for note in notes:
        watch.say(note)
    return dataclasses.replace(resolved, ask=dataclasses.replace(ask, engine=chosen), notes=tuple(notes))


def _refusal(name: str, checkpoints: Mapping[str, Checkpoint], host: Host, watch: Watcher) -> str:
    """Why `name` cannot serve the run; empty where it can. Without places of this machine: it goes into the record."""
    stands = probe.standing(name)
    if stands.state != "ready" or stands.why:
        watch.say(f"engine {name}: {stands.why} {stands.cure}")
        return f"{stands.state} {stands.version}".strip() + "." if stands.state != "ready" else "it cannot measure."
    try:
        found = Station(name, host).refusals(list(checkpoints.values()))
    except QuantlabError as error:
        watch.say(f"engine {name}: {error}")
        return f"{type(error).__name__}."
    return " ".join(f"{recipe}: {why}" for recipe, why in zip(checkpoints, found, strict=True) if why)


def _planned(name: str, recipe: Recipe, planned: Plan, architecture: str) -> Checkpoint:
    """The checkpoint that the recipe will give, as far as an engine asks."""
    return Checkpoint(
        path="",
        digest="",
        recipe=name,
        format=recipe.format,
        architecture=architecture,
        group_size=planned.group_size,
        kv_cache=recipe.kv_cache,
        simulated=recipe.export == "folded",
    )
