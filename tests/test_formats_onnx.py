"""The ONNX model that quantlab writes: blocks, rotary embedding, folder, and the same numbers as the torch engine's.

What needs onnx and onnxruntime is skipped where they are not installed (`make test-ortgenai`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from quantlab import weights
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats.arrays import Arrays, Stored
from quantlab.formats.onnx_blocks import block_of, narrowed, round_to, unpack_modelopt
from quantlab.formats.onnx_model import RECORD, damage, known, placeless, usable
from quantlab.formats.onnx_rope import caches
from quantlab.records import OnnxJob, OnnxModel

RNG = np.random.default_rng(11)


def job(source: Path, into: Path, **more: Any) -> OnnxJob:
    return OnnxJob(source=str(source), into=str(into), digest="0", **more)


def edited(source: Path, into: Path, **words: Any) -> Path:
    """A copy of a checkpoint with other words in config.json; None takes one away."""
    shutil.copytree(source, into)
    config = json.loads((source / "config.json").read_text()) | words
    (into / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return into


# --- numpy alone


def test_modelopt_codes_are_unpacked_as_the_torch_reader_does() -> None:
    import torch

    from quantlab.formats.packing import unpack_codes

    packed = RNG.integers(0, 256, (6, 32)).astype(np.uint8)
    ours = unpack_modelopt(packed).astype(int) - 8
    assert np.array_equal(ours, unpack_codes(torch.from_numpy(packed)).numpy())


@pytest.mark.parametrize(("bits", "worst"), [(4, 0.5 / 8), (8, 0.5 / 128)])
def test_rounding_stays_within_half_a_step_and_keeps_the_largest(bits: int, worst: float) -> None:
    weight = RNG.standard_normal((5, 64)).astype(np.float32)
    weight[0, :32] = 0
    codes, scale = round_to(bits, weight, 32)
    back = ((codes.astype(np.float32) - 2 ** (bits - 1)).reshape(5, 2, 32) * scale[..., None]).reshape(weight.shape)
    largest = np.abs(weight.reshape(5, 2, 32)).max(-1)
    error = np.abs(back - weight).reshape(5, 2, 32).max(-1)
    # The far end of the range has one code less, so there the error may be a whole step.
    assert bool((error <= 2 * worst * largest + 1e-7).all())
    assert not back[0, :32].any()
    top = np.abs(weight[1]).argmax()
    assert back[1, top] == pytest.approx(weight[1, top])


@pytest.mark.parametrize(("group", "block"), [(128, 128), (64, 64), (48, 16), (96, 32), (512, 256)])
def test_groups_become_blocks_that_there_are_kernels_for(group: int, block: int) -> None:
    assert block_of(group, "x") == block
    with pytest.raises(Refused, match="groups of 24"):
        block_of(24, "layer")


def test_bfloat16_rounds_as_torch_does() -> None:
    import torch

    values = np.concatenate([RNG.standard_normal(500), [1 + 2**-8, 1 + 3 * 2**-8, -0.0]]).astype(np.float32)
    theirs = torch.from_numpy(values).bfloat16()
    assert np.array_equal(narrowed(values, "BF16"), theirs.view(torch.uint16).numpy())
    assert np.array_equal(Stored("", "BF16", narrowed(values, "BF16")).float32(), theirs.float().numpy())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_rotation_is_that_of_transformers(rope: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=dict(rope)
    )
    places = torch.tensor([[0, 1, 77, 8191, 20000]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), places)
    ours = caches({"rope_parameters": rope}, 64, 20001)
    old = caches({"rope_theta": rope["rope_theta"], "rope_scaling": rope}, 64, 20001)
    for mine, same, theirs in zip(ours, old, (cos, sin), strict=True):
        np.testing.assert_allclose(mine[places[0].numpy()], theirs[0, :, :32].numpy(), atol=5e-3)
        np.testing.assert_allclose(mine[:100], same[:100])
    early = [mine[places[0, :3].numpy()] for mine in ours]
    np.testing.assert_allclose(early[0], cos[0, :3, :32].numpy(), atol=1e-5)
    np.testing.assert_allclose(early[1], sin[0, :3, :32].numpy(), atol=1e-5)


def test_other_rotations_are_refused_and_half_ones_broken() -> None:
    with pytest.raises(Refused, match="yarn"):
        caches({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 64, 8)
    with pytest.raises(Refused, match="partial"):
        caches({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, 64, 8)
    with pytest.raises(Broken, match="low_freq_factor"):
        caches(
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8}}, 64, 8
        )


def test_arrays_are_the_tensors_of_the_file(tiny_int4_awq: Path, tiny_fp8: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for folder in (tiny_int4_awq, tiny_fp8):
        arrays, tensors = Arrays(folder), load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            stored = arrays.take(name, ("F32", "F16", "BF16", "F8_E4M3", "U8"), tuple(tensor.shape))
            if stored.kind in ("F8_E4M3", "U8"):
                assert np.array_equal(stored.bits, tensor.view(torch.uint8).numpy())
            else:
                assert np.array_equal(stored.float32(), tensor.float().numpy())
        assert arrays.left() == []
        with pytest.raises(Broken, match="missing"):
            arrays.take(name, ("F32",))


def test_a_folder_that_broke_off_is_not_usable(tmp_path: Path) -> None:
    asked = job(tmp_path, tmp_path)
    record = OnnxModel(job=placeless(asked), protocol=1, layers=1, quantized=0, files={"model.onnx": 3})
    (tmp_path / RECORD).write_bytes(msgspec.json.encode(record))
    (tmp_path / "model.onnx").write_bytes(b"abc")
    assert usable(tmp_path, asked) == record
    assert usable(tmp_path, msgspec.structs.replace(asked, head="int4")) is None
    (tmp_path / "model.onnx").write_bytes(b"a")
    assert "has 1 bytes, and 3 were written" in damage(tmp_path, record)
    assert usable(tmp_path, asked) is None
    (tmp_path / "model.onnx").unlink()
    assert "is missing" in damage(tmp_path, record)
    (tmp_path / RECORD).write_bytes(b"{")
    assert known(tmp_path) is None


# --- with onnx and onnxruntime


@pytest.fixture(scope="module")
def export() -> Any:
    pytest.importorskip("onnx", reason="onnx is not installed: `make test-ortgenai`")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: `make test-ortgenai`")
    from quantlab.formats.onnx_export import export

    return export


def logits(folder: Path, ids: np.ndarray, **more: Any) -> np.ndarray:
    """[batch, sequence, vocabulary] of the model in `folder`, on the CPU, as float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), **more}
    for one in session.get_inputs():
        if one.name.startswith("past"):
            feed[one.name] = np.zeros((len(ids), one.shape[1], 0, one.shape[3]), dtype=types[one.type])
    found: np.ndarray = session.run(["logits"], feed)[0].astype(np.float32)
    return found


def reference(folder: Path, ids: np.ndarray) -> np.ndarray:
    """The same from engine torch's reader in float32."""
    import torch

    from quantlab.formats.modelopt import open_model

    model = open_model(folder, torch.float32, "cpu", native_fp8=False)
    with torch.inference_mode():
        found: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
    return found


@pytest.mark.parametrize("fixture", ["tiny_model", "tiny_int4_awq", "tiny_int4"])
def test_logits_are_those_of_the_torch_engine(
    export: Any, fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(fixture)
    ids = RNG.integers(2, 512, (2, 48))
    made = export(job(folder, tmp_path / "x"))
    difference = np.abs(logits(tmp_path / "x", ids) - reference(folder, ids))
    assert difference.mean() < 2e-4
    assert difference.max() < 2e-3
    assert made.quantized == (0 if fixture == "tiny_model" else 14)
    assert made.rescaled == (4 if fixture == "tiny_int4_awq" else 0)


def test_emulated_fp8_is_that_of_the_torch_engine_up_to_single_codes(
    export: Any, tiny_fp8: Path, tmp_path: Path
) -> None:
    ids = RNG.integers(2, 512, (2, 48))
    made = export(job(tiny_fp8, tmp_path / "x"))
    difference = np.abs(logits(tmp_path / "x", ids) - reference(tiny_fp8, ids))
    assert difference.mean() < 0.1
    assert "emulated" in made.notes[0]


def test_int8_inputs_and_a_rounded_head_move_the_logits_and_say_so(
    export: Any, tiny_int4_awq: Path, tmp_path: Path
) -> None:
    ids = RNG.integers(2, 512, (1, 48))
    exact = reference(tiny_int4_awq, ids)
    moved = {}
    for choices in ({"head": "int8"}, {"head": "int4"}, {"activations": "int8"}):
        made = export(job(tiny_int4_awq, tmp_path / str(choices), **choices))
        moved[next(iter(choices.items()))] = np.abs(logits(tmp_path / str(choices), ids) - exact).mean()
        assert len(made.notes) == 1
        assert next(iter(choices.values())) in made.notes[0]
    assert 1e-4 < moved["head", "int8"] < moved["head", "int4"]
    assert 1e-4 < moved["activations", "int8"] < moved["head", "int4"]


@pytest.mark.parametrize("head", ["keep", "int8"])
def test_the_graph_for_tensorrt_rtx_computes_the_same(
    export: Any, head: str, tiny_int4_awq: Path, tmp_path: Path
) -> None:
    """Through DequantizeLinear instead of MatMulNBits; run on the CPU, in float16."""
    ids = RNG.integers(2, 512, (1, 32))
    export(job(tiny_int4_awq, tmp_path / "x", provider="trt-rtx", dtype="float16", head=head))
    exact = reference(tiny_int4_awq, ids)
    difference = np.abs(logits(tmp_path / "x", ids) - exact)
    assert difference.mean() < 0.01 * np.abs(exact).mean()


def test_the_graph_for_directml_rotates_outside_of_the_attention(
    export: Any, tiny_int4_awq: Path, tmp_path: Path
) -> None:
    ids = RNG.integers(2, 512, (1, 32))
    export(job(tiny_int4_awq, tmp_path / "x", provider="dml", dtype="float16"))
    exact = reference(tiny_int4_awq, ids)
    difference = np.abs(logits(tmp_path / "x", ids, position_ids=np.arange(32)[None]) - exact)
    assert difference.mean() < 0.01 * np.abs(exact).mean()
    options = json.loads((tmp_path / "x" / "genai_config.json").read_text())["model"]["decoder"]
    assert options["session_options"]["provider_options"] == [{"dml": {"enable_graph_capture": "1"}}]
    assert options["inputs"]["position_ids"] == "position_ids"


def test_other_models_and_odd_shapes_are_refused(export: Any, tiny_model: Path, tmp_path: Path) -> None:
    odd: dict[str, dict[str, Any]] = {
        "MllamaForConditionalGeneration": {"architectures": ["MllamaForConditionalGeneration"]},
        "attention_bias": {"attention_bias": True},
        "hidden_act gelu": {"hidden_act": "gelu"},
        "width 24": {"head_dim": 24},
    }
    for place, (finding, words) in enumerate(odd.items()):
        folder = edited(tiny_model, tmp_path / f"odd{place}", **words)
        with pytest.raises(Refused, match=finding):
            export(job(folder, tmp_path / f"onnx{place}"))
        assert not (tmp_path / f"onnx{place}").exists()
    folder = edited(tiny_model, tmp_path / "bare", num_hidden_layers=None)
    with pytest.raises(Broken, match="num_hidden_layers"):
        export(job(folder, tmp_path / "x"))
    with pytest.raises(Refused, match="computes float32"):
        export(job(tiny_model, tmp_path / "x", dtype="float16"))


def test_a_scale_that_is_lost_or_left_over_ends_the_build(export: Any, tiny_int4_awq: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = load_file(tiny_int4_awq / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.pre_quant_scale"
    cases = {
        "lost": ({key: value for key, value in whole.items() if key != name}, name),
        "left": (whole | {"model.layers.7.mlp.down_proj.pre_quant_scale": whole[name].clone()}, "layers.7"),
        "bad": (whole | {name: -whole[name]}, "negative"),
    }
    for word, (tensors, finding) in cases.items():
        folder = edited(tiny_int4_awq, tmp_path / word)
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(Broken, match=finding):
            export(job(folder, tmp_path / "x"))
        assert not (tmp_path / "x").exists()


def test_a_kill_in_the_middle_leaves_nothing_that_is_taken_for_the_model(
    export: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantlab.formats import onnx_export

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    asked = job(tiny_model, tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "_copy_small", die)
        with pytest.raises(KeyboardInterrupt):
            export(asked)
    assert usable(tmp_path / "x", asked) is None
    made = export(asked)
    stamp = (tmp_path / "x" / "model.onnx").stat().st_mtime_ns
    assert export(asked) == made
    assert (tmp_path / "x" / "model.onnx").stat().st_mtime_ns == stamp
    (tmp_path / "x" / "model.onnx.data").write_bytes(b"half")
    assert export(asked) == made
    assert usable(tmp_path / "x", asked) == made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(BadInput, match="something already"):
        export(job(tiny_model, tmp_path / "mine"))
    assert weights.architecture(tiny_model) == "LlamaForCausalLM"
