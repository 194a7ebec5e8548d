"""An opened model of engine "trtllm": requests to the SDK and back.

Scores. The prompt is the context and all but the last token of the continuation (the last one is predicted and never
fed), the answer is one row of logits a prompt token. TensorRT-LLM returns fewer rows than tokens when it reused cached
blocks or cut something, without an error, so the rows are counted every time. Rows of a padded vocabulary are cut
before softmax. A prompt that another one begins with is not computed again.

Processes. TensorRT-LLM starts its workers through MPI, and they import `__main__` again: a script that opens this
engine needs `if __name__ == "__main__":`. quantlab's own child has it (`python -m quantlab.worker`).

Timing. `generate` returns when every sequence is finished, so the time to the first token is taken from a run of the
same prompts with one token each, just before. Only requests that must come out at full length (`ignore_eos`, no stop
strings) are timed so; for others `first_token_seconds` is the whole time, an upper bound.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantlab import weights
from quantlab.engines import Completion, GenerateRequest, Score, ScoreRequest, require_fits, require_length
from quantlab.engines.trtllm_arguments import Flow, generating_arguments, scoring_arguments
from quantlab.engines.trtllm_sdk import opened, room_of, sampling
from quantlab.errors import BadInput, Broken
from quantlab.records import Artifact, EngineConfig

_LOGITS_BYTES = 2**31
"""Context logits held at once, in float32: 4185 prompt tokens of Llama 3. One longer prompt goes alone."""


class TrtllmSession:
    """See the seam in quantlab/engines/__init__.py. Tokens of a completion end before the end-of-sequence token, and
    with the token that completes a stop string, as in the other engines."""

    def __init__(self, artifact: Artifact, config: EngineConfig, flow: Flow) -> None:
        self._folder = Path(artifact.path)
        shape = weights.config(self._folder)
        shape = shape.get("text_config", shape)
        self._vocabulary, self._ends = int(shape["vocab_size"]), _ends(self._folder, shape)
        room = room_of(artifact, config)
        self.max_length = room.sequence
        self.device = f"{_gpu()} x {config.tensor_parallel * config.pipeline_parallel}, {artifact.engine_version}"
        self._llm = opened(artifact, config, flow, room)

    def close(self) -> None:
        """End the workers: they hold the GPU's memory."""
        self._llm.shutdown()
        del self._llm

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        for request in requests:
            self._check(request.context, len(request.context) + len(request.continuation), request.continuation)
        answers: dict[int, Score] = {}
        waiting: dict[tuple[int, ...], list[int]] = {}
        fed = [(*one.context, *one.continuation[:-1]) if one.continuation else () for one in requests]
        for place, prompt in enumerate(longest_of(fed)):
            waiting.setdefault(prompt, []).append(place)
        rows_at_once = max(1, _LOGITS_BYTES // (4 * self._vocabulary))
        for group in groups([prompt for prompt in waiting if prompt], rows_at_once):
            for prompt, logits in zip(group, self._context_logits(group), strict=True):
                answers |= {place: self._score(requests[place], logits) for place in waiting[prompt]}
        answers |= {place: self._certain(requests[place]) for place in waiting.get((), [])}
        return [answers[place] for place in range(len(requests))]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        for request in requests:
            self._require(request)
        if not requests:
            return []
        first = self._first_token_seconds(requests)
        began = time.perf_counter()
        outputs = self._generated(requests)
        seconds = time.perf_counter() - began
        return [
            Completion(*self._cut(request, _first(output)), min(first or seconds, seconds), seconds)
            for request, output in zip(requests, outputs, strict=True)
        ]

    def _first_token_seconds(self, requests: Sequence[GenerateRequest]) -> float:
        """Seconds until all prompts have one token; 0 where nobody will time it, or the run itself is that long."""
        timed = all(request.ignore_eos and not request.stop for request in requests)
        if not timed or all(request.max_tokens == 1 for request in requests):
            return 0.0
        short = [GenerateRequest(request.prompt, 1, ignore_eos=True) for request in requests]
        began = time.perf_counter()
        self._generated(short)
        return time.perf_counter() - began

    def _generated(self, requests: Sequence[GenerateRequest]) -> list[Any]:
        keywords = [generating_arguments(request, self._ends) for request in requests]
        return self._run([request.prompt for request in requests], keywords)

    def _run(self, prompts: Sequence[tuple[int, ...]], keywords: Sequence[dict[str, Any]]) -> list[Any]:
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            sampling_params=[sampling(each) for each in keywords],
            use_tqdm=False,
        )
        if len(outputs) != len(prompts):
            raise Broken(f"{len(prompts)} prompts got {len(outputs)} answers.", place="TensorRT-LLM")
        return list(outputs)

    def _context_logits(self, prompts: Sequence[tuple[int, ...]]) -> Iterator[Any]:
        """Logits [len(prompt), vocabulary] of each prompt."""
        outputs = self._run(prompts, [scoring_arguments(self._ends)] * len(prompts))
        for prompt, output in zip(prompts, outputs, strict=True):
            logits = _read(output, "context_logits")
            shape = None if logits is None else tuple(logits.shape)
            if shape is None or len(shape) != 2 or shape[0] != len(prompt) or shape[1] < self._vocabulary:
                raise Broken(
                    f"a prompt of {len(prompt)} tokens came back with context logits {shape}; "
                    f"[{len(prompt)}, {self._vocabulary}] was asked for.",
                    place="TensorRT-LLM",
                    cure="Block reuse must be off, and an engine built with gather_context_logits; build it again.",
                )
            yield logits[:, : self._vocabulary]

    def _score(self, request: ScoreRequest, logits: Any) -> Score:
        import torch

        first, n = len(request.context) - 1, len(request.continuation)
        rows = logits[first : first + n].float().cpu()
        normal = torch.log_softmax(rows, -1)
        goal = torch.tensor(request.continuation)
        return Score(
            normal.gather(1, goal[:, None])[:, 0].numpy(),
            bool((rows.argmax(-1) == goal).all()),
            normal.numpy() if request.full else None,
        )

    def _certain(self, request: ScoreRequest) -> Score:
        """Of nothing."""
        import numpy as np

        full = np.empty((0, self._vocabulary), dtype=np.float32) if request.full else None
        return Score(np.empty(0, dtype=np.float32), True, full)

    def _cut(self, request: GenerateRequest, output: Any) -> tuple[tuple[int, ...], str]:
        """Tokens and "stop" or "length". What the SDK left in, or stopped too late for, ends here."""
        tokens, reason = [int(token) for token in _read(output, "token_ids")], _read(output, "finish_reason")
        if reason not in ("stop", "length"):
            raise Broken(f"a request ended with {reason!r}.", place="TensorRT-LLM", cure="Run the stage again.")
        if not request.ignore_eos:
            end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
            tokens, reason = (tokens, reason) if end is None else (tokens[:end], "stop")
        if request.stop and self._stops(request, tokens):
            counts = range(1, len(tokens) + 1)
            least = bisect_left(counts, True, key=lambda count: self._stops(request, tokens[:count]))
            tokens, reason = tokens[: counts[least]], "stop"
        return tuple(tokens), reason

    def _stops(self, request: GenerateRequest, tokens: list[int]) -> bool:
        text = _decoder(self._folder)(tokens)
        return any(word in text for word in request.stop)

    def _require(self, request: GenerateRequest) -> None:
        require_length(request)
        self._check(request.prompt, len(request.prompt) + request.max_tokens)

    def _check(self, prompt: tuple[int, ...], length: int, more: tuple[int, ...] = ()) -> None:
        require_fits(prompt, length, more, longest=self.max_length, vocabulary=self._vocabulary)


def longest_of(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """For each prompt one of `prompts` that begins with it, the longest found: its rows of logits hold the other's.

    In sorted order a prompt stands directly before those that it begins. An empty one stays empty: it asks for nothing.
    """
    longest: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}
    after: tuple[int, ...] = ()
    for prompt in sorted(set(prompts) - {()}, reverse=True):
        longest[prompt] = longest[after] if after[: len(prompt)] == prompt else prompt
        after = prompt
    return [longest[prompt] for prompt in prompts]


def groups(prompts: Sequence[tuple[int, ...]], tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Prompts in order, in groups of at most `tokens` tokens; a longer one alone."""
    group: list[tuple[int, ...]] = []
    held = 0
    for prompt in prompts:
        if group and held + len(prompt) > tokens:
            yield group
            group, held = [], 0
        group.append(prompt)
        held += len(prompt)
    if group:
        yield group


def _read(output: Any, field: str) -> Any:
    """A field of an SDK's answer, whose absence is a finding about the version and no crash."""
    if not hasattr(output, field):
        cure = "Use tensorrt-llm 1.2.1, whose interface was read."
        raise Broken(f"{type(output).__name__} has no {field}.", place="TensorRT-LLM", cure=cure)
    return getattr(output, field)


def _first(output: Any) -> Any:
    found = _read(output, "outputs")
    if len(found) != 1:
        raise Broken(f"one continuation was asked for, {len(found)} came.", place="TensorRT-LLM")
    return found[0]


def _ends(folder: Path, shape: dict[str, Any]) -> tuple[int, ...]:
    """End-of-sequence ids, from generation_config.json first."""
    file = folder / "generation_config.json"
    own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = own.get("eos_token_id", shape.get("eos_token_id"))
    return () if found is None else tuple(found) if isinstance(found, list) else (int(found),)


@lru_cache(maxsize=2)
def _decoder(folder: Path) -> Callable[[list[int]], str]:
    """list of ids -> text, special tokens included."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise BadInput("stop strings need tokenizer.json.", place=str(folder), cure="Put it beside the weights.")
    tokenizer = Tokenizer.from_file(str(file))
    return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False)


def _gpu() -> str:
    import torch

    return str(torch.cuda.get_device_name(0)) if torch.cuda.is_available() else "a GPU that torch does not see"
