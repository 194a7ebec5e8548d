"""Is it a language model at all? Asked first, answered within seconds.

Quantization that went wrong (a scale off by a power of two, a `pre_quant_scale` nobody applied, NaN in one
layer) rarely raises: the checkpoint loads and talks nonsense, and hours later the scores are at chance. Three
signs tell, measured on SmolLM2-135M-Instruct with the default prompts (bf16, round-to-nearest in 4, 3 and 2
bit, random weights):

    what                                  bf16        4 bit       3 bit       2 bit       random
    nats a token of the prompt itself     2.2-3.8     2.8-5.5     3.6-7.9     13.1-17.9   10.4-11.2
    distinct trigrams of 32 greedy tokens 0.83-1.0    0.50-1.0    0.23-0.63   0.23-1.0    0.13-0.23

* finite: a NaN anywhere reaches every log-probability behind it.
* not lost: a model that knows nothing about text pays log(vocabulary) nats a token (10.8 here, 11.8 for Llama
  3), a destroyed one more, because it is surely wrong. The limit is 0.8 of that, 8.6 here: above everything
  alive, 3 bit included, and below everything dead.
* not stuck: 30 trigrams of a text that repeats one token have 1 distinct one (0.03), of a cycle of four
  tokens 4 (0.13). The limit is 0.15. A higher one would condemn small models, which repeat whole clauses when
  healthy.

A prompt passes when all three hold; the canary passes when all is finite and more than half of the prompts
pass. It is a tripwire, not a judge: 3-bit weights live, and how much they lost is for the paired comparison
to say.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from quantlab.engines import GenerateRequest, ScoreRequest
from quantlab.errors import BadInput
from quantlab.measure import Bench, Measured, sights
from quantlab.records import Canary, CanaryPrompt

TOKENS = 32
"""Length of a greedy continuation."""
LOST = 0.8
"""Share of log(vocabulary) that a model may pay a token of ordinary text."""
STUCK = 0.15
"""Share of distinct trigrams below which a continuation has collapsed into repetition."""


def canary(bench: Bench) -> Measured:
    """Continue and score the suite's canary prompts; of a picture the answer to its question is scored.

    Raises:
        BadInput: a prompt of fewer than two tokens: nothing of it can be scored.
    """
    started = time.monotonic()
    bench.reporter.progress("canary", 0, 1, "a few sentences")
    prompts = (*bench.suite.canary, *(f"[{Path(one.image).name}] {one.question}" for one in bench.suite.sights))
    ids = [_encode(bench, prompt) for prompt in bench.suite.canary]
    asked = [ScoreRequest(context=one[:1], continuation=one[1:]) for one in ids]
    asked += sights.asked(bench)
    scores = bench.session.logprobs(asked)
    starts = [*ids, *(one.context for one in asked[len(ids) :])]
    texts = bench.session.generate(
        [GenerateRequest(start, TOKENS, images=one.images) for start, one in zip(starts, asked, strict=True)]
    )
    limit = LOST * math.log(len(bench.tokenizer))
    results = [
        _judge(
            prompt,
            bench.tokenizer.decode(list(text.tokens)),
            text.tokens,
            -float(score.logprobs.mean()),
            limit,
        )
        for prompt, text, score in zip(prompts, texts, scores, strict=True)
    ]
    passed, reason = _conclude(results, limit)
    record = Canary(passed=passed, reason=reason, prompts=tuple(results), seconds=round(time.monotonic() - started, 3))
    return record, {}


def _encode(bench: Bench, prompt: str) -> tuple[int, ...]:
    ids = tuple(bench.tokenizer.encode(prompt))
    if len(ids) < 2:
        raise BadInput(
            f"the prompt {prompt!r} has {len(ids)} tokens.",
            place="canary",
            cure="A canary prompt needs two tokens at least.",
        )
    return ids


def _judge(prompt: str, text: str, tokens: tuple[int, ...], nll: float, limit: float) -> CanaryPrompt:
    distinct = distinct_trigrams(tokens)
    finite = math.isfinite(nll)
    if not finite:
        reason = "its log-probabilities are not finite"
    elif nll >= limit:
        reason = f"{nll:.1f} nats a token, the limit is {limit:.1f}"
    elif distinct < STUCK:
        reason = f"it repeats itself: {distinct:.2f} of its trigrams are distinct, the limit is {STUCK}"
    else:
        reason = ""
    return CanaryPrompt(
        prompt=prompt,
        completion=text,
        distinct=distinct,
        nll=nll if finite else None,
        passed=not reason,
        reason=reason,
    )


def distinct_trigrams(tokens: tuple[int, ...]) -> float:
    """Distinct trigrams over all trigrams; 1.0 for fewer than three tokens (the model chose to stop)."""
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(trigrams)) / len(trigrams) if trigrams else 1.0


def _conclude(results: list[CanaryPrompt], limit: float) -> tuple[bool, str]:
    """(passed, one sentence with the figures)."""
    broken = [result for result in results if result.nll is None]
    if broken:
        return False, f"Log-probabilities of {len(broken)} of {len(results)} prompts are not finite."
    good = sum(result.passed for result in results)
    nll = sum(result.nll for result in results if result.nll is not None) / len(results)
    distinct = sum(result.distinct for result in results) / len(results)
    figures = (
        f"{good} of {len(results)} prompts pass: on average {nll:.1f} nats a token (limit {limit:.1f}) and "
        f"{distinct:.2f} of the trigrams distinct (limit {STUCK})."
    )
    return good > len(results) / 2, figures
