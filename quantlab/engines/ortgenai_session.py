"""An opened model of engine "ortgenai".

Tokens go in and come out through the SDK's generator, for scoring and for timing alike. Four of its habits need care:

* *Padding.* In a batch it masks every token that equals `pad_token_id`, and many a model's padding token ends each turn
  of a chat: logits are then off by several units. Here the padding token is -1, which no prompt holds, and only prompts
  of one length share a batch.
* *The end.* It stops a row at an end-of-sequence token and cannot be told not to, but throughput counts tokens out. So
  the end it knows is one token at the rim of the vocabulary, quantlab looks for the real ones itself, and a row that
  makes just this token goes on alone, one token at a time.
* *Threads.* Its own thread pool spins while it waits; told not to, it is as fast, and others get the cores.
* *Prefill computes the logits of all prompt tokens*, not only of the last: the head's share of the time to the first
  token is that of a model that is scored.
"""

from __future__ import annotations

import gc
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
from quantlab.engines.growing import Row
from quantlab.engines.ortgenai_scoring import score
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats.onnx_model import CONFIG
from quantlab.records import Artifact, EngineConfig, OnnxModel, Provider

NAMES: dict[Provider, str] = {"cpu": "cpu", "cuda": "cuda", "dml": "dml", "trt-rtx": "NvTensorRtRtx"}
"""Provider -> the SDK's word for it."""


class OrtGenaiSession:
    """See the seam in quantlab/engines/__init__.py.

    Tokens of a completion are those before the end-of-sequence token; those of a stop string are among them.
    """

    def __init__(self, artifact: Artifact, config: EngineConfig, model: OnnxModel) -> None:
        self._folder = Path(artifact.path)
        said = _said(self._folder)
        ends, self._vocabulary = said["eos_token_id"], int(said["vocab_size"])
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._rim = self._vocabulary - 1
        own = int(said["context_length"])
        self.max_length = own if config.max_length is None else min(own, config.max_length)
        threads = int(os.environ.get("OMP_NUM_THREADS") or host.physical_cores())
        self.device = _name(model.job.provider, config.device, threads, model.job.dtype)
        self._sdk: Any = import_module("onnxruntime_genai")
        self._model = self._load(model.job.provider, config.device, threads)
        self._tokenizer: Any = None

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        for request in requests:
            require_length(request)
            self._check(request.prompt, len(request.prompt) + request.max_tokens)
        began = time.perf_counter()
        rows = [Row(request) for request in requests]
        for length in dict.fromkeys(len(request.prompt) for request in requests):
            self._batch([row for row in rows if len(row.request.prompt) == length], began)
        return [Completion(tuple(row.tokens), row.finish, row.first, row.seconds) for row in rows]

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        for request in requests:
            self._check(request.context, len(request.context) + len(request.continuation), request.continuation)
        return score(requests, self._vocabulary, lambda length: self._generator(1, length))

    def close(self) -> None:
        """Give the memory back."""
        del self._model
        gc.collect()

    def _check(self, prompt: tuple[int, ...], length: int, more: tuple[int, ...] = ()) -> None:
        require_fits(prompt, length, more, longest=self.max_length, vocabulary=self._vocabulary)

    def _load(self, provider: Provider, device: str, threads: int) -> Any:
        if provider == "cuda" and not self._sdk.is_cuda_available():
            raise Refused("this ONNX Runtime GenAI sees no CUDA.", place=device, cure="Use device cpu.")
        options = {"intra_op_num_threads": threads, "session.intra_op.allow_spinning": "0"}
        ours = {"eos_token_id": self._rim, "pad_token_id": -1, "decoder": {"session_options": options}}
        try:
            config = self._sdk.Config(str(self._folder))
            config.overlay(json.dumps({"model": ours}))
            if device.startswith("cuda:"):
                config.set_provider_option(NAMES[provider], "device_id", device.removeprefix("cuda:"))
            return self._sdk.Model(config)
        except RuntimeError as error:
            raise Broken(f"ONNX Runtime cannot open it ({error}).", place=str(self._folder)) from error

    def _generator(self, rows: int, length: int) -> Any:
        """An empty generator of `rows` rows with a cache of `length` tokens each."""
        params = self._sdk.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, batch_size=rows, max_length=length)
        return self._sdk.Generator(self._model, params)

    def _batch(self, rows: list[Row], began: float) -> None:
        """Grow rows with prompts of one length together."""
        prompts = np.array([row.request.prompt for row in rows], dtype=np.int32)
        steps = max(row.request.max_tokens for row in rows)
        generator = self._generator(len(rows), prompts.shape[1] + steps)
        generator.append_tokens(prompts)
        odd: list[Row] = []
        for _ in range(steps):
            generator.generate_next_token()
            tokens = generator.get_next_tokens()
            seconds = time.perf_counter() - began
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if not row.finish and row not in odd:
                    row.add(int(token), seconds, self._ends, self._decode)
                    odd += [row] if token == self._rim and not row.finish else []
            if all(row.finish or row in odd for row in rows):
                break
        del generator
        for row in odd:
            self._alone(row, began)

    def _alone(self, row: Row, began: float) -> None:
        """The rest of a row that made the token which the SDK takes for the end."""
        generator = self._generator(1, len(row.request.prompt) + row.request.max_tokens)
        generator.append_tokens(np.array([[*row.request.prompt, *row.tokens]], dtype=np.int32))
        while not row.finish:
            token = int(generator.get_output("logits")[0, -1].argmax())
            row.add(token, time.perf_counter() - began, self._ends, self._decode)
            if not row.finish:
                generator.append_tokens(np.array([[token]], dtype=np.int32))

    def _decode(self, tokens: list[int]) -> str:
        if self._tokenizer is None:
            file = self._folder / "tokenizer.json"
            if not file.is_file():
                cure = "Put the tokenizer's files beside the weights, and build again."
                raise BadInput("stop strings need tokenizer.json.", place=str(self._folder), cure=cure)
            self._tokenizer = import_module("tokenizers").Tokenizer.from_file(str(file))
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))


def _said(folder: Path) -> dict[str, Any]:
    """`model` of genai_config.json."""
    try:
        model: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]
        model["eos_token_id"], model["vocab_size"], model["context_length"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "Delete the folder and start again."
        raise Broken(f"no usable {CONFIG} ({error!r}).", place=str(folder), cure=cure) from None
    return model


def _name(provider: Provider, device: str, threads: int, dtype: str) -> str:
    if provider == "cpu":
        return f"cpu: {host.describe().cpu}, {threads} threads, {dtype}"
    cards = host.gpus()
    index = int(device.partition(":")[2] or 0)
    return f"{cards[index].name if index < len(cards) else provider}, {dtype}"
