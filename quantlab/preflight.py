"""Will this precision serve this model on that GPU? Answered in milliseconds, without weights and without the GPU.

`plans` asks whether a run works on this machine; this asks about a GPU of the catalog: does the format exist there,
does the model fit with its cache at the asked context and batch, are the layers divisible among the GPUs, who can
serve it, and what does making it cost. The arithmetic is part of the answer.

Time of calibrating is scaled from two measurements on one H100 (Llama 3.2 3B shapes, 8,192 tokens: FP8 1.5 s, INT4-AWQ
77.5 s, benchmarks/results/gpu): linear in weights and tokens, and inverse in 16-bit operations. A guess within about
three times either way; the first use of ModelOpt on a machine compiles for a minute more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from quantlab import plans, support
from quantlab.catalog import Datasheet
from quantlab.loads import CellFit, Load, described, fitted, largest, loads, sums
from quantlab.records import Grid, Model, Recipe, Shape, unserved
from quantlab.serving import USUAL_IMAGES, Footprint, footprint, gb
from quantlab.sizes import GROUPS, Layer, Sizes, group_size
from quantlab.sizes import sizes as sizes_of

H100_SECONDS = {"fp8": 1.5, "int4_awq": 77.5}
"""Measured calibration of 2.82e9 weights with 8,192 tokens on an H100."""
H100_WORK, H100_TFLOPS = 2_818_572_288 * 8192, 989.0
CUT_INPUTS = ("o_proj", "down_proj")
"""Layers that tensor parallelism cuts along their input, where the groups lie; the others are cut along their
output."""


class GpuPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One recipe on one kind of GPU."""

    recipe: str
    model: str
    gpu: str
    tp: int
    verdict: str
    """One sentence: fits, fits in part, or not, and why."""
    fits: bool
    """The format exists, the layers divide, and at least the smallest cell fits."""
    refusals: tuple[str, ...] = ()
    """Why it cannot be served."""
    notes: tuple[str, ...] = ()
    arithmetic: tuple[str, ...] = ()
    footprint: Footprint | None = None
    cells: tuple[CellFit, ...] = ()
    largest_batch: int | None = None
    """Most sequences of the longest context asked."""
    engines: tuple[support.Serves, ...] = ()
    group_size: int | None = None
    calibration_refusals: tuple[str, ...] = ()
    """Why it cannot be quantized on this GPU (it may be elsewhere)."""
    calibration_bytes: int | None = None
    """Peak memory of quantizing, over all the GPUs."""
    calibration_peaks: tuple[int, ...] = ()
    """Where the model lies on several of the GPUs while it is quantized: peak memory of each, predicted."""
    calibration_seconds: float | None = None
    disk_bytes: int | None = None
    """Weights to be downloaded and the export."""


def preflight(
    model: Model,
    name: str,
    recipe: Recipe,
    gpu: Datasheet,
    tp: int = 1,
    *,
    grid: Grid | None = None,
    context: int | None = None,
    batches: tuple[int, ...] = (1,),
    path: Path | None = None,
    images: int = USUAL_IMAGES,
) -> GpuPlan:
    """Everything that can be known of serving `recipe` on `tp` of these GPUs.

    Args:
        model: as the catalog resolved it.
        name: word of the recipe.
        recipe: the recipe.
        gpu: its data sheet.
        tp: GPUs that share each layer.
        grid: cells to hold; used where no context is given.
        context: tokens of a sequence, for `batches`.
        batches: sequences at once.
        path: directory with safetensors, whose headers are then exact.
        images: in each sequence of `context` tokens, for a model that takes them. A grid says itself how many its
            cells hold.
    """
    sizes = sizes_of(model, path, recipe)
    made = GpuPlan(recipe=name, model=model.word, gpu=gpu.word, tp=tp, verdict="", fits=False)
    if sizes.shape is None or not sizes.total:
        why = f"the dimensions of {model.location} are not known; give a directory with its config.json."
        return msgspec.structs.replace(made, verdict=f"Not known: {why}", refusals=(why,))
    asked = loads(sizes.shape, grid, context, batches, images)
    made = _served(made, model, recipe, gpu, sizes, sizes.shape, asked)
    made = _made(made, model, name, recipe, gpu, sizes)
    return msgspec.structs.replace(made, verdict=_verdict(made))


def _served(
    made: GpuPlan,
    model: Model,
    recipe: Recipe,
    gpu: Datasheet,
    sizes: Sizes,
    shape: Shape,
    asked: Sequence[Load],
) -> GpuPlan:
    """Memory, hardware and engines."""
    group, group_notes, group_refusals = group_size(recipe, sizes.layers)

    def with_gpus(count: int) -> Footprint:
        capacity = gpu.memory_bytes
        return footprint(recipe.format, group, recipe.kv_cache, sizes, shape, capacity, count, unified=gpu.unified)

    held = with_gpus(made.tp)
    cells = tuple(fitted(held, load) for load in asked)
    refusals = [
        *group_refusals,
        *filter(None, [unserved(recipe.format), support.hardware(recipe.format, gpu)]),
        *_divisible(sizes, shape, group, made.tp),
        *_too_long(shape, cells),
        *_too_big(held, cells, gpu, made.tp, with_gpus),
    ]
    return msgspec.structs.replace(
        made,
        group_size=group,
        refusals=tuple(refusals),
        footprint=held,
        cells=cells,
        largest_batch=largest(held, asked),
        engines=support.engines(model.architecture or "LlamaForCausalLM", recipe.format, recipe.kv_cache, gpu),
        fits=not refusals,
        notes=(*group_notes, *_notes(model, recipe, gpu)),
        arithmetic=(*held.lines, *sums(held, cells, gpu.word)),
    )


def explain(plan: GpuPlan) -> list[str]:
    """The plan as sentences, the answer first."""
    lines = [plan.verdict, *plan.arithmetic]
    if plan.group_size:
        lines.append(f"Group size {plan.group_size}: divides every layer, cut {plan.tp} times.")
    for each in plan.engines:
        line = f"{each.engine} {each.line}".strip()
        lines.append(f"{line}: {each.refusal or 'serves it.'}")
    if plan.calibration_bytes:
        seconds = plan.calibration_seconds
        about = f", about {seconds:,.0f} s (scaled from 3B on an H100: a guess)" if seconds else ""
        lines.append(f"Quantizing: about {gb(plan.calibration_bytes)} of GPU memory{about}.")
    if plan.calibration_peaks:
        peaks = ", ".join(gb(peak) for peak in plan.calibration_peaks)
        lines.append(f"Quantizing on {len(plan.calibration_peaks)} GPUs, whole blocks on each: peaks of about {peaks}.")
    lines += [f"Quantizing here: {each}" for each in plan.calibration_refusals]
    if plan.disk_bytes:
        lines.append(f"Disk: {gb(plan.disk_bytes)} with the download.")
    return [*lines, *(f"Note: {each}" for each in plan.notes), *(f"Refused: {each}" for each in plan.refusals)]


def _divisible(sizes: Sizes, shape: Shape, group: int | None, tp: int) -> Iterator[str]:
    """Each GPU takes whole heads, whole rows, and whole groups of INT4 weights."""
    if tp == 1:
        return
    if shape.heads % tp or (shape.kv_heads % tp and tp % shape.kv_heads):
        yield f"{shape.heads} heads and {shape.kv_heads} key/value heads cannot be shared by {tp} GPUs."
    bad = [each for each in sizes.layers if _uneven(each, group, tp)]
    if bad:
        first = bad[0]
        able = [size for size in GROUPS if group and not any(_uneven(each, size, tp) for each in sizes.layers)]
        cure = f" Group size {able[0]} would work." if able else " Take fewer GPUs a layer."
        width = first.inputs if first.name.endswith(CUT_INPUTS) else first.outputs
        what = f"groups of {group}" if group else "whole rows"
        yield f"{width} of {first.name} is not {tp} times {what} ({len(bad)} layers).{cure}"


def _uneven(layer: Layer, group: int | None, tp: int) -> bool:
    if layer.name.endswith(CUT_INPUTS):
        return layer.inputs % (tp * (group or 1)) != 0
    return layer.outputs % tp != 0


def _too_long(shape: Shape, cells: tuple[CellFit, ...]) -> Iterator[str]:
    longest = max(cell.context for cell in cells)
    if longest > shape.context:
        yield f"a sequence of {longest:,} tokens is longer than the model's {shape.context:,}."


def _too_big(
    held: Footprint, cells: tuple[CellFit, ...], gpu: Datasheet, tp: int, more: Callable[[int], Footprint]
) -> Iterator[str]:
    """Nothing fits; weights alone being too much is said as such. `more` gives the footprint with other GPUs a
    layer."""
    if any(cell.fits for cell in cells):
        return
    least = min(cells, key=lambda cell: cell.needed_bytes)
    cell = f"batch {least.batch} x {described(least)}"
    what = f"{gb(held.weights)} of weights" if held.free < 0 else f"{gb(least.needed_bytes)} for {cell}"
    cures = [] if held.free < 0 else ["a shorter context", *(["a smaller batch"] if least.batch > 1 else [])]
    cures += ["a smaller precision", f"a GPU of at least {gb(least.needed_bytes)}"]
    enough = (
        count
        for count in (2, 4, 8, 16)
        if count > tp and more(count).largest_batch(least.context, least.context, least.images)
    )
    cures += [f"--tp {count}" for count in [next(enough, 0)] if count and not gpu.unified]
    yield (
        f"{what} {'do' if held.free < 0 else 'does'} not fit into {gb(held.capacity)} of {gpu.word}, of which "
        f"{gb(held.reserve)} are kept free. Take {', '.join(cures[:-1])} or {cures[-1]}."
    )


def _notes(model: Model, recipe: Recipe, gpu: Datasheet) -> Iterator[str]:
    if model.gated:
        yield f"{model.location} is gated: its licence must be accepted, and HF_TOKEN set, before a download."
    if model.modality == "vision" and recipe.format == "int4_awq":
        yield "TensorRT-LLM's documentation does not list INT4-AWQ for Mllama, although its kernels exist."
    if gpu.capability >= (11, 0) and gpu.unified:
        yield f"no engine of ours has run on {gpu.word} (compute capability {gpu.compute_capability}): unproven."
    if gpu.notes:
        yield f"data sheet of {gpu.word}: {gpu.notes}"


def _made(made: GpuPlan, model: Model, name: str, recipe: Recipe, gpu: Datasheet, sizes: Sizes) -> GpuPlan:
    """What making the checkpoint on these GPUs costs."""
    open_ = msgspec.structs.replace(model, gated=False)
    host = support.host_with(gpu, made.tp)
    cost = plans.plan(open_, None, name, recipe, host, None, None, 10**18, device="cuda")
    asked, base, bf16 = recipe.calibration, H100_SECONDS.get(recipe.format), gpu.tflops.get("bf16")
    seconds = None
    if asked and base and bf16:
        work = sum(each.outputs * each.inputs for each in sizes.layers) * asked.samples * asked.length
        seconds = base * work / H100_WORK * H100_TFLOPS / bf16
    return msgspec.structs.replace(
        made,
        calibration_refusals=tuple(each for each in cost.refusals if not each.startswith("group_size")),
        calibration_bytes=cost.calibration_peak_bytes if recipe.preset else None,
        calibration_peaks=cost.gpu_peak_bytes,
        calibration_seconds=seconds,
        disk_bytes=cost.disk_bytes,
    )


def _verdict(plan: GpuPlan) -> str:
    where = f"{plan.tp} x {plan.gpu}"
    if plan.refusals:
        return f"Not servable: {plan.recipe} of {plan.model} on {where}. {plan.refusals[0]}"
    good = sum(cell.fits for cell in plan.cells)
    most = f"at most {plan.largest_batch:,} sequences at the longest context"
    if good == len(plan.cells):
        return f"Fits: {plan.recipe} of {plan.model} on {where}; {most}."
    return f"Fits in part: {good} of {len(plan.cells)} cells of {plan.recipe} of {plan.model} on {where}; {most}."
