"""What calibrating a whole model costs, from dimensions alone: memory, stage by stage, and seconds.

The peak is the largest of three stages. What each holds was found by watching resident memory from stage to stage:

    load      libraries + all weights in the type of the arithmetic + the files in theirs: they are mapped while they
              are read, and the kernel counts mapped pages. On a GPU they are counted in the machine's memory instead.
    look      with images: the vision tower, whose code keeps what comes out of every layer
    measure   libraries + all weights + activations of one batch, or copies of the largest layer; in AWQ's search both

The export holds no more than these: codes take the place of weights one layer at a time.

Of one token of a batch, in numbers, I the width of the MLP and H that of the residual stream:

    measuring      4 I + 2 H    gate, its activation, up, their product; residual and normed
    AWQ's search   5 I + 2 H    gate; exact and rounded output, difference, square of the widest layer. In 16 bit
                                7 I + 2 H: difference and square are float32 there, two numbers' room each
    one picture    3 H + 2 K    a vector of the tower's; K the width of keys: they are repeated for each query head
"""

from __future__ import annotations

import msgspec

from quantlab import kept
from quantlab.records import Calibration, Recipe, Shape
from quantlab.sight import Eye
from quantlab.sizes import Sizes

LIBRARIES_BYTES, GPU_LIBRARIES_BYTES = 550_000_000, 500_000_000
"""A child with torch, transformers and ModelOpt before it has read a weight: 0.52 to 0.56 GB of memory; text from the
hub takes 0.1 more (calibrate/spared.py). On a GPU: the context of CUDA, about so much; torch does not count it, so a
measured `peak_gpu_bytes` is without."""
COPIES, SEARCH_COPIES = 3, 2
"""Of the largest layer, in float32, while it is rounded (measured on a CPU), and during AWQ's search (on an H100)."""
PARALLEL = 8
"""Samples in a batch where a batch costs nothing by itself (calibrate/feed.py)."""
SHARE = 0.5
"""Of the free memory that AWQ's batch may take, counted at SEARCHED numbers of float32 a token (calibrate/feed.py)."""
SEARCHED = 12
QUESTION = 64
"""Tokens about a picture; the sets' own are not read for a plan."""
FLOPS_A_CORE = 4e10
"""float32 operations a second of one x86 core: 171 tokens/s of SmolLM2-135M with AVX2, 250 with AVX-512."""
PASSES = {"fp8": 1.3, "int8_sq": 1.3, "nvfp4": 1.3, "int4_awq": 12.0, "w4a8_awq": 12.0, "nvfp4_awq": 12.0,
          "int4_awq_g64": 12.0, "int4_awq_g32": 12.0}  # fmt: skip
"""Cost of calibrating in forward passes: fake quantization, and AWQ's search over 11 strengths."""
CALLS = {"int4_awq": 2, "int4_awq_g64": 2, "int4_awq_g32": 2, "w4a8_awq": 2, "nvfp4_awq": 2}
"""How often the data are fed: AWQ measures, then searches. The vision tower looks each time."""


class Batch(msgspec.Struct, frozen=True):
    """What one forward pass takes."""

    samples: int
    tokens: int
    """Of text, of one sample."""
    vectors: int
    """That the blocks look at, of one sample; 0 without pictures."""


class Memory(msgspec.Struct, frozen=True):
    """Bytes at the peak of each stage."""

    load: int
    look: int
    measure: int

    @property
    def peak(self) -> int:
        return max(self.load, self.look, self.measure)


def batch_of(recipe: Recipe, shape: Shape | None, eye: Eye | None, free: int) -> Batch | None:
    """As calibrate/feed.py chooses it; None where nothing is fed or the dimensions are not known.

    Args:
        recipe: how many samples, and whether its search wants them together.
        shape: of the language model.
        eye: of the vision tower; None for text.
        free: bytes that are free when it chooses.
    """
    asked = recipe.calibration
    if asked is None or shape is None:
        return None
    count, tokens, vectors = asked.samples, asked.length, 0
    if eye is not None:
        count, tokens, vectors = asked.images, QUESTION, eye.vectors
    return Batch(_together(recipe, asked, count, max(tokens, vectors), shape, free), tokens, vectors)


def _together(recipe: Recipe, asked: Calibration, count: int, length: int, shape: Shape, free: int) -> int:
    if asked.batch or not searches(recipe):
        return min(asked.batch or PARALLEL, count)
    fit = int(SHARE * free // (length * 4 * SEARCHED * (shape.intermediate + shape.hidden)))
    return max(1, min(count, fit))


def searches(recipe: Recipe) -> bool:
    """AWQ."""
    return recipe.format.endswith("awq")


def activations(recipe: Recipe, batch: Batch | None, shape: Shape | None, width: int) -> int:
    """Bytes of one batch's activations in the decoder, `width` bytes a number."""
    if batch is None or shape is None:
        return 0
    keys = shape.kv_heads * shape.head_dim
    wide = (5 if width == 4 else 7) if searches(recipe) else 4
    text = batch.tokens * (wide * shape.intermediate + 2 * shape.hidden)
    seen = batch.vectors * ((4 if searches(recipe) else 3) * shape.hidden + 2 * keys)
    return batch.samples * (text + seen) * width


def work(recipe: Recipe, sizes: Sizes, batch: Batch | None, width: int) -> int:
    """Bytes beside the weights: AWQ rounds the largest layer while a batch goes through it; all others measure first,
    with nothing rounded, and round when only the probe's few tokens go through."""
    largest = max((layer.outputs * layer.inputs for layer in sizes.layers), default=0)
    fed = activations(recipe, batch, sizes.shape, width)
    return fed + SEARCH_COPIES * 4 * largest if searches(recipe) else max(fed, COPIES * 4 * largest)


def whole(recipe: Recipe, sizes: Sizes, eye: Eye | None, memory: int, *, cpu: bool) -> Memory:
    """Memory of calibrating and exporting the whole model.

    Args:
        recipe: the recipe; the baseline is only loaded.
        sizes: its layers.
        eye: of the vision tower; None for text.
        memory: of the machine or the GPU, for the batch that AWQ chooses.
        cpu: float32 in the machine's memory, instead of 16 bit on a GPU.
    """
    width, libraries = (4, LIBRARIES_BYTES) if cpu else (2, GPU_LIBRARIES_BYTES)
    held = libraries + (width if recipe.preset else 2) * sizes.total
    if recipe.preset is None:
        return Memory(held, 0, 0)
    batch = batch_of(recipe, sizes.shape, eye, max(memory - held, 0))
    look = eye.looking(width) * batch.samples if eye and batch else 0
    mapped = 2 * sizes.total if cpu else 0
    return Memory(held + mapped, held + look, held + work(recipe, sizes, batch, width))


def sentence(recipe: Recipe, found: Memory, sizes: Sizes, *, cpu: bool) -> str:
    """The plan's line."""
    doing = "quantize and export" if recipe.preset else "load"
    held = (4 if cpu and recipe.preset else 2) * sizes.total
    what = "of weights in float32, as a CPU computes," if cpu and recipe.preset else "of weights"
    parts = {"load": " while the mapped files are read", "look": " while the vision tower looks at pictures",
             "measure": " while ranges are measured"}  # fmt: skip
    at = max(parts, key=lambda part: int(getattr(found, part)))
    return (
        f"Memory: about {found.peak / 1e9:,.2f} GB to {doing} ({held / 1e9:,.2f} GB {what} and what comes with them; "
        f"most{parts[at]})."
    )


def seconds(recipe: Recipe, sizes: Sizes, eye: Eye | None, cores: int) -> tuple[float, str] | None:
    """Time of calibrating on `cores` CPU cores, and its sentence; None on a GPU (0 cores) or where nothing is fed."""
    passes, asked = PASSES.get(recipe.format), recipe.calibration
    if not (cores and passes and asked):
        return None
    passes += kept.WIDER * (recipe.rounding == "compensated" and eye is None)
    linear = sum(each.outputs * each.inputs for each in sizes.layers)
    words = f"on {cores} idle cores in float32 (40 GFLOP/s each); less with bf16 units, more on busy cores."
    if eye is None or sizes.shape is None:
        tokens = asked.samples * asked.length
        found = passes * 2 * linear * tokens / (FLOPS_A_CORE * cores)
        sum_ = f"2 x {linear:,} x {tokens:,} tokens x {passes:g} passes"
        return found, f"Time to calibrate: {sum_} = about {found:.0f} s {words}"
    calls, keys = CALLS.get(recipe.format, 1), 4 * sizes.shape.cross_layers * sizes.shape.hidden
    tower = calls * eye.flops()
    decoder = passes * (2 * linear * QUESTION + keys * sizes.shape.kv_heads * sizes.shape.head_dim * eye.vectors)
    found = asked.images * (tower + decoder) / (FLOPS_A_CORE * cores)
    return found, (
        f"Time to calibrate: {asked.images} pictures x ({tower / 1e12:,.3g} TFLOP of vision tower, {calls} x, + "
        f"{decoder / 1e12:,.3g} of decoder, {passes:g} passes) = about {found:.0f} s {words}"
    )
