"""How requests are cut into blocks, and what is remembered of each.

A block is what one call of the session gets, what a kill can cost, and one step of the progress bar. It holds
a few forward passes: enough for the session to sort and fill its batches, little enough to be done in seconds
on a GPU and in half a minute on a laptop. Cutting depends on the requests alone, never on what was answered
before, so that a resumed run computes the same batches as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from quantlab.engines import GenerateRequest, ScoreRequest
from quantlab.records import digest

PASSES = 2
"""Forward passes' worth of tokens in a block of scores. What a context shares with the one before it (the question,
few-shot examples) counts once: a session that reuses prefixes would otherwise start them anew in every block."""
CACHED = 8
"""Token budgets' worth of prompt and answer generated together: with 8192 tokens 7.5 GB of Llama 3.2 3B's cache."""
SEQUENCES = 64
"""Most sequences generated together: their keys and values stay in memory until the last one has ended."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What went to the session for one request of lm-eval."""

    digest: str
    """Of the token ids, context and continuation apart."""
    tokens: int
    bos: int
    """BOS tokens at the start of the context."""


def sent(
    context: tuple[int, ...], continuation: tuple[int, ...], bos: int | None, pixels: tuple[str, ...] = ()
) -> Sent:
    """Describe one request. `bos`: the tokenizer's BOS id, None where it has none. `pixels`: digests of its pictures as
    the image processor made them ready."""
    leading = next((place for place, token in enumerate(context) if token != bos), len(context))
    named = digest(context, continuation, pixels) if pixels else digest(context, continuation)
    return Sent(named, len(context) + len(continuation), leading)


def score_blocks(asks: Sequence[ScoreRequest], token_budget: int) -> Iterator[list[ScoreRequest]]:
    """Each different request once, equal contexts never apart; the block with the longest context comes first.

    Cut in the order of the tokens themselves, so that contexts with the same shots lie side by side: ordered by length,
    a task whose subjects have different shots would start all of them anew in every block. What is asked about a
    picture stays together, so that a session encodes it once.
    """
    ordered = sorted(set(asks), key=lambda ask: (_pictures(ask), ask.context, ask.continuation))
    blocks = _cut(ordered, PASSES * token_budget)
    return iter(sorted(blocks, key=lambda block: -max(len(ask.context) for ask in block)))


def _cut(ordered: Sequence[ScoreRequest], most: int) -> Iterator[list[ScoreRequest]]:
    """Blocks of at most so many tokens that are not shared; a larger context is a block of its own."""
    block: list[ScoreRequest] = []
    tokens = 0
    before: tuple[int, ...] = ()
    for (_, context), group in groupby(ordered, key=lambda ask: (_pictures(ask), ask.context)):
        same = list(group)
        fresh = len(context) + sum(len(ask.continuation) for ask in same)
        cost = fresh - _shared(before, context)
        if block and tokens + cost > most:
            yield block
            block, tokens, cost = [], 0, fresh
        block += same
        tokens += cost
        before = context
    if block:
        yield block


def _pictures(ask: ScoreRequest | GenerateRequest) -> tuple[str, ...]:
    return tuple(image.digest for image in ask.images)


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common prefix; by halving, because comparing slices is fast and a loop over tokens is not."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def generate_blocks(asks: Sequence[GenerateRequest], token_budget: int) -> Iterator[list[GenerateRequest]]:
    """Each different request once, longest prompts first; stops and lengths of a block are equal."""

    def kind(ask: GenerateRequest) -> tuple[int, tuple[str, ...]]:
        return ask.max_tokens, ask.stop

    for _, group in groupby(
        sorted(set(asks), key=lambda ask: (kind(ask), -len(ask.prompt), ask.prompt, _pictures(ask))), key=kind
    ):
        block: list[GenerateRequest] = []
        tokens = 0
        for ask in group:
            cost = len(ask.prompt) + ask.max_tokens
            if block and (tokens + cost > CACHED * token_budget or len(block) == SEQUENCES):
                yield block
                block, tokens = [], 0
            block.append(ask)
            tokens += cost
        if block:
            yield block
