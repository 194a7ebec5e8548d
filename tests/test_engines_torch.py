"""The torch engine: scores against transformers one by one, the packing plan by property, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quantlab.engines import GenerateRequest, ScoreRequest, engine
from quantlab.engines.torch import TorchEngine
from quantlab.engines.torch_packing import Paths, Trunk, batches, mask, plan, rows
from quantlab.engines.torch_session import TorchSession
from quantlab.errors import Refused
from quantlab.records import Artifact, EngineConfig, Gpu, Host
from tests.test_engines_contract import HOST, artifact, requests

FLOAT32 = EngineConfig(device="cpu", dtype="float32")


def opened(folder: Path, format_: str = "bf16", config: EngineConfig = FLOAT32) -> TorchSession:
    return TorchSession(artifact("torch", format_, folder), config)


def one_by_one(model: torch.nn.Module, asked: list[ScoreRequest]) -> list[tuple[np.ndarray, bool]]:
    """What transformers says without any batching or sharing."""
    answers = []
    with torch.inference_mode():
        for request in asked:
            ids = torch.tensor([(*request.context, *request.continuation)])
            logits = model(ids).logits[0, len(request.context) - 1 : -1].float()
            goal = torch.tensor(request.continuation)
            values = logits.log_softmax(-1).gather(1, goal[:, None])[:, 0].numpy()
            answers.append((values, bool((logits.argmax(-1) == goal).all())))
    return answers


def few_shot(seed: int, shots: int, items: int) -> list[ScoreRequest]:
    rng = np.random.default_rng(seed)
    shared = tuple(int(token) for token in rng.integers(2, 512, shots))
    asked = requests(seed, items, 4)
    return [ScoreRequest((*shared, *request.context), request.continuation) for request in asked]


CASES = {
    "choices": requests(7, 12, 4),
    "one token": [ScoreRequest(r.context, r.continuation[:1]) for r in requests(8, 8, 4)],
    "few-shot": few_shot(9, 150, 24),
    "few-shot in two subjects": few_shot(10, 300, 16) + few_shot(11, 300, 16),
    "long": [ScoreRequest(tuple(range(2, 500)), tuple(range(500, 3, -1)))],
    "growing": [ScoreRequest(tuple(range(2, n)), (n,)) for n in range(3, 400, 3)],
    "nested": [ScoreRequest((5,), tuple(range(6, n))) for n in range(7, 300, 9)],
}


@pytest.mark.parametrize("budget", [64, 4096])
@pytest.mark.parametrize("case", CASES)
def test_scores_equal_transformers_one_by_one(tiny_model: Path, case: str, budget: int) -> None:
    session = opened(tiny_model, config=EngineConfig(device="cpu", dtype="float32", token_budget=budget))
    asked = CASES[case]
    got = session.logprobs(asked)
    for score, (wanted, greedy) in zip(got, one_by_one(session.model, asked), strict=True):
        np.testing.assert_allclose(score.logprobs, wanted, atol=1e-4)
        assert score.greedy == greedy


def test_shared_tokens_are_computed_once(tiny_model: Path) -> None:
    session = opened(tiny_model)
    asked = CASES["few-shot in two subjects"]
    session.logprobs(asked)
    paths = Paths([(*r.context, *r.continuation[:-1]) for r in asked])
    unique = paths.unique(range(len(paths.tokens)), 0)
    naive = sum(len(r.context) + len(r.continuation) - 1 for r in asked)
    assert naive > 5 * unique
    assert session.scorer.tokens_computed <= 1.25 * unique


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=40),
    st.integers(4, 40),
    st.integers(4, 16),
)
@settings(max_examples=150, deadline=None)
def test_plan_covers_every_token_of_every_path(sequences: list[list[int]], budget: int, row: int) -> None:
    """Follow each path down its trunks and its tree: the tokens met are its own, in order, each once."""
    paths = Paths(sequences)
    walked: dict[int, list[int]] = {}

    def walk(trunk: Trunk, above: list[int]) -> None:
        assert trunk.stop - trunk.start <= budget
        here = above + paths.tokens[trunk.sample][trunk.start : trunk.stop].tolist()
        for tree in trunk.trees:
            for path, nodes in tree.paths:
                assert path not in walked
                walked[path] = here + tree.tokens[nodes].tolist()
                assert tree.positions[nodes].tolist() == list(range(trunk.stop, len(walked[path])))
        for index in trunk.members:
            if len(paths.tokens[index]) == trunk.stop and index not in walked:
                walked[index] = here
        for child in trunk.children:
            walk(child, here)
        packed = rows(trunk.trees, row)
        assert sorted(id(tree) for bin_ in packed for tree in bin_) == sorted(id(tree) for tree in trunk.trees)
        for bins in batches(packed, budget):
            assert len(bins) == 1 or len(bins) * max(sum(len(t.tokens) for t in bin_) for bin_ in bins) <= budget

    walk(plan(paths, budget, row), [])
    assert [walked[place] for place in paths.order] == sequences


def test_mask_shows_ancestors_and_nothing_else() -> None:
    paths = Paths([[1, 2, 3], [1, 2, 4], [1, 5]])
    tree = paths.tree(range(3), 0)
    seen = mask([[tree]], 6, past=1)[0, 0]
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5]
    assert seen.astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 1],
    ]


def test_generation_equals_transformers(tiny_model: Path) -> None:
    session = opened(tiny_model)
    prompts = [tuple(range(10, 30)), tuple(range(60, 68))]
    done = session.generate([GenerateRequest(prompt, 12, ignore_eos=True) for prompt in prompts])
    for prompt, completion in zip(prompts, done, strict=True):
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(12):
                tokens.append(int(session.model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert list(completion.tokens) == tokens[len(prompt) :]


def test_end_of_sequence_stops_and_is_not_part_of_the_text(tiny_model: Path) -> None:
    session = opened(tiny_model)
    prompt = tuple(range(10, 30))
    whole = session.generate([GenerateRequest(prompt, 6, ignore_eos=True)])[0].tokens
    session._generator.ends = frozenset({whole[3]})
    cut = whole.index(whole[3])
    done = session.generate([GenerateRequest(prompt, 6), GenerateRequest(prompt, 2)])
    assert done[0].tokens == whole[:cut]
    assert done[0].finish == "stop"
    assert done[1].tokens == whole[: min(2, cut)]


@pytest.mark.parametrize("shared", [0, 100], ids=["nothing shared", "shared shots"])
@pytest.mark.parametrize("alike", [True, False], ids=["equal lengths", "unequal lengths"])
def test_rows_that_stop_leave_and_shared_shots_run_once_without_changing_an_answer(
    tiny_model: Path, shared: int, alike: bool
) -> None:
    session = opened(tiny_model)
    rng = np.random.default_rng(3)
    shots = tuple(int(token) for token in rng.integers(2, 512, shared))
    lengths = [6] * 8 if alike else [2, 9, 4, 7, 5, 3, 8, 6]
    prompts = [(*shots, *(int(token) for token in rng.integers(2, 512, n))) for n in lengths]
    asked = [GenerateRequest(prompt, 4 * n + 1) for n, prompt in enumerate(prompts)]
    alone = [session.generate([request])[0].tokens for request in asked]
    assert len({len(tokens) for tokens in alone}) > 3, "rows must end at different steps"
    fed: list[int] = []
    session._generator.body.register_forward_pre_hook(
        lambda module, positional, named: fed.append(named["input_ids"].numel()), with_kwargs=True
    )
    together = session.generate(asked)
    assert [one.tokens for one in together] == alone
    padded = sum(shots_and_rest(prompts, shared)) if shared else len(prompts) * max(lengths)
    assert sum(fed) <= padded + 1.5 * sum(len(tokens) for tokens in alone)


def shots_and_rest(prompts: list[tuple[int, ...]], shared: int) -> tuple[int, int]:
    return shared, len(prompts) * (max(map(len, prompts)) - shared)


def test_nan_weights_come_out_as_nan(tiny_model: Path, tmp_path: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    score = opened(tmp_path).logprobs([ScoreRequest((5, 6), (7, 8))])[0]
    assert np.isnan(score.logprobs).all()
    assert not score.greedy


def test_a_model_that_changes_its_logits_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM.forward

    def capped(self: object, *args: object, **kwargs: object) -> object:
        output = plain(self, *args, **kwargs)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    with pytest.raises(Refused, match="changes its logits"):
        opened(tiny_model)


def gpu_host(capability: str) -> Host:
    gpu = Gpu(name="test", memory_bytes=2**36, compute_capability=capability)
    return Host(system="test", python="3.11", cpu="test", cores=2, memory_bytes=2**33, gpus=(gpu,))


def test_numerics_follow_format_and_device(tmp_path: Path) -> None:
    made, ask = TorchEngine(), artifact("torch", "fp8", tmp_path).checkpoint
    assert made.numerics(ask, HOST) == "emulated"
    assert made.numerics(ask, gpu_host("9.0")) == "native"
    assert made.numerics(ask, gpu_host("12.0")) == "native"
    assert made.numerics(ask, gpu_host("8.6")) == "emulated"
    on_cpu = made.build(ask, tmp_path, EngineConfig(device="cpu"), gpu_host("9.0"))
    assert on_cpu.numerics == "emulated"
    assert made.numerics(artifact("torch", "bf16", tmp_path).checkpoint, HOST) == "native"
    assert made.numerics(artifact("torch", "int4", tmp_path).checkpoint, gpu_host("9.0")) == "emulated"


def test_what_it_does_not_support_is_a_sentence(tmp_path: Path) -> None:
    checkpoint = artifact("torch", "bf16", tmp_path).checkpoint
    import msgspec

    vision = msgspec.structs.replace(checkpoint, architecture="LlavaForConditionalGeneration")
    llama = msgspec.structs.replace(checkpoint, architecture="MllamaForConditionalGeneration")
    other = msgspec.structs.replace(checkpoint, format="int3")
    assert "Llava" in str(TorchEngine().supports(vision, HOST))
    assert TorchEngine().supports(llama, HOST) is None
    assert "int3" in str(TorchEngine().supports(other, HOST))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_refused(tiny_model: Path, tiny_fp8: Path) -> None:
    with pytest.raises(Refused, match="GPU"):
        opened(tiny_model, config=EngineConfig(device="cuda"))
    native: Artifact = engine("torch").build(
        artifact("torch", "fp8", tiny_fp8).checkpoint, tiny_fp8, EngineConfig(), gpu_host("9.0")
    )
    with pytest.raises(Refused, match="FP8 units"):
        TorchSession(native, EngineConfig())


def test_asking_the_engine_loads_no_sdk() -> None:
    code = (
        "import sys; from quantlab.engines import engine; e = engine('torch'); e.version(); e.name\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert {"torch", "transformers"}.isdisjoint(done.stdout.split())
