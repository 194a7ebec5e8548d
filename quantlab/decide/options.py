"""Every recipe held against hardware, memory, engine, accuracy and limits. An option that fails says at what, and by
how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from quantlab import support
from quantlab.decide.asked import Asked
from quantlab.decide.evidence import Evidence, Shown, group_of, work
from quantlab.decide.timed import Times, kernel_times
from quantlab.engines import ENGINES
from quantlab.predict import Cell, Point, Prediction, Wanted, predict
from quantlab.preflight import GpuPlan, preflight
from quantlab.records import Recipe
from quantlab.serving import USUAL_IMAGES

USUAL_ENGINES, USUAL_LENGTHS = ("vllm", "trtllm"), (1024, 256)
"""Taken where nothing was measured anywhere: a server engine that serves the baseline there, a chat-like request."""
BASELINE = Shown(0.0, 0.0, 0.0, "measured", "the baseline itself")


@dataclass(frozen=True)
class Option:
    """One recipe and all that is known of it here."""

    name: str
    recipe: Recipe
    plan: GpuPlan
    speeds: dict[int, Prediction]
    """Batch -> speed, for batches that fit."""
    over: dict[int, str]
    """Batch -> the limit it breaks."""
    unknown: tuple[str, ...]
    """Why no speed could be said, each reason once."""
    accuracy: Shown | None
    lost: str
    """Why it cannot be chosen; empty: it can."""
    unproven: bool = False
    """Nothing but the missing proof of its accuracy stands against it."""
    servable: bool = True
    """It fits, and hardware and engine compute it; speeds of what cannot be served are not asked for."""
    images: int = USUAL_IMAGES
    """Of a sequence, for its memory."""
    barred: str = ""
    """Why no speed could make it the choice: memory, hardware, engine or accuracy; empty: one could."""
    by_joules: bool = False
    """The objective is energy, and every option that can be chosen has measured some."""

    @property
    def usable(self) -> dict[int, Prediction]:
        """Batches within all limits."""
        return {batch: speed for batch, speed in self.speeds.items() if batch not in self.over}

    @property
    def merits(self) -> dict[int, Prediction]:
        """`ranked`, of batches within all limits."""
        return {batch: merit for batch, merit in self.ranked.items() if batch not in self.over}

    @property
    def ranked(self) -> dict[int, Prediction]:
        """What options are ranked by: tokens a second, or tokens a joule where all of them have measured energy."""
        if not self.by_joules:
            return self.speeds
        return {
            batch: replace(speed, tokens_per_second=1 / joules, low=0.95 / joules, high=1.05 / joules)
            for batch, speed in self.speeds.items()
            if (joules := speed.joules_per_token)
        }

    def memory(self, context: int, batch: int) -> int:
        """Bytes on each GPU."""
        assert self.plan.footprint is not None
        return self.plan.footprint.needed(context, context, batch, self.images)


@dataclass
class Setting:
    """For which engine and lengths the speeds are."""

    engine: str
    lengths: tuple[int, int]
    why: str
    missing: list[str] = field(default_factory=list)


def setting(asked: Asked, evidence: Evidence) -> Setting:
    """The engine about which most is known for this model and GPU, and the lengths measured with it."""
    here = group_of(asked.model.word, asked.gpu.word, asked.tp)
    names = {name for name, _ in asked.recipes}
    answers = support.engines(asked.model.architecture or "", "bf16", "none", asked.gpu)
    refused = {each.engine for each in answers if each.refusal}
    alike = [cell for cell in evidence.cells if bool(cell.point.images) == bool(asked.images)] or evidence.cells
    near = [cell for cell in alike if cell.format in names and cell.engine not in refused]
    own = [cell for cell in near if cell.group == here]
    loaded = [(each.engine, each.recipe) for each in evidence.loads if each.group == here and each.recipe in names]
    loaded = [pair for pair in loaded if pair[0] not in refused]
    ours = [cell for cell in near if cell.engine in ENGINES]
    for known, where in ((own, "measured for this model on this GPU"), (ours, "measured elsewhere only")):
        engine = asked.engine or _most([*((cell.engine, cell.format) for cell in known), *loaded])
        mine = [cell for cell in known if cell.engine == engine]
        if mine and engine:
            lengths = asked.lengths or _usual_lengths(mine, asked.context)
            if lengths is not None:
                return Setting(engine, lengths, where)
    lengths = asked.lengths or _within(USUAL_LENGTHS, asked.context)
    usual = next((each for each in USUAL_ENGINES if each not in refused), USUAL_ENGINES[0])
    return Setting(asked.engine or _most(loaded) or usual, lengths, "nothing measured: data sheet and literature only")


def options(asked: Asked, evidence: Evidence, where: Setting) -> list[Option]:
    """All recipes of the question, in its order."""
    times = kernel_times(asked, evidence, where.engine, where.lengths)
    found = [_option(asked, evidence, where, name, recipe, times) for name, recipe in asked.recipes]
    able = [each for each in found if not each.lost]
    measured = all(any(speed.joules_per_token for speed in each.usable.values()) for each in able)
    return [replace(each, by_joules=asked.objective == "energy" and measured and not each.barred) for each in found]


def _option(asked: Asked, evidence: Evidence, where: Setting, name: str, recipe: Recipe, times: Times) -> Option:
    images, batches = asked.images or USUAL_IMAGES, asked.batches
    plan = preflight(
        asked.model, name, recipe, asked.gpu, asked.tp, context=asked.context, batches=batches, images=images
    )
    unservable = _unservable(plan, where.engine, recipe.format)
    fitting = [cell.batch for cell in plan.cells if cell.fits and not unservable]
    speeds, unknown = _speeds(asked, evidence.cells, where, plan, name, recipe, fitting, times)
    seconds = {batch: (speed.first_seconds, speed.step_seconds) for batch, speed in speeds.items()}
    over = {batch: said for batch, each in seconds.items() if (said := asked.limits.breaks(*each))}
    shown = BASELINE if name == asked.baseline else evidence.accuracy.get(name)
    lost = unservable or _loses(asked, shown)
    unproven = False
    if not lost and shown is None:
        unproven, lost = True, "" if asked.unproven else "its accuracy was not shown for this model"
    barred = lost
    if not lost and not set(speeds) - set(over):
        worst = over[min(over)] if over else ""
        lost = f"no batch is within the limits: {worst}" if over else f"its speed is not known: {'; '.join(unknown)}"
        unproven = False
    servable = not unservable
    return Option(name, recipe, plan, speeds, over, tuple(unknown), shown, lost, unproven, servable, images, barred)


def _speeds(
    asked: Asked,
    cells: Sequence[Cell],
    where: Setting,
    plan: GpuPlan,
    name: str,
    recipe: Recipe,
    fitting: Sequence[int],
    times: Times,
) -> tuple[dict[int, Prediction], list[str]]:
    speeds: dict[int, Prediction] = {}
    unknown: list[str] = []
    assert asked.model.shape is not None, "asked for in `resolve`"
    known = any(cell.format == name for cell in cells)
    width = 1 if recipe.kv_cache == "fp8" else 2
    shape, images = asked.model.shape, bool(asked.images)
    todo = work(shape, recipe.format, asked.gpu, asked.tp, cache_width=width, group=plan.group_size, images=images)
    for batch in fitting:
        wanted = Wanted(
            Point(*where.lengths, batch, asked.images),
            todo,
            where.engine,
            name if known else recipe.format,
            group_of(asked.model.word, asked.gpu.word, asked.tp),
            times.get((name, batch)),
        )
        found = predict(wanted, cells)
        if isinstance(found, Prediction):
            speeds[batch] = found
        else:
            unknown.append(found)
    return speeds, list(dict.fromkeys(unknown))


def _unservable(plan: GpuPlan, engine: str, recipe_format: str) -> str:
    if plan.refusals:
        return plan.refusals[0]
    answers = {each.engine: each.refusal for each in plan.engines}
    if engine in ENGINES and answers.get(engine):
        return f"engine {engine} does not serve it: {answers[engine]}"
    if recipe_format not in support.ELSEWHERE.get(engine, (recipe_format,)):
        return f"engine {engine} does not compute {recipe_format}; --engine takes another one."
    if all(answers.values()) and engine in ENGINES:
        return "no engine serves it on this GPU."
    return ""


def _loses(asked: Asked, shown: Shown | None) -> str:
    """Does its accuracy rule it out? The whole interval must lie within the margin."""
    if shown is None:
        return ""
    if shown.verdict:
        return shown.verdict
    if shown.high <= asked.max_drop:
        return ""
    interval = f" [{shown.low:.2f}, {shown.high:.2f}]" if shown.high > shown.low else ""
    sure = "loses" if shown.low > asked.max_drop else "may lose"
    return f"{sure} {shown.drop:.2f}{interval} points ({shown.source}), and {asked.max_drop:g} are accepted"


def _most(pairs: Sequence[tuple[str, str]]) -> str | None:
    """The engine that knows most of the asked precisions; more cells decide between equals."""
    formats = Counter(engine for engine, _ in set(pairs))
    cells = Counter(engine for engine, _ in pairs)
    return max(formats, key=lambda each: (formats[each], cells[each], each)) if formats else None


def _usual_lengths(cells: Sequence[Cell], context: int) -> tuple[int, int] | None:
    """The lengths that most cells have, of those that fit into the context."""
    counts = Counter((c.point.isl, c.point.osl) for c in cells if c.point.isl + c.point.osl <= context)
    return max(counts, key=lambda pair: (counts[pair], -sum(pair))) if counts else None


def _within(lengths: tuple[int, int], context: int) -> tuple[int, int]:
    if sum(lengths) <= context:
        return lengths
    return max(context * 4 // 5, 1), max(context // 5, 1)
