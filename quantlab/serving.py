"""Memory of serving a model on a GPU, from dimensions alone. Pure arithmetic, so that every figure can be checked by
hand.

    weights      quantized layers are cut over the `tp` GPUs, so are embedding and output head (by vocabulary);
                 what is left (vision encoder, norms) is counted whole on each
    KV cache     2 (key, value) x layers x kv_heads/tp x head_dim x bytes, a token of a sequence. A GPU holds whole
    heads:
                 with more GPUs than key/value heads they are copied, and more GPUs save nothing
    images       Mllama's cross-attention layers keep keys and values of every image, 6,404 positions, for each sequence
    activations  of the tokens of one step, at most 8,192 (longer prompts are prefilled in pieces): the widest layer's
                 inputs and outputs in 16 bit; and one row of 32-bit logits a sequence
    reserve      CUDA context, kernels, graphs and communication buffers: 2 GB; where the memory is the host's too, 8 GB

A "fits" is therefore an estimate with the reserve as its slack; a "does not fit" by weights alone is certain.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from quantlab.records import FORMATS, Shape
from quantlab.sizes import OWN_GROUP, Sizes

STEP_TOKENS = 8192
"""Most tokens of one step; the engines' own budget (EngineConfig.token_budget)."""
RESERVE_BYTES, UNIFIED_RESERVE_BYTES = 2_000_000_000, 8_000_000_000
"""Not for the model: on a GPU of its own, and where an operating system lives in the same memory."""
IMAGE_POSITIONS = 6404
"""Positions of one image in Llama 3.2 Vision: 4 tiles x 1,601."""
USUAL_IMAGES = 1
"""Of a sequence, where nobody says: as Llama 3.2 Vision is served."""
ENCODER_LAYERS, ENCODER_WIDTH, ENCODER_MLP = 40, 1280, 5120
"""Llama 3.2 Vision's image encoder: 32 layers and 8 global ones over all tiles (config.json of 11B and 90B)."""
PROJECTED = 7680
"""What the encoder hands over for a position: six of its widths."""


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that one of `tp` GPUs holds, apart from what grows with batch and context."""

    weights: int
    sequence_token: int
    """KV cache of one token of one sequence."""
    image_cache: int
    """Keys and values of one image of one sequence."""
    token_activation: int
    """Activations of one token of a step."""
    sequence_logits: int
    reserve: int
    capacity: int
    """Memory of the GPU as advertised."""
    lines: tuple[str, ...]
    """The arithmetic in words."""

    @property
    def free(self) -> int:
        """What is left for cache and activations; negative where not even the weights fit."""
        return self.capacity - self.reserve - self.weights

    def sequence(self, context: int, images: int = USUAL_IMAGES) -> int:
        """KV cache of one sequence of `context` tokens and its images."""
        return self.sequence_token * context + self.image_cache * images

    def activations(self, tokens: int, batch: int) -> int:
        """Of one step over `tokens` prompt tokens in all, and `batch` sequences."""
        return min(max(tokens, batch), STEP_TOKENS) * self.token_activation + batch * self.sequence_logits

    def needed(self, context: int, prompt: int, batch: int, images: int = USUAL_IMAGES) -> int:
        """All bytes for `batch` sequences of `context` tokens, of which `prompt` were given, and `images` in each."""
        cache = batch * self.sequence(context, images)
        return self.reserve + self.weights + cache + self.activations(prompt * batch, batch)

    def largest_batch(self, context: int, prompt: int, images: int = USUAL_IMAGES) -> int:
        """Most sequences of `context` tokens that fit; 0 where none does."""
        most = max(self.free, 0) // max(self.sequence(context, images), 1) + 1
        return _largest(most, lambda batch: self.needed(context, prompt, batch, images) <= self.capacity)

    def longest_context(self, batch: int, images: int = USUAL_IMAGES) -> int:
        """Most tokens that each of `batch` sequences can have; 0 where not one fits."""
        most = max(self.free, 0) // max(self.sequence_token * batch, 1) + 1
        return _largest(most, lambda tokens: self.needed(tokens, tokens, batch, images) <= self.capacity)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, by halving; 0 where none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def weight_bits(form: str, group: int | None) -> float:
    """Bits that a quantized weight takes in the checkpoint, scales of groups included."""
    return FORMATS[form].weight_bits(group or OWN_GROUP)


def checkpoint_bytes(form: str, group: int | None, sizes: Sizes) -> int:
    """The export: quantized layers in `form`, everything else in 16 bit."""
    linear = sum(each.outputs * each.inputs for each in sizes.layers)
    return int(linear * weight_bits(form, group) / 8) + 2 * (sizes.total - linear)


def kv_bytes(shape: Shape, width: int, tp: int = 1) -> int:
    """KV cache of one token on one of `tp` GPUs: whole heads, so at least one."""
    return 2 * shape.layers * -(-shape.kv_heads // tp) * shape.head_dim * width


def image_cache(shape: Shape, width: int, tp: int = 1) -> int:
    """Keys and values of one image on one of `tp` GPUs."""
    return 2 * shape.cross_layers * -(-shape.kv_heads // tp) * shape.head_dim * width * IMAGE_POSITIONS


def image_flops(shape: Shape) -> float:
    """Operations of one image of four tiles before the first token: its encoder, the projection to the residual
    stream, and its keys and values in each cross-attention layer. 0 for a model without any."""
    if not shape.cross_layers:
        return 0.0
    products = 4 * ENCODER_WIDTH**2 + 2 * ENCODER_WIDTH * ENCODER_MLP
    encoder = ENCODER_LAYERS * IMAGE_POSITIONS * (2 * products + 4 * IMAGE_POSITIONS * ENCODER_WIDTH)
    keys = 2 * shape.cross_layers * shape.hidden * 2 * shape.kv_heads * shape.head_dim
    return float(encoder + IMAGE_POSITIONS * (2 * PROJECTED * shape.hidden + keys))


def footprint(
    form: str, group: int | None, kv_cache: str, sizes: Sizes, shape: Shape, capacity: int, tp: int, *, unified: bool
) -> Footprint:
    """What one GPU of `tp` holds.

    Args:
        form: bf16, fp8, int4_awq, int4.
        group: weights that share a scale.
        kv_cache: "none" (16 bit) or "fp8".
        sizes: the layers that are quantized and the number of all weights.
        shape: dimensions.
        capacity: memory of the GPU in bytes.
        tp: GPUs that share each layer.
        unified: the memory is the host's too.
    """
    linear = sum(each.outputs * each.inputs for each in sizes.layers)
    vocabulary = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    if not linear:  # nothing is quantized, and the layers are cut all the same
        linear = max(sizes.total - vocabulary, 0) if not shape.cross_layers else layer_weights(shape)
    rest = max(sizes.total - linear - vocabulary, 0)
    bits = weight_bits(form, group)
    weights = int(linear * bits / 8) // tp + 2 * vocabulary // tp + 2 * rest
    width = 1 if kv_cache == "fp8" else 2
    token = kv_bytes(shape, width, tp)
    image = image_cache(shape, width, tp)
    reserve = UNIFIED_RESERVE_BYTES if unified else RESERVE_BYTES
    lines = (
        f"Weights on each GPU: {linear:,} x {bits:g} bits / {tp} + {vocabulary:,} of embedding and head x 16 bits / "
        f"{tp} + {rest:,} others x 16 bits = {gb(weights)}.",
        f"KV cache: 2 x {shape.layers} layers x {-(-shape.kv_heads // tp)} heads x {shape.head_dim} x {width} bytes = "
        f"{token:,} bytes a token"
        + (f", and {gb(image)} for the {IMAGE_POSITIONS:,} image tokens of each image." if image else "."),
        f"Reserve: {gb(reserve)} for the CUDA context, graphs and buffers{', and the system' if unified else ''}.",
    )
    return Footprint(
        weights=weights,
        sequence_token=token,
        image_cache=image,
        token_activation=2 * (4 * shape.hidden + 2 * shape.intermediate // tp),
        sequence_logits=4 * shape.vocabulary,
        reserve=reserve,
        capacity=capacity,
        lines=lines,
    )


def layer_weights(shape: Shape, *, text_only: bool = False) -> int:
    """Weights of all decoder layers' linear layers; text alone runs through no cross-attention layer."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    layers = shape.layers + (0 if text_only else shape.cross_layers)
    return layers * (attention + 3 * shape.hidden * shape.intermediate)


def gb(size: float) -> str:
    """Bytes for people, in powers of ten: 1.81 GB."""
    return f"{size / 1e9:,.2f} GB" if abs(size) >= 1e8 else f"{size / 1e6:,.1f} MB"
