"""What crosses a process wall. The parent writes job.json, the child writes result.json; both are these records."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from quantlab.records.ask import CalibrationSet, Grid, Model, Recipe, Suite
from quantlab.records.results import Artifact, Calibrated, Checkpoint, Weights


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the job specs. Paths in a spec are absolute."""


class FetchJob(Spec, frozen=True, kw_only=True):
    """Bring a model's weights to this machine as config.json + safetensors + tokenizer. Result: Weights."""

    model: Model
    into: str
    """Directory to create; written under a temporary name, then renamed. Unused for hub and path sources."""


class CalibrateJob(Spec, frozen=True, kw_only=True):
    """Quantize and export. Result: Calibrated."""

    weights: Weights
    model: Model
    recipe: Recipe
    recipe_name: str
    group_size: int | None
    """Resolved by the plan."""
    set: CalibrationSet | None
    set_folder: str | None
    """Folder of the set's YAML: its `file` is relative to it."""
    into: str
    """Directory to create; written under a temporary name, then renamed."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1" (that one alone)."""
    threads: int = 0
    """0: chosen by the child runner."""
    layerwise: bool = False
    """One decoder block in memory at a time. The numbers are the same."""
    gpus: int = 0
    """GPUs that hold the model together; 0: as few as it needs. On a CPU: parts of one memory, a rehearsal."""


class CalibrateJobs(Spec, frozen=True, kw_only=True):
    """Several recipes of one model in one child. Each Calibrated is sent as an Event. Result: recipe -> why not."""

    jobs: tuple[CalibrateJob, ...]


class VerifyJob(Spec, frozen=True, kw_only=True):
    """Hold an export against its recipe and against the calibrated model. Result: Verification."""

    weights: Weights
    recipe: Recipe
    calibrated: Calibrated
    checkpoint_path: str
    """Absolute."""
    device: str = "auto"
    layerwise: bool = False
    """One decoder block in memory at a time."""


class FinishedJob(Spec, frozen=True, kw_only=True):
    """Hold a checkpoint that was made elsewhere against the model it shall be a quantization of. Result:
    Verification."""

    weights: Weights
    """Of the model."""
    recipe: Recipe
    calibrated: Calibrated
    """With `finished`."""
    checkpoint_path: str
    """Absolute."""


class ConvertJob(Spec, frozen=True, kw_only=True):
    """Write an int4 checkpoint of ModelOpt in another program's layout. Result: Converted."""

    source: str
    """The checkpoint."""
    into: str
    """Directory to create; written under a temporary name, then renamed."""
    layout: Literal["compressed-tensors", "autoawq"]
    o_proj: Literal["refuse", "average"] = "refuse"
    """Where grouped-query attention leaves a scale on o_proj that the layout has no place for."""
    digest: str = ""
    """Digest of `source` where it is known; empty: it is computed."""


class EngineConfig(Spec, frozen=True, kw_only=True):
    """How an engine is opened; part of every measurement's identity."""

    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Arithmetic of everything that is not quantized. auto: the checkpoint's own."""
    token_budget: int = 8192
    """Most tokens in one forward pass, padding included."""
    max_length: int | None = None
    """Longest sequence; None means the model's own. A longer prompt is refused, never cut."""
    max_batch: int | None = None
    """Most sequences in flight at once; None leaves it to the engine."""
    tensor_parallel: int = 1
    """GPUs that share each layer."""
    pipeline_parallel: int = 1
    """Groups of layers, each on its own GPUs."""
    flow: Literal["auto", "engine", "pytorch"] = "auto"
    """Which half of TensorRT-LLM computes: a built TensorRT engine or its PyTorch backend. Others have one way only."""
    head: Literal["keep", "int8", "int4"] = "keep"
    """Output head of an int4 checkpoint in engine ortgenai: as it is, or rounded as well."""
    activations: Literal["auto", "keep", "int8"] = "auto"
    """Inputs of int4 layers in engine ortgenai: as they are, or rounded to int8 in the product. auto: int8 on a CPU,
    where that kernel is twice as fast."""


class MeasureJob(Spec, frozen=True, kw_only=True):
    """Open one artifact and measure stages on one session, in order. Result of each is sent as an Event."""

    engine: str
    artifact: Artifact
    """With an absolute path."""
    config: EngineConfig
    stages: tuple[Literal["canary", "reference", "fidelity", "accuracy", "throughput"], ...]
    folder: str
    """Working folder of this job for what is kept between attempts and for files that become part of the ledger."""
    suite: Suite | None = None
    suite_name: str = ""
    suite_folder: str | None = None
    """Folder of the suite's YAML: its relative paths are relative to it."""
    tasks_folder: str | None = None
    """Folder with quantlab's lm-eval task files."""
    grid: Grid | None = None
    grid_name: str = ""
    reference: str | None = None
    """Absolute path of the baseline's reference .npz for fidelity."""
    bandwidth: float | None = None
    """Memory bandwidth of the device in bytes per second, where known."""
    compute: tuple[float, float] | None = None
    """Dense operations a second of the checkpoint's linear layers, and in 16 bit, where known."""
    client: tuple[str, ...] = ()
    """Python of the load generator (aiperf), for a grid that is served; empty: there is none."""
    seed: int = 0
    part: tuple[int, int] | None = None
    """For accuracy: from which to before which item, in the random order of `seed`; None: all, in the suite's order."""
    collapse: tuple[float, float] | None = None
    """Mean KL above which, and top-1 agreement below which, nothing more is measured."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line that a child sends while it runs."""

    kind: Literal["progress", "note", "result"]
    stage: str
    done: float = 0
    total: float = 0
    text: str = ""
    result: msgspec.Raw | None = None
    """A finished stage's record, for kind "result"."""
    recipe: str = ""
    """What it is about, where a child works at several."""
    files: dict[str, str] = {}
    """Files that belong to the result, name -> absolute path; the parent moves them into the ledger."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error that crossed a process wall or was kept in the ledger."""

    kind: str
    """Class name in quantlab.errors."""
    problem: str
    place: str = ""
    cure: str = ""
    trace: str = ""
    """Traceback of an unexpected error; empty for our own."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """result.json: exactly one of the two is set."""

    result: Any = None
    failure: Failure | None = None


__all__ = [
    "Artifact",
    "CalibrateJob",
    "CalibrateJobs",
    "Checkpoint",
    "ConvertJob",
    "EngineConfig",
    "Event",
    "Failure",
    "FetchJob",
    "FinishedJob",
    "MeasureJob",
    "Outcome",
    "Spec",
    "VerifyJob",
]
