"""When a cell of a throughput grid is not to be believed, whatever serves it: static batches or requests in flight.

A cell that fails keeps its place, with the reason. A fast kernel may be a wrong one, so real prompts are continued amid
a full batch and must not fall apart; too little memory is told from every other error, which is not hidden.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from quantlab.engines import GenerateRequest, ScoreRequest
from quantlab.errors import Refused
from quantlab.measure import Bench
from quantlab.measure.canary import LOST, STUCK, TOKENS, distinct_trigrams

PHRASES = ("out of memory", "allocate memory", "bad_alloc", "memory is too small")
"""How SDKs, and our own engine, say that there is not enough memory."""
NO_MEMORY = "out of memory at batch"


class Failed(Exception):
    """The cell cannot be measured; the text is the reason."""


def falls_apart(bench: Bench, batch: int) -> str:
    """Real prompts, alone and amid a full batch: why no cell of this batch size is to be believed, or "".

    What is no language model alone (random weights, timed for their shape) can fall no further and is not judged. A
    first token may differ between batch sizes where two words are nearly as likely, so more than half must go wrong.
    """
    if batch == 1 or bench.spec.suite is None or bench.spec.artifact.numerics == "simulated":
        return ""
    prompts = [tuple(bench.tokenizer.encode(prompt)) for prompt in bench.spec.suite.canary]
    prompts = [prompt for prompt in prompts if len(prompt) > 1 and len(prompt) + TOKENS <= bench.session.max_length]
    try:
        alone = {prompt: _continue(bench, [prompt])[0] for prompt in prompts if _knows(bench, prompt)}
        sound = [prompt for prompt, tokens in alone.items() if distinct_trigrams(tokens) >= STUCK]
        crowd = [sound[place % len(sound)] for place in range(batch)] if sound else []
        amid = _continue(bench, crowd) if crowd else []
    except Failed:
        return ""  # out of memory: the cell itself will say so
    odd = sum(
        distinct_trigrams(tokens) < STUCK or tokens[:1] != alone[prompt][:1]
        for prompt, tokens in zip(crowd, amid, strict=True)
    )
    if odd <= batch / 2:
        return ""
    return f"in a batch of {batch}, {odd} sequences fall apart or begin otherwise than alone"


def _knows(bench: Bench, prompt: tuple[int, ...]) -> bool:
    """The prompt is text to this model: see canary.py for the limit."""
    score = bench.session.logprobs([ScoreRequest(context=prompt[:1], continuation=prompt[1:])])[0]
    return -float(score.logprobs.mean()) < LOST * math.log(len(bench.tokenizer))


def _continue(bench: Bench, prompts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    requests = [GenerateRequest(prompt=prompt, max_tokens=TOKENS) for prompt in prompts]
    return [done.tokens for done in generate(bench, requests)]


def require_possible(bench: Bench, isl: int, osl: int, fallen: str) -> None:
    if bench.spec.artifact.numerics == "simulated":
        raise Failed("simulated: rounded weights in 16 bit run at the speed of 16 bit")
    if isl + osl > bench.session.max_length:
        raise Failed(f"{isl} + {osl} tokens do not fit into {bench.session.max_length}")
    if fallen:
        raise Failed(fallen)


def ordinary_tokens(tokenizer: Any) -> list[int]:
    """Token ids without special and added ones."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return [token for token in range(len(tokenizer)) if token not in special]


def spoken(draw: random.Random, vocabulary: list[int], isl: int, osl: int) -> GenerateRequest:
    """A prompt of random text tokens, its own each time."""
    return GenerateRequest(prompt=tuple(draw.choices(vocabulary, k=isl)), max_tokens=osl, ignore_eos=True)


def generate(bench: Bench, requests: list[GenerateRequest]) -> list[Any]:
    with told_of_memory(f"{NO_MEMORY} {len(requests)}"):
        return list(bench.session.generate(requests))


@contextmanager
def told_of_memory(reason: str) -> Iterator[None]:
    """Inside, too little memory is a cell that failed for this reason; every other error stays what it is."""
    try:
        yield
    except Exception as error:
        if tells_of_memory(error):
            raise Failed(reason) from error
        raise


def tells_of_memory(error: Exception) -> bool:
    """Does the error mean that there is not enough memory? torch.OutOfMemoryError is a RuntimeError, as are its CPU
    allocator's and TensorRT's; our own engine refuses."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | Refused) and any(phrase in str(error).lower() for phrase in PHRASES)
