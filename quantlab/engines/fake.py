"""Engine "fake": a deterministic little language model made of hashes, for tests, dry runs and users' own tests.

It answers everything the seam asks, reads no weights and needs numpy only. Its distribution is not noise, so that
what stands on an engine can be tested with it:

* frequent tokens are likely: byte-pair ids are numbered by frequency, so log p falls with log(id), as Zipf's law says;
* each token has its own taste for the next one (a hash of the pair);
* a pair of tokens seen before in the context is likely to come again, and unlikely to come a third time: a question
  whose answer stands in its context is answered right, and greedy text does not run in circles;
* a format does damage: noise that grows bf16 < fp8 < int4_awq < int4 is added to every pair's taste.

Its seconds are real, of a small real computation, and mean nothing: numerics says "simulated".
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantlab.engines import (
    Ability,
    Completion,
    GenerateRequest,
    Score,
    ScoreRequest,
    Session,
    require_fits,
    require_length,
)
from quantlab.engines.fake_flow import FakeFlow
from quantlab.errors import BadInput
from quantlab.records import Artifact, Checkpoint, EngineConfig, Host

DAMAGE = {"bf16": 0.0, "fp8": 0.2, "int4_awq": 0.5, "int4": 0.9}
"""Standard deviation, in nats, of the noise a format adds to a logit; formats not listed do the damage of int4."""
_TASTE, _AGAIN, _TOO_OFTEN = 0.5, 8.0, -8.0
_PLACES = 64
"""Sequences in flight, where `max_batch` does not say otherwise."""
_DEFAULT_VOCABULARY, _DEFAULT_LENGTH = 512, 2048


class FakeEngine:
    """Hashes instead of weights."""

    name = "fake"
    abilities = Ability.GENERATE | Ability.LOGPROBS | Ability.FULL_LOGITS | Ability.TIMINGS | Ability.IN_FLIGHT

    def version(self) -> str:
        return "1"

    def supports(self, checkpoint: Checkpoint, host: Host) -> str | None:
        return None

    def numerics(self, checkpoint: Checkpoint, host: Host) -> Literal["simulated"]:
        return "simulated"

    def builds(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        return None

    def build(self, checkpoint: Checkpoint, into: Path, config: EngineConfig, host: Host) -> Artifact:
        return Artifact(
            engine=self.name,
            path=checkpoint.path,
            checkpoint=checkpoint,
            numerics="simulated",
            engine_version=self.version(),
        )

    @contextmanager
    def open(self, artifact: Artifact, config: EngineConfig) -> Iterator[Session]:
        yield FakeSession(artifact, config)


class FakeSession:
    """See the seam. `vocabulary` and the longest sequence come from config.json where there is one."""

    device = "fake"

    def __init__(self, artifact: Artifact, config: EngineConfig) -> None:
        self._folder = Path(artifact.path)
        file = self._folder / "config.json"
        shape = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.vocabulary = int(shape.get("vocab_size", _DEFAULT_VOCABULARY))
        self._ends = _ends(shape.get("eos_token_id"))
        own = int(shape.get("max_position_embeddings", _DEFAULT_LENGTH))
        self.max_length = own if config.max_length is None else min(own, config.max_length)
        self._damage = DAMAGE.get(artifact.checkpoint.format, DAMAGE["int4"])
        self._frequency = -np.log(np.arange(self.vocabulary) + 100.0)
        self._places = config.max_batch or _PLACES
        self._taste = lru_cache(maxsize=4096)(self._taste_of)

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        for request in requests:
            self._check(request.context, len(request.context) + len(request.continuation), request.continuation)
        return [self._score(request) for request in requests]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        for request in requests:
            self._require(request)
        began = time.perf_counter()
        return [self._complete(request, began) for request in requests]

    def flow(self) -> FakeFlow:
        return FakeFlow(lambda tokens: int(self._distribution(tokens).argmax()), self._require, self._places)

    def _score(self, request: ScoreRequest) -> Score:
        tokens = (*request.context, *request.continuation)
        places = range(len(request.context), len(tokens))
        rows = [self._distribution(tokens[:place]) for place in places]
        logprobs = np.array([row[tokens[p]] for row, p in zip(rows, places, strict=True)], dtype=np.float32)
        greedy = all(int(row.argmax()) == tokens[p] for row, p in zip(rows, places, strict=True))
        full = np.stack(rows) if rows else np.empty((0, self.vocabulary), dtype=np.float32)
        return Score(logprobs, greedy, full if request.full else None)

    def _complete(self, request: GenerateRequest, began: float) -> Completion:
        tokens, first, finish = list(request.prompt), 0.0, "length"
        for _ in range(request.max_tokens):
            token = int(self._distribution(tokens).argmax())
            first = first or time.perf_counter() - began
            if token in self._ends and not request.ignore_eos:
                finish = "stop"
                break
            tokens.append(token)
            if request.stop and self._stops(request.stop, tokens[len(request.prompt) :]):
                finish = "stop"
                break
        made = tuple(tokens[len(request.prompt) :])
        return Completion(made, finish, first, time.perf_counter() - began)

    def _distribution(self, tokens: Sequence[int]) -> np.ndarray:
        """Log-probabilities of the token after `tokens`: float32 [vocabulary]."""
        logits = self._taste(tokens[-1]).copy()
        followers = [after for before, after in pairwise(tokens) if before == tokens[-1]]
        for token in set(followers):
            logits[token] += _AGAIN if followers.count(token) == 1 else _TOO_OFTEN
        top = logits.max()
        normal: np.ndarray = (logits - top - np.log(np.exp(logits - top).sum())).astype(np.float32)
        return normal

    def _taste_of(self, token: int) -> np.ndarray:
        taste: np.ndarray = self._frequency + _TASTE * _normal(token, 1, self.vocabulary)
        return taste + self._damage * _normal(token, 2, self.vocabulary)

    def _stops(self, stop: tuple[str, ...], made: list[int]) -> bool:
        text = _tokenizer(self._folder).decode(made)
        return any(word in text for word in stop)

    def _require(self, request: GenerateRequest) -> None:
        require_length(request)
        self._check(request.prompt, len(request.prompt) + request.max_tokens)

    def _check(self, prompt: tuple[int, ...], length: int, more: tuple[int, ...] = ()) -> None:
        require_fits(prompt, length, more, longest=self.max_length, vocabulary=self.vocabulary)


def _normal(token: int, seed: int, width: int) -> np.ndarray:
    """float64 [width]: standard normal numbers that depend on the pair (token, column) and the seed only.

    The sum of four uniform hashes (splitmix64's finalizer), scaled to variance 1: normal enough.
    """
    start = np.uint64((token * 4 + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1B54A32D192ED03 & (2**64 - 1))
    total = np.zeros(width)
    for part in range(4):
        x = np.arange(width, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + start + np.uint64(part << 40)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        total += (x ^ (x >> np.uint64(31))) / 2.0**64
    normal: np.ndarray = (total - 2) * np.sqrt(3)
    return normal


def _ends(found: int | list[int] | None) -> frozenset[int]:
    if found is None:
        return frozenset()
    return frozenset(found if isinstance(found, list) else [found])


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.exists():
        raise BadInput("stop strings need tokenizer.json.", place=str(folder), cure="Put it beside the weights.")
    return Tokenizer.from_file(str(file))
