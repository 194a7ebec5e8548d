"""The encoder of Llama 3.2 Vision as an ONNX model and as plans: what is asked for, what lies in the folder, what was
checked."""

from __future__ import annotations

from typing import Literal

from quantlab.records.jobs import Spec
from quantlab.records.results import Result

EncoderPrecision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Target = Literal["onnx", "rtx", "tensorrt"]


class EncoderJob(Spec, frozen=True, kw_only=True):
    """Write tower and projector as an ONNX model, and hold it against torch in ONNX Runtime. Result: Encoder."""

    source: str
    """The weights."""
    into: str
    """Directory to create; written under a temporary name, then renamed."""
    digest: str
    """Of `source`."""
    precision: EncoderPrecision = "fp16"
    batches: tuple[int, ...] = (1, 4, 16)
    """Pictures at once, each checked."""
    pictures: tuple[str, ...] = ()
    """Files: INT8 and FP8 are calibrated with all of them, the check takes them in turn."""
    questions: tuple[str, ...] = ()
    """Files of multiple-choice items about pictures; empty: answers are not compared."""
    data: str = ""
    """Digest of the bytes of both."""


class Difference(Result, frozen=True, kw_only=True):
    """The graph in ONNX Runtime, or a plan, against torch in float32."""

    batch: int
    absolute: float
    """Largest difference of a state."""
    relative: float
    """The same over the largest magnitude of torch's states."""
    norm: float
    """Length of all differences over the length of all states."""


class AnswersHeld(Result, frozen=True, kw_only=True):
    """Answers of the model behind torch's tower in float32, and behind the graph; the language model is one and the
    same."""

    questions: int
    changed: int
    right_to_wrong: int
    wrong_to_right: int
    score: tuple[float, float]
    """Share of right answers, before and after."""
    nats: tuple[float, float]
    """Mean negative log-likelihood of the right answer, before and after."""


class Encoder(Result, frozen=True, kw_only=True):
    """Lies beside the model as quantlab_encoder.json."""

    job: EncoderJob
    """What it was made from and how; places are empty, so that the folder may be moved."""
    protocol: int
    """Version of quantlab's own way of writing the graph."""
    files: dict[str, int]
    """File -> bytes."""
    tokens: int
    """Vectors that a picture becomes."""
    width: int
    """Numbers of a vector."""
    differences: tuple[Difference, ...] = ()
    """Empty where ONNX Runtime has no kernels for the precision."""
    answers: AnswersHeld | None = None
    versions: dict[str, str]
    notes: tuple[str, ...] = ()


class PlanJob(Spec, frozen=True, kw_only=True):
    """Build a plan from an encoder's ONNX model; run it where there is a GPU that takes it. Result: EncoderPlan."""

    folder: str
    """Of the encoder; the plan is written into it."""
    target: Literal["rtx", "tensorrt"]
    capability: str | None = None
    """"8.9", for rtx. tensorrt builds for the GPU at hand."""
    batches: tuple[int, int, int] = (1, 4, 16)
    """Smallest, best served and largest number of pictures."""


class Latency(Result, frozen=True, kw_only=True):
    """Milliseconds of one call on the GPU."""

    batch: int
    median_ms: float
    fastest_ms: float
    slowest_ms: float


class EncoderPlan(Result, frozen=True, kw_only=True):
    """Lies beside the plan with the ending .json."""

    target: Literal["rtx", "tensorrt"]
    capability: str
    """Compute capability that it was built for."""
    precision: EncoderPrecision
    state: Literal["built, not run", "run"]
    file: str
    bytes: int
    weights_bytes: int | None
    """The builder's own "Total Weights Memory"; a small model's plan is mostly the compiler's own."""
    build_seconds: float
    batches: tuple[int, int, int]
    version: str
    """Of the builder."""
    device: str = ""
    """Where it ran."""
    differences: tuple[Difference, ...] = ()
    latency: tuple[Latency, ...] = ()
    notes: tuple[str, ...] = ()


class EncoderBuild(Result, frozen=True, kw_only=True):
    """What `quantlab build --part vision` made."""

    folder: str
    encoder: Encoder
    plans: tuple[EncoderPlan, ...] = ()
