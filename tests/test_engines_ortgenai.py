"""Engine ortgenai beside the seam's contract: what it takes, what it refuses, and the SDK's habits it works around.

What needs onnxruntime-genai is skipped where it is not installed (`make test-ortgenai`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quantlab.engines import GenerateRequest, ScoreRequest, engine, ortgenai
from quantlab.engines.ortgenai_scoring import score
from quantlab.errors import BadInput, Broken, NoAccess, Refused
from quantlab.formats.onnx_model import RECORD, placeless
from quantlab.records import Artifact, Checkpoint, EngineConfig, Gpu, Host, OnnxModel, encode

HOST = Host(system="test", python="3.11", cpu="test", cores=2, memory_bytes=2**33)
RNG = np.random.default_rng(17)
CPU = EngineConfig(device="cpu", activations="keep")


def checkpoint(folder: Path | str = "x", format_: str = "bf16", **more: Any) -> Checkpoint:
    given = {"architecture": "LlamaForCausalLM", "digest": "0", **more}
    return Checkpoint(path=str(folder), recipe=format_, format=format_, **given)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Let a package look installed."""

    def look(package: str, version: str) -> None:
        def ask(name: str) -> str:
            if name != package:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", ask)

    return look


# --- without the SDK


def test_an_absent_or_other_version_is_a_sentence(installed: Callable[[str, str], None]) -> None:
    made = engine("ortgenai")
    installed("nothing", "1")
    assert "environments/ortgenai.txt" in (made.supports(checkpoint(), HOST) or "")
    with pytest.raises(NoAccess, match="not installed"):
        made.version()
    for version in ("0.17.2", "0.19.0", "1.0"):
        installed("onnxruntime-genai", version)
        assert "knows onnxruntime-genai>=0.18,<0.19" in (made.supports(checkpoint(), HOST) or "")
    installed("onnxruntime-genai-cuda", "0.18.1")
    assert made.supports(checkpoint(), HOST) is None
    assert made.version() == "onnxruntime-genai-cuda 0.18.1"


def test_no_sdk_is_imported_to_ask(installed: Callable[[str, str], None]) -> None:
    installed("onnxruntime-genai", "0.18.0")
    made, before = engine("ortgenai"), set(sys.modules)
    assert made.supports(checkpoint(format_="fp8"), HOST) is None
    assert made.numerics(checkpoint(format_="fp8"), HOST) == "emulated"
    assert made.numerics(checkpoint(format_="int4_awq"), HOST) == "native"
    assert made.numerics(checkpoint(simulated=True), HOST) == "simulated"
    assert not {"onnx", "onnxruntime", "onnxruntime_genai"} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    ("words", "finding"),
    [
        ({"architecture": "MllamaForConditionalGeneration"}, "Vision"),
        ({"architecture": "Qwen2ForCausalLM"}, "Qwen2ForCausalLM"),
        ({"format_": "nvfp4"}, "nvfp4"),
        ({"kv_cache": "fp8"}, "key/value cache"),
    ],
)
def test_what_the_graph_cannot_do_is_a_sentence(
    installed: Callable[[str, str], None], words: dict[str, Any], finding: str
) -> None:
    installed("onnxruntime-genai", "0.18.0")
    assert finding in (engine("ortgenai").supports(checkpoint(**words), HOST) or "")


@pytest.mark.parametrize(
    ("package", "device", "provider"),
    [
        ("onnxruntime-genai", "auto", "cpu"),
        ("onnxruntime-genai-cuda", "auto", "cuda"),
        ("onnxruntime-genai-winml", "auto", "dml"),
        ("onnxruntime-genai", "cuda:1", "cuda"),
        ("onnxruntime-genai", "trt-rtx", "trt-rtx"),
    ],
)
def test_devices_are_providers(installed: Callable[[str, str], None], package: str, device: str, provider: str) -> None:
    installed(package, "0.18.0")
    assert ortgenai.provider_of(device) == provider


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:1", "cuda:", ""])
def test_other_devices_are_bad_input(device: str) -> None:
    with pytest.raises(BadInput, match="no device"):
        ortgenai.provider_of(device)


def test_choices_about_int4_leave_the_baseline_alone() -> None:
    asked = EngineConfig(device="cpu", head="int4", activations="int8")
    baseline = ortgenai.job_of(checkpoint(), Path("x"), asked)
    int4 = ortgenai.job_of(checkpoint(format_="int4_awq"), Path("x"), asked)
    assert (baseline.head, baseline.activations, baseline.dtype) == ("keep", "keep", "float32")
    assert (int4.head, int4.activations, int4.dtype) == ("int4", "int8", "float32")
    auto = [ortgenai.job_of(checkpoint(format_="int4"), Path(), EngineConfig(device=d)) for d in ("cpu", "cuda")]
    assert [job.activations for job in auto] == ["int8", "keep"]
    assert ortgenai.job_of(checkpoint(), Path("x"), EngineConfig(device="cuda")).dtype == "float16"
    assert engine("ortgenai").builds(checkpoint(format_="int4_awq"), asked) != engine("ortgenai").builds(  # type: ignore[attr-defined]
        checkpoint(format_="int4_awq"), CPU
    )


def test_a_folder_that_is_not_whole_or_other_is_not_opened(tmp_path: Path) -> None:
    source = checkpoint("y", "int4_awq")
    made = Artifact(engine="ortgenai", path=str(tmp_path), checkpoint=source)

    def opened(config: EngineConfig = CPU) -> None:
        with engine("ortgenai").open(made, config):
            raise AssertionError("it was opened")

    with pytest.raises(Broken, match="no ONNX model"):
        opened()
    job = placeless(ortgenai.job_of(source, tmp_path, CPU))
    record = OnnxModel(job=job, protocol=1, layers=1, quantized=7, files={"model.onnx": 4, "model.onnx.data": 9})
    (tmp_path / RECORD).write_bytes(encode(record))
    (tmp_path / "model.onnx").write_bytes(b"1234")
    (tmp_path / "model.onnx.data").write_bytes(b"12345678")
    with pytest.raises(Broken, match=r"model\.onnx\.data has 8 bytes, and 9 were written"):
        opened()
    (tmp_path / "model.onnx.data").write_bytes(b"123456789")
    with pytest.raises(Refused, match="built for cpu float32, head keep"):
        opened(EngineConfig(device="cpu", head="int8", activations="keep"))


class _Walker:
    """A generator that answers each position with a hash of all tokens up to it, and counts what it is fed."""

    def __init__(self, vocabulary: int, held: list[int]) -> None:
        self.vocabulary, self.tokens, self.held = vocabulary, [], held

    def rewind_to(self, length: int) -> None:
        del self.tokens[length:]

    def append_tokens(self, tokens: np.ndarray) -> None:
        assert tokens.dtype == np.int32
        start = len(self.tokens)
        self.tokens += tokens[0].tolist()
        self.held.append(tokens.shape[1])
        self.rows = np.stack([_row(self.tokens[: at + 1], self.vocabulary) for at in range(start, len(self.tokens))])

    def get_output(self, name: str) -> np.ndarray:
        assert name == "logits"
        return self.rows[None]


def _row(tokens: list[int], vocabulary: int) -> np.ndarray:
    return np.random.default_rng(tokens).standard_normal(vocabulary).astype(np.float32)


def test_each_token_of_the_prefix_tree_is_fed_once() -> None:
    """Any mix of shared, nested, equal and empty requests is answered as each alone would be."""
    rng = np.random.default_rng(0)
    stem = tuple(int(t) for t in rng.integers(0, 20, 8))
    asked = []
    for _ in range(60):
        context = (*stem[: rng.integers(1, 9)], *(int(t) for t in rng.integers(0, 3, rng.integers(0, 4))))
        words = tuple(int(t) for t in rng.integers(0, 3, rng.integers(0, 5)))
        asked.append(ScoreRequest(context, words, full=bool(rng.integers(0, 2))))
    fed: list[int] = []
    for request, found in zip(asked, score(asked, 20, lambda length: _Walker(20, fed)), strict=True):
        rows = [_row([*request.context, *request.continuation[:at]], 20) for at in range(len(request.continuation))]
        logs = [row - np.log(np.exp(row).sum()) for row in rows]
        np.testing.assert_allclose(
            found.logprobs, [row[t] for row, t in zip(logs, request.continuation, strict=True)], atol=1e-6
        )
        assert found.greedy == all(int(row.argmax()) == t for row, t in zip(logs, request.continuation, strict=True))
        assert (found.distribution is not None) == request.full
    paths = {(*r.context, *r.continuation[:-1]) for r in asked if r.continuation}
    assert sum(fed) == len({path[: n + 1] for path in paths for n in range(len(path))})


def test_a_long_sequence_is_fed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlab.engines.ortgenai_scoring.LOGITS_AT_ONCE", 60)
    fed: list[int] = []
    asked = [ScoreRequest((1,), tuple(range(2, 12))), ScoreRequest((1, 2, 3), (4, 9))]
    pieces = score(asked, 20, lambda length: _Walker(20, fed))
    assert max(fed) == 3
    monkeypatch.undo()
    whole = score(asked, 20, lambda length: _Walker(20, fed))
    assert all(np.array_equal(a.logprobs, b.logprobs) for a, b in zip(pieces, whole, strict=True))


def test_building_without_the_package_onnx_says_what_to_install(
    installed: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed("onnxruntime-genai", "0.18.0")
    for name in [name for name in sys.modules if name.startswith("quantlab.formats.onnx_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(NoAccess, match="package onnx"):
        engine("ortgenai").build(checkpoint(tmp_path), tmp_path / "x", CPU, HOST)


def test_its_environment_takes_what_quantlab_is_tested_with() -> None:
    root = Path(__file__).resolve().parent.parent

    def pins(name: str) -> dict[str, str]:
        lines = (root / name).read_text().splitlines()
        found = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
        return {package.lower().replace("_", "-"): version for package, version in found}

    own, all_ = pins("environments/ortgenai.txt"), pins("constraints.txt")
    assert own["onnxruntime-genai"].startswith("0.18.")
    assert {"torch", "transformers", "lm-eval"} <= own.keys() & all_.keys()
    assert {name: own[name] for name in own.keys() & all_.keys()} == {
        name: all_[name] for name in own.keys() & all_.keys()
    }


# --- with the SDK


@pytest.fixture(scope="module")
def session(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if ortgenai.installed() is None:
        pytest.skip("onnxruntime-genai is not installed: `make test-ortgenai`")
    made = engine("ortgenai")
    into = tmp_path_factory.mktemp("ort") / "x"
    artifact = made.build(checkpoint(tiny_model), into, CPU, HOST)
    assert artifact.path == str(into)
    assert artifact.engine_version.endswith(", cpu float32")
    with made.open(artifact, msgspec.structs.replace(CPU, max_length=64)) as opened:
        yield opened


def prompts(length: int, count: int = 4) -> list[tuple[int, ...]]:
    return [tuple(int(t) for t in RNG.integers(2, 512, length)) for _ in range(count)]


def test_a_row_that_makes_the_token_which_the_sdk_takes_for_the_end_goes_on(session: Any) -> None:
    asked = [GenerateRequest(prompt, 8, ignore_eos=True) for prompt in prompts(12)]
    usual = session.generate(asked)
    usual_rim = session._rim
    try:
        for place in (0, 3):
            session._rim = usual[0].tokens[place]
            session._model = session._load("cpu", "cpu", 1)
            for before, after in zip(usual, session.generate(asked), strict=True):
                assert after.tokens == before.tokens
                assert after.finish == "length"
                assert 0 < after.first_token_seconds <= after.seconds
    finally:
        session._rim = usual_rim
        session._model = session._load("cpu", "cpu", 1)


def test_a_prompt_may_hold_the_padding_token(session: Any, tiny_model: Path) -> None:
    said = json.loads((session._folder / "genai_config.json").read_text())["model"]
    padding = said["pad_token_id"]
    asked = [GenerateRequest((*prompt[:4], padding, *prompt[5:]), 5, ignore_eos=True) for prompt in prompts(10)]
    together = session.generate(asked)
    assert [one.tokens for one in together] == [session.generate([one])[0].tokens for one in asked]
    for request, done in zip(asked, together, strict=True):
        assert session.logprobs([ScoreRequest(request.prompt, done.tokens)])[0].greedy


def test_the_real_end_of_sequence_stops_a_row_and_is_taken_off(session: Any) -> None:
    ends = session._ends
    assert ends == {1}
    found = [
        (request, done)
        for request in (GenerateRequest(prompt, 30) for prompt in prompts(2, 60))
        for done in session.generate([request])
        if done.finish == "stop"
    ]
    assert found, "some of 60 random prompts come to an end"
    for request, done in found:
        forever = session.generate([GenerateRequest(request.prompt, len(done.tokens) + 1, ignore_eos=True)])[0]
        assert forever.tokens == (*done.tokens, 1)


def test_another_choice_builds_the_folder_anew_and_is_in_the_version(
    session: Any, tiny_int4_awq: Path, tmp_path: Path
) -> None:
    made, source = engine("ortgenai"), checkpoint(tiny_int4_awq, "int4_awq")
    exact = made.build(source, tmp_path / "x", CPU, HOST)
    fast = made.build(source, tmp_path / "x", EngineConfig(device="cpu", head="int8", activations="int8"), HOST)
    assert exact.notes == ()
    assert len(fast.notes) == 2
    assert exact.engine_version.endswith("head keep, activations keep")
    assert fast.engine_version.endswith("head int8, activations int8")
    with pytest.raises(Refused, match="head int8"), made.open(exact, CPU):
        pass


def test_a_file_that_is_no_model_is_broken(session: Any, tiny_model: Path, tmp_path: Path) -> None:
    made = engine("ortgenai")
    artifact = made.build(checkpoint(tiny_model), tmp_path / "x", CPU, HOST)
    file = tmp_path / "x" / "model.onnx"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(Broken, match="cannot open it"), made.open(artifact, CPU):
        pass
    (tmp_path / "x" / "genai_config.json").write_text("{}")
    with pytest.raises(Broken, match="genai_config"), made.open(artifact, CPU):
        pass


def test_a_gpu_that_is_not_there_is_refused(session: Any, tiny_model: Path, tmp_path: Path) -> None:
    config = EngineConfig(device="cuda")
    host = msgspec.structs.replace(HOST, gpus=(Gpu(name="GPU", memory_bytes=1, compute_capability="8.9"),))
    artifact = engine("ortgenai").build(checkpoint(tiny_model), tmp_path / "x", config, host)
    with pytest.raises(Refused, match="CUDA"), engine("ortgenai").open(artifact, config):
        pass
