"""An ONNX model made from a checkpoint: what is asked for, and what lies in the folder."""

from __future__ import annotations

from typing import Literal

from quantlab.records.jobs import Spec
from quantlab.records.results import Result

Provider = Literal["cpu", "cuda", "dml", "trt-rtx"]
"""ONNX Runtime's execution providers: CPU, CUDA, DirectML, TensorRT-RTX."""


class OnnxJob(Spec, frozen=True, kw_only=True):
    """Write a checkpoint as an ONNX model for ONNX Runtime GenAI. Result: OnnxModel."""

    source: str
    """The checkpoint."""
    into: str
    """Directory to create; written under a temporary name, then renamed."""
    digest: str
    """Of `source`."""
    provider: Provider = "cpu"
    """Who will run it: the graph differs a little."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic of everything that is not quantized."""
    head: Literal["keep", "int8", "int4"] = "keep"
    """The output head of an int4 checkpoint: as it is, or rounded without calibration, too."""
    activations: Literal["keep", "int8"] = "keep"
    """Inputs of int4 layers: as they are, or rounded to int8 in the product."""


class OnnxModel(Result, frozen=True, kw_only=True):
    """Lies beside the model as quantlab_onnx.json."""

    job: OnnxJob
    """What it was made from and how; `source` and `into` are empty, so that a ledger may be moved."""
    protocol: int
    """Version of quantlab's own way of writing the graph."""
    layers: int
    """Decoder layers."""
    quantized: int
    """Linear layers that are not plain."""
    block: int | None = None
    """Weights that share a scale in the graph."""
    rescaled: int = 0
    """Linear layers with a `pre_quant_scale` in the graph."""
    files: dict[str, int]
    """File -> bytes, of model.onnx and model.onnx.data."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: what changed in the numbers."""
