"""What engine "trtllm" says to TensorRT-LLM: pure functions from records to keyword arguments, so that tests can read
it.

Nothing here imports the SDK, which cannot even validate its own arguments without a GPU. What an SDK object shall be is
written as `Make(class name, keywords)` and becomes one in trtllm_sdk.py. tests/contracts/trtllm_1_2_1.json lists
every field that TensorRT-LLM 1.2.1 knows; a test holds all that can come out of this file against it.

Two flows, and what separates them:

    engine    up to 1.2.x. A TensorRT engine is built for one batch, length and precision, saved and reopened. Context
              logits come out only if they were asked for when it was built.
    pytorch   the checkpoint is loaded as it is. The only flow from 1.3 on.

The traps that the arguments avoid: with block reuse on (the default) prompts that share a beginning return fewer rows
of logits than tokens; a prompt beyond `max_num_tokens` needs chunked prefill; `max_tokens` beyond the sequence is cut
in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from quantlab.engines import GenerateRequest
from quantlab.errors import BadInput, Refused
from quantlab.records import FORMATS, Checkpoint, EngineConfig, Grid

Flow = Literal["engine", "pytorch"]

PYTORCH_ONLY = (1, 3)
"""First version without TensorRT engines (removed in June and July 2026, pull requests 15763 to 16612)."""
ALGORITHMS = {word: each.algorithms[0] for word, each in FORMATS.items() if each.trtllm and each.algorithms[0]}
"""Format -> quant_algo that TensorRT-LLM must report; other formats are 16 bit."""
ENGINE_FORMATS = ("bf16", "fp8", "int4_awq")
"""Formats whose way from a unified checkpoint to a TensorRT engine was read."""
BATCH = 2048
"""Sequences in flight where nobody says: both flows' own default, written out."""
MEMORY_SHARE = 0.8
"""Of the GPU's free memory, for the KV cache. The SDK's 0.9 leaves too little for logits: 4 GB for 8192 tokens of Llama
3."""


@dataclass(frozen=True, slots=True)
class Make:
    """An object of `tensorrt_llm.llmapi` to be made: class and keyword arguments."""

    name: str
    keywords: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """A member of an enumeration of `tensorrt_llm.llmapi`."""

    name: str
    member: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine is built for, or a session opened with. All but `batch` in tokens."""

    batch: int
    sequence: int
    """Prompt and output of one request."""
    step: int
    """All sequences together in one forward pass."""

    @property
    def chunked(self) -> bool:
        """A prompt may be longer than one forward pass takes."""
        return self.sequence - 1 > self.step


def parse_version(text: str) -> tuple[int, int]:
    """ "1.3.0rc11" -> (1, 3).

    Raises:
        Refused: that is no version.
    """
    found = re.match(r"(\d+)\.(\d+)", text)
    if found is None:
        raise Refused(f"TensorRT-LLM calls itself {text!r}.", cure="Install tensorrt-llm 1.2.1 or newer.")
    return int(found[1]), int(found[2])


def flow_of(checkpoint: Checkpoint, config: EngineConfig, version: str) -> Flow:
    """Which flow computes.

    Raises:
        Refused: an engine was asked for that this version, or this architecture, has none of.
    """
    has_engines = parse_version(version) < PYTORCH_ONLY
    mllama = checkpoint.architecture.startswith("Mllama")
    loaded = checkpoint.simulated or checkpoint.format in ENGINE_FORMATS
    if config.flow == "engine" and not has_engines:
        raise Refused(
            f"TensorRT-LLM {version} builds no engines; the last line that does is 1.2.",
            cure="Use --flow pytorch, or an environment with tensorrt-llm 1.2.1.",
        )
    if config.flow == "engine" and mllama:
        raise Refused(
            "engines for Mllama are built by TensorRT-LLM's own scripts, not from a unified checkpoint.",
            cure="Use --flow pytorch for text; for images see docs/engines.md (1.2.x only).",
        )
    if config.flow == "engine" and not loaded:
        raise Refused(
            f"no way from ModelOpt's {checkpoint.format} to an engine was read in TensorRT-LLM 1.2.1.",
            cure="Use --flow pytorch, whose layers for it were read.",
        )
    if config.flow == "auto":
        return "engine" if has_engines and loaded and not mllama else "pytorch"
    return config.flow


def limits(config: EngineConfig, own_length: int) -> Limits:
    """Limits from how the engine is opened and the longest context of the model, in tokens.

    Raises:
        BadInput: room for less than two tokens, or for no sequence.
    """
    sequence = own_length if config.max_length is None else min(own_length, config.max_length)
    batch = BATCH if config.max_batch is None else config.max_batch
    if sequence < 2 or batch < 1 or config.token_budget < 1:
        raise BadInput(
            f"{batch} sequences of {sequence} tokens in steps of {config.token_budget} hold nothing.",
            cure="Raise max_length, max_batch or token_budget.",
        )
    return Limits(batch=batch, sequence=sequence, step=config.token_budget)


def sized(config: EngineConfig, grid: Grid) -> EngineConfig:
    """`config` made for the throughput grid: its largest batch, and room for its longest cell."""
    longest = max(grid.isl) + max(grid.osl)
    length = config.max_length if config.max_length is None else max(config.max_length, longest)
    return msgspec.structs.replace(config, max_batch=config.max_batch or grid.widest, max_length=length)


def build_arguments(model: str, config: EngineConfig, limits: Limits) -> dict[str, Any]:
    """For `tensorrt_llm._tensorrt_engine.LLM` when it builds an engine from the unified checkpoint in folder `model`.

    The quantization is not said: the loader takes it from hf_quant_config.json, and refuses to hear it twice.
    """
    built = {
        "max_batch_size": limits.batch,
        "max_input_len": limits.sequence - 1,
        "max_seq_len": limits.sequence,
        "max_num_tokens": limits.step,
        "max_beam_width": 1,
        "gather_context_logits": True,
    }
    return _common(model, model, config, limits) | {"dtype": config.dtype, "build_config": Make("BuildConfig", built)}


def open_engine_arguments(engine: str, model: str, config: EngineConfig, limits: Limits) -> dict[str, Any]:
    """For the same class when it opens the folder `engine` that it saved. Sizes and precision are the engine's own."""
    knobs = Make("ExtendedRuntimePerfKnobConfig", {"cuda_graph_mode": True})
    return _common(engine, model, config, limits) | {"extended_runtime_perf_knob_config": knobs}


def open_pytorch_arguments(model: str, checkpoint: Checkpoint, config: EngineConfig, limits: Limits) -> dict[str, Any]:
    """For `tensorrt_llm.LLM` on the unified checkpoint in folder `model`.

    CUDA graphs replay a whole decode step; padding lets one graph serve every batch up to its size.
    """
    graphs: dict[str, Any] = {"enable_padding": True}
    if config.max_batch is not None:
        graphs["max_batch_size"] = config.max_batch
    common = _common(model, model, config, limits)
    cache = common["kv_cache_config"].keywords | {"dtype": cache_dtype(checkpoint)}
    return common | {
        "dtype": config.dtype,
        "kv_cache_config": Make("KvCacheConfig", cache),
        "max_batch_size": limits.batch,
        "max_seq_len": limits.sequence,
        "max_num_tokens": limits.step,
        "max_beam_width": 1,
        "cuda_graph_config": Make("CudaGraphConfig", graphs),
    }


def _common(model: str, tokenizer: str, config: EngineConfig, limits: Limits) -> dict[str, Any]:
    """In-flight batching under GUARANTEED_NO_EVICT: a request that began is never paused, so its time is its own."""
    policy = Choice("CapacitySchedulerPolicy", "GUARANTEED_NO_EVICT")
    return {
        "model": model,
        "tokenizer": tokenizer,
        "trust_remote_code": False,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "enable_chunked_prefill": limits.chunked,
        "scheduler_config": Make("SchedulerConfig", {"capacity_scheduler_policy": policy}),
        "kv_cache_config": Make(
            "KvCacheConfig", {"enable_block_reuse": False, "free_gpu_memory_fraction": MEMORY_SHARE}
        ),
    }


def cache_dtype(checkpoint: Checkpoint) -> str:
    """KvCacheConfig.dtype, a field of the PyTorch flow."""
    return "fp8" if checkpoint.kv_cache == "fp8" else "auto"


def algorithm(checkpoint: Checkpoint) -> str | None:
    """The quant_algo that the opened model must have; None is 16 bit, which rounded weights of a simulation are,
    too."""
    return None if checkpoint.simulated else ALGORITHMS.get(checkpoint.format)


def scoring_arguments(ends: Sequence[int]) -> dict[str, Any]:
    """SamplingParams that return one row of logits a prompt token. One token must be generated; it is thrown away.

    `prompt_logprobs` would be less data, but before 1.3.0rc11 it does not promise the actual token.
    """
    return {
        "max_tokens": 1,
        "temperature": 0.0,
        "return_context_logits": True,
        "end_id": ends[0] if ends else -1,
        "detokenize": False,
    }


def generating_arguments(request: GenerateRequest, ends: Sequence[int]) -> dict[str, Any]:
    """SamplingParams for a greedy continuation.

    A stop string is compared as the token ids it encodes to, so it is missed where the model spells it otherwise: the
    session looks at the text, too. It stays in the output, because the session cuts.
    """
    made: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": 0.0,
        "end_id": ends[0] if ends else -1,
        "ignore_eos": request.ignore_eos,
        "detokenize": bool(request.stop),
    }
    if len(ends) > 1 and not request.ignore_eos:
        made["stop_token_ids"] = list(ends[1:])
    if request.stop:
        made |= {"stop": list(request.stop), "include_stop_str_in_output": True}
    return made
