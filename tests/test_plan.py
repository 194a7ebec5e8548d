"""The plan: group sizes, arithmetic against real exports, and every "no" before anything is started."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from quantlab import catalog
from quantlab.errors import QuantlabError
from quantlab.plans import Plan, explain, plan
from quantlab.records import CalibrationSet, Gpu, Grid, Host, Model, QuantizerOverride, Recipe, Suite

CPU = Host(system="Linux", python="3.11", cpu="EPYC", cores=2, memory_bytes=24 * 10**9)
H100 = msgspec.structs.replace(
    CPU, gpus=(Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 10**9, compute_capability="9.0"),)
)
A100 = msgspec.structs.replace(
    CPU, gpus=(Gpu(name="NVIDIA A100-SXM4-80GB", memory_bytes=80 * 10**9, compute_capability="8.0"),)
)
PLENTY = 10**13


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that may fetch gated models; the tests for the other case take it away."""
    monkeypatch.setenv("HF_TOKEN", "not-a-real-one")


def recipe(name: str, **changes: object) -> Recipe:
    record = catalog.recipe(name).record
    assert isinstance(record, Recipe)
    return msgspec.structs.replace(record, **changes)


def grid(name: str = "quick") -> Grid:
    record = catalog.grid(name).record
    assert isinstance(record, Grid)
    return record


def suite() -> Suite:
    record = catalog.suite("quick").record
    assert isinstance(record, Suite)
    return record


def planned(
    model: Model | str, what: Recipe | str, host: Host = CPU, path: Path | None = None, free: int = PLENTY
) -> Plan:
    resolved = catalog.model(model) if isinstance(model, str) else model
    asked = recipe(what) if isinstance(what, str) else what
    return plan(resolved, path, "r", asked, host, grid(), suite(), free)


def weights(folder: Path, tensors: dict[str, tuple[int, ...]], **config: object) -> Path:
    """A model directory whose one safetensors file has true headers and a hole for data."""
    folder.mkdir()
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2
        for width in shape:
            size *= width
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


# --- group size ------------------------------------------------------------------------------------------


def test_a_576_wide_model_gets_groups_of_64_and_is_told() -> None:
    made = planned("smollm2-135m", "int4_awq")
    assert made.group_size == 64
    assert not made.refusals
    note = next(each for each in made.notes if "group_size auto" in each)
    assert "128 does not divide the input width 576 of 180 layers" in note
    assert "self_attn" in note or "mlp" in note
    assert any("Group size 64" in line for line in explain(made))


def test_llama_3b_takes_the_presets_own_group() -> None:
    made = planned("3b", "int4_awq")
    assert made.group_size == 128
    assert not any("group_size" in note for note in made.notes)


def test_strict_and_an_exact_size_refuse_instead() -> None:
    for asked in ("strict", 128, 96, 512):
        made = planned("smollm2-135m", recipe("int4_awq", group_size=asked))
        if asked == 96:  # 96 divides 576 and 1536
            assert (made.group_size, made.refusals) == (96, ())
            continue
        assert made.group_size is None
        (refusal,) = made.refusals
        assert f"group_size {asked}" in refusal
        assert "576" in refusal
        assert "self_attn.q_proj" in refusal
        assert "group_size: auto (takes 64)" in refusal


def test_strict_is_content_with_widths_that_divide() -> None:
    for model in ("1b", "3b"):
        assert planned(model, recipe("int4_awq", group_size="strict")).group_size == 128
    assert planned("smollm2-135m", recipe("int4_awq", group_size=64)).group_size == 64


def test_a_layer_left_in_16_bit_does_not_count() -> None:
    off = tuple(
        QuantizerOverride(quantizer=f"*{name}*", enable=False)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    )
    made = planned("smollm2-135m", recipe("int4_awq", overrides=off, group_size="strict"))
    assert (made.group_size, made.refusals) == (128, ())  # down_proj alone: 1536
    again = (*off, QuantizerOverride(quantizer="*q_proj*", enable=True))
    assert planned("smollm2-135m", recipe("int4_awq", overrides=again, group_size="strict")).refusals


def test_no_group_divides_an_odd_width(tmp_path: Path) -> None:
    path = weights(tmp_path / "m", {"model.layers.0.mlp.up_proj.weight": (64, 100)})
    made = planned(catalog.model(str(path)), "int4_awq", path=path)
    assert made.group_size is None
    assert "Use fp8" in made.refusals[0]


def test_headers_go_before_the_catalogs_dimensions(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": (100, 90),
        "lm_head.weight": (100, 90),
        "model.vision_model.fc1.weight": (70, 70),
        "model.layers.0.input_layernorm.weight": (96,),
        "model.layers.0.self_attn.q_proj.weight": (96, 96),
        "model.layers.0.mlp.down_proj.weight": (96, 160),
    }
    path = weights(tmp_path / "m", tensors)
    made = planned(catalog.model("3b"), "int4_awq", path=path)
    assert made.group_size == 32
    linear = 96 * 96 + 96 * 160
    total = linear + 2 * 9000 + 4900 + 96
    assert made.weights_bytes == 2 * total
    assert made.checkpoint_bytes == linear * 5 // 8 + 2 * (total - linear)


# --- arithmetic ------------------------------------------------------------------------------------------


def test_checkpoint_sizes_are_those_of_real_exports() -> None:
    """Facts, cpu_engines section 5: ModelOpt's AWQ export of this model in bf16 has 117 MB."""
    awq = planned("smollm2-135m", "int4_awq")
    assert awq.weights_bytes == 2 * 134_515_008
    assert awq.checkpoint_bytes == pytest.approx(117e6, rel=0.01)
    fp8 = planned("smollm2-135m", "fp8")
    assert fp8.checkpoint_bytes == 106_168_320 + 2 * (134_515_008 - 106_168_320)
    assert planned("smollm2-135m", "bf16").checkpoint_bytes == awq.weights_bytes
    folded = planned("smollm2-135m", recipe("int4_awq", export="folded"))
    assert folded.checkpoint_bytes == awq.weights_bytes


def test_the_kv_cache_of_the_largest_cell() -> None:
    """Llama 3.2 3B: 2 x 28 layers x 8 heads x 128 x 2 bytes = 114,688 bytes a token."""
    model, what = catalog.model("3b"), recipe("fp8")
    made = plan(model, None, "fp8", what, H100, grid("rtx4090-slm"), None, PLENTY)
    assert made.kv_bytes == 114_688 * 4 * 4100
    half = plan(model, None, "fp8", recipe("fp8", kv_cache="fp8"), H100, grid("rtx4090-slm"), None, PLENTY)
    assert half.kv_bytes == made.kv_bytes // 2
    assert plan(model, None, "fp8", what, H100, None, None, PLENTY).kv_bytes is None


def test_the_disk_counts_download_export_and_distribution(tmp_path: Path) -> None:
    distribution = 12 * 480 * 512 * 8
    made = planned("smollm2-135m", "fp8")
    assert made.weights_bytes is not None
    assert made.checkpoint_bytes is not None
    assert made.disk_bytes == made.weights_bytes + made.checkpoint_bytes + distribution
    path = weights(tmp_path / "m", {"model.layers.0.mlp.up_proj.weight": (128, 128)})
    here = planned(catalog.model(str(path)), "bf16", path=path)
    assert here.disk_bytes == distribution


def test_seconds_are_given_for_a_cpu_only() -> None:
    fp8, awq = planned("smollm2-135m", "fp8"), planned("smollm2-135m", "int4_awq")
    assert fp8.seconds is not None
    assert awq.seconds is not None
    assert awq.seconds > 2 * fp8.seconds
    assert planned("smollm2-135m", "fp8", H100).seconds is None
    assert planned("smollm2-135m", "bf16").seconds is None


def test_explain_shows_the_arithmetic() -> None:
    text = "\n".join(explain(planned("3b", "int4_awq", free=1)))
    assert "3,212,749,824 x 2 bytes = 6.43 GB" in text
    assert "4.25 bits" in text
    assert "114,688 bytes a token" in text
    assert "Refused: " in text


# --- no --------------------------------------------------------------------------------------------------


def test_what_cannot_fit_is_refused() -> None:
    (memory,) = planned("90b", "bf16").refusals
    assert "177.19 GB" in memory
    assert "24.00 GB" in memory
    assert "NVIDIA H100" in planned("90b", "bf16", H100).refusals[0]
    assert "are free" in planned("3b", "fp8", free=10**9).refusals[0]


def test_a_cpu_quantizes_in_float32_and_needs_twice_the_memory() -> None:
    small = msgspec.structs.replace(CPU, memory_bytes=10 * 10**9)
    assert not planned("3b", "bf16", small).refusals
    assert planned("3b", "fp8", small).layerwise
    tiny = msgspec.structs.replace(CPU, memory_bytes=10**9)
    refusal = planned("3b", "fp8", tiny).refusals[0]
    assert "float32" in refusal
    assert "12.85 GB" in refusal
    on_gpu, on_cpu = planned("3b", "fp8", H100), planned("3b", "fp8")
    assert on_gpu.working_bytes == on_gpu.weights_bytes
    assert on_cpu.working_bytes == 4 * 3_212_749_824


def test_a_gpu_beside_the_question_is_not_counted() -> None:
    model = catalog.model("11b")
    small = msgspec.structs.replace(H100, memory_bytes=8 * 10**9)
    assert not plan(model, None, "bf16", recipe("bf16"), small, None, None, PLENTY).refusals
    assert plan(model, None, "bf16", recipe("bf16"), small, None, None, PLENTY, device="cpu").refusals


def test_what_may_not_fit_is_a_note() -> None:
    small = msgspec.structs.replace(CPU, memory_bytes=14 * 10**9)
    simulated = msgspec.structs.replace(recipe("int4_awq"), export="folded")
    folded = plan(catalog.model("3b"), None, "int4_awq", simulated, small, None, None, PLENTY)
    assert not folded.refusals
    assert any("calibrating may need" in note for note in folded.notes)
    big = Grid(summary="", isl=(4000,), osl=(4000,), batch=(1024,))
    full = plan(catalog.model("3b"), None, "fp8", recipe("fp8"), H100, big, None, PLENTY)
    assert any("KV cache beside the weights" in note for note in full.notes)


def test_what_does_not_fit_whole_goes_block_by_block() -> None:
    roomy, small = planned("3b", "fp8"), planned("3b", "fp8", msgspec.structs.replace(CPU, memory_bytes=8 * 10**9))
    assert not roomy.layerwise
    assert (small.layerwise, small.refusals) == (True, ())
    assert roomy.layerwise_peak_bytes is not None
    assert roomy.calibration_peak_bytes is not None
    assert roomy.layerwise_peak_bytes < 0.25 * roomy.calibration_peak_bytes
    assert any("one block at a time" in note for note in small.notes)
    assert any("--layerwise" in line for line in roomy.arithmetic)
    assert planned("3b", "bf16").layerwise_peak_bytes is None
    more = recipe("fp8").calibration
    assert more is not None
    longer = msgspec.structs.replace(recipe("fp8"), calibration=msgspec.structs.replace(more, samples=64))
    made = plan(catalog.model("3b"), None, "fp8", longer, CPU, None, None, PLENTY)
    assert made.layerwise_peak_bytes == roomy.layerwise_peak_bytes + 2 * 48 * more.length * 3072 * 4


def test_a_gated_model_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "gated" in planned("3b", "fp8").refusals[0]
    assert not planned("smollm2-135m", "fp8").refusals
    here = weights(tmp_path / "m", {"model.layers.0.mlp.up_proj.weight": (128, 128)})
    assert not planned("3b", "fp8", path=here).refusals
    (tmp_path / "token").write_text("x")
    assert not planned("3b", "fp8").refusals


@pytest.mark.parametrize(
    "architecture",
    [
        "T5ForConditionalGeneration",
        "BertForMaskedLM",
        "BartForConditionalGeneration",
        "ViTForImageClassification",
        "LlamaForSequenceClassification",
        "WhisperForConditionalGeneration",
        "BertModel",
    ],
)
def test_what_does_not_continue_text_is_refused(architecture: str) -> None:
    model = msgspec.structs.replace(catalog.model("smollm2-135m"), architecture=architecture)
    for name in ("bf16", "fp8"):
        assert "not a decoder" in planned(model, name).refusals[0]


def test_an_untried_architecture_is_a_note_and_a_known_one_is_not() -> None:
    for architecture, tried in (
        ("LlamaForCausalLM", True),
        ("MistralForCausalLM", True),
        ("Qwen2ForCausalLM", True),
        ("Qwen3ForCausalLM", True),
        ("Phi3ForCausalLM", True),
        ("Gemma2ForCausalLM", True),
        ("GPT2LMHeadModel", False),
        ("ZambaForCausalLM", False),
    ):
        model = msgspec.structs.replace(catalog.model("smollm2-135m"), architecture=architecture)
        made = planned(model, "fp8")
        assert not made.refusals
        assert any("not been tried" in note for note in made.notes) is not tried


def test_images_are_not_calibrated_with_text() -> None:
    def refused(word: str, what: Recipe | str, name: str) -> tuple[str, ...]:
        found = catalog.calibration_set(name).record
        assert isinstance(found, CalibrationSet)
        asked = recipe(what) if isinstance(what, str) else what
        return plan(catalog.model(word), None, "r", asked, H100, None, None, PLENTY, calibration=found).refusals

    (why,) = refused("11b", "fp8", "python-docs")
    assert "cross-attention" in why
    assert "--calibration-set easyvqa" in why
    assert not refused("11b", "fp8", "easyvqa")
    assert not refused("11b", "bf16", "python-docs")
    assert not refused("3b", "fp8", "python-docs")
    assert "key/value cache" in refused("11b", recipe("fp8", kv_cache="fp8"), "easyvqa")[0]


def test_a_text_model_is_not_asked_about_pictures() -> None:
    asked = catalog.suite("vqa-quick").record
    assert isinstance(asked, Suite)
    (why,) = plan(catalog.model("3b"), None, "fp8", recipe("fp8"), H100, None, asked, PLENTY).refusals
    assert "reads text only" in why
    assert not plan(catalog.model("11b"), None, "fp8", recipe("fp8"), H100, None, asked, PLENTY).refusals


@pytest.mark.parametrize(("word", "pixels", "text"), [
    ("11b", 560, {}),
    ("11b-base", 448, {}),
    ("90b", 560, {"hidden_size": 8192, "num_hidden_layers": 100, "num_attention_heads": 64, "intermediate_size": 28672,
                  "cross_attention_layers": list(range(3, 100, 5))}),
])  # fmt: skip
def test_the_sizes_of_llama_32_vision_are_those_of_its_class(word: str, pixels: int, text: dict[str, object]) -> None:
    from accelerate import init_empty_weights
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    eleven = {
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    }
    config = MllamaConfig(vision_config={"image_size": pixels}, text_config={**eleven, **text})
    with init_empty_weights():
        model = MllamaForConditionalGeneration(config)
    known = catalog.model(word)
    assert known.parameters == sum(each.numel() for each in model.parameters())
    inner, shape = config.text_config, known.shape
    assert shape is not None
    assert (shape.layers + shape.cross_layers, shape.cross_layers) == (
        inner.num_hidden_layers,
        len(inner.cross_attention_layers),
    )
    named = [n for n, one in model.named_modules() if type(one).__name__ == "Linear" and "language_model" in n]
    made = planned(word, "int4_awq", msgspec.structs.replace(H100, memory_bytes=10**12))
    assert any(f"in {len(named)} layers" in line for line in made.arithmetic)


def test_a_suite_whose_package_is_missing_is_refused() -> None:
    from quantlab.records import SuiteTask

    for package, there in (("no_such_package_xyz", False), ("yaml", True)):
        asked = Suite(summary="", tasks=(SuiteTask(task="a", package=package),))
        made = plan(catalog.model("smollm2-135m"), None, "fp8", recipe("fp8"), CPU, None, asked, PLENTY)
        assert (not made.refusals) is there
        assert there or package in made.refusals[0]


def test_a_quantized_directory_is_refused(tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.up_proj.weight": (128, 128)}
    path = weights(tmp_path / "m", tensors, quantization_config={"quant_method": "modelopt"})
    assert "quantized already" in planned(catalog.model(str(path)), "fp8", path=path).refusals[0]


def test_fp8_is_called_emulated_where_it_is() -> None:
    def emulated(host: Host) -> bool:
        return any("emulated" in note for note in planned("3b", "fp8", host).notes)

    assert (emulated(CPU), emulated(A100), emulated(H100)) == (True, True, False)
    assert not any("emulated" in note for note in planned("3b", "int4_awq", A100).notes)


def test_an_unknown_hub_model_is_planned_without_sizes() -> None:
    made = planned("org/some-model", "int4_awq")
    assert (made.weights_bytes, made.disk_bytes, made.seconds) == (None, None, None)
    assert any("not known until" in note for note in made.notes)
    assert made.group_size == 128
    assert not made.refusals


def test_damaged_weights_raise_and_are_not_planned(tmp_path: Path) -> None:
    path = weights(tmp_path / "m", {"a.weight": (2, 2)})
    (path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(QuantlabError):
        planned(catalog.model(str(path)), "fp8", path=path)


def test_a_plan_is_plain_data() -> None:
    made = planned("3b", "int4_awq")
    assert msgspec.json.decode(msgspec.json.encode(made), type=Plan) == made


@pytest.mark.parametrize(("word", "refused"), [("quick", False), ("long-quick", False), ("long", True)])
def test_windows_longer_than_the_models_context_are_refused(word: str, refused: bool) -> None:
    short = catalog.model("smollm2-135m")
    assert short.shape is not None
    short = msgspec.structs.replace(short, shape=msgspec.structs.replace(short.shape, context=2048))
    asked = catalog.suite(word).record
    assert isinstance(asked, Suite)
    made = plan(short, None, "fp8", recipe("fp8"), CPU, grid(), asked, PLENTY)
    assert any("4,096 tokens are longer" in each for each in made.refusals) == refused


@pytest.mark.parametrize(("name", "block"), [("nvfp4", 16), ("nvfp4_awq", 16), ("mxfp8", 32), ("mxfp4", 32)])
def test_blocks_that_do_not_divide_are_refused(name: str, block: int) -> None:
    odd = catalog.model("smollm2-135m")
    assert odd.shape is not None
    odd = msgspec.structs.replace(odd, shape=msgspec.structs.replace(odd.shape, intermediate=1544))
    said = " ".join(plan(odd, None, name, recipe(name), CPU, grid(), suite(), PLENTY).refusals)
    assert f"blocks of {block}" in said
    assert "1544" in said
