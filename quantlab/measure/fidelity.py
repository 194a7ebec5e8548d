"""How far did each next-token distribution move from the baseline's, on held-out text?

Accuracy counts items and sees little; the distribution sees every position. On SmolLM2-135M FP8 costs 0.9
points with a paired error of 0.5 (1,859 items) while its KL of 0.03 nats is 30 times the noise floor. It
explains and screens; it never decides.

The baseline's distributions are kept once (kept.py), and the candidate is read at the same tokens. KL over k
tokens and a lumped tail is a lower bound (score/divergence.py).

The first `burn_in` positions of a window have too little context to be fair and are skipped. Positions of a
window share its context, so windows are the clusters of all standard errors. One window's distribution is
held at a time: 480 positions of Llama 3 are 246 MB.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from quantlab.engines import ScoreRequest
from quantlab.errors import BadInput, Broken, Refused
from quantlab.measure import Bench, Measured
from quantlab.measure.estimates import CONFIDENCE, estimate
from quantlab.measure.kept import Kept, read, save
from quantlab.measure.stretches import stretches
from quantlab.measure.windows import Ids, text_digest, windows
from quantlab.records import Fidelity, FidelityAsk, Number, Reference
from quantlab.score import divergence
from quantlab.score.paired import mean_with_error

Floats = npt.NDArray[np.float64]
CHUNK = 32
"""Positions converted to float64 at once: 33 MB for Llama 3."""


def reference(bench: Bench) -> Measured:
    """Keep the baseline's distributions in reference.npz.

    Raises:
        BadInput: no text, or too little of it.
        Refused: the engine hands out no full distributions.
        Broken: log-probabilities that are not finite.
    """
    started = time.monotonic()
    ask, ids = _asked(bench)
    parts: list[tuple[Any, ...]] = []
    nll: list[Floats] = []
    for own, distribution in _distributions(bench, "reference", ids, ask):
        nll.append(own)
        parts += [_likeliest(chunk, ask.top_k) for chunk in _chunks(distribution)]
    tokens, logprobs, tail = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = Kept(
        ids=tokens.astype(np.int32),
        logprobs=logprobs.astype(np.float32),
        tail=tail.astype(np.float32),
        nll=np.concatenate(nll).astype(np.float32),
        top_k=ask.top_k,
        text_digest=text_digest(ids),
    )
    path = bench.folder / "reference.npz"
    save(kept, path)
    record = Reference(
        path=path.name,
        text_digest=kept.text_digest,
        positions=len(kept.nll),
        top_k=kept.ids.shape[1],
        tail=float(np.exp(kept.tail.astype(np.float64)).mean()),
        perplexity=math.exp(kept.nll.astype(np.float64).mean()),
        seconds=round(time.monotonic() - started, 3),
    )
    return record, {path.name: str(path.resolve())}


def fidelity(bench: Bench) -> Measured:
    """Hold this session's distributions against the baseline's reference.

    Raises:
        BadInput: there is no reference, or it was made from another text or another top_k.
        Refused: the engine hands out no full distributions.
        Broken: log-probabilities that are not finite.
    """
    started = time.monotonic()
    ask, ids = _asked(bench)
    kept = _matching(bench, ask, ids)
    row = 0
    kl: list[Floats] = []
    top: list[npt.NDArray[np.int64]] = []
    nll: list[Floats] = []
    for own, distribution in _distributions(bench, "fidelity", ids, ask):
        nll.append(own)
        for chunk in _chunks(distribution):
            there = slice(row, row + len(chunk))
            with _sound():
                at, tail = divergence.at_ids(chunk, kept.ids[there])
                kl.append(divergence.kl_topk(kept.ids[there], kept.logprobs[there], kept.tail[there], at, tail))
            top.append(chunk.argmax(axis=1))
            row += len(chunk)
    labels = np.repeat(np.arange(len(ids)), ask.length - ask.burn_in) if len(ids) > 1 else None
    record = _conclude(kept, np.concatenate(kl), np.concatenate(top), np.concatenate(nll), labels, started)
    base, after, apart = (_by_window(part, len(ids)) for part in ([kept.nll], nll, kl))
    return msgspec.structs.replace(record, stretches=stretches(ask.burn_in, base, after, apart)), {}


def _by_window(parts: Sequence[npt.NDArray[Any]], count: int) -> Floats:
    """float64 [windows, positions]"""
    found: Floats = np.concatenate(parts).astype(np.float64).reshape(count, -1)
    return found


def _conclude(kept: Kept, kl: Floats, top: npt.NDArray[np.int64], nll: Floats, labels: Any, started: float) -> Fidelity:
    if not np.isfinite(kl).all():
        raise Broken(
            f"{int((~np.isfinite(kl)).sum())} positions rule out what the baseline deems possible.",
            place="fidelity",
            cure="The checkpoint is broken: look at verify and at the canary.",
        )
    spread = divergence.summary(kl, labels)
    agreement, agreement_error = divergence.top1_agreement(kept.ids[:, 0], top, labels)
    ratio = divergence.perplexity_ratio(kept.nll, nll, labels, CONFIDENCE)
    mean_nll, nll_error = mean_with_error(nll, labels)
    perplexity = math.exp(mean_nll)
    groups = len(kl) if labels is None else len(np.unique(labels))
    n = len(kl)
    return Fidelity(
        text_digest=kept.text_digest,
        positions=n,
        kl=estimate(spread.mean, spread.standard_error, groups, "nats", n, better="lower"),
        kl_percentiles={
            "50": spread.p50,
            "90": spread.p90,
            "95": spread.p95,
            "99": spread.p99,
            "max": spread.max,
        },
        top1=estimate(agreement, agreement_error, groups, "share", n, high=1.0),
        perplexity=estimate(perplexity, perplexity * nll_error, groups, "ratio", n, better="lower"),
        perplexity_ratio=Number(
            value=ratio.ratio,
            unit="ratio",
            n=n,
            standard_error=ratio.standard_error,
            low=ratio.low,
            high=ratio.high,
            confidence=CONFIDENCE,
            better="lower",
        ),
        seconds=round(time.monotonic() - started, 3),
    )


def _asked(bench: Bench) -> tuple[FidelityAsk, Ids]:
    """The suite's line and the windows of its text."""
    ask = bench.suite.fidelity
    if ask is None:
        raise BadInput("the suite has no fidelity text.", place="suite", cure="Add `fidelity: {}` to it.")
    path = bench.beside_suite(ask.text)
    if not path.is_file():
        raise BadInput(f"there is no file {path}.", place="suite, field fidelity", cure="Correct the path.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("the text is not UTF-8.", place=str(path), cure="Convert it to UTF-8.") from error
    return ask, windows(text, bench.tokenizer, ask)


def _distributions(
    bench: Bench, stage: str, ids: Ids, ask: FidelityAsk
) -> Iterator[tuple[Floats, npt.NDArray[np.float32]]]:
    """For each window: nll [positions] of its own tokens and log-probabilities [positions, vocabulary]."""
    for place, window in enumerate(ids):
        bench.reporter.progress(stage, place, len(ids), "windows")
        tokens = tuple(int(token) for token in window)
        request = ScoreRequest(context=tokens[: ask.burn_in], continuation=tokens[ask.burn_in :], full=True)
        (score,) = bench.session.logprobs([request])
        if score.distribution is None:
            raise Refused(
                "the engine hands out no full distributions.",
                place=f"stage {stage}",
                cure="Measure fidelity with another engine, or take a suite without `fidelity`.",
            )
        if not np.isfinite(score.logprobs).all():
            raise Broken("log-probabilities are not finite.", place=f"stage {stage}, window {place}")
        yield -score.logprobs.astype(np.float64), score.distribution
    bench.reporter.progress(stage, len(ids), len(ids), "windows")


def _chunks(distribution: npt.NDArray[np.float32]) -> Iterator[Floats]:
    for start in range(0, len(distribution), CHUNK):
        yield distribution[start : start + CHUNK].astype(np.float64)


def _likeliest(chunk: Floats, top_k: int) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """ids and log-probabilities [T, k], likeliest first, and tail [T]. Selecting before sorting is 5 times
    faster."""
    k = min(top_k, chunk.shape[1])
    some = np.argpartition(-chunk, k - 1, axis=1)[:, :k]
    order = np.lexsort((some, -np.take_along_axis(chunk, some, axis=1)), axis=1)
    ids = np.take_along_axis(some, order, axis=1)
    with _sound():
        kept, tail = divergence.at_ids(chunk, ids)
    return ids, kept, tail


@contextmanager
def _sound() -> Iterator[None]:
    """score/ raises ValueError on what is no distribution: here that means a broken checkpoint or engine."""
    try:
        yield
    except ValueError as error:
        raise Broken(f"{error}.", place="fidelity", cure="Look at verify and at the canary.") from error


def _matching(bench: Bench, ask: FidelityAsk, ids: Ids) -> Kept:
    """The baseline's reference, if it was made from the same tokens and as many of the likeliest."""
    if bench.spec.reference is None:
        raise BadInput("there is no baseline to compare with.", place="fidelity", cure="Measure the baseline first.")
    kept = read(Path(bench.spec.reference))
    if kept.text_digest != text_digest(ids):
        raise BadInput(
            "baseline and candidate read different tokens: another text, other windows or another tokenizer.",
            place="fidelity",
            cure="Measure both with the same suite and the same tokenizer.",
        )
    if kept.top_k != ask.top_k:
        raise BadInput(
            f"the baseline keeps {kept.top_k} tokens a position, the suite asks for {ask.top_k}.",
            place="fidelity",
            cure="Measure the baseline again with this suite.",
        )
    return kept
