"""Greedy generation as one static batch, with the two times that matter.

The first token costs one pass over the whole prompt and is bound by arithmetic (prefill); each later token costs one
pass over all weights for one token a sequence and is bound by memory bandwidth (decode). Seconds are taken after
the device has finished (kernels are queued on a GPU), and count from the moment of the call.

Prompts of unequal length are padded on the left, hidden by a mask, with positions counted without the padding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from transformers import DynamicCache

from quantlab.engines import Completion, GenerateRequest


class Decoder(Protocol):
    """What is asked of a tokenizer here."""

    def decode(self, tokens: list[int]) -> str: ...


@dataclass(slots=True)
class _Row:
    """One sequence while it grows."""

    request: GenerateRequest
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    seconds: float = 0.0


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
        rows = [_Row(request) for request in requests]
        growing = self._batch(requests)
        fixed = all(request.ignore_eos and not request.stop for request in requests)
        first = 0.0
        kept: list[torch.Tensor] = []
        for step in range(max(request.max_tokens for request in requests)):
            kept.append(self._next(growing))
            if step == 0 or not fixed:
                self._wait()
                seconds = time.perf_counter() - began
                first = first or seconds
            if not fixed and self._all_done(rows, kept[-1].tolist(), seconds):
                break
        self._wait()
        if fixed:
            # Nothing could end a row, so nothing was read back on the way: the device never waited for Python.
            self._fill(rows, torch.stack(kept, 1).tolist(), time.perf_counter() - began)
        return [Completion(tuple(r.tokens), r.finish, first, r.seconds) for r in rows]

    def _batch(self, requests: Sequence[GenerateRequest]) -> Batch:
        return Batch([request.prompt for request in requests], self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _next(self, growing: Batch) -> torch.Tensor:
        """The next token of every row, int64 [rows]; also fed back."""
        hidden = self.body(**growing.inputs(), past_key_values=growing.cache, use_cache=True).last_hidden_state
        tokens: torch.Tensor = self.head(hidden[:, -1]).argmax(-1)
        growing.append(tokens)
        return tokens

    def _all_done(self, rows: list[_Row], tokens: list[int], seconds: float) -> bool:
        for row, token in zip(rows, tokens, strict=True):
            if not row.finish:
                self._add(row, token, seconds)
        return all(row.finish for row in rows)

    def _add(self, row: _Row, token: int, seconds: float) -> None:
        row.seconds = seconds
        if token in self.ends and not row.request.ignore_eos:
            row.finish = "stop"
            return
        row.tokens.append(token)
        if row.request.stop and self._stopped(row):
            row.finish = "stop"
        elif len(row.tokens) >= row.request.max_tokens:
            row.finish = "length"

    def _stopped(self, row: _Row) -> bool:
        """A stop string stands in the text. Only the end of the text can have changed."""
        reach = max(len(word.encode()) for word in row.request.stop) + 8
        tail = self.decoder.decode(row.tokens[-reach:])
        return any(word in tail for word in row.request.stop)

    def _fill(self, rows: list[_Row], tokens: list[list[int]], seconds: float) -> None:
        for row, mine in zip(rows, tokens, strict=True):
            row.tokens, row.finish, row.seconds = mine[: row.request.max_tokens], "length", seconds


class Batch:
    """Prompts, their cache and what is fed next."""

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        width = max(map(len, prompts))
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        self.cache = DynamicCache()
        self.tokens = torch.tensor(ids, device=device)
        self.positions = (torch.arange(width, device=device) - padding[:, None]).clamp(min=0)
        # Equal lengths need no mask, and the attention kernel without one is the fastest.
        self.mask = (torch.arange(width, device=device) >= padding[:, None]).long() if bool(padding.any()) else None

    def inputs(self) -> dict[str, torch.Tensor | None]:
        return {"input_ids": self.tokens, "attention_mask": self.mask, "position_ids": self.positions}

    def append(self, tokens: torch.Tensor) -> None:
        self.tokens, self.positions = tokens[:, None], self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), 1)
