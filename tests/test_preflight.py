"""The plan for a GPU that is not here: hand-worked figures, every pair of the catalog, and wrong words."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import quantlab as ql
from quantlab import amounts, catalog, support
from quantlab.cli import cli
from quantlab.errors import BadInput
from quantlab.preflight import GpuPlan, explain, preflight
from quantlab.records import Recipe
from quantlab.serving import checkpoint_bytes, image_flops, kv_bytes, layer_weights
from quantlab.sizes import sizes

LAYERS_90B = 100 * (8192 * 128 * (64 + 64 + 8 + 8) + 3 * 8192 * 28672)
"""80 + 20 layers: q and o of 64 heads, k and v of 8, and three MLP matrices."""
HEADS_90B = 2 * 128256 * 8192
REST_90B = 88_593_355_323 - LAYERS_90B - HEADS_90B
RECIPES = [found.name for found in catalog.names("recipe")]


def planned(word: str, model: str, gpu: str, tp: int = 1, **words: int | str) -> GpuPlan:
    return ql.plan(model, [word], gpu=gpu, tp=tp, **words)[0]


def test_90b_by_hand() -> None:
    """Weights, cache and activations of FP8 on two H200, worked out here and not by the code under test."""
    assert LAYERS_90B == 85_563_801_600
    made = planned("fp8", "90b", "h200", 2, context=8192)
    assert made.footprint is not None
    assert made.footprint.weights == LAYERS_90B // 2 + HEADS_90B * 2 // 2 + REST_90B * 2
    assert made.footprint.sequence_token == 2 * 80 * 4 * 128 * 2
    assert made.footprint.image_cache == 2 * 20 * 4 * 128 * 2 * 6404
    activations = 8192 * 2 * (4 * 8192 + 2 * 28672 // 2) + 4 * 128256
    cache = 8192 * 2 * 80 * 4 * 128 * 2 + 2 * 20 * 4 * 128 * 2 * 6404
    (cell,) = made.cells
    assert cell.needed_bytes == made.footprint.weights + cache + activations + 2_000_000_000
    assert made.fits
    assert any("46.74 GB weights + 1.60 GB cache" in line for line in made.arithmetic)


@pytest.mark.parametrize(
    ("gpu", "fp8", "int4"),
    [
        ("h200", True, True),
        ("h100", False, True),
        ("l40s", False, False),
        ("rtx4090", False, False),
        ("agx-orin", False, False),
    ],
)
def test_90b_on_the_gpus_that_the_issue_names(gpu: str, fp8: bool, int4: bool) -> None:
    """FP8 weights are 91.62 GB and INT4 ones 51.51 GB: the answer follows from the memory and 8.7 < 8.9."""
    both = ql.plan_gpu("90b", ["fp8", "int4_awq"], gpu=gpu, context=8192)
    assert [each.fits for each in both] == [fp8, int4]
    for each, weights in zip(both, ("91.62 GB", "51.51 GB"), strict=True):
        text = "\n".join(explain(each))
        assert f"{weights} weights" in text
        assert ("does not fit" in text) == (not each.fits)
    if gpu == "agx-orin":
        assert "compute capability 8.9" in both[0].refusals[0]
        assert "shorter context" in both[1].refusals[0], "51.51 + 8 GB would fit: it is the 8k context that does not"
        assert planned("int4_awq", "90b", gpu, context=1024).fits


def test_the_largest_batch_is_the_largest() -> None:
    made = planned("fp8", "3b", "rtx4090", context=8192, batch="1..256")
    held, most = made.footprint, made.largest_batch
    assert held is not None
    assert most is not None
    assert held.needed(8192, 8192, most) <= held.capacity < held.needed(8192, 8192, most + 1)
    assert made.fits
    assert "Fits in part" in made.verdict
    assert {cell.batch for cell in made.cells if cell.fits} == {
        b for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) if b <= most
    }


def test_the_suggested_number_of_gpus_is_enough() -> None:
    refused = planned("fp8", "90b", "rtx4090", context=2048)
    assert "--tp 8" in refused.refusals[0]
    assert not planned("fp8", "90b", "rtx4090", 4, context=2048).fits
    assert planned("fp8", "90b", "rtx4090", 8, context=2048).fits


def test_groups_and_heads_are_divided_among_gpus() -> None:
    odd = planned("int4_awq", "smollm2-135m", "h100", 2, context=512)
    assert any("9 heads" in each for each in odd.refusals)
    assert any("576 of model.layers.0.self_attn.o_proj is not 2 times groups of 64" in each for each in odd.refusals)
    assert any("Group size 32 would work" in each for each in odd.refusals)
    assert planned("int4_awq", "3b", "h100", 8, context=512).fits, "3072 / 8 = 384 = 3 x 128"
    shape = catalog.model("3b").shape
    assert shape is not None
    assert kv_bytes(shape, 2, 16) == 2 * 28 * 1 * 128 * 2, "at least one head a GPU"


def test_every_model_recipe_and_gpu_of_the_catalog_has_an_answer() -> None:
    """Each says fits or why not; what fits shows its arithmetic. -s shows the slowest."""
    slowest, count = 0.0, 0
    for model in catalog.models():
        for word in RECIPES:
            record = catalog.recipe(word).record
            assert isinstance(record, Recipe)
            for gpu in catalog.gpus():
                start = time.perf_counter()
                made = preflight(model, word, record, gpu, context=2048, batches=(1, 8))
                slowest, count = max(slowest, time.perf_counter() - start), count + 1
                assert made.fits == (not made.refusals)
                assert made.arithmetic
                assert {each.engine for each in made.engines} >= {"torch", "trtllm", "vllm"}
                assert made.verdict.startswith(("Fits", "Not servable"))
    assert count == len(catalog.models()) * len(RECIPES) * len(catalog.gpus())
    print(f"{count} plans, the slowest took {slowest * 1e3:.1f} ms")


def test_weights_are_those_that_plans_counts() -> None:
    """Two rooms, one arithmetic: the export of the run's plan is the checkpoint counted here."""
    from quantlab.plans import plan

    for word in ("fp8", "int4_awq"):
        model, record = catalog.model("3b"), catalog.recipe(word).record
        assert isinstance(record, Recipe)
        host = support.host_with(catalog.target("h100"))
        theirs = plan(model, None, word, record, host, None, None, 10**15, device="cuda")
        assert checkpoint_bytes(record.format, theirs.group_size, sizes(model, None, record)) == theirs.checkpoint_bytes


def test_a_models_linear_layers_are_those_of_its_config_by_hand() -> None:
    """3B: 28 layers of q and o (3072 x 3072), k and v (3072 x 1024), gate, up and down (3072 x 8192)."""
    shape = catalog.model("3b").shape
    assert shape is not None
    assert layer_weights(shape) == 28 * (2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192) == 2_818_572_288
    pictures = catalog.model("11b").shape
    assert pictures is not None
    a_layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert (layer_weights(pictures, text_only=True), layer_weights(pictures)) == (32 * a_layer, 40 * a_layer)


def test_the_operations_of_an_image_by_hand() -> None:
    """11b: four attention matrices and two of the MLP in each of 40 encoder layers, every position with every other;
    the projection; keys and values of 8 heads in 8 cross-attention layers. A multiplication and an addition each."""
    shape = catalog.model("11b").shape
    assert shape is not None
    positions = 4 * 1601
    layer = positions * 2 * (4 * 1280 * 1280 + 2 * 1280 * 5120) + 2 * 2 * positions * positions * 1280
    projection = positions * 2 * 7680 * 4096
    keys_and_values = 8 * positions * 2 * 4096 * (2 * 8 * 128)
    assert image_flops(shape) == 40 * layer + projection + keys_and_values
    text = catalog.model("3b").shape
    assert text is not None
    assert image_flops(text) == 0


def test_who_serves_what() -> None:
    def answer(gpu: str, form: str) -> dict[str, str]:
        return {
            each.engine: each.refusal for each in support.engines("LlamaForCausalLM", form, "none", catalog.target(gpu))
        }

    assert answer("h100", "fp8")["trtllm"] == answer("h100", "fp8")["vllm"] == ""
    assert "int4_awq" in answer("rtx5090", "int4_awq")["trtllm"], "AWQ has no kernels on sm120 in TensorRT-LLM"
    assert answer("rtx5090", "int4_awq")["vllm"] == ""
    assert "8.9" in answer("a100", "fp8")["vllm"]
    assert "Only emulated" in answer("a100", "fp8")["torch"]
    assert "not in TensorRT-LLM's table" in answer("agx-thor", "fp8")["trtllm"]
    assert "10.0" in support.hardware("nvfp4", catalog.target("h200"))
    assert support.hardware("nvfp4", catalog.target("b200")) == ""


def test_the_command_answers_in_text_and_json(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["plan", "fp8", "int4_awq", "--model", "90b", "--gpu", "h200", "--tp", "2"])
    assert done.exit_code == 0, done.output
    assert "Fits: fp8 of 90b on 2 x h200" in done.output
    assert "gated" in done.output
    done = CliRunner().invoke(
        cli, ["plan", "fp8", "-m", "3b", "--gpu", "l4", "--context", "8k", "--batch", "1..4", "--json"]
    )
    found = json.loads(done.output)
    assert [cell["batch"] for cell in found[0]["cells"]] == [1, 2, 4]
    assert msgspec.json.decode(done.output, type=list[GpuPlan])[0].gpu == "l4"


def test_a_gpu_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(CliRunner().invoke(cli, ["show", "gpu", "rtx4090"]).output)
    assert catalog.target(str(mine)) == catalog.target("rtx4090"), "what is shown can be changed and read again"
    sheet = msgspec.to_builtins(catalog.target("rtx4090"))
    mine.write_text(json.dumps(sheet | {"word": "rtx4090-48", "memory_bytes": 48_000_000_000}))
    assert planned("fp8", "11b", str(mine), context=8192).gpu == "rtx4090-48"
    text = mine.read_text().replace('"bandwidth": 1008000000000.0', '"bandwidth": 0').replace("rtx4090-48", "x")
    mine.write_text(text)
    with pytest.raises(BadInput, match="bandwidth"):
        planned("fp8", "11b", str(mine))
    mine.write_text("gpus: []\n")
    with pytest.raises(BadInput, match="0 GPUs"):
        planned("fp8", "11b", str(mine))
    mine.write_text("word: [\n")
    with pytest.raises(BadInput, match="not valid YAML"):
        planned("fp8", "11b", str(mine))


def test_wrong_words_are_answered_with_right_ones() -> None:
    with pytest.raises(BadInput, match="Did you mean 'rtx4090'"):
        planned("fp8", "3b", "rtx4091")
    with pytest.raises(BadInput, match="Did you mean 'fp8'"):
        planned("fp9", "3b", "h100")
    for batch in ("0", "8..4", "many", "1..99999", "-3"):
        with pytest.raises(BadInput, match="not a batch"):
            planned("fp8", "3b", "h100", batch=batch)
    with pytest.raises(BadInput, match="number of tokens"):
        planned("fp8", "3b", "h100", context="0")
    assert "longer than the model's" in planned("fp8", "3b", "h100", context="200000").refusals[0]
    unknown = planned("fp8", "someone/unknown-model", "h100")
    assert not unknown.fits
    assert "dimensions" in unknown.verdict


def test_amounts() -> None:
    assert [amounts.seconds(text) for text in ("200ms", "1.5s", 0.02, "20 us")] == pytest.approx([0.2, 1.5, 0.02, 2e-5])
    assert amounts.tokens("8k") == 8192
    assert amounts.batches("3..20") == (3, 4, 8, 16, 20)
    assert amounts.batches(1) == (1,)
    for wrong in ("-1ms", "nan", "fast", "1m", "inf", "0"):
        with pytest.raises(BadInput, match="not a duration"):
            amounts.seconds(wrong, "--ttft")


def test_data_sheets_hang_together() -> None:
    """Dense figures halve or keep from one width to the next, prices have a source and a date, power is a board's."""
    wanted = "h100 h100-pcie h100-nvl h200 a100 a100-40 l40s l4 a10 b200 gb200 "
    wanted += "rtx4090 rtx5090 rtxpro6000 agx-orin agx-thor dgx-spark"
    assert set(wanted.split()) <= {each.word for each in catalog.gpus()}
    for each in catalog.gpus():
        assert each.tflops
        assert each.tflops_source.startswith("https://")
        assert ("fp8" in each.tflops) <= (each.capability >= (8, 9))
        assert ("fp4" in each.tflops) <= (each.capability >= (10, 0))
        if {"bf16", "fp8"} <= each.tflops.keys():
            assert each.tflops["fp8"] / each.tflops["bf16"] == pytest.approx(2, rel=0.02)
        assert (each.price_per_hour is None) == (each.price_source == "")
        assert (each.price_per_hour is None) or each.price_date.startswith("20")
        assert 40 < (each.power_watts or 0) <= 1200


@pytest.mark.parametrize(
    ("name", "bits"), [("mxfp8", "8.25"), ("nvfp4", "4.5"), ("fp8_rowwise", "8"), ("int4_awq", "4.25")]
)
def test_weights_are_counted_with_the_bits_of_the_format(name: str, bits: str) -> None:
    assert f" x {bits} bits / 1" in planned(name, "3b", "b200").arithmetic[0]


@pytest.mark.parametrize("name", ["int8_sq", "nvfp4_awq", "mxfp4"])
def test_what_no_engine_serves_is_refused(name: str) -> None:
    plan = planned(name, "3b", "b200")
    assert not plan.fits
    assert "nothing to ship" in " ".join(plan.refusals)
    assert plan.verdict.startswith("No")


def test_a_cell_is_counted_with_as_many_images_as_its_prompts_hold(tmp_path: Path) -> None:
    grid = tmp_path / "seen.yaml"
    grid.write_text("summary: t\nisl: [64]\nosl: [16]\nbatch: [4]\nconcurrency: [8]\nimages: [1, 3]\n")
    image = 2 * 8 * 8 * 128 * 2 * 6404
    seen = planned("fp8", "11b", "h100", grid=str(grid))
    assert [(cell.batch, cell.images) for cell in seen.cells] == [(4, 0), (8, 0), (4, 1), (4, 3)]
    alone, _, one, three = (cell.needed_bytes for cell in seen.cells)
    assert (one - alone, three - alone) == (4 * image, 4 * 3 * image)
    assert any("80 tokens and 3 images" in line for line in seen.arithmetic)
    held, most = seen.footprint, seen.largest_batch
    assert held is not None
    assert most is not None
    assert held.needed(80, 1, most, 3) <= held.capacity < held.needed(80, 1, most + 1, 3)
    text = planned("fp8", "3b", "h100", grid=str(grid))
    assert [(cell.batch, cell.images) for cell in text.cells] == [(4, 0), (8, 0)], "a model that takes none"


def test_images_at_a_context_are_asked_for() -> None:
    asked = ({"images": 0}, {}, {"images": 4})
    none, usual, four = (planned("fp8", "11b", "h100", context=1024, **words).cells[0].needed_bytes for words in asked)
    assert four - none == 4 * (usual - none) > 0
    done = CliRunner().invoke(
        cli, ["plan", "fp8", "--model", "11b", "--gpu", "l4", "--context", "1k", "--images", "17"]
    )
    assert done.exit_code == 2
