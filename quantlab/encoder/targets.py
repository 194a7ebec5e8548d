"""Which precision a target has on a compute capability: said before a builder is asked, hours of calibration earlier.

TensorRT-RTX's own words of an FP8 graph for 8.0: "Cannot compile for target(s) sm80, because the model contains
HW-specific datatypes: fp8_e4m3". Tried with 1.7.1 for 8.0, 8.6, 8.9 and 12.0, all five precisions. What TensorRT has
is NVIDIA's table of hardware and precision (support matrix, 10.x); the names of GPUs are data of the catalog.
"""

from __future__ import annotations

import re

from quantlab.errors import BadInput, Refused

RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX 1.7 builds for. No 9.0, no 10.x."""
FP8_FROM = (8, 9)
BF16_FROM = (8, 0)
RTX_7_5 = ("fp16",)
"""On Turing it says "FP32 GEMM is not supported"; INT8 there was not tried."""


def capability(word: str) -> str:
    """ "89", "sm89", "8.9", "sm120" -> "8.9", "12.0".

    Raises:
        BadInput: that is none.
    """
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", word.strip().lower())
    if found is None:
        raise BadInput(f"{word!r} is no compute capability.", place="--sm", cure="Write 89 or 8.9.")
    return f"{int(found[1])}.{found[2]}"


def require(target: str, precision: str, capabilities: tuple[str, ...]) -> None:
    """Raises:
    BadInput: a compute capability is missing, superfluous or unknown to the builder.
    Refused: the hardware has no such arithmetic.
    """
    if target == "rtx" and not capabilities:
        raise BadInput("for which GPU?", place="--target rtx", cure="Say --sm 8.9 (several are allowed).")
    if target == "onnx" and capabilities:
        raise BadInput("an ONNX model is for no GPU of its own.", place="--sm", cure="Leave --sm out, or --target rtx.")
    for one in capabilities:
        if target == "rtx" and one not in RTX:
            cure = "Take --target tensorrt on that machine, or one of " + ", ".join(RTX) + "."
            raise BadInput(f"TensorRT-RTX builds nothing for {one}.", place="--sm", cure=cure)
        if why := lacking(one, precision):
            raise Refused(why, place=f"--precision {precision} --sm {one}", cure=_cure(one))
        if target == "rtx" and one == "7.5" and precision not in RTX_7_5:
            raise Refused(f"TensorRT-RTX has no {precision} for 7.5.", place="--sm 7.5", cure="Take --precision fp16.")


def lacking(one: str, precision: str) -> str:
    """Why a GPU of this compute capability cannot compute in this precision, or ""."""
    number = tuple(int(part) for part in one.split("."))
    if precision == "fp8" and number < FP8_FROM:
        return f"compute capability {one} has no FP8 arithmetic (from 8.9 on), and no builder emulates it."
    if precision == "bf16" and number < BF16_FROM:
        return f"compute capability {one} has no bfloat16 arithmetic (from 8.0 on)."
    return ""


def _cure(one: str) -> str:
    return "Take --precision int8 or fp16." if one != "7.5" else "Take --precision fp16."
