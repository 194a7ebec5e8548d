"""What the rooms hand back."""

from __future__ import annotations

from typing import Literal

import msgspec

from quantlab.records.finished import Finished
from quantlab.records.numbers import Number
from quantlab.records.stretches import Stretch


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that is measured or made."""


class Weights(Result, frozen=True, kw_only=True):
    """A model's weights on this machine, ready to be read."""

    path: str
    """Directory with config.json, safetensors and the tokenizer."""
    digest: str
    """SHA-256 over the names and contents of config and weight files."""
    architecture: str
    """`architectures[0]` of config.json."""
    bytes: int
    """Size of the safetensors files."""
    note: str = ""
    """How they came here, e.g. "dequantized from the package's GGUF Q4_1"."""


class Checkpoint(Result, frozen=True, kw_only=True):
    """A directory that TensorRT-LLM, vLLM and quantlab's own engine can read."""

    path: str
    """Directory; relative to the ledger when it lies inside, absolute otherwise."""
    digest: str
    """SHA-256 over the names and contents of config, quantization and weight files."""
    recipe: str
    """Name of the recipe that made it."""
    format: str
    """As in the recipe: a word of `FORMATS`."""
    architecture: str
    """`architectures[0]` of config.json."""
    group_size: int | None = None
    """Weights that share a scale, as really used."""
    kept: tuple[str, ...] = ()
    """Quantized formats of layers that are kept in another one: mixed precision."""
    kv_cache: str = "none"
    """Precision of the key/value cache."""
    simulated: bool = False
    """Rounded weights in 16 bit: right for accuracy, meaningless for speed and size."""
    bytes: int = 0
    """Size of the safetensors files."""
    source_bytes: int = 0
    """Size of the 16-bit weights it was made from."""
    bits_per_weight: float = 16.0
    """Stored bits of the quantized layers, scales included, over their number of weights."""
    layout: str = "modelopt"
    """Whose way of laying out tensors: see Finished."""


class Calibrated(Result, frozen=True, kw_only=True):
    """What calibrating gave and cost."""

    checkpoint: Checkpoint
    """The export."""
    layers: tuple[str, ...] = ()
    """Names of the quantized linear layers."""
    calibration_digest: str | None = None
    """SHA-256 of the token ids that were fed, in order."""
    samples: int = 0
    """Samples fed."""
    tokens: int = 0
    """Tokens fed."""
    seconds: float = 0.0
    """Wall time of loading, calibrating and exporting."""
    cpu_seconds: float = 0.0
    """CPU time of the same, over all threads; does not depend on what else the machine does. 0: not counted."""
    calibrate_seconds: float = 0.0
    """Wall time of the calibration alone."""
    peak_bytes: int = 0
    """Peak resident memory of the child (and of the GPU, where one was used, in `peak_gpu_bytes`)."""
    peak_gpu_bytes: int = 0
    """Peak allocated GPU memory, all GPUs together."""
    peak_by_gpu: dict[str, int] = {}
    """"cuda:0 NVIDIA H100 80GB HBM3" -> peak allocated memory of that GPU; those that were used."""
    device: str = "cpu"
    """Where it ran."""
    probe: str | None = None
    """File with what the calibrated model computed on a probe batch, for `verify`; relative to the checkpoint."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: a changed group size, a resmoothing."""
    finished: Finished | None = None
    """What was recognised, of a checkpoint that was made elsewhere."""


class Artifact(Result, frozen=True, kw_only=True):
    """What an engine opens."""

    engine: str
    """Name of the engine."""
    path: str
    """Directory or file."""
    checkpoint: Checkpoint
    """What it was built from."""
    numerics: Literal["native", "emulated", "simulated"] = "native"
    """native: the format's own kernels. emulated: the same rounding by other kernels: right scores, meaningless speed.
    simulated: rounded weights in a 16-bit checkpoint."""
    engine_version: str = ""
    """Version of the SDK."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: what building changed in the numbers."""


class Converted(Result, frozen=True, kw_only=True):
    """A checkpoint in another program's layout; kept beside its weights as quantlab_conversion.json."""

    layout: Literal["compressed-tensors", "autoawq"]
    """Who reads it: compressed-tensors' pack-quantized (vLLM, transformers), or AutoAWQ's gemm."""
    source: str
    """Digest of the checkpoint it was made from."""
    layers: tuple[str, ...]
    """Names of the int4 layers."""
    group_size: int
    """Weights that share a scale."""
    choices: dict[str, str]
    """What the user chose: {"o_proj": "refuse" or "average"}."""
    requantized: dict[str, float] = {}
    """Layer that had to be rounded again -> root mean square of what that changed, over that of its weight."""
    bytes: int = 0
    """Size of the safetensors files."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: what was folded where, and what is lost."""


class CanaryPrompt(Result, frozen=True, kw_only=True):
    """One greedy continuation."""

    prompt: str
    completion: str
    distinct: float
    """Distinct trigrams over all trigrams of the continuation; collapse gives nearly 0."""
    nll: float | None
    """Mean negative log-likelihood in nats of the prompt's own tokens; None where it is not finite."""
    passed: bool
    reason: str = ""


class Canary(Result, frozen=True, kw_only=True):
    """Is it a language model at all?"""

    passed: bool
    reason: str
    """Why not, or how it was judged."""
    prompts: tuple[CanaryPrompt, ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """Sentences for the report: a batch that was halved for want of memory."""


class Reference(Result, frozen=True, kw_only=True):
    """The baseline's distribution over the held-out text, kept once."""

    path: str
    """.npz beside the entry, relative to the ledger."""
    text_digest: str
    """SHA-256 of the token ids of all windows."""
    positions: int
    top_k: int
    tail: float
    """Mean probability mass outside the top k."""
    perplexity: float
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """Sentences for the report: a batch that was halved for want of memory."""


class Fidelity(Result, frozen=True, kw_only=True):
    """How far the distribution moved, position by position, from the baseline's."""

    text_digest: str
    """SHA-256 of the token ids of all windows."""
    positions: int
    kl: Number
    """Mean KL(baseline || candidate) in nats; lower bound through the lumped tail."""
    kl_percentiles: dict[str, float]
    """"50", "90", "95", "99", "max"."""
    top1: Number
    """Share of positions where both prefer the same token."""
    perplexity: Number
    perplexity_ratio: Number
    """Candidate over baseline."""
    stretches: tuple[Stretch, ...] = ()
    """The same by position; empty in records of an older quantlab."""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """Sentences for the report: a batch that was halved for want of memory."""

    def collapsed(self, kl: float, top1: float) -> bool:
        """Mean KL above `kl` nats or top-1 agreement below `top1`; what is not a number has collapsed too."""
        return not (self.kl.value <= kl and self.top1.value >= top1)


class TaskScore(Result, frozen=True, kw_only=True):
    """One task of a suite on one checkpoint."""

    task: str
    metric: str
    n: int
    """Items scored."""
    score: Number
    """Unit "share"."""
    chance: float | None = None
    """Score of guessing, where all items have a known number of choices."""
    nll: Number | None = None
    """Mean negative log-likelihood of the right answer in nats, where every item has one."""
    broken: int = 0
    """Items without a finite score, or from which no answer could be extracted."""
    prompts_digest: str = ""
    """SHA-256 over item ids and rendered prompts: two runs are comparable only if equal."""
    shots: int = 0
    chat_template: bool = False
    truncated: int = 0
    """Prompts that would not fit; always 0, because they are refused."""
    length: int | None = None
    """How long the task says its prompts are, in tokens; None where length is not what it asks about."""
    longest: int = 0
    """Tokens of its longest prompt with the answer, as sent."""
    group: str = ""
    """The suite's word for it, where that names a group of tasks."""
    template_digest: str = ""
    """SHA-256 of the tokenizer's chat template, where it was applied."""
    decoding: str = ""
    """How answers were generated, in words; empty where none was."""
    seconds: float = 0.0


class Accuracy(Result, frozen=True, kw_only=True):
    """A suite on one checkpoint. Item results lie in `items` (Parquet), see measure/accuracy.py for the columns."""

    suite: str
    tasks: tuple[TaskScore, ...]
    items: str
    """Parquet file, relative to the ledger."""
    seconds: float = 0.0
    requests: int = 0
    controls: tuple[TaskScore, ...] = ()
    """Tasks asked with a wrong picture or none, on 16-bit weights: what can be guessed."""
    part: tuple[int, int] | None = None
    """From which to before which item, in the random order of the seed; None: the whole suite."""
    sizes: tuple[tuple[str, int], ...] = ()
    """For a part: (task, number of its items in the whole suite), in the suite's order."""
    words: tuple[str, ...] = ()
    """For a part of a suite with groups: the suite's word for each task of `sizes`."""
    more: tuple[str, ...] = ()
    """For parts put together: the Parquet files after `items`."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: a batch that was halved for want of memory."""
