"""vLLM's own scheduler, step by step: requests come and go in one engine that stays open for a whole grid.

`LLM.generate` begins all its requests together, so a sweep over concurrencies goes one level lower: `LLMEngine` takes a
request at any time and `step` is one turn of the scheduler. Two habits of it matter. An output for each sequence and
step costs the Python process a few microseconds a token, which a large batch would feel, so requests that are not
streamed are answered once, at their end. And vLLM's scheduler stamps when it took a request up, when the first and
when the last token was made, all on the monotonic clock: queueing is read from there and not guessed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from quantlab.engines import GenerateRequest
from quantlab.engines.flowing import Finished
from quantlab.errors import Broken


class VllmFlow:
    """See quantlab/engines/flowing.py."""

    def __init__(
        self, engine: Any, params: Any, check: Callable[[GenerateRequest], None], forget: Callable[[], None]
    ) -> None:
        """Args:
        engine: an LLMEngine with its stats on.
        params: the class SamplingParams.
        check: raises BadInput for a request that does not fit.
        forget: takes all requests out of the engine's queue.
        """
        kinds: Any = import_module("vllm.sampling_params").RequestOutputKind
        self._kinds = {True: kinds.CUMULATIVE, False: kinds.FINAL_ONLY}
        self._engine, self._params, self._check, self._forget = engine, params, check, forget
        self._arrivals: dict[int, list[float]] = {}

    def enter(self, key: int, request: GenerateRequest, *, streamed: bool) -> None:
        self._check(request)
        params = self._params(
            temperature=0.0,
            max_tokens=request.max_tokens,
            ignore_eos=request.ignore_eos,
            detokenize=False,
            output_kind=self._kinds[streamed],
        )
        if streamed:
            self._arrivals[key] = []
        self._engine.add_request(str(key), {"prompt_token_ids": list(request.prompt)}, params)

    def step(self) -> list[Finished]:
        outputs = self._engine.step()
        now = time.monotonic()
        ended = []
        for output in outputs:
            key, made = int(output.request_id), output.outputs[0]
            if key in self._arrivals:
                arrivals = self._arrivals[key]
                arrivals += [now] * (len(made.token_ids) - len(arrivals))
            if output.finished:
                ended.append(self._finished(key, output))
        return ended

    def leave(self) -> None:
        self._forget()
        self._arrivals.clear()

    def _finished(self, key: int, output: Any) -> Finished:
        metrics = output.metrics
        if metrics is None or not metrics.first_token_ts or not metrics.scheduled_ts:
            raise Broken("vLLM kept no times of a request.", place="in-flight batching", cure="Look at the log.")
        times = (metrics.scheduled_ts, metrics.first_token_ts, metrics.last_token_ts)
        return Finished(key, tuple(output.outputs[0].token_ids), *times, tuple(self._arrivals.pop(key, ())))
