"""An opened checkpoint of engine "vllm".

Tokens go in and come out; vLLM's own text handling is used for stop strings only. Four things need care:

* *In this process.* vLLM starts a second process for its engine unless told otherwise; then a killed child would leave
  a GPU full. The variables must be set before the package is imported.
* *Scoring* asks for the log-probability of each prompt token. vLLM gives it with the runner-up (`prompt_logprobs=1`):
  a token's own `rank` counts ties against it, and bfloat16 logits tie in about one place of a hundred. These logits are
  made outside vLLM's memory plan, so room for them is left free (`memory_share`).
* *A prompt that fills the context* is refused by vLLM, because it always generates one token. So the longest sequence
  here is one less than vLLM's.
* *Times.* vLLM stamps first and last token of each request with the monotonic clock, in the step that made them.

Prefix caching is off: a repeated prompt would be timed and not computed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from quantlab import host
from quantlab.engines import Completion, GenerateRequest, Score, ScoreRequest, require_fits, require_length
from quantlab.engines.vllm_flow import VllmFlow
from quantlab.engines.vllm_ties import is_needed, let_tied_heads_load
from quantlab.errors import BadInput, Broken, Refused
from quantlab.records import Artifact, EngineConfig

MEMORY_SHARE = 0.9
"""Of the GPU, at most: weights, activations and key/value cache."""
CPU_CACHE_BYTES = 4 << 30
"""Key/value cache on a CPU, where VLLM_CPU_KVCACHE_SPACE does not say otherwise: a share of all memory would have to be
free at the start."""
LOGIT_BYTES = 10
"""A word and token while scoring: the logit in 16 bit, in float32, and its logarithm."""
RESERVE_BYTES = 3 << 29
"""For CUDA itself."""
LEAST_BUDGET = 2048
"""vLLM wants room for one token of every sequence in a step."""
SCORED_AT_ONCE = 256
"""Prompts a call while scoring: their log-probabilities are Python objects until they are taken."""


def environment(config: EngineConfig, *, cpu: bool) -> dict[str, str]:
    """Variables that vLLM reads when it is imported.

    Raises:
        BadInput: a GPU that this process does not see.
    """
    variables = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if cpu:
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # its own binding takes cores that others use
    elif config.device.startswith("cuda:"):
        variables["CUDA_VISIBLE_DEVICES"] = _cards(config)
    return variables


def _cards(config: EngineConfig) -> str:
    """CUDA_VISIBLE_DEVICES for "cuda:2": vLLM always begins at the first GPU it sees."""
    word, count = config.device.removeprefix("cuda:"), config.tensor_parallel * config.pipeline_parallel
    if not word.isdigit():
        raise BadInput(f"no device {config.device!r}.", cure="Devices: auto, cpu, cuda, cuda:1.")
    first = int(word)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = given.split(",") if given else [str(number) for number in range(max(len(host.gpus()), first + count))]
    if first + count > len(seen):
        raise BadInput(f"no {config.device} among {len(seen)} visible GPUs.", cure="Use device auto.")
    return ",".join(seen[first : first + count])


def memory_share(total: int, vocabulary: int, tokens: int) -> float:
    """Share of a GPU's memory that vLLM may plan with.

    Args:
        total: the GPU's bytes.
        vocabulary: words; each of `tokens` has a logit for every one while it is scored.
        tokens: most prompt tokens in one step.
    """
    free = tokens * vocabulary * LOGIT_BYTES + RESERVE_BYTES
    return round(max(0.5, min(MEMORY_SHARE, 1 - free / total)), 3)


def arguments(artifact: Artifact, config: EngineConfig, shape: dict[str, Any], *, cpu: bool) -> dict[str, Any]:
    """Of vllm.LLM. `shape`: config.json."""
    own = int(shape["max_position_embeddings"])
    budget = max(config.token_budget, LEAST_BUDGET)
    given: dict[str, Any] = {
        "model": artifact.path,
        "tokenizer": artifact.path,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": config.dtype,
        "kv_cache_dtype": "fp8" if artifact.checkpoint.kv_cache == "fp8" else "auto",
        # -1: the model's own length, or what fits into the memory.
        "max_model_len": -1 if config.max_length is None else min(config.max_length + 1, own),
        "max_num_batched_tokens": budget,
        "tensor_parallel_size": config.tensor_parallel,
        "pipeline_parallel_size": config.pipeline_parallel,
        "enable_prefix_caching": False,
        "disable_log_stats": False,
        "logprobs_mode": "raw_logprobs",
        "seed": 0,
    }
    if config.max_batch is not None:
        given["max_num_seqs"] = config.max_batch
    if cpu:
        # Compiling for a CPU takes minutes and a C++ compiler, and gains little.
        return given | {"kv_cache_memory_bytes": CPU_CACHE_BYTES, "enforce_eager": True}
    total = min((gpu.memory_bytes for gpu in host.gpus()), default=0)
    if not total:
        raise Refused("this vLLM is built for NVIDIA GPUs, and there is none.", cure="Use another engine.")
    tokens = min(budget, config.max_length or own)
    return given | {"gpu_memory_utilization": memory_share(total, int(shape["vocab_size"]), tokens)}


class VllmSession:
    """See the seam in quantlab/engines/__init__.py.

    Tokens of a completion are those before the end-of-sequence token; those of a stop string are among them.
    `ScoreRequest.full` is answered without a distribution: engine vllm has no FULL_LOGITS.
    """

    def __init__(self, artifact: Artifact, config: EngineConfig, *, cpu: bool) -> None:
        shape = _shape(Path(artifact.path))
        os.environ.update(environment(config, cpu=cpu))
        sdk: Any = import_module("vllm")
        if is_needed(artifact.checkpoint.format, shape):
            let_tied_heads_load()
        self._params = sdk.SamplingParams
        self._llm = sdk.LLM(**arguments(artifact, config, shape, cpu=cpu))
        self._vocabulary = int(shape["vocab_size"])
        model = self._llm.model_config
        room = int(model.max_model_len) - 1
        self.max_length = room if config.max_length is None else min(room, config.max_length)
        self.device = f"{_name(cpu)}, {str(model.dtype).removeprefix('torch.')}"
        if config.tensor_parallel * config.pipeline_parallel > 1:
            self.device = f"{config.tensor_parallel * config.pipeline_parallel} x {self.device}"

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        for request in requests:
            self._require(request)
        if not requests:
            return []
        prompts = [request.prompt for request in requests]
        began = time.monotonic()
        outputs = self._run(prompts, [self._sampling(request) for request in requests])
        seconds = time.monotonic() - began
        stamps = [_stamps(output.metrics, began) for output in outputs]
        if not all(stamps):
            first = self._first_token_seconds(prompts)
            stamps = [(min(first, seconds), seconds)] * len(outputs)
        return [_completion(output, stamp) for output, stamp in zip(outputs, stamps, strict=True) if stamp]

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        for request in requests:
            self._check(request.context, len(request.context) + len(request.continuation), request.continuation)
        # The same tokens asked twice are computed once, and so have the same answer.
        wanted = list(dict.fromkeys((*one.context, *one.continuation) for one in requests if one.continuation))
        answers: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}
        for start in range(0, len(wanted), SCORED_AT_ONCE):
            some = wanted[start : start + SCORED_AT_ONCE]
            params = self._params(
                temperature=0.0, max_tokens=1, prompt_logprobs=1, flat_logprobs=True, detokenize=False
            )
            for tokens, output in zip(some, self._run(some, [params] * len(some)), strict=True):
                answers[tokens] = _read(tokens, output.prompt_logprobs)
        return [_score(request, answers) for request in requests]

    def flow(self) -> VllmFlow:
        return VllmFlow(self._llm.llm_engine, self._params, self._require, self._forget)

    def close(self) -> None:
        """Give the memory back."""
        state: Any = import_module("vllm.distributed.parallel_state")
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        state.cleanup_dist_env_and_memory()

    def _sampling(self, request: GenerateRequest) -> Any:
        if not request.stop:
            return self._params(
                temperature=0.0, max_tokens=request.max_tokens, ignore_eos=request.ignore_eos, detokenize=False
            )
        return self._params(
            temperature=0.0,
            max_tokens=request.max_tokens,
            ignore_eos=request.ignore_eos,
            stop=list(request.stop),
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
        )

    def _run(self, prompts: Sequence[tuple[int, ...]], params: list[Any]) -> list[Any]:
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            outputs: list[Any] = self._llm.generate(given, params, use_tqdm=False)
        except RuntimeError:  # out of memory, among others
            self._forget()
            raise
        if [tuple(output.prompt_token_ids) for output in outputs] != list(prompts):
            raise Broken("vLLM's answers are not those to our prompts.", cure="A request before may have failed.")
        return outputs

    def _forget(self) -> None:
        """Requests of a call that failed stay in vLLM's queue, and would be answered by the next one."""
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)

    def _first_token_seconds(self, prompts: list[tuple[int, ...]]) -> float:
        """Without vLLM's stamps: the time of the same batch with one token each."""
        params = self._params(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False)
        began = time.monotonic()
        self._run(prompts, [params] * len(prompts))
        return time.monotonic() - began

    def _require(self, request: GenerateRequest) -> None:
        require_length(request)
        self._check(request.prompt, len(request.prompt) + request.max_tokens)

    def _check(self, prompt: tuple[int, ...], length: int, more: tuple[int, ...] = ()) -> None:
        require_fits(prompt, length, more, longest=self.max_length, vocabulary=self._vocabulary)


def _stamps(metrics: Any, began: float) -> tuple[float, float] | None:
    """Seconds to the first and to the last token; None where vLLM kept none."""
    if metrics is None or not metrics.first_token_ts:
        return None
    return metrics.first_token_ts - began, metrics.last_token_ts - began


def _completion(output: Any, stamp: tuple[float, float]) -> Completion:
    made = output.outputs[0]
    if made.finish_reason not in ("stop", "length"):
        raise Broken(f"vLLM ended a request with {made.finish_reason!r}.", cure="Look at the log.")
    tokens = tuple(made.token_ids)
    # A reason that is no string of ours is an end-of-sequence token, and that is the last one.
    if made.finish_reason == "stop" and not isinstance(made.stop_reason, str):
        tokens = tokens[:-1]
    return Completion(tokens, made.finish_reason, *stamp)


def _read(tokens: tuple[int, ...], found: Any) -> tuple[np.ndarray, np.ndarray]:
    """For each token from the second on: its log-probability (float32), and whether it is the likeliest (bool)."""
    if found is None or len(found) != len(tokens):
        raise Broken(
            f"vLLM scored {0 if found is None else len(found)} of {len(tokens)} prompt tokens.", cure="Look at the log."
        )
    starts = np.array(found.start_indices[1:])
    own = np.array(found.token_ids)[starts]
    if not np.array_equal(own, tokens[1:]):
        raise Broken("vLLM scored other tokens than the prompt's.", cure="Look at the log.")
    return np.array(found.logprobs, dtype=np.float32)[starts], np.array(found.token_ids)[starts + 1] == own


def _score(request: ScoreRequest, answers: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]) -> Score:
    if not request.continuation:
        return Score(np.empty(0, dtype=np.float32), True)
    values, best = answers[(*request.context, *request.continuation)]
    first = len(request.context) - 1
    return Score(values[first:], bool(best[first:].all()))


def _shape(folder: Path) -> dict[str, Any]:
    try:
        shape: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape["vocab_size"], shape["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Broken(f"no usable config.json ({error}).", place=str(folder), cure="Fetch or export it again.") from None
    return shape


def _name(cpu: bool) -> str:
    if not cpu:
        return host.gpus()[0].name
    return f"cpu: {host.describe().cpu}, {os.environ.get('OMP_NUM_THREADS') or host.physical_cores()} threads"
