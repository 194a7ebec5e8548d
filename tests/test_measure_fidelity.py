"""Windows, the reference file, and what moves when weights move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from quantlab.errors import BadInput, Broken, Refused
from quantlab.measure.fidelity import fidelity, reference
from quantlab.measure.kept import read
from quantlab.measure.windows import windows
from quantlab.records import Fidelity, FidelityAsk, Reference
from tests.measure_bench import TEXT, PlainSession, bench, tiny_folder, tokenizer, with_spec

ASK = FidelityAsk(windows=4, length=40, burn_in=8, top_k=64)


def test_windows_are_spread_evenly_and_begin_with_bos() -> None:
    words = tokenizer()
    text = TEXT.read_text(encoding="utf-8")[:20_000]
    ids = windows(text, words, ASK)
    whole = words.encode(text, add_special_tokens=False)
    assert ids.shape == (4, 40)
    assert ids.dtype == np.int32
    assert (ids[:, 0] == words.bos_token_id).all()
    assert ids[0, 1:].tolist() == whole[:39]
    assert ids[-1, 1:].tolist() == whole[-39:]


def test_a_tokenizer_without_bos_gets_none() -> None:
    words = tokenizer()
    words.backend_tokenizer.post_processor = None
    assert windows("word " * 500, words, ASK)[0].tolist().count(words.bos_token_id) == 0


@pytest.mark.parametrize(
    ("text", "ask", "match"),
    [
        ("too short", ASK, "4 windows of 40 need more"),
        ("word " * 500, FidelityAsk(windows=2, length=8, burn_in=8), "burn_in 8"),
        ("word " * 500, FidelityAsk(windows=2, length=8, burn_in=0), "burn_in 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(text: str, ask: FidelityAsk, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        windows(text, tokenizer(), ask)


def keep(folder: Path, **fields: Any) -> tuple[Reference, str]:
    record, files = reference(bench(folder, **fields))
    assert isinstance(record, Reference)
    return record, files["reference.npz"]


def compare(folder: Path, path: str | None, session: Any = None, **fields: Any) -> Fidelity:
    record, files = fidelity(bench(folder, session, reference=path, **fields))
    assert isinstance(record, Fidelity)
    assert files == {}
    return record


def test_a_model_against_itself_has_not_moved(tmp_path: Path) -> None:
    kept, path = keep(tmp_path)
    record = compare(tmp_path, path)
    assert record.positions == kept.positions == 4 * 32
    assert record.kl.value < 1e-6
    assert record.top1.value == 1.0
    assert record.perplexity_ratio.value == pytest.approx(1.0, abs=1e-6)
    assert record.perplexity.value == pytest.approx(kept.perplexity, rel=1e-6)
    assert record.text_digest == kept.text_digest


def lumped(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
    """KL over the k likeliest tokens of p and all others as one, the slow way."""
    ids = p.topk(k, dim=-1).indices
    rest = torch.ones_like(p).scatter(-1, ids, 0.0)
    sides = [torch.cat([x.exp().gather(-1, ids), (x.exp() * rest).sum(-1, keepdim=True)], -1) for x in (p, q)]
    return (sides[0] * (sides[0].log() - sides[1].log())).sum(-1).mean()


def test_kl_and_agreement_are_those_of_the_full_distributions(tmp_path: Path) -> None:
    _, path = keep(tmp_path)
    moved = PlainSession(tiny_folder())
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in moved.model.parameters():
            weight += 0.1 * weight.abs().mean() * torch.randn_like(weight)
    record = compare(tmp_path, path, moved)
    ids = torch.tensor(windows(TEXT.read_text(encoding="utf-8"), tokenizer(), ASK), dtype=torch.long)
    with torch.no_grad():
        p, q = (m.model(ids[:, :-1]).logits[:, 7:].log_softmax(-1) for m in (PlainSession(tiny_folder()), moved))
    full = float((p.exp() * (p - q)).sum(-1).mean())
    assert record.kl.value == pytest.approx(float(lumped(p, q, 64)), rel=1e-4)
    assert 0.5 * full < record.kl.value < full, "a lower bound"
    assert record.top1.value == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()))
    nll = -q.gather(2, ids[:, 8:, None]).mean()
    assert record.perplexity.value == pytest.approx(float(nll.exp()), rel=1e-4)
    assert record.kl.standard_error is not None
    assert record.kl.standard_error > 0
    assert record.kl_percentiles["50"] < record.kl_percentiles["99"] <= record.kl_percentiles["max"]


def test_the_reference_keeps_the_likeliest_in_order(tmp_path: Path) -> None:
    record, path = keep(tmp_path)
    kept = read(Path(path))
    assert kept.ids.shape == (128, 64)
    assert kept.ids.dtype == np.int32
    assert (np.diff(kept.logprobs, axis=1) <= 0).all()
    mass = np.exp(kept.logprobs).sum(axis=1) + np.exp(kept.tail)
    assert np.abs(mass - 1).max() < 1e-5
    assert record.tail == pytest.approx(float(np.exp(kept.tail).mean()), rel=1e-5)
    assert record.perplexity == pytest.approx(float(np.exp(kept.nll.mean())), rel=1e-5)


def test_a_vocabulary_smaller_than_top_k_is_kept_whole(tmp_path: Path) -> None:
    ask = msgspec.structs.replace(ASK, top_k=4096)
    record, path = keep(tmp_path, fidelity=ask)
    assert (record.top_k, record.tail) == (512, 0.0)
    assert compare(tmp_path, path, fidelity=ask).kl.value < 1e-6


def test_other_text_other_top_k_or_no_reference_are_refused(tmp_path: Path) -> None:
    _, path = keep(tmp_path)
    with pytest.raises(BadInput, match="different tokens"):
        compare(tmp_path, path, fidelity=msgspec.structs.replace(ASK, windows=5))
    with pytest.raises(BadInput, match="keeps 64 tokens"):
        compare(tmp_path, path, fidelity=msgspec.structs.replace(ASK, top_k=32))
    with pytest.raises(BadInput, match="no baseline"):
        compare(tmp_path, None)
    with pytest.raises(BadInput, match="cannot be read"):
        compare(tmp_path, str(tmp_path / "missing.npz"))
    Path(path).write_bytes(Path(path).read_bytes()[:200])
    with pytest.raises(BadInput, match="cannot be read"):
        compare(tmp_path, path)


@pytest.mark.parametrize(("content", "match"), [(None, "no file"), (b"\xff\xfe\x00bad", "not UTF-8")])
def test_a_text_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    at = with_spec(bench(tmp_path, fidelity=msgspec.structs.replace(ASK, text="t.txt")), suite_folder=str(tmp_path))
    with pytest.raises(BadInput, match=match):
        reference(at)


def test_nan_is_broken_and_no_file_is_left(tmp_path: Path) -> None:
    session = PlainSession(tiny_folder())
    with torch.no_grad():
        session.model.lm_head.weight[5, 5] = float("nan")
    with pytest.raises(Broken, match="not finite"):
        reference(bench(tmp_path, session))
    assert not (tmp_path / "reference.npz").exists()


def test_an_engine_without_distributions_is_refused(tmp_path: Path) -> None:
    session = PlainSession(tiny_folder())
    score = session._score
    session._score = lambda request: score(type(request)(request.context, request.continuation))  # type: ignore[method-assign]
    with pytest.raises(Refused, match="no full distributions"):
        reference(bench(tmp_path, session))
