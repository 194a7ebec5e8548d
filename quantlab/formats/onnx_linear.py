"""Linear layers in an ONNX graph: what lies in the checkpoint, and the operators that compute with it.

    16 bit   stored as it is; Cast and Transpose in the graph are folded by ONNX Runtime when it loads
    int4     MatMulNBits: uint8 [outputs, inputs / block, block / 2], the even input in the low nibble, u = code + 8,
             float scales [outputs * inputs / block]. It has ModelOpt's codes and scales, so nothing is rounded again
    FP8      QuantizeLinear and DequantizeLinear around a plain product: true E4M3 rounding, float arithmetic

A `pre_quant_scale` is a Mul before its layer: y = ((x * p) @ W.T), as ModelOpt says it. A file without this Mul runs,
and answers ",,,,,,"; so a scale that no layer took, or that one layer has and its siblings lack, ends the build.

TensorRT-RTX does not know MatMulNBits and takes blocks of int4 through DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from quantlab.errors import Broken, Refused
from quantlab.formats.arrays import PLAIN, Arrays, Stored
from quantlab.formats.declared import Quantization
from quantlab.formats.onnx_blocks import block_of, narrowed, round_to, unpack_modelopt
from quantlab.formats.onnx_file import KINDS, MICROSOFT, OnnxFile
from quantlab.records import OnnxJob

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
HEAD_BLOCK = 32
"""Of an output head that is rounded here."""
ROWS_AT_ONCE = 4096
"""Of a weight that is rounded here."""


@dataclass
class Linears:
    """Writes the linear layers of one checkpoint into one graph."""

    file: OnnxFile
    arrays: Arrays
    quantization: Quantization
    job: OnnxJob
    layers: tuple[str, ...]
    """Names of all linear layers but the head."""
    quantized: int = 0
    rescaled: int = 0
    block: int | None = None
    _activations: dict[tuple[str, float], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.type = TYPES[self.job.dtype]
        scaled = [name for name in self.layers if f"{name}.pre_quant_scale" in self.arrays]
        self._kinds_with_scale = {name.rpartition(".")[2] for name in scaled}

    def product(self, name: str, x: str, outputs: int, inputs: int) -> str:
        """y = layer `name` of `x` [batch, sequence, inputs]; returns the name of y [batch, sequence, outputs]."""
        algorithm = self.quantization.algorithm
        if algorithm is None or self.quantization.excludes(name):
            return self._plain(name, x, self.arrays.take(f"{name}.weight", PLAIN, (outputs, inputs)))
        self.quantized += 1
        if algorithm == "FP8":
            return self._fp8(name, x, outputs, inputs)
        return self._int4(name, x, outputs, inputs)

    def head(self, x: str, matrix: Stored, *, shared: bool) -> str:
        """The logits. `matrix` [vocabulary, width]; `shared`: it is the embedding and stands in the file already."""
        if self.job.head == "keep":
            return self._plain("lm_head", x, matrix, written=shared)
        vocabulary, width = matrix.bits.shape
        bits = int(self.job.head.removeprefix("int"))
        if width % HEAD_BLOCK:
            raise Refused(f"a head of width {width} has no blocks of {HEAD_BLOCK}.", place=f"head {self.job.head}")
        parts = [
            round_to(bits, Stored("", matrix.kind, matrix.bits[row : row + ROWS_AT_ONCE]).float32(), HEAD_BLOCK)
            for row in range(0, vocabulary, ROWS_AT_ONCE)
        ]
        codes, scale = (np.concatenate(each) for each in zip(*parts, strict=True))
        return self._blocks("lm_head", x, codes, scale, bits)

    def number(self, name: str, values: np.ndarray) -> str:
        """Write float32 `values` in the graph's type of arithmetic; returns their name."""
        if self.type == "F16" and float(np.abs(values).max(initial=0)) > float(np.finfo(np.float16).max):
            raise Refused("a number is too large for float16.", place=name, cure="Use dtype bfloat16 or float32.")
        return self.file.weight(name, self.type, narrowed(values, self.type))

    def cast(self, name: str, stored: Stored) -> str:
        """`stored`, written under its own name, in the graph's type."""
        if stored.kind == self.type:
            return stored.name
        return self.file.node("Cast", [stored.name], name, to=KINDS[self.type])

    def _plain(self, name: str, x: str, stored: Stored, *, written: bool = False) -> str:
        if not written:
            self.file.weight(stored.name, stored.kind, stored.bits)
        weight = self.cast(f"{name}.weight.cast", stored)
        return self._times(name, x, weight)

    def _times(self, name: str, x: str, weight: str) -> str:
        turned = self.file.node("Transpose", [weight], f"{name}.weight.turned", perm=[1, 0])
        return self.file.node("MatMul", [x, turned], name)

    def _int4(self, name: str, x: str, outputs: int, inputs: int) -> str:
        codes = unpack_modelopt(self.arrays.take(f"{name}.weight", ("U8",), (outputs // 2, inputs)).bits)
        scale = self.arrays.scale(f"{name}.weight_scale")
        groups = scale.shape[-1]
        group = self.quantization.group_size or 0
        if scale.shape != (outputs, groups) or inputs % groups or group not in (0, inputs // groups):
            raise Broken(
                f"{list(scale.shape)} does not fit a weight of {[outputs, inputs]} in groups of {group or '?'}.",
                place=f"{name}.weight_scale",
                cure="Export it again.",
            )
        block = self.block = block_of(inputs // groups, name)
        return self._blocks(name, self._rescale(name, x, inputs), codes, scale.repeat(inputs // groups // block, 1))

    def _rescale(self, name: str, x: str, inputs: int) -> str:
        if name.rpartition(".")[2] not in self._kinds_with_scale:
            return x
        scale = self.arrays.scale(f"{name}.pre_quant_scale")
        if scale.shape != (inputs,):
            raise Broken(f"holds {scale.size} numbers, not {inputs}.", place=f"{name}.pre_quant_scale")
        self.rescaled += 1
        return self.file.node("Mul", [x, self.number(f"{name}.pre_quant_scale", scale)], f"{name}.rescaled")

    def _blocks(self, name: str, x: str, codes: np.ndarray, scale: np.ndarray, bits: int = 4) -> str:
        """The product with blocks. `codes` uint8 [outputs, inputs], code + 2^(bits - 1); `scale` [outputs, blocks]."""
        outputs, inputs = codes.shape
        block = inputs // scale.shape[1]
        if self.job.provider == "trt-rtx":
            return self._dequantized(name, x, codes, scale, bits)
        packed = codes if bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
        given = [
            x,
            self.file.weight(f"{name}.codes", "U8", packed.reshape(outputs, inputs // block, -1)),
            self.number(f"{name}.scales", scale.reshape(-1)),
        ]
        how = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": self._level(bits)}
        return self.file.node("MatMulNBits", given, name, domain=MICROSOFT, **how)

    def _level(self, bits: int) -> int:
        """accuracy_level: 1 computes in float32, 4 with int8 inputs. With 8 bits only 4 has a fast kernel on a CPU: 55
        microseconds for 576 x 1,536, and 3,500 without (measured)."""
        if self.job.activations == "int8" or (bits == 8 and self.job.provider == "cpu"):
            return 4
        return 1 if self.type == "F32" else 0

    def _dequantized(self, name: str, x: str, codes: np.ndarray, scale: np.ndarray, bits: int) -> str:
        signed = codes ^ (1 << (bits - 1))  # two's complement again
        kind, packed = ("I8", signed) if bits == 8 else ("I4", signed[:, 0::2] | (signed[:, 1::2] << 4))
        given = [
            self.file.weight(f"{name}.codes", kind, packed, codes.shape),
            self.number(f"{name}.scales", scale),
        ]
        block = codes.shape[1] // scale.shape[1]
        weight = self.file.node("DequantizeLinear", given, f"{name}.weight", axis=1, block_size=block)
        return self._times(name, x, weight)

    def _fp8(self, name: str, x: str, outputs: int, inputs: int) -> str:
        codes = self.arrays.take(f"{name}.weight", ("F8_E4M3",), (outputs, inputs))
        scale = self.arrays.scale(f"{name}.weight_scale").reshape(-1)
        if scale.size not in (1, outputs):
            raise Broken(f"holds {scale.size} numbers, not 1 or {outputs}.", place=f"{name}.weight_scale")
        given = [
            self.file.weight(codes.name, codes.kind, codes.bits),
            self.number(f"{name}.weight_scale", scale.reshape(()) if scale.size == 1 else scale),
        ]
        weight = self.file.node("DequantizeLinear", given, f"{name}.weight.float", axis=0)
        return self._times(name, self._rounded(name, x), weight)

    def _rounded(self, name: str, x: str) -> str:
        """`x` rounded to E4M3 with the layer's calibrated scale; layers that share both share the operators."""
        scale = self.arrays.scale(f"{name}.input_scale")
        if scale.size != 1:
            raise Broken(f"holds {scale.size} numbers, not 1.", place=f"{name}.input_scale", cure="Export it again.")
        key = (x, float(scale.reshape(())))
        if key not in self._activations:
            step = self.number(f"{name}.input_scale", scale.reshape(()))
            zero = self.file.constant("fp8.zero", "F8_E4M3", 0.0)
            codes = self.file.node("QuantizeLinear", [x, step, zero], f"{name}.input.fp8", saturate=1)
            self._activations[key] = self.file.node("DequantizeLinear", [codes, step, zero], f"{name}.input.float")
        return self._activations[key]
