"""A run: words resolved, weights here, a plan a recipe, the walks, then the judgement."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantlab import catalog, child, fetch
from quantlab import host as machine
from quantlab.catalog import Found
from quantlab.catalog.elsewhere import KIND
from quantlab.errors import BadInput, Broken
from quantlab.ledgers import Ledger
from quantlab.pipeline import finished
from quantlab.pipeline.ask import Ask, Resolved, resolve
from quantlab.pipeline.assemble import assemble
from quantlab.pipeline.choice import settled
from quantlab.pipeline.early import look_by_look
from quantlab.pipeline.finished import Adopted, adopt, checkpoints, inspect_first, local
from quantlab.pipeline.stage import Silent, Watcher
from quantlab.pipeline.together import calibrate_together
from quantlab.pipeline.walk import Walk
from quantlab.pipeline.walker import Walker
from quantlab.plans import Plan, plan
from quantlab.records import CalibrationSet, FetchJob, Host, Model, Recipe, Run, Weights


@dataclass(frozen=True)
class Planned:
    """What a run would do, before it does it (`--dry-run`)."""

    resolved: Resolved
    host: Host
    weights: Weights | None
    """None: they would have to be fetched first."""
    plans: tuple[tuple[str, Plan], ...]
    """Recipe name -> plan."""


def plan_run(ask: Ask, ledger: Ledger) -> Planned:
    """Resolve and plan; nothing is started and nothing written.

    Raises:
        BadInput, Refused: as `resolve` and `plan` do.
    """
    resolved = resolve(ask)
    here = machine.describe()
    weights = fetch.local(resolved.model, resolved.home)
    resolved, adopted = adopt(resolved, weights, local(resolved))
    plans = plans_of(resolved, weights, here, ledger, adopted)
    known = checkpoints(adopted)
    resolved = settled(resolved, _architecture(resolved, weights), dict(plans), here, Silent(), known)
    return Planned(resolved, here, weights, plans)


def run(ask: Ask, ledger: Ledger, watcher: Watcher | None = None) -> Run:
    """Do what `ask` says, take from the ledger what is already known, and judge.

    Returns:
        The run, saved in the ledger; the report is a function of it.

    Raises:
        QuantlabError: when the baseline cannot be measured, or the input is wrong. What was finished is kept.
    """
    watch = watcher or Silent()
    resolved = resolve(ask)
    here = machine.describe()
    weights = weights_of(resolved, ledger, watch)
    resolved, adopted = adopt(resolved, weights, lambda model: fetched(model, resolved.home, ledger, watch))
    plans = dict(plans_of(resolved, weights, here, ledger, adopted))
    resolved = settled(resolved, _architecture(resolved, weights), plans, here, watch, checkpoints(adopted))
    walker = Walker(resolved, weights, here, ledger, watch, adopted=adopted)
    walker.require_engine()
    inspect_first(walker)
    walks: list[Walk] = []
    for found, recipe in resolved.recipes:
        walk = walker.walk(found, recipe, plans[found.name])
        walks.append(walk)
        if walk is walks[0]:
            require_baseline(walk)
            calibrate_together(walker, resolved.recipes[1:], plans)
    if resolved.policy.early:
        look_by_look(walker, walks)
        require_baseline(walks[0])
    result = assemble(resolved, walks, here, ledger)
    ledger.save_run(result)
    return result


def weights_of(resolved: Resolved, ledger: Ledger, watch: Watcher) -> Weights:
    """The weights on this machine, fetched in a child when they are not here yet."""
    return fetched(resolved.model, resolved.home, ledger, watch)


def fetched(model: Model, home: Path, ledger: Ledger, watch: Watcher) -> Weights:
    """The same of any model."""
    known = fetch.local(model, home)
    if known is not None:
        return known
    watch.stage("", "fetch", cached=False)
    name = model.word.replace("/", "--")
    into = home / "models" / name
    with ledger.hold(f"fetch-{name}", on_wait=lambda: watch.say("another run fetches the model; waiting.")):
        known = fetch.local(model, home)
        if known is not None:
            return known
        found: Weights = child.run(
            "fetch",
            FetchJob(model=model, into=str(into)),
            workdir=ledger.scratch(f"fetch-{name}"),
            on_event=lambda event: watch.event("", event),
        )
        return found


def _architecture(resolved: Resolved, weights: Weights | None) -> str:
    return weights.architecture if weights else resolved.model.architecture or ""


def plans_of(
    resolved: Resolved,
    weights: Weights | None,
    here: Host,
    ledger: Ledger,
    adopted: Mapping[str, Adopted] | None = None,
) -> tuple[tuple[str, Plan], ...]:
    """`adopted`: the finished checkpoints that are here."""
    free = shutil.disk_usage(ledger.root if ledger.root.exists() else Path.cwd()).free
    path = Path(weights.path) if weights else None
    return tuple(
        (
            found.name,
            finished.plan(found, resolved, (adopted or {}).get(found.name))
            if found.kind == KIND
            else plan(
                resolved.model,
                path,
                found.name,
                recipe,
                here,
                resolved.grid_record,
                resolved.suite_record,
                free,
                device=resolved.ask.config.device,
                gpus=1 if resolved.ask.layerwise else resolved.ask.gpus,
                calibration=_calibration_set(found, recipe),
            ),
        )
        for found, recipe in resolved.recipes
    )


def _calibration_set(found: Found, recipe: Recipe) -> CalibrationSet | None:
    """The set of a recipe; None where it has none, or names one that does not exist: the walk says so."""
    if recipe.calibration is None:
        return None
    try:
        record = catalog.calibration_set(recipe.calibration.set, found.path.parent).record
    except BadInput:
        return None
    return record if isinstance(record, CalibrationSet) else None


def require_baseline(walk: Walk) -> None:
    """Raise what keeps the baseline from being one: everything else is compared with it."""
    why = "The baseline is what everything is compared with, so the run ends here."
    walk.require_done(f"baseline {walk.name}", why)
    bad = walk.doubts
    if walk.canary is not None and not walk.canary.passed:
        bad.append(f"it is no language model: {walk.canary.reason}")
    if bad:
        raise Broken(" ".join(bad), place=f"baseline {walk.name}", cure=f"Check the model's files. {why}")
