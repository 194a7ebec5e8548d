"""What each format stores, as plain facts that the plan, the checks and the engines share.

A format is what lies in the files after ModelOpt's export, so these facts can be held against a file: the type of the
codes, the scales beside them, the words in hf_quant_config.json. Who can serve it stands here too, because it decides
before anything is paid for; the sources are TensorRT-LLM 1.2.1's table of GPUs (features/quantization) and the list
QUANT_ALGOS of vLLM's modelopt.py.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Capability = tuple[int, int]


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """One value of a recipe's field `format`."""

    bits: int
    """Of a weight's code."""
    codes: str
    """Type of the codes in a safetensors header."""
    algorithms: tuple[str | None, ...]
    """What hf_quant_config.json may say."""
    scales: Literal["none", "tensor", "row", "group"] = "none"
    """How many weights share a scale."""
    scale_bits: int = 32
    """Of such a scale."""
    group: int | None = None
    """Weights that share a scale where the format itself says how many; None where the recipe does."""
    input_scale: bool = False
    """Activations are rounded with one scale for all of them, measured by calibration."""
    second_scale: bool = False
    """A scale of all scales beside them."""
    exponents: bool = False
    """Scales are powers of two, stored as exponent + 127."""
    moves_scales: bool = False
    """The method moves scales between the weights and the input, so that a `pre_quant_scale` may be there."""
    end: float = 0.0
    """Largest magnitude of a code."""
    trtllm: tuple[str, ...] = ()
    """Compute capabilities for which TensorRT-LLM has kernels."""
    vllm: Capability | None = None
    """Least compute capability on which vLLM serves it as it is meant; None: not at all."""

    @property
    def fp4(self) -> bool:
        """Codes are 4-bit floating-point numbers, two in a byte."""
        return self.bits == 4 and self.end == 6

    @property
    def grouped(self) -> bool:
        """The recipe chooses a group size."""
        return self.scales == "group" and self.group is None

    def weight_bits(self, group: int) -> float:
        """Bits a weight, scales of groups included; those of rows and tensors are too few to count."""
        return self.bits + (self.scale_bits / (self.group or group) if self.scales == "group" else 0)

    def layer_bits(self, rows: int, columns: int, group: int | None) -> int:
        """Bits of one quantized layer in the files, without a `pre_quant_scale`.

        Args:
            rows: outputs.
            columns: inputs.
            group: weights that share a scale, where there are groups.
        """
        size = self.group or group or columns
        scales = {"none": 0, "tensor": 1, "row": rows, "group": rows * (columns // size)}[self.scales]
        return self.bits * rows * columns + self.scale_bits * scales + 32 * (self.input_scale + self.second_scale)


_ADA, _HOPPER, _BLACKWELL, _BLACKWELL_RTX = ("8.9",), ("9.0",), ("10.0", "10.3"), ("12.0",)
_AMPERE = ("8.0", "8.6")

FORMATS: dict[str, Format] = {
    "bf16": Format(
        bits=16,
        codes="BF16",
        algorithms=(None,),
        trtllm=(*_AMPERE, *_ADA, *_HOPPER, *_BLACKWELL, *_BLACKWELL_RTX),
        vllm=(8, 0),
    ),
    "fp8": Format(
        bits=8,
        codes="F8_E4M3",
        algorithms=("FP8",),
        scales="tensor",
        input_scale=True,
        end=448,
        trtllm=(*_ADA, *_HOPPER, *_BLACKWELL, *_BLACKWELL_RTX),
        vllm=(8, 9),
    ),
    "fp8_rowwise": Format(
        bits=8,
        codes="F8_E4M3",
        algorithms=("FP8_PER_CHANNEL_PER_TOKEN",),
        scales="row",
        end=448,
        trtllm=_HOPPER,
        vllm=(8, 9),
    ),
    "int8_sq": Format(
        bits=8,
        codes="I8",
        algorithms=("W8A8_SQ_PER_CHANNEL",),
        scales="row",
        input_scale=True,
        moves_scales=True,
        end=127,
    ),
    "int8_wo": Format(
        bits=8,
        codes="I8",
        algorithms=("W8A16",),
        scales="row",
        end=127,
    ),
    "int8_rowwise": Format(  # no preset of ModelOpt makes it; llm-compressor's W8A8
        bits=8,
        codes="I8",
        algorithms=("INT8_PER_CHANNEL_PER_TOKEN",),
        scales="row",
        end=127,
        vllm=(8, 0),
    ),
    "int4_awq": Format(
        bits=4,
        codes="U8",
        algorithms=("W4A16_AWQ",),
        scales="group",
        moves_scales=True,
        end=7,
        trtllm=(*_AMPERE, *_ADA, *_HOPPER, *_BLACKWELL),
        vllm=(8, 0),
    ),
    **{  # keeping layers in them is cheaper than 8 bits: the same codes, a scale for fewer weights (docs/repair.md)
        f"int4_awq_g{size}": Format(
            bits=4,
            codes="U8",
            algorithms=("W4A16_AWQ",),
            scales="group",
            group=size,
            moves_scales=True,
            end=7,
            trtllm=(*_AMPERE, *_ADA, *_HOPPER, *_BLACKWELL) if size == 64 else (),  # kernels for 64 and 128 alone
            vllm=(8, 0),  # Marlin: 32, 64, 128
        )
        for size in (64, 32)
    },
    "int4": Format(
        bits=4,
        codes="U8",
        algorithms=("W4A16_AWQ", "W4A16"),  # round-to-nearest is written as AWQ, too
        scales="group",
        end=7,
        vllm=(8, 0),
    ),
    "w4a8_awq": Format(
        bits=4,
        codes="U8",
        algorithms=("W4A8_AWQ",),
        scales="group",
        input_scale=True,
        second_scale=True,
        moves_scales=True,
        end=7,
        trtllm=(*_ADA, *_HOPPER, *_BLACKWELL),
    ),
    "nvfp4": Format(
        bits=4,
        codes="U8",
        algorithms=("NVFP4",),
        scales="group",
        scale_bits=8,
        group=16,
        input_scale=True,
        second_scale=True,
        end=6,
        trtllm=(*_BLACKWELL, *_BLACKWELL_RTX),
        vllm=(10, 0),  # on older GPUs it multiplies the 4-bit weights with 16-bit activations: another precision
    ),
    "nvfp4_awq": Format(
        bits=4,
        codes="U8",
        algorithms=("NVFP4_AWQ",),
        scales="group",
        scale_bits=8,
        group=16,
        input_scale=True,
        second_scale=True,
        moves_scales=True,
        end=6,
    ),
    "mxfp8": Format(
        bits=8,
        codes="F8_E4M3",
        algorithms=("MXFP8",),
        scales="group",
        scale_bits=8,
        group=32,
        exponents=True,
        end=448,
        vllm=(10, 0),  # from 8.0 on it loads it, and leaves the activations in 16 bit: another precision
    ),
    "mxfp4": Format(
        bits=4,
        codes="U8",
        algorithms=("mxfp4",),
        scales="group",
        scale_bits=8,
        group=32,
        exponents=True,
        end=6,
    ),
}
"""Word in a recipe -> what it means."""


def finer(base: str) -> tuple[str, ...]:
    """Words of the same format in groups of a size that the word itself says, from many weights to few."""
    return tuple(word for word in FORMATS if word.startswith(f"{base}_g"))


def unserved(word: str) -> str:
    """What the plan says of a format that nobody serves; empty otherwise."""
    if FORMATS[word].trtllm or FORMATS[word].vllm:
        return ""
    return (
        f"Neither TensorRT-LLM nor vLLM loads ModelOpt's {word}. Engine torch scores it, which tells what it would "
        "cost in accuracy; there is nothing to ship."
    )
