"""Repair: a recipe that lost too much -> a new recipe that keeps its most sensitive layers in more bits.

    run the recipe -> export the keeping formats -> search -> curve of mixtures -> write the recipe -> run it

Each arrow is a stage with an identity, so that a repair that was killed goes on where it was, and one with another
budget finds its search done. The search reads calibration text. The curve is measured on held-out text, the verdict on
the suite; neither takes part in any choice: the budget alone decides how much is kept, the search decides what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from quantlab import budget, catalog
from quantlab import host as machine
from quantlab.ledgers import Ledger
from quantlab.pipeline import identity, recipes, searching
from quantlab.pipeline.ask import Resolved, resolve
from quantlab.pipeline.assemble import assemble
from quantlab.pipeline.entry import now
from quantlab.pipeline.finished import require_none
from quantlab.pipeline.repair_ask import (
    STAGES,
    RepairAsk,
    budget_of,
    check,
    compensated,
    donor_recipe,
    formats_of,
    require,
)
from quantlab.pipeline.run import plans_of, require_baseline, weights_of
from quantlab.pipeline.stage import Silent, Watcher
from quantlab.pipeline.walk import Walk
from quantlab.pipeline.walker import Walker, name_of
from quantlab.plans import Plan
from quantlab.records import SCHEMA, Calibrated, CalibrateJob, Calibration, Recipe
from quantlab.records.formats import finer
from quantlab.records.repair import CurvePoint, Donor, MixJob, Repair, SearchJob, SearchPoint, Sensitivity
from quantlab.sizes import Layer, sizes


def repair(wanted: RepairAsk, ledger: Ledger, watcher: Watcher | None = None) -> Repair:
    """Do it; what the ledger knows is not computed again.

    Raises:
        BadInput: an unknown word, a budget below the recipe's own bits or beyond what keeping everything takes.
        Refused: a recipe without quantized layers, a simulated or already mixed one, a model with images.
        QuantlabError: a stage failed; what was finished is kept.
    """
    return Repairer(wanted, ledger, watcher or Silent()).repair()


class Repairer:
    """One repair, step by step."""

    def __init__(self, wanted: RepairAsk, ledger: Ledger, watch: Watcher) -> None:
        self.wanted, self.ledger, self.watch = wanted, ledger, watch
        self.resolved = resolve(
            dataclasses.replace(wanted.ask, stages=tuple(each for each in STAGES if each in wanted.ask.stages))
        )
        require_none(self.resolved, "repair")
        self.found, self.recipe = self.resolved.recipes[-1]
        check(self.resolved, self.recipe, self.found.name)
        self.host = machine.describe()
        self.weights = weights_of(self.resolved, ledger, watch)
        self.plans = dict(plans_of(self.resolved, self.weights, self.host, ledger))
        self.formats = formats_of(wanted.keep, self.recipe, self.group)
        self.better = compensated(self.recipe, wanted.rounding, self.layers)
        self.bits = budget_of(wanted.bits, self.found.name, self.recipe, self.layers, self.formats, self.group)
        self.out = Path(wanted.out or f"calibration/{self.found.name}_{self.bits:g}bit.yaml")

    @property
    def group(self) -> int | None:
        """Weights that share a scale in the recipe."""
        return self.plans[self.found.name].group_size

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All that the recipe quantizes."""
        return sizes(self.resolved.model, Path(self.weights.path), self.recipe).layers

    def repair(self) -> Repair:
        walker = Walker(self.resolved, self.weights, self.host, self.ledger, self.watch)
        walks = [walker.walk(found, recipe, self.plans[found.name]) for found, recipe in self.resolved.recipes]
        require_baseline(walks[0])
        require(walks[-1])
        donors = self.donors(walker, walks[-1])
        costs = self.search(walker, donors)
        choices = searching.choices(costs.groups, self.recipe.format, self.formats, self.bits, self.wanted.points)
        points = self._curve(walker, walks, donors, costs, choices)
        text = recipes.written(self.found, self._recipe(costs, choices[-1]), costs, choices[-1], self._header(costs))
        name = recipes.save(self.out, text)
        walks.append(self._run(walker, self.out))
        result = assemble(self._said(walks), walks, self.host, self.ledger)
        self.ledger.save_run(result)
        return self._repair(costs, choices[-1], points, walks, text, name, result)

    def donors(self, walker: Walker, walk: Walk) -> list[Donor]:
        """The recipe's export, rounded anew, and one in each quantized format that layers may be kept in."""
        made = walk.calibrated if self.better == self.recipe else None
        found = [self._donor(walker, self.found.name, self.better, made)]
        for word in self.formats:
            if word != "bf16":
                recipe = donor_recipe(word, self.better)
                found.append(self._donor(walker, word, recipe, None))
        return found

    def _donor(self, walker: Walker, name: str, recipe: Recipe, made: Calibrated | None) -> Donor:
        group = self.group if name == self.found.name else None
        known, job = self._job(walker, name, recipe, group)
        calibrated = made or walker.stages.calibrate(known, f"{name} (donor)", job)
        path = str(self.ledger.path(calibrated.checkpoint.path))
        return Donor(format=recipe.format, calibrated=calibrated, path=path, recipe=job)

    def _job(self, walker: Walker, name: str, recipe: Recipe, group: int | None) -> tuple[str, CalibrateJob]:
        """Of calibrating `recipe` on text that is looked for beside the recipe to be repaired."""
        found = msgspec.structs.replace(self.found, name=name)
        return walker.calibration(found, recipe, Plan(recipe=name, group_size=group))

    def search(self, walker: Walker, donors: Sequence[Donor]) -> Sensitivity:
        """All groups at the recipe, then those near the margin at the mixture that the budget would give; with smaller
        groups among the formats instead of that once more where all layers have them."""
        base = self.recipe.format
        smaller = [donor for donor in donors if donor.format in finer(base)]
        costs = self._searched(walker, [donor for donor in donors if donor not in smaller], SearchPoint())
        for donor in smaller:
            whole = SearchPoint(kept={donor.format: tuple(name for group in costs.groups for name in group.layers)})
            there = self._searched(walker, [donors[0], donor], whole)
            groups = budget.at_its_own(costs.groups, there.groups, donor.format)
            costs = msgspec.structs.replace(costs, groups=groups, seconds=costs.seconds + there.seconds)
        for _ in range(1, 1 if smaller else self.wanted.rounds):
            choice = budget.choose(costs.groups, base, self.formats, self.bits)
            point = budget.contested(costs.groups, base, self.formats, choice)
            if not point.halfway:
                break
            again = self._searched(walker, donors, point)
            groups = budget.renewed(costs.groups, again.groups)
            costs = msgspec.structs.replace(costs, groups=groups, seconds=costs.seconds + again.seconds)
        return costs

    def _searched(self, walker: Walker, donors: Sequence[Donor], point: SearchPoint) -> Sensitivity:
        text = Calibration(samples=self.wanted.samples, length=self.wanted.length, seed=self._text().seed + 1)
        text = msgspec.structs.replace(text, set=self._text().set)
        recipe = msgspec.structs.replace(donors[-1].recipe.recipe, calibration=text)
        _, job = self._job(walker, "search", recipe, None)
        data = catalog.set_digest(catalog.calibration_set(text.set, self.found.path.parent))
        made = [donor.calibrated.checkpoint for donor in donors]
        known = identity.search(made, text, data, self.host, self.resolved.ask.config.device, point)
        if walker.stages.found("search", known) is None:
            self._estimate(donors, point)
        spec = SearchJob(text=job, donors=tuple(donors), folder=str(self.ledger.scratch(known)), point=point)
        return walker.stages.search(known, self.found.name, spec)

    def _estimate(self, donors: Sequence[Donor], point: SearchPoint) -> None:
        """How long a round will take on a CPU, before it starts."""
        if not self.host.gpus or self.resolved.ask.config.device == "cpu":
            known = sizes(self.resolved.model, Path(self.weights.path), self.recipe)
            tokens = self.wanted.samples * self.wanted.length
            self.watch.say(searching.estimate(known, point, len(donors), tokens, self.host.cores))

    def _text(self) -> Calibration:
        return self.recipe.calibration or donor_recipe("fp8", self.recipe).calibration or Calibration()

    def _curve(
        self,
        walker: Walker,
        walks: Sequence[Walk],
        donors: list[Donor],
        costs: Sensitivity,
        choices: list[budget.Choice],
    ) -> list[CurvePoint]:
        """The recipe, the mixtures, and what all layers in the last format give."""
        only = dataclasses.replace(
            self.resolved, ask=dataclasses.replace(self.resolved.ask, stages=("calibrate", "fidelity"))
        )
        measuring = Walker(only, self.weights, self.host, self.ledger, self.watch, walker.reference)
        base = self.recipe.format
        points = [self._point(walks[-1], {}, costs, "recipe")]
        if self.better != self.recipe:
            again = Walk(name=f"{self.found.name}, {self.better.rounding}", recipe=self.better)
            again.calibrated = donors[0].calibrated
            self._measured(measuring, again)
            points.append(self._point(again, {}, costs, "recipe"))
        for choice in choices:
            walk = self.mixture(measuring, donors, choice)
            points.append(self._point(walk, choice, costs, "mixture", chosen=choice is choices[-1]))
        for donor in donors[1:]:
            whole = Walk(name=donor.format, recipe=donor.recipe.recipe, calibrated=donor.calibrated)
            self._measured(measuring, whole)
            everything = {group.layers: donor.format for group in costs.groups}
            points.append(self._point(whole, everything, costs, "recipe"))
        assert base not in self.formats
        return points

    def mixture(self, walker: Walker, donors: list[Donor], choice: budget.Choice) -> Walk:
        layers = budget.by_format(choice)
        known = identity.mix([donor.calibrated.checkpoint for donor in donors], layers)
        name = f"{self.found.name}+{sum(map(len, layers.values()))}"
        spec = MixJob(
            base=donors[0], others=tuple(donors[1:]), kept=layers, into=str(self.ledger.checkpoint_folder(known))
        )
        made = walker.stages.mix(known, name, spec)
        walk = Walk(name=name, recipe=self.better, calibrated=made)
        self._measured(walker, walk)
        return walk

    def _measured(self, walker: Walker, walk: Walk) -> None:
        walker.attempt(walk, lambda: walker.open(walk))
        require(walk)

    def _point(
        self, walk: Walk, choice: budget.Choice, costs: Sensitivity, made: Any, *, chosen: bool = False
    ) -> CurvePoint:
        assert walk.calibrated is not None
        return CurvePoint(
            name=walk.name,
            bits=round(walk.calibrated.checkpoint.bits_per_weight, 3),
            kept=budget.by_format(choice),
            predicted=round(budget.predicted(costs.groups, self.recipe.format, choice), 6),
            fidelity=walk.fidelity,
            made=made,
            chosen=chosen,
        )

    def _recipe(self, costs: Sensitivity, choice: budget.Choice) -> Recipe:
        layers = budget.by_format(choice)
        bits = budget.mean_bits(costs.groups, self.recipe.format, choice)
        total = sum(len(group.layers) for group in costs.groups)
        words = " and ".join(f"{len(names)} in {word}" for word, names in layers.items())
        return msgspec.structs.replace(
            self.better,
            summary=f"{self.found.name} with {words} of {total} layers, {bits:.2f} bits a weight",
            keep=recipes.keeps(layers),
            calibration=self._calibration(layers),
        )

    def _calibration(self, layers: dict[str, tuple[str, ...]]) -> Calibration | None:
        """The recipe's own text; for weights alone that of fp8 where layers are kept in it."""
        if self.recipe.calibration is None and "fp8" not in layers:
            return None
        return msgspec.structs.replace(self._text(), set=recipes.portable(self._text().set, self.found))

    def _header(self, costs: Sensitivity) -> str:
        model = (
            self.resolved.model.word
            if self.resolved.model.source != "path"
            else Path(self.resolved.model.location).name
        )
        return (
            f"Made by quantlab repair for {model}, budget {self.bits:g} bits a weight, from {costs.positions:,} "
            f"positions of calibration set {Path(self._text().set).name}."
        )

    def _run(self, walker: Walker, path: Path) -> Walk:
        """The new recipe like any other: read from its file, planned, calibrated, verified, measured."""
        found = catalog.recipe(str(path) if len(path.parts) > 1 else f"./{path}")
        assert isinstance(found.record, Recipe)
        resolved = dataclasses.replace(self.resolved, recipes=((found, found.record),))
        plans = dict(plans_of(resolved, self.weights, self.host, self.ledger))
        return walker.walk(found, found.record, plans[found.name])

    def _said(self, walks: Sequence[Walk]) -> Resolved:
        """The ask with the new recipe in it, so that the run's command repeats what was done."""
        ask = dataclasses.replace(
            self.resolved.ask, recipes=(self.found.name, str(self.out)), command=self.wanted.ask.command
        )
        return dataclasses.replace(self.resolved, ask=ask)

    def _repair(
        self,
        costs: Sensitivity,
        choice: budget.Choice,
        points: list[CurvePoint],
        walks: Sequence[Walk],
        text: str,
        name: str,
        result: Any,
    ) -> Repair:
        before, after = walks[-2].fidelity, walks[-1].fidelity
        recovered = 1 - after.kl.value / before.kl.value if before and after and before.kl.value > 0 else None
        return Repair(
            schema=SCHEMA,
            model=name_of(self.resolved.model),
            recipe_name=self.found.name,
            repaired_name=walks[-1].name,
            recipe_file=str(self.out),
            recipe_text=text,
            budget=self.bits,
            sensitivity=costs,
            points=tuple(sorted(points, key=lambda each: each.bits)),
            recovered=recovered,
            run=result,
            created=now(),
        )
