"""Conversions are held against the original by opening both sides: weights and logits; and by other people's code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quantlab import weights
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats import autoawq, compressed, words
from quantlab.formats.convert import LAYOUTS, convert
from quantlab.formats.converted import RECORD, known
from quantlab.formats.folding import Heads, fold
from quantlab.formats.modelopt import open_model
from quantlab.formats.packing import unpack_int4
from tests.conftest import GROUP

O_PROJ = "model.layers.{}.self_attn.o_proj"
IDS = torch.randint(2, 512, (4, 48), generator=torch.Generator().manual_seed(5))


def edited(folder: Path, into: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a checkpoint with its tensors changed."""
    shutil.copytree(folder, into)
    tensors = load_file(into / "model.safetensors")
    edit(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, into / "model.safetensors", metadata={"format": "pt"})
    return into


def even(tensors: dict[str, torch.Tensor]) -> None:
    """Let both query heads of a value head (4 and 2 of 32 channels) ask o_proj for the same scale."""
    for layer in range(2):
        name = f"{O_PROJ.format(layer)}.pre_quant_scale"
        groups = tensors[name].view(2, 2, 32)
        tensors[name] = groups[:, :1].expand(2, 2, 32).reshape(-1)


@pytest.fixture(scope="module")
def even_awq(tiny_int4_awq: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edited(tiny_int4_awq, tmp_path_factory.mktemp("even") / "awq", even)


def dequantized(folder: Path, layout: str) -> dict[str, torch.Tensor]:
    """Every weight of a conversion by the layout's own rule, float32."""
    held = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    record = known(folder)
    assert record is not None
    plain = {name: tensor.float() for name, tensor in held.items() if name.rpartition(".")[0] not in record.layers}
    return plain | {f"{name}.weight": LAYOUTS[layout].weight(name, held) for name in record.layers}


def logits(folder: Path, layout: str) -> torch.Tensor:
    """Of a plain transformers model with the dequantized weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(dequantized(folder, layout), strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


def original(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = open_model(folder, torch.float32, "cpu", native_fp8=False)(IDS).logits
    return found


# --- packing


@given(rows=st.integers(1, 5), eights=st.integers(1, 4), seed=st.integers(0, 2**31), awq=st.booleans())
@settings(max_examples=60, deadline=None)
def test_codes_survive_words(rows: int, eights: int, seed: int, awq: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, 8 * eights), dtype=torch.int8, generator=generator)
    order = autoawq.ORDER if awq else words.STRAIGHT
    packed = words.pack(codes, order)
    assert packed.dtype is torch.int32
    assert packed.shape == (rows, eights)
    assert torch.equal(words.unpack(packed, order), codes)


def test_the_order_of_nibbles_is_the_layouts() -> None:
    codes = torch.arange(-8, 0, dtype=torch.int8)[None]
    assert words.pack(codes).item() == 0x76543210
    assert words.pack(codes, autoawq.ORDER).item() == 0x75316420
    assert words.pack(torch.full((1, 8), 7, dtype=torch.int8)).item() == -1


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="eight"):
        words.pack(torch.zeros(2, 12, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"-8\.\.7"):
        words.pack(torch.full((1, 8), 8, dtype=torch.int8))


# --- folding


def test_averaging_changes_nothing_before_it_is_rounded() -> None:
    """x * p @ W.T with x made of two heads a value: the same as (x * c) @ (W * p / c).T."""
    generator = torch.Generator().manual_seed(0)
    heads, channels = Heads(query=6, key_value=2), 4
    scale = torch.rand(24, generator=generator) + 0.5
    folds = fold({"m.self_attn.o_proj": scale}, heads, average=True)
    shared, columns = folds.rows["m.self_attn.v_proj"], folds.columns["m.self_attn.o_proj"]
    assert shared.shape == (8,)
    # Query head h reads value head h // 3, as transformers repeats them.
    reached = shared.view(2, 1, channels).expand(2, 3, channels).reshape(-1)
    torch.testing.assert_close(reached * columns, scale)


def test_a_scale_without_a_place_is_refused_by_name() -> None:
    heads = Heads(query=2, key_value=1)
    with pytest.raises(Refused, match="k_proj"):
        fold({"m.self_attn.k_proj": torch.ones(8)}, heads, average=True)
    uneven = {f"layers.{n}.self_attn.o_proj": torch.arange(1.0, 9.0) for n in range(5)}
    with pytest.raises(Refused, match=r"layers\.0\.self_attn\.o_proj.* and 2 more"):
        fold(uneven, heads, average=False)


# --- whole checkpoints


@pytest.mark.parametrize(("layout", "tolerance"), [("compressed-tensors", 1e-5), ("autoawq", 2e-3)])
def test_what_can_be_folded_is_exact(even_awq: Path, tmp_path: Path, layout: Any, tolerance: float) -> None:
    made = convert(even_awq, tmp_path / "made", layout)
    assert made.requantized == {}
    assert len(made.layers) == 14
    assert made.group_size == GROUP
    assert any("4 pre_quant_scale folded" in note and "exactly" in note for note in made.notes)
    before, after = original(even_awq), logits(tmp_path / "made", layout)
    assert float((before - after).abs().max()) < tolerance * float(before.abs().max())
    assert float((before.argmax(-1) == after.argmax(-1)).float().mean()) > 0.99


@pytest.mark.parametrize("layout", ["compressed-tensors", "autoawq"])
def test_a_wrong_order_of_nibbles_would_be_seen(
    even_awq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any
) -> None:
    """The proof has teeth: the same files with two nibbles exchanged fail by far."""
    straight = words.pack

    def swapped(codes: torch.Tensor, order: Any = words.STRAIGHT) -> torch.Tensor:
        return straight(codes, (order[1], order[0], *order[2:]))

    monkeypatch.setattr(words, "pack", swapped)
    convert(even_awq, tmp_path / "made", layout)
    before, after = original(even_awq), logits(tmp_path / "made", layout)
    assert float((before - after).abs().max()) > 0.1 * float(before.abs().max())


def test_under_grouped_query_attention_the_choice_is_the_users(tiny_int4_awq: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"layers\.0\.self_attn\.o_proj, model\.layers\.1"):
        convert(tiny_int4_awq, tmp_path / "made", "compressed-tensors")
    assert list(tmp_path.iterdir()) == []
    made = convert(tiny_int4_awq, tmp_path / "made", "compressed-tensors", "average")
    assert made.choices == {"o_proj": "average"}
    assert set(made.requantized) == {O_PROJ.format(0), O_PROJ.format(1)}
    # Rounding to 15 steps of a group's largest weight moves normal weights by about a tenth.
    assert all(0 < moved < 0.2 for moved in made.requantized.values())
    assert any("averaged" in note and "second time" in note for note in made.notes)
    assert known(tmp_path / "made") == made


def test_averaging_costs_o_proj_a_rounding_and_nothing_else(tiny_int4_awq: Path, tmp_path: Path) -> None:
    made = convert(tiny_int4_awq, tmp_path / "made", "compressed-tensors", "average")
    after, before = dequantized(tmp_path / "made", "compressed-tensors"), load_file(tiny_int4_awq / "model.safetensors")
    for layer in set(made.layers) - set(made.requantized):
        weight = unpack_int4(before[f"{layer}.weight"], before[f"{layer}.weight_scale"])
        ratio = (after[f"{layer}.weight"] / weight)[weight != 0]
        folded = layer.endswith(("up_proj", "v_proj"))
        assert folded or bool((ratio == 1).all()), layer
    for layer in made.requantized:
        scale = before[f"{layer}.pre_quant_scale"]
        shared = scale.view(2, 2, 32).mean(1, keepdim=True).expand(2, 2, 32).reshape(-1)
        wanted = unpack_int4(before[f"{layer}.weight"], before[f"{layer}.weight_scale"]) * (scale / shared)
        step = wanted.view(128, -1, GROUP).abs().amax(-1).repeat_interleave(GROUP, 1) / 7
        assert bool(((after[f"{layer}.weight"] - wanted).abs() <= 0.5001 * step).all())
    clean, moved = original(tiny_int4_awq), logits(tmp_path / "made", "compressed-tensors")
    assert float((clean - moved).abs().mean()) < 0.2 * float(clean.std())


def test_round_to_nearest_has_nothing_to_fold(tiny_int4: Path, tmp_path: Path) -> None:
    made = convert(tiny_int4, tmp_path / "made", "compressed-tensors")
    assert made.notes == ()
    before, after = original(tiny_int4), logits(tmp_path / "made", "compressed-tensors")
    assert float((before - after).abs().max()) < 1e-5 * float(before.abs().max())


def test_the_package_compressed_tensors_reads_the_same(even_awq: Path, tmp_path: Path) -> None:
    """By other people's code, where it is installed: pip install --no-deps compressed-tensors loguru."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    made = convert(even_awq, tmp_path / "made", "compressed-tensors")
    described = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    read = QuantizationConfig.model_validate(described)
    group = read.config_groups["group_0"].weights
    assert group is not None
    assert (group.num_bits, group.group_size, group.symmetric, group.type) == (4, GROUP, True, "int")
    held = load_file(tmp_path / "made" / "model.safetensors")
    for layer in made.layers:
        shape = torch.Size(held[f"{layer}.weight_shape"].tolist())
        codes = unpack_from_int32(held[f"{layer}.weight_packed"], 4, shape)
        theirs = dequantize(x_q=codes, scale=held[f"{layer}.weight_scale"])
        assert torch.equal(theirs.float(), compressed.weight(layer, held)), layer


# --- files


def test_configuration_tokenizer_and_ties_come_along(even_awq: Path, tmp_path: Path) -> None:
    convert(even_awq, tmp_path / "made", "autoawq")
    made = tmp_path / "made"
    weights.check_folder(made)
    shape = weights.config(made)
    assert shape["tie_word_embeddings"] is True
    assert shape["quantization_config"]["modules_to_not_convert"] == ["lm_head", "model.embed_tokens"]
    assert not (made / "hf_quant_config.json").exists()
    assert (made / "tokenizer.json").read_bytes() == (even_awq / "tokenizer.json").read_bytes()
    held, before = load_file(made / "model.safetensors"), load_file(even_awq / "model.safetensors")
    assert "lm_head.weight" not in held
    assert torch.equal(held["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not [name for name in held if name.endswith("pre_quant_scale")]
    assert held["model.layers.0.mlp.up_proj.scales"].dtype is torch.float16


def test_shards_stay_shards_whatever_lies_where(even_awq: Path, tmp_path: Path) -> None:
    """Scales in another shard than their weight, in both orders."""
    source = tmp_path / "shards"
    shutil.copytree(even_awq, source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    parts: dict[str, dict[str, torch.Tensor]] = {f"model-0000{n}-of-00003.safetensors": {} for n in (1, 2, 3)}
    files = list(parts)
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        parts[files[number % 3]][name] = tensor
    for file, part in parts.items():
        save_file(part, source / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (source / weights.INDEX).write_text(json.dumps(index))
    convert(source, tmp_path / "many", "compressed-tensors")
    convert(even_awq, tmp_path / "one", "compressed-tensors")
    weights.check_folder(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    many, one = (dequantized(tmp_path / name, "compressed-tensors") for name in ("many", "one"))
    assert many.keys() == one.keys()
    assert all(torch.equal(many[name], one[name]) for name in one)


def test_a_conversion_that_fits_is_kept_and_another_is_made_anew(even_awq: Path, tmp_path: Path) -> None:
    target = tmp_path / "made"
    first = convert(even_awq, target, "compressed-tensors")
    stamp = (target / "model.safetensors").stat().st_mtime_ns
    assert convert(even_awq, target, "compressed-tensors") == first
    assert (target / "model.safetensors").stat().st_mtime_ns == stamp
    assert convert(even_awq, target, "autoawq").layout == "autoawq"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    (target / RECORD).write_text("{")
    with pytest.raises(BadInput, match="something already"):
        convert(even_awq, target, "autoawq")
    with pytest.raises(BadInput, match="something already"):
        convert(even_awq, even_awq, "autoawq")


def test_a_disk_that_fails_in_the_middle_leaves_nothing(
    even_awq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        convert(even_awq, tmp_path / "made", "autoawq")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_int4_checkpoint_is_refused(
    tiny_model: Path, tiny_fp8: Path, even_awq: Path, tmp_path: Path
) -> None:
    for folder, word in ((tiny_model, "16 bit"), (tiny_fp8, "FP8")):
        with pytest.raises(BadInput, match=word):
            convert(folder, tmp_path / "made", "autoawq")
    convert(even_awq, tmp_path / "made", "autoawq")
    with pytest.raises(Refused, match="awq"):
        convert(tmp_path / "made", tmp_path / "again", "compressed-tensors")


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("edit", "kind", "word"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), Broken, "weight_scale"),
        (lambda t: t.update({f"{LAYER}.weight_scale": t[f"{LAYER}.weight_scale"][:, :3]}), Broken, "do not fit"),
        (lambda t: t.update({f"{LAYER}.weight_scale": -t[f"{LAYER}.weight_scale"]}), Broken, "zero, negative"),
        (lambda t: t.update({"nobody.weight_scale": torch.ones(2, 2)}), Broken, "nobody"),
        (lambda t: t.update({f"{LAYER}.weight_scale": t[f"{LAYER}.weight_scale"] * 1e9}), Refused, "float16"),
        (lambda t: t.update({f"{LAYER}.weight": torch.ones(256, 128, dtype=torch.bfloat16)}), Refused, "not int4"),
        (lambda t: t.update({f"{LAYER}.pre_quant_scale": torch.ones(128)}), Refused, "up_proj"),
    ],
)
def test_rubbish_is_named(
    even_awq: Path, tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], None], kind: type[Exception], word: str
) -> None:
    source = edited(even_awq, tmp_path / "source", edit)
    with pytest.raises(kind, match=word):
        convert(source, tmp_path / "made", "autoawq")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- the command


def test_the_command_converts_in_a_child_and_says_what_it_cost(tiny_int4_awq: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from quantlab.cli import cli

    target = tmp_path / "made"
    words_ = ["convert", str(tiny_int4_awq), str(target), "--o-proj", "average", "--json"]
    done = CliRunner().invoke(cli, words_, catch_exceptions=False)
    assert json.loads(done.output)["choices"] == {"o_proj": "average"}
    with pytest.raises(Refused, match="o_proj") as refused:
        CliRunner().invoke(cli, ["convert", str(tiny_int4_awq), str(tmp_path / "b")], catch_exceptions=False)
    assert "--o-proj average" in refused.value.cure
