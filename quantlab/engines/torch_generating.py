"""Greedy generation as one static batch, with the two times that matter.

The first token costs one pass over the whole prompt and is bound by arithmetic (prefill); each later token costs one
pass over all weights for one token a sequence and is bound by memory bandwidth (decode). Seconds are taken after the
device has finished (kernels are queued on a GPU), and count from the moment of the call.

Prompts of unequal length are padded on the left, hidden by a mask, with positions counted without the padding.

A batch that throughput times (every sequence of the asked length) is left as it is. Where sequences may stop, two
things are saved, and only last bits of sums change: what all prompts share (few-shot examples) runs once, its keys and
values are handed to every row, and rows that have stopped leave the batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from transformers import DynamicCache

from quantlab.engines import Completion, GenerateRequest
from quantlab.engines.growing import Row

PREFIX_GAIN = 64
"""A shared beginning costs a forward pass of its own; it must save at least this many tokens."""
LEAVING = 4
"""Rows leave when one in so many has stopped: taking them out copies the cache of all others."""


class Decoder(Protocol):
    """What is asked of a tokenizer here."""

    def decode(self, tokens: list[int]) -> str: ...


class Generator:
    """Generates on one model.

    Args:
        model: a causal language model of transformers on `device`.
        ends: token ids that end a sequence.
        decoder: turns token ids into text, for stop strings.
    """

    def __init__(self, model: nn.Module, device: torch.device, ends: frozenset[int], decoder: Decoder) -> None:
        self.body: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        self.head: nn.Module = model.get_output_embeddings()
        self.device, self.ends, self.decoder = device, ends, decoder

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        with torch.inference_mode():
            return self._generate(requests)

    def _generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        self._wait()
        began = time.perf_counter()
        rows = [Row(request) for request in requests]
        fixed = all(request.ignore_eos and not request.stop for request in requests)
        first = (self._run_fixed if fixed else self._run_until_stopped)(rows, began)
        return [Completion(tuple(r.tokens), r.finish, first, r.seconds) for r in rows]

    def _batch(self, requests: Sequence[GenerateRequest], *, share: bool = False) -> Batch:
        """`share`: what all prompts begin with is computed once."""
        prompts = [request.prompt for request in requests]
        return Batch(prompts, self.device, self._begin(prompts) if share else None)

    def _run_fixed(self, rows: list[Row], began: float) -> float:
        """Nothing can end a row, so nothing is read back on the way: the device never waits for Python."""
        growing, first = self._batch([row.request for row in rows]), 0.0
        kept: list[torch.Tensor] = []
        for _ in range(max(row.request.max_tokens for row in rows)):
            kept.append(self._next(growing))
            if not first:
                first = self._seconds(began)
        seconds = self._seconds(began)
        for row, mine in zip(rows, torch.stack(kept, 1).tolist(), strict=True):
            row.tokens, row.finish, row.seconds = mine[: row.request.max_tokens], "length", seconds
        return first

    def _run_until_stopped(self, rows: list[Row], began: float) -> float:
        growing, first = self._batch([row.request for row in rows], share=True), 0.0
        running = rows
        while running:
            tokens = self._next(growing).tolist()
            seconds = self._seconds(began)
            first = first or seconds
            for row, token in zip(running, tokens, strict=True):
                if not row.finish:
                    row.add(token, seconds, self.ends, self.decoder.decode)
            left = [place for place, row in enumerate(running) if not row.finish]
            if left and LEAVING * (len(running) - len(left)) >= len(running):
                growing.keep(left)
                running = [running[place] for place in left]
            elif not left:
                running = []
        return first

    def _begin(self, prompts: Sequence[tuple[int, ...]]) -> DynamicCache:
        """Keys and values of what all prompts share, for every row; empty where that saves too little."""
        cache = DynamicCache()
        shared = _shared(prompts)
        if shared * (len(prompts) - 1) >= PREFIX_GAIN:
            ids = torch.tensor([prompts[0][:shared]], device=self.device)
            self.body(input_ids=ids, past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(prompts))
        return cache

    def _seconds(self, began: float) -> float:
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _next(self, growing: Batch) -> torch.Tensor:
        """The next token of every row, int64 [rows]; also fed back."""
        hidden = self.body(**growing.inputs(), past_key_values=growing.cache, use_cache=True).last_hidden_state
        tokens: torch.Tensor = self.head(hidden[:, -1]).argmax(-1)
        growing.append(tokens)
        return tokens


def _shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix; the last token of a prompt is never in it, because it predicts."""
    first, last = min(prompts), max(prompts)
    longest = min(map(len, prompts)) - 1
    return next((place for place in range(longest) if first[place] != last[place]), longest)


class Batch:
    """Prompts, their cache and what is fed next.

    Args:
        cache: keys and values of a beginning that every prompt has; those tokens are not fed again.
    """

    def __init__(
        self, prompts: Sequence[tuple[int, ...]], device: torch.device, cache: DynamicCache | None = None
    ) -> None:
        # A cache of transformers without layers is false in a condition, so None is asked for by name.
        self.cache = DynamicCache() if cache is None else cache
        past = self.cache.get_seq_length()
        width = max(map(len, prompts)) - past
        ids = [[0] * (past + width - len(prompt)) + list(prompt[past:]) for prompt in prompts]
        padding = torch.tensor([past + width - len(prompt) for prompt in prompts], device=device)
        self.tokens = torch.tensor(ids, device=device)
        columns = torch.arange(width, device=device)
        self.positions = past + (columns - padding[:, None]).clamp(min=0)
        # Equal lengths need no mask, and the attention kernel without one is the fastest.
        self.mask: torch.Tensor | None = None
        if bool(padding.any()):
            seen = (columns >= padding[:, None]).long()
            self.mask = torch.cat((seen.new_ones(len(prompts), past), seen), 1)

    def inputs(self) -> dict[str, torch.Tensor | None]:
        return {"input_ids": self.tokens, "attention_mask": self.mask, "position_ids": self.positions}

    def append(self, tokens: torch.Tensor) -> None:
        self.tokens, self.positions = tokens[:, None], self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), 1)

    def keep(self, rows: list[int]) -> None:
        """Only these rows go on."""
        index = torch.tensor(rows, device=self.tokens.device)
        self.cache.batch_select_indices(index)
        self.tokens, self.positions = self.tokens[index], self.positions[index]
        if self.mask is not None:
            self.mask = self.mask[index]
