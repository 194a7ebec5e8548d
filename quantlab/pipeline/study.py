"""Which calibration set, how many samples, which length? A small grid, repeated with other seeds, on held-out text.

Every cell is an ordinary calibration and an ordinary fidelity with identities of their own: a study that was stopped
goes on cell by cell, and a larger grid finds the cells of a smaller one done.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from quantlab import catalog, fetch
from quantlab import host as machine
from quantlab.catalog import Found
from quantlab.errors import BadInput, Refused
from quantlab.ledgers import Ledger
from quantlab.pipeline.ask import Ask, Resolved, resolve
from quantlab.pipeline.finished import require_none
from quantlab.pipeline.run import plans_of, require_baseline, weights_of
from quantlab.pipeline.stage import Silent, Watcher
from quantlab.pipeline.walk import Walk
from quantlab.pipeline.walker import Walker
from quantlab.plans import Plan
from quantlab.records import Calibration, Host, Number, Recipe, Weights
from quantlab.records.study import Study, StudyAxis, StudyCell

Cell = tuple[str, int, int]
"""Set, samples, length."""


@dataclass(frozen=True)
class StudyAsk:
    """What `quantlab study calibration` is asked for. An empty axis takes the recipe's own value."""

    ask: Ask
    """Model, suite (for its held-out text) and device; `recipes` holds the one recipe."""
    sets: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()
    seeds: int = 3
    confidence: float = 0.95


@dataclass(frozen=True)
class Planned:
    """A study before it starts."""

    resolved: Resolved
    own: Calibration
    """The recipe's calibration, whose values an empty axis takes."""
    todo: tuple[tuple[Cell, Found, Recipe], ...]
    """Every calibration: its cell, and the recipe under a name that says so."""

    def said(self, plans: Sequence[Plan]) -> str:
        """How long calibrating will take and how much it leaves, from the plan of each calibration."""
        known = [plan.seconds for plan in plans]
        took = sum(one or 0.0 for one in known)
        about = f": about {took / 60:.0f} min on idle cores (an estimate)" if None not in known else ""
        disk = sum(plan.disk_bytes or 0 for plan in plans)
        left = f" They leave about {disk / 1e9:.1f} GB in the ledger." if disk else ""
        return f"{len(plans)} calibrations{about}, and a fidelity each; what the ledger holds is not repeated.{left}"


def planned(wanted: StudyAsk) -> Planned:
    """The grid, resolved. Nothing is loaded and nothing is run.

    Raises:
        BadInput: an unknown word, one cell only, fewer than two seeds, a suite without held-out text.
        Refused: a recipe that calibrates on nothing.
    """
    resolved = resolve(dataclasses.replace(wanted.ask, stages=("calibrate", "fidelity")))
    require_none(resolved, "a study")
    found, recipe = resolved.recipes[-1]
    own = _own(recipe, found.name)
    cells = list(
        itertools.product(wanted.sets or (own.set,), wanted.samples or (own.samples,), wanted.lengths or (own.length,))
    )
    if resolved.suite_record.fidelity is None:
        raise BadInput(
            "the suite has no held-out text.", place=f"suite {resolved.suite.name}", cure="Add `fidelity: {}`."
        )
    if len(cells) < 2 or wanted.seeds < 2:
        cure = "Name several --set, --samples or --length, and at least two --seeds."
        raise BadInput("one cell, or one seed, leaves nothing to compare.", place="study calibration", cure=cure)
    for word in wanted.sets:
        catalog.calibration_set(word, found.path.parent)  # an unknown one is told now, not after the first cells
    todo = [(cell, *_with(found, recipe, own, cell, own.seed + seed)) for cell in cells for seed in range(wanted.seeds)]
    return Planned(resolved=resolved, own=own, todo=tuple(todo))


def estimate(wanted: StudyAsk, ledger: Ledger) -> str:
    """What the study will take, in a sentence (`--dry-run`); raises what `study` would refuse before it starts.
    Weights that are not here are not fetched."""
    grid = planned(wanted)
    weights = fetch.local(grid.resolved.model, grid.resolved.home)
    return grid.said(list(_plans(grid, weights, machine.describe(), ledger).values())[1:])


def study(wanted: StudyAsk, ledger: Ledger, watcher: Watcher | None = None) -> Study:
    """Measure the grid and compare.

    Raises:
        BadInput, Refused: as `planned`; and a cell that the plan refuses.
        QuantlabError: a cell failed; what was finished is kept.
    """
    watch, grid = watcher or Silent(), planned(wanted)
    resolved, here = grid.resolved, machine.describe()
    weights = weights_of(resolved, ledger, watch)
    plans = _plans(grid, weights, here, ledger)
    watch.say(grid.said(list(plans.values())[1:]))
    walker = Walker(resolved, weights, here, ledger, watch)
    baseline = walker.walk(*resolved.recipes[0], plans[resolved.recipes[0][0].name])
    require_baseline(baseline)
    walks: dict[Cell, list[Walk]] = {}
    for cell, named, changed in grid.todo:
        walk = walker.walk(named, changed, plans[named.name])
        walk.require_done()
        walks.setdefault(cell, []).append(walk)
    assert resolved.suite_record.fidelity is not None
    windows = resolved.suite_record.fidelity.windows
    return _concluded(wanted, resolved.model.word, resolved.recipes[-1][0].name, windows, walks)


def _plans(grid: Planned, weights: Weights | None, here: Host, ledger: Ledger) -> dict[str, Plan]:
    """Name -> plan: the baseline's, then every calibration's. Raises Refused where a plan does."""
    recipes = (grid.resolved.recipes[0], *((named, recipe) for _, named, recipe in grid.todo))
    plans = dict(plans_of(dataclasses.replace(grid.resolved, recipes=recipes), weights, here, ledger))
    for plan in plans.values():
        if plan.refusals:
            raise Refused(" ".join(plan.refusals), place=plan.recipe)
    return plans


def _own(recipe: Recipe, name: str) -> Calibration:
    if recipe.calibration is None:
        raise Refused("it calibrates on nothing: weights only.", place=f"recipe {name}", cure="Name another recipe.")
    return recipe.calibration


def _with(found: Found, recipe: Recipe, own: Calibration, cell: Cell, seed: int) -> tuple[Found, Recipe]:
    """The recipe on other text, under a name that says so."""
    word, samples, length = cell
    text = msgspec.structs.replace(own, set=word, samples=samples, length=length, seed=seed)
    changed = msgspec.structs.replace(recipe, calibration=text)
    name = f"{found.name}, {_short(word)} {samples} x {length}, seed {seed}"
    return Found(found.kind, name, found.path, changed, found.digest), changed


def _short(word: str) -> str:
    """A set's name without the place it lies in."""
    return word.replace("\\", "/").rpartition("/")[2]


def _concluded(wanted: StudyAsk, model: str, recipe: str, windows: int, walks: dict[Cell, list[Walk]]) -> Study:
    from quantlab.score.spread import spread

    values = {cell: [_kl(walk) for walk in found] for cell, found in walks.items()}
    whole = spread(list(values.values()))
    best = min(values, key=lambda cell: sum(values[cell]) / len(values[cell]))
    half = whole.half_width(wanted.seeds, wanted.seeds, wanted.confidence)
    cells = [_cell(cell, walks[cell], values, best, half, wanted.confidence) for cell in values]
    axes = [axis for place, name in enumerate(("set", "samples", "length")) if (axis := _axis(name, place, values))]
    return Study(
        model=model,
        recipe_name=recipe,
        seeds=wanted.seeds,
        windows=windows,
        cells=tuple(sorted(cells, key=lambda cell: cell.mean)),
        axes=tuple(axes),
        noise=whole.noise,
        largest=whole.largest,
        p_value=whole.p_value,
        confidence=wanted.confidence,
        answer=_answer(whole.largest, whole.noise, whole.p_value, axes, wanted.confidence),
    )


def _kl(walk: Walk) -> float:
    assert walk.fidelity is not None
    return walk.fidelity.kl.value


def _cell(
    cell: Cell, walks: Sequence[Walk], values: dict[Cell, list[float]], best: Cell, half: float, confidence: float
) -> StudyCell:
    mean = sum(values[cell]) / len(values[cell])
    above = mean - sum(values[best]) / len(values[best])
    number = Number(
        value=above,
        unit="nats",
        n=len(walks),
        low=above - half,
        high=above + half,
        confidence=confidence,
        better="lower",
    )
    return StudyCell(
        set=_short(cell[0]),
        samples=cell[1],
        length=cell[2],
        kl=tuple(values[cell]),
        mean=mean,
        above_best=None if cell == best else number,
        seconds=round(sum(walk.calibrated.seconds for walk in walks if walk.calibrated) / len(walks), 1),
    )


def _axis(name: str, place: int, values: dict[Cell, list[float]]) -> StudyAxis | None:
    """One axis with the effect of the others taken out: every cell is first moved by the mean of its row."""
    from quantlab.score.spread import spread

    keys = list(dict.fromkeys(cell[place] for cell in values))
    if len(keys) < 2:
        return None

    def others(cell: Cell) -> tuple[object, ...]:
        return tuple(each for at, each in enumerate(cell) if at != place)

    rows: dict[tuple[object, ...], list[float]] = {}
    for cell, found in values.items():
        rows.setdefault(others(cell), []).extend(found)
    grand = sum(map(sum, values.values())) / sum(map(len, values.values()))
    moved = {
        key: [
            value - sum(rows[others(cell)]) / len(rows[others(cell)]) + grand
            for cell, found in values.items()
            if cell[place] == key
            for value in found
        ]
        for key in keys
    }
    result = spread(list(moved.values()), taken=len(rows) - 1)
    names = [_short(str(key)) for key in keys]
    means = dict(zip(names, result.means, strict=True))
    return StudyAxis(axis=name, means=means, largest=result.largest, p_value=result.p_value)


def _answer(largest: float, noise: float, p_value: float, axes: Sequence[StudyAxis], confidence: float) -> str:
    sure = [axis.axis for axis in axes if axis.p_value < 1 - confidence]
    first = (
        f"Cells differ by up to {largest:.4f} nats where repeats of one cell differ by {noise:.4f} "
        f"(standard deviation between seeds; p = {p_value:.3g})."
    )
    if sure:
        return f"{first} Larger than the noise: {', '.join(sure)}."
    if p_value < 1 - confidence:
        return f"{first} Some cells differ, and no single axis explains it."
    return f"{first} That is no more than noise: take the cheapest."
