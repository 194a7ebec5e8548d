"""Mllama's vision tower and projector as an ONNX graph, written by hand.

By hand, and not by torch.onnx.export, for three reasons. Weights go to the disk one by one; the largest of 11B's is the
table by aspect ratio, 0.3 GB in float32. The arithmetic is said in the graph, operator by operator, as TensorRT 11
wants it (it has no precision flags any more). And Q and DQ stand where they shall; the exporters fail on a quantized
tower.

    pixel_values [batch, 1, tiles, channels, image, image], aspect_ratio_ids int64 [batch, 1],
    aspect_ratio_mask int64 [batch, 1, tiles]      ->      cross_attention_states [batch, tiles, tokens, out]

Three things are computed here and not there, in float32:

* Everything that depends on the aspect ratio alone (class token, position, tile) is one table with a row a ratio.
* A gate's tanh.
* The projector's columns are put in order of layers, so that the tapped layers are laid side by side and not
  interleaved.

The mask is the trained one: a padding token does not see padding tokens; all other pairs are seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantlab.encoder.shape import IDS, MASK, PIXELS, STATES, TowerShape
from quantlab.errors import Broken
from quantlab.formats.onnx_blocks import narrowed
from quantlab.formats.onnx_file import KINDS, OnnxFile, value

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
TYPES: dict[str, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "F16", "fp8": "F16"}
"""Precision -> type of what is not quantized, inputs and output included."""
MASKED = -10000.0
"""Added to a score that shall not count; its exponential is 0 in every type, and it fits in float16."""
LARGEST = {"int8": 127.0, "fp8": 448.0}
"""Precision -> largest magnitude of a code."""
SMALLEST_SCALE = 6.2e-5
"""Of a quantizer: the smallest normal number of float16, in which the scales are."""
_NORM = ("weight", "bias")

Source = Callable[[str], np.ndarray]
"""Name of a tensor, without the model's prefix -> float32 values; raises Broken when there is none."""


def linears(shape: TowerShape) -> list[str]:
    """Names of the linear layers that INT8 and FP8 round; the projector is small and stays."""
    stacks = [("transformer", shape.layers), ("global_transformer", shape.global_layers)]
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.fc1", "mlp.fc2")
    return [
        f"vision_model.{stack}.layers.{layer}.{kind}"
        for stack, layers in stacks
        for layer in range(layers)
        for kind in kinds
    ]


def write(
    shape: TowerShape, source: Source, folder: Path, precision: Precision, ranges: Mapping[str, float] | None = None
) -> None:
    """model.onnx and model.onnx.data in `folder`.

    Args:
        source: gives the weights.
        ranges: for int8 and fp8, linear layer -> largest magnitude of its inputs.

    Raises:
        Broken: a weight is missing or has another shape; a range is missing or no number.
    """
    with OnnxFile(folder) as file:
        _Writer(file, shape, source, precision, ranges or {}).write()


@dataclass
class _Writer:
    file: OnnxFile
    shape: TowerShape
    source: Source
    precision: Precision
    ranges: Mapping[str, float]
    rounded: dict[str, str] = field(default_factory=dict)
    """Input of a linear layer -> its rounded twin."""

    def __post_init__(self) -> None:
        self.type = TYPES[self.precision]
        self.head = self.shape.hidden // self.shape.heads

    def write(self) -> None:
        shape = self.shape
        self.ids = self._reshape(IDS, [-1], "ratios")
        mask, x = self._mask(), self._embedded()
        taps = []
        for layer in range(shape.layers):
            x = self._layer(f"vision_model.transformer.layers.{layer}", x, mask, gated=False)
            taps += [x] if layer in shape.taps else []
        x = self._norm("vision_model.layernorm_post", x, 1e-5)
        after = self._table(self._ratio_table("post_tile_positional_embedding")[:, :, None], "after")
        x = self.file.node("Add", [self._by_tile(x, "post", shape.padded), after], "post.tiles")
        x = self._flat(x, "post.flat")
        for layer in range(shape.global_layers):
            x = self._layer(f"vision_model.global_transformer.layers.{layer}", x, mask, gated=True)
        self._project([x, *taps])
        pixels = value(PIXELS, self.type, ("batch", 1, shape.tiles, shape.channels, shape.image, shape.image))
        ids, tiles = value(IDS, "I64", ("batch", 1)), value(MASK, "I64", ("batch", 1, shape.tiles))
        states = value(STATES, self.type, ("batch", shape.tiles, shape.tokens, shape.out))
        self.file.save([pixels, ids, tiles], [states])

    def _take(self, name: str, *size: int) -> np.ndarray:
        found = self.source(name)
        if found.shape != size:
            raise Broken(f"has shape {list(found.shape)}, not {list(size)}.", place=name, cure="Fetch it again.")
        return found

    def _number(self, name: str, values: np.ndarray) -> str:
        return self.file.weight(name, self.type, narrowed(np.asarray(values, dtype=np.float32), self.type))

    def _constant(self, name: str, number: float) -> str:
        return self.file.constant(name, self.type, [number], (1,))

    def _integers(self, name: str, values: list[int]) -> str:
        return self.file.constant(name, "I64", values, (len(values),))

    def _reshape(self, x: str, size: list[int], name: str) -> str:
        return self.file.node("Reshape", [x, self._integers("size." + ".".join(map(str, size)), size)], name)

    def _by_tile(self, x: str, name: str, tokens: int) -> str:
        return self._reshape(x, [-1, self.shape.tiles, tokens, self.shape.hidden], f"{name}.by_tile")

    def _flat(self, x: str, name: str) -> str:
        return self._reshape(x, [-1, self.shape.tiles * self.shape.padded, self.shape.hidden], name)

    def _pad(self, x: str, before: int, after: int, name: str) -> str:
        """Rows of zeros around the tokens of each tile."""
        pads = self._integers(f"{name}.pads", [0, 0, before, 0, 0, 0, after, 0])
        return self.file.node("Pad", [x, pads], name)

    def _mask(self) -> str:
        """[batch, 1, all tokens, all tokens]: MASKED where both are padding, else 0."""
        shape = self.shape
        real = self.file.node("Cast", [MASK], "mask.real", to=KINDS[self.type])
        real = self._reshape(real, [-1, shape.tiles, 1], "mask.tiles")
        inside = np.zeros((1, 1, shape.padded), dtype=np.float32)
        inside[..., : shape.tokens] = 1
        real = self.file.node("Mul", [real, self._number("mask.inside", inside)], "mask.tokens")
        padding = self.file.node("Sub", [self._constant("one", 1.0), real], "mask.padding")
        count = shape.tiles * shape.padded
        rows = self._reshape(padding, [-1, 1, count, 1], "mask.rows")
        scaled = self.file.node("Mul", [padding, self._constant("masked", MASKED)], "mask.scaled")
        columns = self._reshape(scaled, [-1, 1, 1, count], "mask.columns")
        return self.file.node("Mul", [rows, columns], "mask")

    def _gate(self, name: str) -> np.ndarray:
        return np.asarray(np.tanh(self._take(name, 1)))

    def _ratio_table(self, name: str) -> np.ndarray:
        """float32 [ratios, tiles, hidden]: a gated tile embedding."""
        shape, place = self.shape, f"vision_model.{name}"
        table = self._take(f"{place}.embedding.weight", shape.ratios, shape.tiles * shape.hidden)
        gated = table * self._gate(f"{place}.gate")
        return np.asarray(gated.reshape(shape.ratios, shape.tiles, shape.hidden))

    def _table(self, rows: np.ndarray, name: str) -> str:
        """The row of each picture's aspect ratio: [batch, tiles, tokens or 1, hidden]."""
        return self.file.node("Gather", [self._number(f"{name}.table", rows), self.ids], f"{name}.rows", axis=0)

    def _first_table(self) -> np.ndarray:
        """float32 [ratios, tiles, tokens, hidden]: all that is added to the patches, and the class token."""
        shape, place = self.shape, "vision_model.gated_positional_embedding"
        gate = self._gate(f"{place}.gate")
        table = self._take(f"{place}.tile_embedding.weight", shape.ratios, shape.tiles * shape.tokens * shape.hidden)
        table = np.asarray(table * gate).reshape(shape.ratios, shape.tiles, shape.tokens, shape.hidden)
        table += (1 - gate) * self._take(f"{place}.embedding", shape.tokens, shape.hidden)
        table[:, :, 0] += self._take("vision_model.class_embedding", shape.hidden)
        table[:, :, 1:] += self._ratio_table("pre_tile_positional_embedding")[:, :, None]
        return np.asarray(table)

    def _embedded(self) -> str:
        """[batch, all tokens, hidden]: patches, tables, norm, padding."""
        shape = self.shape
        side, width = shape.image // shape.patch, shape.channels * shape.patch**2
        kernel = self._take(
            "vision_model.patch_embedding.weight", shape.hidden, shape.channels, shape.patch, shape.patch
        )
        # A convolution whose steps are its own size is a product; and ONNX has no Conv in bfloat16.
        x = self._reshape(PIXELS, [-1, shape.channels, side, shape.patch, side, shape.patch], "pixels")
        x = self.file.node("Transpose", [x], "pixels.turned", perm=[0, 2, 4, 1, 3, 5])
        x = self._reshape(x, [-1, side * side, width], "pixels.rows")
        turned = np.ascontiguousarray(kernel.reshape(shape.hidden, width).T)
        x = self.file.node("MatMul", [x, self._number("vision_model.patch_embedding.weight", turned)], "patches")
        x = self._pad(self._by_tile(x, "patches", shape.tokens - 1), 1, 0, "with_class")
        x = self.file.node("Add", [x, self._table(self._first_table(), "before")], "embedded")
        x = self._norm("vision_model.layernorm_pre", x, 1e-5)
        return self._flat(self._pad(x, 0, shape.padded - shape.tokens, "padded"), "tokens")

    def _norm(self, name: str, x: str, eps: float) -> str:
        given = [self._number(f"{name}.{each}", self._take(f"{name}.{each}", self.shape.hidden)) for each in _NORM]
        return self.file.node("LayerNormalization", [x, *given], name, axis=-1, epsilon=eps)

    def _layer(self, name: str, x: str, mask: str, *, gated: bool) -> str:
        shape = self.shape
        seen = self._attention(f"{name}.self_attn", self._norm(f"{name}.input_layernorm", x, shape.eps), mask)
        x = self.file.node("Add", [x, self._gated(f"{name}.gate_attn", seen) if gated else seen], f"{name}.seen")
        y = self._norm(f"{name}.post_attention_layernorm", x, shape.eps)
        y = self._linear(f"{name}.mlp.fc1", y, shape.intermediate, shape.hidden, bias=True)
        y = self.file.node("Gelu", [y], f"{name}.mlp.gelu")
        y = self._linear(f"{name}.mlp.fc2", y, shape.hidden, shape.intermediate, bias=True)
        return self.file.node("Add", [x, self._gated(f"{name}.gate_ffn", y) if gated else y], f"{name}.out")

    def _gated(self, name: str, x: str) -> str:
        return self.file.node("Mul", [x, self._number(name, self._gate(name))], f"{name}.times")

    def _attention(self, name: str, x: str, mask: str) -> str:
        width = self.shape.hidden
        q, k, v = (self._linear(f"{name}.{each}_proj", x, width, width) for each in "qkv")
        # The scale goes to the queries, so that a score in float16 stays small.
        q = self.file.node("Mul", [q, self._constant("attention.scale", self.head**-0.5)], f"{name}.q.scaled")
        q, v = (self._heads(each, word, [0, 2, 1, 3]) for each, word in ((q, f"{name}.q"), (v, f"{name}.v")))
        k = self._heads(k, f"{name}.k", [0, 2, 3, 1])
        scores = self.file.node("MatMul", [q, k], f"{name}.scores")
        scores = self.file.node("Add", [scores, mask], f"{name}.scores.masked")
        weights = self.file.node("Softmax", [scores], f"{name}.weights", axis=-1)
        seen = self.file.node("MatMul", [weights, v], f"{name}.seen")
        seen = self.file.node("Transpose", [seen], f"{name}.seen.turned", perm=[0, 2, 1, 3])
        seen = self._reshape(seen, [0, 0, width], f"{name}.seen.flat")
        return self._linear(f"{name}.o_proj", seen, width, width)

    def _heads(self, x: str, name: str, order: list[int]) -> str:
        x = self._reshape(x, [0, 0, self.shape.heads, self.head], f"{name}.heads")
        return self.file.node("Transpose", [x], f"{name}.turned", perm=order)

    def _linear(self, name: str, x: str, outputs: int, inputs: int, *, bias: bool = False) -> str:
        # Turned here: TensorRT takes a DequantizeLinear right before its product only.
        weight = np.ascontiguousarray(self._take(f"{name}.weight", outputs, inputs).T)
        if self.precision in LARGEST:
            y = self.file.node("MatMul", [self._rounded_input(name, x), self._rounded_weight(name, weight)], name)
        else:
            y = self.file.node("MatMul", [x, self._number(f"{name}.weight", weight)], name)
        return self._biased(name, y, outputs) if bias else y

    def _biased(self, name: str, y: str, outputs: int) -> str:
        given = [y, self._number(f"{name}.bias", self._take(f"{name}.bias", outputs))]
        return self.file.node("Add", given, f"{name}.biased")

    def _scale(self, largest: np.ndarray) -> np.ndarray:
        """float32 values that float16 holds: the codes are made with the very scale that is stored."""
        scale = np.maximum(largest / LARGEST[self.precision], SMALLEST_SCALE)
        return scale.astype(np.float16).astype(np.float32)

    def _rounded_weight(self, name: str, weight: np.ndarray) -> str:
        """INT8 with a scale an output, FP8 with one for all; both symmetric."""
        apart = self.precision == "int8"
        scale = self._scale(np.abs(weight).max(0) if apart else np.abs(weight).max())
        codes = np.clip(weight / scale, -LARGEST[self.precision], LARGEST[self.precision])
        given = [
            self.file.weight(f"{name}.codes", *_narrow(codes, self.precision)),
            self._number(f"{name}.weight_scale", scale),
        ]
        return self.file.node("DequantizeLinear", given, f"{name}.weight", axis=1)

    def _rounded_input(self, name: str, x: str) -> str:
        """`x` rounded by the largest input that was seen; layers with the same input share the operators."""
        largest = self.ranges.get(name, 0.0)
        if not (np.isfinite(largest) and largest > 0):
            raise Broken(f"its input range is {largest}.", place=name, cure="Calibrate with pictures.")
        if x not in self.rounded:
            step = self._number(f"{x}.step", self._scale(np.asarray(largest)))
            zero = self.file.constant("zero", "I8" if self.precision == "int8" else "F8_E4M3", 0)
            how: dict[str, Any] = {"saturate": 1} if self.precision == "fp8" else {}
            codes = self.file.node("QuantizeLinear", [x, step, zero], f"{x}.codes", **how)
            self.rounded[x] = self.file.node("DequantizeLinear", [codes, step, zero], f"{x}.rounded")
        return self.rounded[x]

    def _project(self, layers: list[str]) -> None:
        """The last layer and the tapped ones, side by side, without padding, through the projector."""
        shape, name, count = self.shape, "multi_modal_projector", len(self.shape.taps)
        x = self.file.node("Concat", layers, "features", axis=-1)
        x = self._reshape(x, [-1, shape.tiles, shape.padded, shape.features], "features.by_tile")
        cut = {"begin": 0, "end": shape.tokens, "axis": 2}
        x = self.file.node("Slice", [x, *(self._integers(f"cut.{word}", [at]) for word, at in cut.items())], "real")
        weight = self._take(f"{name}.weight", shape.out, shape.features)
        # transformers lays the taps one number by one number: column hidden + i * count + tap.
        taps = weight[:, shape.hidden :].reshape(shape.out, shape.hidden, count).transpose(0, 2, 1)
        ordered = np.concatenate([weight[:, : shape.hidden], taps.reshape(shape.out, -1)], 1)
        y = self.file.node("MatMul", [x, self._number(f"{name}.weight", np.ascontiguousarray(ordered.T))], name)
        given = [y, self._number(f"{name}.bias", self._take(f"{name}.bias", shape.out))]
        self.file.node("Add", given, f"{name}.biased", outputs=[STATES])


def _narrow(codes: np.ndarray, precision: str) -> tuple[str, np.ndarray]:
    """(type, codes) of numbers that are in the range of the type already, rounded to nearest even."""
    if precision == "int8":
        return "I8", np.rint(codes).astype(np.int8)
    import ml_dtypes

    return "F8_E4M3", codes.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
