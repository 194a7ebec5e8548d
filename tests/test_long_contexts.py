"""Rounded caches and scaled rotary embeddings beyond the original context, on real engines and tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from quantlab.engines import ScoreRequest, engine
from quantlab.measure.fidelity import fidelity, reference
from quantlab.records import Artifact, Checkpoint, EngineConfig, Fidelity, FidelityAsk
from tests.conftest import Export
from tests.measure_bench import bench
from tests.test_formats_onnx import export as export  # the fixture: skips where onnx is missing
from tests.test_formats_onnx import job, logits

ASK = FidelityAsk(windows=3, length=256, burn_in=16, top_k=64)
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@contextmanager
def opened(folder: Path, form: str = "bf16", kv_cache: str = "none") -> Iterator[Any]:
    """Engine torch in float32 on the CPU."""
    made = Checkpoint(
        path=str(folder), digest="d", recipe=form, format=form, architecture="LlamaForCausalLM", kv_cache=kv_cache
    )
    numerics: Any = "native" if form == "bf16" and kv_cache == "none" else "emulated"
    artifact = Artifact(engine="torch", path=str(folder), checkpoint=made, numerics=numerics)
    with engine("torch").open(artifact, EngineConfig(device="cpu", dtype="float32", token_budget=512)) as session:
        yield session


def moved(tmp_path: Path, before: tuple[Path, str, str], after: tuple[Path, str, str]) -> Fidelity:
    """Fidelity of one checkpoint against another."""
    with opened(*before) as session:
        _, files = reference(bench(tmp_path, session, fidelity=ASK))
    with opened(*after) as session:
        record, _ = fidelity(bench(tmp_path, session, fidelity=ASK, reference=files["reference.npz"]))
    assert isinstance(record, Fidelity)
    return record


def with_scales(source: Path, into: Path, factor: float) -> Path:
    """The export with its cache's scales multiplied."""
    shutil.copytree(source, into)
    tensors = load_file(into / "model.safetensors")
    scales = {name: factor * value for name, value in tensors.items() if name.endswith(("k_scale", "v_scale"))}
    save_file(tensors | scales, into / "model.safetensors", metadata={"format": "pt"})
    return into


def without_cache(source: Path, into: Path) -> Path:
    """The same quantized weights over a cache in 16 bit."""
    shutil.copytree(source, into)
    tensors = load_file(into / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.endswith(("k_scale", "v_scale"))}
    save_file(kept, into / "model.safetensors", metadata={"format": "pt"})
    for name in ("hf_quant_config.json", "config.json"):
        said = json.loads((into / name).read_text(encoding="utf-8"))
        said.get("quantization", {}).pop("kv_cache_quant_algo", None)
        said.get("quantization_config", {}).pop("kv_cache_scheme", None)
        (into / name).write_text(json.dumps(said), encoding="utf-8")
    return into


def test_a_coarse_cache_shows_at_every_length_and_a_fine_one_hardly(fp8_kv_export: Export, tmp_path: Path) -> None:
    """E4M3 numbers under 2^-6 lie evenly, 2^-9 apart. A scale 448 x 64 times as large puts the largest key and value at
    2^-6: eight steps to either side, an integer cache of 4 bits."""
    plain = without_cache(fp8_kv_export.folder, tmp_path / "plain")
    scales = load_file(fp8_kv_export.folder / "model.safetensors")
    assert all(float(scales[name]) > 0 for name in scales if name.endswith("k_scale"))
    coarse = with_scales(fp8_kv_export.folder, tmp_path / "coarse", 448 * 64)
    base = (plain, "fp8", "none")
    none = moved(tmp_path, base, base)
    fine = moved(tmp_path, base, (fp8_kv_export.folder, "fp8", "fp8"))
    rough = moved(tmp_path, base, (coarse, "fp8", "fp8"))
    assert len(rough.stretches) == 4
    for zero, small, large in zip(none.stretches, fine.stretches, rough.stretches, strict=True):
        assert zero.kl.value < 1e-6
        assert 1e-6 < small.kl.value < large.kl.value / 4
        assert (large.start, large.stop) == (zero.start, zero.stop)


def test_a_shared_context_is_rounded_as_a_whole_one(fp8_kv_export: Export) -> None:
    """Two continuations whose keys and values come partly out of the kept trunk, against one at a time."""
    rng = np.random.default_rng(0)
    context = tuple(int(token) for token in rng.integers(2, 512, 200))
    asks = [ScoreRequest(context, tuple(int(token) for token in rng.integers(2, 512, 6))) for _ in range(3)]
    with opened(fp8_kv_export.folder, "fp8", "fp8") as session:
        together = session.logprobs(asks)
        apart = [session.logprobs([ask])[0] for ask in asks]
    with opened(fp8_kv_export.folder, "fp8", "fp8") as session:
        session.model.set_attn_implementation("sdpa")
        unrounded = session.logprobs(asks)
    for one, other, plain in zip(together, apart, unrounded, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=5e-3)
        assert np.abs(plain.logprobs - one.logprobs).max() > 3 * np.abs(other.logprobs - one.logprobs).max()


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A random Llama with Llama 3's scaled rotary embedding, 32 original positions and 512 in all."""
    return _llama(tmp_path_factory.mktemp("scaled") / "m", tiny_model, ROPE)


def _llama(folder: Path, words: Path, rope: dict[str, Any]) -> Path:
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters=dict(rope),
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(words / name, folder / name)
    return folder


IDS = np.random.default_rng(1).integers(2, 512, (1, 300))


def test_engine_torch_turns_as_transformers_does_beyond_the_original_context(scaled: Path) -> None:
    whole = LlamaForCausalLM.from_pretrained(scaled, dtype=torch.float32)
    with torch.inference_mode():
        wanted = whole(torch.from_numpy(IDS)).logits[0].log_softmax(-1).numpy()
    tokens = tuple(int(token) for token in IDS[0])
    asks = [ScoreRequest(tokens[:200], tokens[200:], full=True), ScoreRequest(tokens[:200], tokens[200:205])]
    with opened(scaled) as session:
        (score, part) = session.logprobs(asks)
    np.testing.assert_allclose(score.distribution, wanted[199:-1], atol=2e-4)
    np.testing.assert_allclose(part.logprobs, score.logprobs[:5], atol=1e-4)


def test_the_onnx_graph_turns_as_engine_torch_does_beyond_the_original_context(
    export: Any, scaled: Path, tmp_path: Path, tiny_model: Path
) -> None:
    export(job(scaled, tmp_path / "x"))
    got = logits(tmp_path / "x", IDS)
    tokens = tuple(int(token) for token in IDS[0])
    ask = ScoreRequest(tokens[:1], tokens[1:], full=True)
    wanted, unscaled = (_distribution(each, ask) for each in (scaled, _unscaled(tmp_path, tiny_model)))
    got = got[0, :-1] - np.log(np.exp(got[0, :-1]).sum(-1, keepdims=True))
    assert np.abs(got - wanted).max() < 2e-3
    assert np.abs(unscaled - wanted)[64:].max() > 0.1, "scaling or not makes a difference here"


def _unscaled(tmp_path: Path, words: Path) -> Path:
    return _llama(tmp_path / "unscaled", words, {"rope_type": "default", "rope_theta": 10000.0})


def _distribution(folder: Path, ask: ScoreRequest) -> Any:
    with opened(folder) as session:
        return session.logprobs([ask])[0].distribution


def test_a_rotary_embedding_that_is_not_scaled_shows_late_in_the_window(tmp_path: Path, tiny_model: Path) -> None:
    """Only turns slower than 256 positions are scaled here: early in a window they have hardly begun."""
    slow = _llama(tmp_path / "slow", tiny_model, ROPE | {"original_max_position_embeddings": 256})
    record = moved(tmp_path, (slow, "bf16", "none"), (_unscaled(tmp_path, tiny_model), "bf16", "none"))
    found = [one.kl.value for one in record.stretches]
    assert found == sorted(found)
    assert found[-1] > 2 * found[0]
