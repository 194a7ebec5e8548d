"""The sentences of a recommendation: why each recipe stands where it stands, what is missing, what to measure next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantlab.decide import carried
from quantlab.decide.answer import AtBatch, Pair
from quantlab.decide.asked import Asked
from quantlab.decide.byload import BY_LOAD, Sweeps
from quantlab.decide.evidence import Evidence
from quantlab.decide.options import Option, Setting
from quantlab.decide.standing import Standing, apart
from quantlab.engines import ENGINES
from quantlab.predict import Crossover, Prediction

SHORT = 8
"""A context that is this many times what the speeds are for would be slower by more than their errors."""
GUESSED = ("transfer", "kernels", "roofline")


def workload(asked: Asked, where: Setting) -> str:
    """What the speeds and the memory are for."""
    image = f" and {asked.images} image{'s' if asked.images > 1 else ''} of four tiles" if asked.images else ""
    return (
        f"{where.lengths[0]} tokens in{image}, {where.lengths[1]} out with {where.engine} ({where.why}); "
        f"memory at {asked.context:,} tokens a sequence"
    )


def sentence(asked: Asked, every: Sequence[Option], choice: Option | None, by_batch: Sequence[AtBatch]) -> str:
    """The answer."""
    target = f"{asked.model.word} on {asked.tp} x {asked.gpu.word}"
    if choice is None:
        return f"No precision of {target} is within all limits; see what to relax."
    guess = all(speed.provenance == "predicted" for speed in choice.usable.values())
    doubts = [*(["its accuracy holds"] if choice.unproven else []), *(["the predictions hold"] if guess else [])]
    said = f"For {target}, ship {choice.name} ({asked.objective}){' if ' + ' and '.join(doubts) if doubts else ''}."
    runs: list[list[str | int]] = []
    for each in by_batch:
        if runs and runs[-1][0] == each.recipe:
            runs[-1][2] = each.batch
        else:
            runs.append([each.recipe, each.batch, each.batch])
    if len(runs) > 1:
        said += " By batch: " + ", ".join(f"{name} at {low} to {high}" for name, low, high in runs) + "."
    held = [each.name for each in every if each.unproven and each.lost]
    if held:
        said += f" {' and '.join(held)}: not weighed until the accuracy is shown."
    return said


def why(asked: Asked, option: Option, own: Standing | None, ahead: Standing | None) -> str:
    """Why it is chosen, or lost."""
    if option.lost:
        return option.lost
    if ahead is not None and option is ahead.option:
        unproven = "; its accuracy was not shown, --unproven let it pass" if option.unproven else ""
        return f"best for {asked.objective}, or tied and ahead in accuracy and memory{unproven}"
    if ahead is None or own is None:
        return "not reached"
    ratio = own.at.rate / ahead.at.rate
    if asked.objective == "memory":
        return "needs more memory"
    what = "tokens a joule" if option.by_joules else "speed"
    if not apart(ahead.at, own.at):
        return f"a tie in {what} within the errors; behind in accuracy or memory"
    return f"{ratio:.2f} times the {what} of {ahead.option.name}"


def crossing(cross: Crossover, one: Option, other: Option) -> str:
    """A crossover, or who is ahead throughout."""
    if cross.crosses:
        return (
            f"{cross.ahead_below} is ahead of {cross.ahead_above} below a batch of {cross.batch:.1f} "
            f"[{cross.low:.1f}, {cross.high:.1f}]; {cross.share:.0%} of draws cross."
        )
    common = sorted(set(one.speeds) & set(other.speeds))
    middle = common[len(common) // 2]
    first, second = one.speeds[middle].tokens_per_second, other.speeds[middle].tokens_per_second
    names = (one.name, other.name) if first > second else (other.name, one.name)
    share = f" ({cross.share:.0%} of draws cross)" if cross.share else ""
    return f"{names[0]} is ahead of {names[1]} at every batch from {common[0]} to {common[-1]}{share}."


def per_million(asked: Asked, speed: Prediction | None) -> tuple[float | None, float | None]:
    """Joules and dollars for a million output tokens on all GPUs."""
    if speed is None:
        return None, None
    seconds = 1e6 / speed.tokens_per_second
    watts, price = asked.gpu.power_watts, asked.price or asked.gpu.price_per_hour
    drawn = speed.joules_per_token
    return (
        drawn * 1e6 if drawn else watts * asked.tp * seconds if watts else None,
        price * asked.tp * seconds / 3600 if price else None,
    )


def assumptions(asked: Asked, every: Sequence[Option]) -> Iterator[str]:
    """What energy and cost stand on."""
    gpu = asked.gpu
    by_joules = any(each.by_joules for each in every)
    if gpu.power_watts:
        yield f"Energy where not measured: the GPU draws its limit of {gpu.power_watts:g} W throughout, an upper bound."
    if asked.price:
        yield f"Cost: ${asked.price:g} an hour, as given."
    elif gpu.price_per_hour:
        where_from = f"{gpu.price_date}, {gpu.price_source}"
        yield f"Cost: ${gpu.price_per_hour:g} an hour, assumed ({where_from}); --price changes it."
    if asked.objective == "cost" or (asked.objective == "energy" and not by_joules):
        yield f"With equal power and price for all precisions, {asked.objective} orders them as throughput does."
    if asked.tp > 1 and gpu.link and gpu.link_bandwidth:
        said = f"{gpu.link_bandwidth / 1e9:g} GB/s in one direction"
        yield f"Between the GPUs: {gpu.link} of {said}, two all-reduces a layer, nothing else on it."
    yield "Busy all the time at the batch that is named; idle hours cost the same."


def missing(asked: Asked, evidence: Evidence, where: Setting, every: Sequence[Option], fallback: str) -> Iterator[str]:
    """What was not known. `fallback`: why static batches decide although loads were asked for."""
    if not any(speed.provenance != "predicted" for each in every for speed in each.speeds.values()):
        what = f"{asked.model.word} was measured on {asked.gpu.word} with {where.engine}"
        yield f"No speed of {what}: all are predictions."
    for each in every:
        if each.accuracy is None:
            yield f"The accuracy of {each.name} on {asked.model.word} is in no run of the ledger."
        elif each.accuracy.provenance == "published" and not each.accuracy.verdict:
            yield f"The accuracy of {each.name} is published, without interval: {each.accuracy.source}."
        for reason in each.unknown:
            yield f"Speed of {each.name}: {reason}"
    if asked.ttft and any(speed.first_seconds is None for each in every for speed in each.speeds.values()):
        yield "The time to the first token is not known for every cell; where it is not, --ttft was not applied."
    if not asked.lengths and asked.context > SHORT * sum(where.lengths):
        yield (
            f"Speeds are for sequences of {sum(where.lengths):,} tokens, memory for {asked.context:,}: longer ones are "
            "slower by the cache they read. --isl and --osl ask for it."
        )
    if fallback:
        yield f"The choice is by static batches, which say nothing of queueing: {fallback}"
    yield from _left_out(asked, evidence, every)
    for reason, count in evidence.unusable.most_common(4):
        yield f"{count} cells were not used: {reason}"


def _left_out(asked: Asked, evidence: Evidence, every: Sequence[Option]) -> Iterator[str]:
    """What the predicted speeds do not hold."""
    speeds = [speed for each in every for speed in each.speeds.values()]
    guessed = any(speed.tier in GUESSED for speed in speeds)
    if asked.tp > 1 and guessed and not asked.gpu.link:
        yield f"The link between {asked.tp} of this GPU is not known: what they say is left out, speeds are too high."
    if asked.images and guessed:
        yield "Speed with images was not measured here: encoder and cross-attention follow from their dimensions alone."
    elif asked.model.modality == "vision" and not asked.images:
        yield "Speeds are of text alone; --images 1 counts one image of four tiles a sequence."
    for name, reason in evidence.unasked.items():
        yield f"Kernel tables, {name}: {reason}"


def relax(asked: Asked, every: Sequence[Option], by_load: Sweeps | None) -> Iterator[str]:
    """Which limit excludes everything, and how far it must move: the least step first."""
    fitting = [each for each in every if each.plan.fits]
    small = min((each for each in every if each.plan.footprint), key=lambda each: _least(asked, each), default=None)
    if not fitting and small is not None and small.plan.footprint is not None:
        held, batch = small.plan.footprint, min(asked.batches)
        most = held.longest_context(batch, small.images)
        if most and not _hard(small):
            yield f"--context: {small.name} fits at batch {batch} with {most:,} tokens instead of {asked.context:,}."
        yield f"--gpu or --tp: {small.name}: {small.plan.refusals[0]}"
    yield from carried.relax(asked, by_load) if by_load else _times(asked, fitting)
    for each in fitting:
        if each.accuracy and each.accuracy.high > asked.max_drop and not each.accuracy.verdict:
            yield f"--max-drop: {each.accuracy.high:.2f} instead of {asked.max_drop:g} lets {each.name} in."
        elif each.unproven:
            yield f"--unproven lets {each.name} in without proof of its accuracy."


def _times(asked: Asked, fitting: Sequence[Option]) -> Iterator[str]:
    """The least that each limit must move for one static batch."""
    for word, limit, field in (("tpot", asked.tpot, "step_seconds"), ("ttft", asked.ttft, "first_seconds")):
        times = [
            (value, each.name, batch)
            for each in fitting
            for batch, speed in each.speeds.items()
            if (value := getattr(speed, field)) is not None
        ]
        if limit is not None and times and min(times)[0] > limit:
            value, name, batch = min(times)
            yield f"--{word}: at least {value * 1e3:.3g} ms ({name} at batch {batch}) instead of {limit * 1e3:.3g} ms."


def _least(asked: Asked, option: Option) -> int:
    return option.memory(asked.context, min(asked.batches))


def _hard(option: Option) -> bool:
    """Refused for something that a shorter context does not mend."""
    return any("compute capability" in each or "heads" in each or "group" in each for each in option.plan.refusals)


def next_steps(
    asked: Asked,
    where: Setting,
    every: Sequence[Option],
    choice: Option | None,
    second: Option | None,
    pairs: Sequence[Pair],
    fallback: str,
) -> Iterator[str]:
    """What would make the answer surer, the most useful first."""
    unshown = [each.name for each in every if each.accuracy is None and each.servable]
    if unshown:
        yield (
            f"Accuracy: quantlab eval {' '.join(unshown)} --model {asked.model.word} --suite llama32 "
            f"--max-drop {asked.max_drop:g}"
        )
    doubtful = [
        each.name
        for each in (choice, second)
        if each is not None and any(speed.tier in GUESSED for speed in each.speeds.values())
    ]
    names = doubtful or ([each.name for each in every if each.servable] if choice is None else [])
    if names and where.engine not in ENGINES:
        yield f"Speed: {where.engine} is no engine of quantlab; --engine takes another one, or publish its cells."
    elif names:
        yield (
            f"Speed: quantlab bench {' '.join(names)} --model {asked.model.word} --engine {where.engine} on a "
            f"{asked.gpu.word}, with a grid of batches {', '.join(map(str, asked.batches))}."
        )
    if fallback and where.engine in ENGINES and asked.objective in BY_LOAD and not asked.images:
        served = " ".join(each.name for each in every if not each.barred)
        yield (
            f"Load: quantlab bench {served} --model {asked.model.word} --engine {where.engine} --grid knee on a "
            f"{asked.gpu.word}: users within the limits are ranked only where all were measured in the same way."
        )
    for pair in pairs:
        if pair.batch and pair.low and pair.high and pair.high / pair.low > 1.5:
            yield (
                f"Crossover: batches {pair.low:.0f} to {pair.high:.0f} of {pair.ahead_below} and {pair.ahead_above} "
                "would narrow where they cross."
            )
    if asked.objective == "energy" and not any(each.by_joules for each in every):
        yield "Energy: measure the power draw; a limit is not a draw."
