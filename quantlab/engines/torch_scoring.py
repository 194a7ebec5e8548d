"""Log-probabilities of continuations, each token of the prefix tree computed once.

A row that holds one unbranched path uses the ordinary causal attention (no mask, the fastest kernel); all other rows
carry a mask. The output head, a third of a small model's work at a 128,256-word vocabulary, runs only at positions
that predict a token somebody asked for, and in slices, so that the logits never fill the memory. Softmax is in float32.

A masked score is exactly zero after softmax, so a result depends on its neighbours in the batch only through the
order of summation: below 1e-4 in float32; in bfloat16 the same noise that any other batch size brings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from quantlab.engines import Score, ScoreRequest
from quantlab.engines.torch_packing import Paths, Tree, Trunk, batches, mask, plan, rows

_LOGITS_ON_CPU, _LOGITS_AT_ONCE = 2**23, 2**25
"""Numbers in one slice of logits: 32 MB in float32 on a CPU, 128 MB elsewhere. The softmax reads a slice several times,
which on a CPU costs nearly as much as the product once it comes from memory (SmolLM2: 1.9, not 1.4 ms a position)."""


class TrunkCache(DynamicCache):  # type: ignore[misc]
    """Keys and values of a trunk (batch 1), lent to every row of a batch and not changed by it.

    With `keep`, what runs through becomes part of it: that is how a trunk is computed.
    """

    def __init__(self, parent: TrunkCache | None = None, *, keep: bool = False) -> None:
        super().__init__()
        # A cache of transformers without layers is false in a condition, so None is asked for by name.
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {} if parent is None else dict(parent.kept)
        """By layer: a model with cross-attention leaves these out where there is no image."""
        self.keep = keep

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows, heads, new, width] -> the same with the trunk's before it."""
        if layer_idx in self.kept:
            key, value = (kept.expand(len(key_states), -1, -1, -1) for kept in self.kept[layer_idx])
            key_states, value_states = torch.cat((key, key_states), -2), torch.cat((value, value_states), -2)
        if self.keep:
            self.kept[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        if layer_idx not in self.kept:
            return 0
        return int(self.kept[layer_idx][0].shape[-2])


@dataclass(slots=True)
class Answer:
    """A request, the first position of its path that predicts, and what is known so far."""

    request: ScoreRequest
    first: int
    logprobs: np.ndarray
    top: np.ndarray
    distribution: np.ndarray | None

    def score(self) -> Score:
        return Score(self.logprobs, bool(self.top.all()), self.distribution)


@dataclass(slots=True)
class _Wanted:
    """Predictions to take from one batch: at flat place `place[i]`, of token `target[i]`, for `answer[i]`."""

    place: list[np.ndarray]
    target: list[np.ndarray]
    answer: list[tuple[Answer, int]]
    """Answer and the index in its continuation where its run starts."""


class Scorer:
    """Scores on one model.

    Args:
        model: a causal language model of transformers on `device`.
        token_budget: most tokens in one forward pass, padding included.
    """

    def __init__(self, model: nn.Module, device: torch.device, token_budget: int) -> None:
        self.body: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        self.head: nn.Module = model.get_output_embeddings()
        self.device, self.token_budget = device, token_budget
        self.tokens_computed = 0
        """Forward tokens so far, padding included; benchmarks read it."""

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        answers = [self._answer(request) for request in requests]
        asked = [answer for answer in answers if answer.request.continuation]
        # The last token of a continuation is predicted and never fed.
        paths = Paths([(*a.request.context, *a.request.continuation[:-1]) for a in asked])
        by_path: dict[int, list[Answer]] = defaultdict(list)
        for place, answer in zip(paths.order, asked, strict=True):
            by_path[place].append(answer)
        if asked:
            with torch.inference_mode():
                self._run(plan(paths, self.token_budget), None, paths, by_path)
        return [answer.score() for answer in answers]

    def _beside(self, bins: list[list[Tree]], width: int) -> dict[str, torch.Tensor]:
        """What the model is given beside the tokens; see torch_images.py."""
        return {}

    def _answer(self, request: ScoreRequest) -> Answer:
        n = len(request.continuation)
        width = int(self.head.weight.shape[0])
        distribution = np.empty((n, width), dtype=np.float32) if request.full else None
        return Answer(
            request,
            len(request.context) - 1,
            np.full(n, np.nan, dtype=np.float32),
            np.zeros(n, dtype=bool),
            distribution,
        )

    def _run(self, trunk: Trunk, parent: TrunkCache | None, paths: Paths, by_path: dict[int, list[Answer]]) -> None:
        """The trunk itself, then its trees in batches, then the trunks that grow from it."""
        cache = self._grow(trunk, parent, paths, by_path) if trunk.stop > trunk.start else parent
        for bins in batches(rows(trunk.trees), self.token_budget):
            self._take(bins, cache, trunk.stop, by_path)
        for child in trunk.children:
            self._run(child, cache, paths, by_path)

    def _take(
        self, bins: list[list[Tree]], cache: TrunkCache | None, stop: int, by_path: dict[int, list[Answer]]
    ) -> None:
        """One forward pass, and what is predicted in it. `stop`: tokens of the trunk that the trees hang on."""
        hidden = self._forward(bins, cache)
        offsets = _offsets(bins, hidden.shape[1])
        found = [(path, stop, at + nodes) for tree, at in offsets for path, nodes in tree.paths]
        self._read(hidden.flatten(0, 1), _wanted(found, by_path))

    def _grow(
        self, trunk: Trunk, parent: TrunkCache | None, paths: Paths, by_path: dict[int, list[Answer]]
    ) -> TrunkCache:
        cache = TrunkCache(parent, keep=True)
        tokens = paths.tokens[trunk.sample][trunk.start : trunk.stop]
        nodes = np.arange(len(tokens))
        chain = Tree(tokens, nodes + trunk.start, [(0, len(tokens), nodes[:0])], [])
        hidden = self._forward([[chain]], cache)
        self._read(hidden[0], _wanted([(path, trunk.start, nodes) for path in trunk.members], by_path))
        cache.keep = False
        return cache

    def _forward(self, bins: list[list[Tree]], cache: TrunkCache | None) -> torch.Tensor:
        """Hidden states [rows, longest row, width]."""
        width = max(sum(len(tree.tokens) for tree in bin_) for bin_ in bins)
        past = cache.get_seq_length() if cache is not None else 0
        tokens, positions = np.zeros((2, len(bins), width), dtype=np.int64)
        for index, bin_ in enumerate(bins):
            flat = np.concatenate([tree.tokens for tree in bin_])
            tokens[index, : len(flat)] = flat
            positions[index, : len(flat)] = np.concatenate([tree.positions for tree in bin_])
        plain = past == 0 and all(len(bin_) == 1 and bin_[0].chain for bin_ in bins)
        seen = None if plain else torch.from_numpy(mask(bins, width, past)).to(self.device)
        self.tokens_computed += tokens.size
        # Right padding of a causal row is never looked at, so unbranched rows go without mask and positions.
        hidden: torch.Tensor = self.body(
            input_ids=torch.from_numpy(tokens).to(self.device),
            attention_mask=seen,
            position_ids=None if plain else torch.from_numpy(positions).to(self.device),
            past_key_values=cache,
            use_cache=False,
            **self._beside(bins, width),
        ).last_hidden_state
        return hidden

    def _read(self, hidden: torch.Tensor, wanted: _Wanted) -> None:
        """Head and softmax at the wanted places of hidden [places, width], in slices."""
        if not wanted.answer:
            return
        lengths = [len(place) for place in wanted.place]
        owner = np.repeat(np.arange(len(lengths)), lengths)
        step = np.arange(len(owner)) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        place, target = np.concatenate(wanted.place), np.concatenate(wanted.target)
        order = np.argsort(place, kind="stable")
        unique = np.unique(place)
        vocabulary = int(self.head.weight.shape[0])
        most = _LOGITS_ON_CPU if self.device.type == "cpu" else _LOGITS_AT_ONCE
        slices = -(-len(unique) * vocabulary // most)
        for some in np.array_split(unique, slices):
            low, high = np.searchsorted(place[order], (some[0], some[-1] + 1))
            chosen = order[low:high]
            logits = self.head(hidden[torch.from_numpy(some).to(self.device)]).float()
            index = torch.from_numpy(np.searchsorted(some, place[chosen])).to(self.device)
            goal = torch.from_numpy(target[chosen]).to(self.device)
            values = logits[index, goal] - torch.logsumexp(logits, -1)[index]
            top = logits.argmax(-1)[index] == goal
            self._keep(wanted, owner[chosen], step[chosen], values.cpu().numpy(), top.cpu().numpy())
            self._keep_full(wanted, owner[chosen], step[chosen], index, logits)

    def _keep(self, wanted: _Wanted, owner: np.ndarray, step: np.ndarray, values: np.ndarray, top: np.ndarray) -> None:
        for who, at, value, best in zip(owner.tolist(), step.tolist(), values, top, strict=True):
            answer, start = wanted.answer[who]
            answer.logprobs[start + at], answer.top[start + at] = value, best

    def _keep_full(
        self, wanted: _Wanted, owner: np.ndarray, step: np.ndarray, index: torch.Tensor, logits: torch.Tensor
    ) -> None:
        if not any(answer.distribution is not None for answer, _ in wanted.answer):
            return
        logarithms = torch.log_softmax(logits, -1).cpu().numpy()
        for who, at, place in zip(owner.tolist(), step.tolist(), index.tolist(), strict=True):
            answer, start = wanted.answer[who]
            if answer.distribution is not None:
                answer.distribution[start + at] = logarithms[place]


def _offsets(bins: list[list[Tree]], width: int) -> list[tuple[Tree, int]]:
    """Each tree with the flat place of its first node."""
    found = []
    for index, bin_ in enumerate(bins):
        at = index * width
        for tree in bin_:
            found.append((tree, at))
            at += len(tree.tokens)
    return found


def _wanted(found: list[tuple[int, int, np.ndarray]], by_path: dict[int, list[Answer]]) -> _Wanted:
    """What to predict at the computed runs `found`: (path, position of the first node, flat place of each node)."""
    wanted = _Wanted([], [], [])
    for path, position, places in found:
        for answer in by_path[path]:
            start = max(answer.first, position)
            length = min(answer.first + len(answer.logprobs), position + len(places)) - start
            if length > 0:
                continuation = answer.request.continuation
                begin = start - answer.first
                wanted.place.append(places[start - position : start - position + length])
                wanted.target.append(np.array(continuation[begin : begin + length], dtype=np.int64))
                wanted.answer.append((answer, begin))
    return wanted
