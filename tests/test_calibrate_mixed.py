"""Layers kept in another format: real ModelOpt on a tiny Llama, verified, reopened, and refused before it costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quantlab import kept, weights
from quantlab.calibrate import compose, modelopt, sensitivity, source, verify
from quantlab.calibrate.bench import Bench
from quantlab.calibrate.samples import Samples
from quantlab.formats.declared import MIXED, read_quantization
from quantlab.formats.lint import lint_trtllm
from quantlab.formats.modelopt import open_model
from quantlab.records import Calibrated, CalibrateJob, Calibration, Keep, Recipe, VerifyJob
from quantlab.records.repair import Donor, MixJob, SearchJob, SearchPoint
from quantlab.sizes import Layer
from quantlab.worker import Reporter
from tests.test_calibrate_modelopt import ROOT, job

KEPT = ("model.layers.0.mlp.down_proj", *(f"model.layers.1.self_attn.{letter}_proj" for letter in "qkv"))


def make(source: Path, into: Path, name: str, *keep: Keep, **changes: Any) -> tuple[CalibrateJob, Calibrated]:
    spec = job(source, into, name, keep=keep, **changes)
    return spec, modelopt.run(spec, Reporter())


def donor(spec: CalibrateJob, made: Calibrated) -> Donor:
    return Donor(format=spec.recipe.format, calibrated=made, path=spec.into, recipe=spec)


def verified(spec: CalibrateJob, made: Calibrated) -> dict[str, tuple[bool, str]]:
    asked = VerifyJob(
        weights=spec.weights, recipe=spec.recipe, calibrated=made, checkpoint_path=spec.into, device="cpu"
    )
    return {check.name: (check.passed, check.finding) for check in verify.run(asked, Reporter()).checks}


@pytest.fixture(scope="module")
def mixed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CalibrateJob, Calibrated]:
    into = tmp_path_factory.mktemp("mixed") / "export"
    return make(tiny_model, into, "int4_awq", Keep(format="fp8", layers=KEPT))


def test_a_mixed_export_passes_every_check(mixed: tuple[CalibrateJob, Calibrated]) -> None:
    found = verified(*mixed)
    assert {name: text for name, (passed, text) in found.items() if not passed} == {}
    assert "MIXED_PRECISION" in found["metadata"][1]


def test_the_files_say_which_layer_is_what(mixed: tuple[CalibrateJob, Calibrated]) -> None:
    spec, made = mixed
    said = read_quantization(spec.into)
    assert said.algorithm == MIXED
    assert {name for name, own in said.layers.items() if own.algorithm == "FP8"} == set(KEPT)
    assert {own.group_size for name, own in said.layers.items() if name not in KEPT} == {32}
    assert made.checkpoint.kept == ("fp8",)
    assert msgspec.json.decode((Path(spec.into) / "quant_cfg.json").read_bytes())["quantized_layers"].keys() == set(
        said.layers
    )
    types = {name: one["dtype"] for name, one in weights.headers(spec.into).items()}
    assert {types[f"{name}.weight"] for name in KEPT} == {"F8_E4M3"}


def test_the_loader_of_tensorrt_llm_finds_nothing_amiss(mixed: tuple[CalibrateJob, Calibrated]) -> None:
    found = {check.name: check for check in lint_trtllm(mixed[0].into)}
    assert found["metadata"].passed
    assert found["layers"].passed, found["layers"]
    assert "4 layers of FP8" in found["layers"].finding


def test_bits_a_weight_count_both_formats_as_planned(mixed: tuple[CalibrateJob, Calibrated]) -> None:
    spec, made = mixed
    shapes = weights.shapes(spec.weights.path)
    layers = [(name, *shapes[f"{name}.weight"]) for name in made.layers]
    planned = kept.bits(spec.recipe, [(name, rows, columns) for name, rows, columns in layers], 32)
    assert made.checkpoint.bits_per_weight == pytest.approx(planned, rel=0.02)
    assert 5 < made.checkpoint.bits_per_weight < 8


def test_layers_kept_in_16_bit_need_no_mixed_words_and_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    spec, made = make(tiny_model, tmp_path / "export", "int4_awq", Keep(format="bf16", layers=KEPT))
    found = verified(spec, made)
    assert {name: text for name, (passed, text) in found.items() if not passed} == {}
    assert read_quantization(spec.into).algorithm == "W4A16_AWQ"
    assert set(KEPT).isdisjoint(made.layers)
    assert made.checkpoint.bits_per_weight > 6


def test_a_layer_in_another_format_than_meant_is_found(mixed: tuple[CalibrateJob, Calibrated]) -> None:
    spec, made = mixed
    other = msgspec.structs.replace(spec.recipe, keep=(Keep(format="fp8", layers=KEPT[1:]),))
    found = verified(msgspec.structs.replace(spec, recipe=other), made)
    assert not found["coverage"][0]
    assert not found["metadata"][0]


NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down")
LAYERS = [Layer(f"model.layers.0.{name}", 8, 8) for name in NAMES]


def test_fused_layers_cannot_be_torn_apart() -> None:
    recipe = Recipe(
        summary="", preset="INT4_AWQ_CFG", format="int4_awq", keep=(Keep(format="fp8", layers=("*.v_proj",)),)
    )
    (why,) = kept.refusals(recipe, LAYERS)
    assert "v_proj apart" in why


def test_a_name_that_no_layer_has_is_refused() -> None:
    recipe = Recipe(summary="", preset="INT4_AWQ_CFG", format="int4_awq", keep=(Keep(format="fp8", layers=("*.x",)),))
    (why,) = kept.refusals(recipe, LAYERS)
    assert why.startswith("keep names *.x")


def test_of_two_that_name_a_layer_the_last_counts() -> None:
    keep = (Keep(format="fp8", layers=("*.mlp.*",)), Keep(format="bf16", layers=("*.down",)))
    recipe = Recipe(summary="", preset="INT4_AWQ_CFG", format="int4_awq", keep=keep)
    assert [recipe.format_of(name) for name in ("a.mlp.up", "a.mlp.down", "a.q")] == ["fp8", "bf16", "int4_awq"]


@pytest.mark.parametrize("word", ["fp8", "int8_wo"])
def test_a_mixture_of_exports_is_modelopts_own_export_of_it(word: str, tiny_model: Path, tmp_path: Path) -> None:
    spec, whole = make(tiny_model, tmp_path / "whole", "int4_awq", Keep(format=word, layers=KEPT))  # type: ignore[arg-type]
    failed = {name: text for name, (passed, text) in verified(spec, whole).items() if not passed}
    assert failed == {}
    donors = []
    for name in ("int4_awq", word):
        asked, made = make(tiny_model, tmp_path / name, name)
        donors.append(Donor(format=name, calibrated=made, path=asked.into, recipe=asked))
    kept_layers = {word: KEPT}
    asked_mix = MixJob(base=donors[0], others=(donors[1],), kept=kept_layers, into=str(tmp_path / "mix"))
    found = compose.run(asked_mix, Reporter())
    ours, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (tmp_path / "mix", spec.into))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert read_quantization(tmp_path / "mix").layers == read_quantization(spec.into).layers
    assert found.checkpoint.bits_per_weight == whole.checkpoint.bits_per_weight
    ids = torch.arange(2, 34).unsqueeze(0)
    logits = [open_model(f, torch.float32, "cpu", native_fp8=False)(ids).logits for f in (tmp_path / "mix", spec.into)]
    assert torch.equal(*logits)


SMALLER = "int4_awq_g32"


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
def test_smaller_groups_of_the_same_format_are_searched_by_awq_and_come_out_as_by_themselves(
    rounding: str, tiny_model: Path, tmp_path: Path
) -> None:
    eight = "model.layers.1.mlp.down_proj"
    keep = Keep(format=SMALLER, layers=KEPT), Keep(format="int8_wo", layers=(eight,))  # type: ignore[arg-type]
    spec, whole = make(tiny_model, tmp_path / "whole", "int4_awq", *keep, group=64, rounding=rounding)
    assert {name: text for name, (passed, text) in verified(spec, whole).items() if not passed} == {}
    said = read_quantization(spec.into)
    sizes = {name: own.group_size for name, own in said.layers.items() if own.algorithm == "W4A16_AWQ"}
    assert {name for name, size in sizes.items() if size == 32} == set(KEPT)
    assert set(sizes.values()) == {32, 64}
    donors = [
        donor(*make(tiny_model, tmp_path / "base", "int4_awq", group=64, rounding=rounding)),
        donor(*make(tiny_model, tmp_path / "finer", "int4_awq", format=SMALLER, rounding=rounding)),
        donor(*make(tiny_model, tmp_path / "eight", "int8_wo")),
    ]
    assert read_quantization(donors[1].path).group_size == 32
    mix = MixJob(
        base=donors[0],
        others=tuple(donors[1:]),
        kept={SMALLER: KEPT, "int8_wo": (eight,)},
        into=str(tmp_path / "mix"),
    )
    found = compose.run(mix, Reporter())
    ours, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (tmp_path / "mix", spec.into))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert read_quantization(tmp_path / "mix").layers == said.layers
    assert found.checkpoint.bits_per_weight == whole.checkpoint.bits_per_weight
    shapes = weights.shapes(spec.weights.path)
    planned = kept.bits(spec.recipe, [(name, *shapes[f"{name}.weight"]) for name in whole.layers], 64)
    assert whole.checkpoint.bits_per_weight == pytest.approx(planned, rel=0.02)


def test_smaller_groups_alone_are_a_mixture_too_and_tensorrt_llm_has_no_kernel_for_32(
    tiny_model: Path, tmp_path: Path
) -> None:
    spec, made = make(tiny_model, tmp_path / "whole", "int4_awq", Keep(format=SMALLER, layers=KEPT), group=64)  # type: ignore[arg-type]
    assert {name: text for name, (passed, text) in verified(spec, made).items() if not passed} == {}
    assert read_quantization(spec.into).algorithm == MIXED
    ids = torch.arange(2, 34).unsqueeze(0)
    assert bool(torch.isfinite(open_model(spec.into, torch.float32, "cpu", native_fp8=False)(ids).logits).all())
    found = {check.name: check for check in lint_trtllm(spec.into)}
    assert found["layers"].passed, found["layers"]
    assert not found["group_size"].passed
    assert found["group_size"].finding.startswith("groups of 32;")


def test_groups_that_are_no_smaller_are_refused() -> None:
    keep = (Keep(format="int4_awq_g64", layers=("*.mlp.*",)),)
    recipe = Recipe(summary="", preset="INT4_AWQ_CFG", format="int4_awq", keep=keep)
    (why,) = kept.refusals(recipe, LAYERS, 64)
    assert "no smaller than the recipe's own of 64" in why
    assert list(kept.refusals(recipe, LAYERS, 128)) == []


def searching(source_: Path, folder: Path, samples: int) -> SearchJob:
    donors = []
    for name in ("int4_awq", "int8_wo"):
        asked, made = make(source_, folder / name, name)
        donors.append(Donor(format=name, calibrated=made, path=asked.into, recipe=asked))
    text = msgspec.structs.replace(donors[0].recipe.recipe, calibration=Calibration(samples=samples, length=64, seed=1))
    asked = msgspec.structs.replace(donors[0].recipe, recipe=text)
    return SearchJob(text=asked, donors=tuple(donors), folder=str(folder / "work"))


def test_a_search_that_is_killed_goes_on_where_it_was(tiny_model: Path, tmp_path: Path) -> None:
    spec = searching(tiny_model, tmp_path, samples=40)
    file = tmp_path / "spec.json"
    file.write_bytes(msgspec.json.encode(spec))
    code = (
        "import sys, msgspec; from quantlab.calibrate import sensitivity; from quantlab.worker import Reporter\n"
        "from quantlab.records.repair import SearchJob\n"
        "sensitivity.run(msgspec.json.decode(open(sys.argv[1], 'rb').read(), type=SearchJob), Reporter())"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=ROOT)
    journal = Path(spec.folder) / sensitivity.JOURNAL
    while not journal.is_file() and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.wait()
    before = journal.read_bytes()
    assert 0 < before.count(b"\n") < 40
    journal.write_bytes(before + b'{"model.layers.0')  # a line that a kill cut off
    told: list[float] = []
    found = sensitivity.run(
        spec, Reporter(lambda event: told.append(event.done) if event.text == "sequences" else None)
    )
    assert journal.read_bytes().startswith(before)
    assert journal.read_bytes().count(b"\n") == 40
    assert min(done for done in told if done) > before.count(b"\n")
    journal.unlink()
    for one, other in zip(sensitivity.run(spec, Reporter()).groups, found.groups, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-3, abs=1e-9)


def measuring(spec: SearchJob) -> Callable[[dict[str, str]], float]:
    """KL of the recipe's export with some layers (name -> format) in another, on the text of the search."""
    model: Any = source.load(spec.text)
    data = source.calibration(spec.text, model)
    assert isinstance(data, Samples)
    opened = {donor.format: sensitivity.exported(donor) for donor in spec.donors}
    bench = Bench(model, opened, kept.groups(opened["int4_awq"].layers))

    def logprobs() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(data.ids).logits
            return logits[:, sensitivity.BURN_IN :].float().log_softmax(-1)

    wanted = logprobs()

    def kl(choice: dict[str, str]) -> float:
        with bench.quantized():
            for name, word in choice.items():
                model.set_submodule(name, bench.layer(word, name))
            return float((wanted.exp() * (wanted - logprobs())).sum(-1).mean())

    return kl


def test_shares_sum_to_the_kl_and_foretell_what_keeping_a_group_saves(tiny_model: Path, tmp_path: Path) -> None:
    spec = searching(tiny_model, tmp_path, samples=6)
    found = sensitivity.run(spec, Reporter())
    assert len(found.groups) == 8

    kl = measuring(spec)
    whole = kl({})
    assert sum(group.kl["int4_awq"] for group in found.groups) == pytest.approx(whole, rel=0.15)
    saved = [whole - kl(dict.fromkeys(group.layers, "int8_wo")) for group in found.groups]
    foretold = [group.kl["int4_awq"] - group.kl["int8_wo"] for group in found.groups]
    assert float(np.corrcoef(saved, foretold)[0, 1]) > 0.8
    again = sensitivity.run(spec, Reporter())
    assert again.groups == found.groups  # out of the journal


@pytest.mark.parametrize("place", [0, 3, 5])
def test_halfway_a_group_tells_what_keeping_it_saves_at_that_mixture(
    place: int, tiny_model: Path, tmp_path: Path
) -> None:
    spec = searching(tiny_model, tmp_path, samples=4)
    groups = kept.groups(sensitivity.exported(spec.donors[0]).layers)
    near, sure = groups[place], {"int8_wo": groups[7], "bf16": groups[2]}
    asked = msgspec.structs.replace(spec, point=SearchPoint(kept=sure, halfway=near), folder=str(tmp_path / "near"))
    (found,) = sensitivity.run(asked, Reporter()).groups
    assert found.layers == near
    kl, rest = measuring(spec), {name: word for word, names in sure.items() for name in names}
    saved = kl(rest) - kl(rest | dict.fromkeys(near, "bf16"))
    assert found.kl["int4_awq"] == pytest.approx(saved, rel=0.1)
    assert abs(found.kl["int8_wo"]) < 0.2 * abs(found.kl["int4_awq"])
