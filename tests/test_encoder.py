"""The vision encoder: sizes, graph, ranges, answers, targets and the command; TensorRT-LLM's legacy flow.

What needs onnx and onnxruntime is skipped where they are not installed (`make test-ortgenai`), what needs TensorRT-RTX
where that is not (`quantlab engines setup rtx`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from quantlab import catalog
from quantlab.cli import cli
from quantlab.encoder import kept
from quantlab.encoder.shape import tower_shape
from quantlab.encoder.targets import capability, lacking, require
from quantlab.engines.trtllm_mllama import legacy
from quantlab.errors import BadInput, Broken, NoAccess, QuantlabError, Refused
from quantlab.records.encoder import Difference, EncoderJob
from quantlab.worker import Reporter

MODEL = catalog.builtin() / "evals" / "models" / "mllama-easyvqa"
PICTURES = sorted(str(one) for one in (catalog.builtin() / "calibration" / "sets" / "easyvqa").glob("*.png"))[:8]
CONTRACT = Path(__file__).parent / "contracts" / "trtllm_1_2_1.json"
E11B: dict[str, Any] = {
    "model_type": "mllama",
    "text_config": {"hidden_size": 4096},
    "vision_config": {
        "image_size": 560,
        "patch_size": 14,
        "max_num_tiles": 4,
        "hidden_size": 1280,
        "attention_heads": 16,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "supported_aspect_ratios": [[1, 1]] * 8,
    },
}


def job(into: Path, precision: Any = "fp32", **more: Any) -> EncoderJob:
    given = {"source": str(MODEL), "digest": "0", "batches": (1, 4), "pictures": tuple(PICTURES)} | more
    return EncoderJob(into=str(into), precision=precision, **given)


def edited(into: Path, **vision: Any) -> Path:
    """A copy of the model with other words in its vision_config."""
    shutil.copytree(MODEL, into)
    config = json.loads((MODEL / "config.json").read_text())
    config["vision_config"] |= vision
    (into / "config.json").write_text(json.dumps(config))
    return into


# --- without an SDK


def test_the_shape_of_the_true_11b_is_known() -> None:
    shape = tower_shape(E11B)
    assert (shape.tokens, shape.padded, shape.features, shape.ratios) == (1601, 1608, 7680, 9)
    assert shape.tiles * shape.tokens == 6404


def test_what_is_no_mllama_tower_is_refused() -> None:
    with pytest.raises(BadInput, match="type llama"):
        tower_shape({"model_type": "llama"})
    with pytest.raises(Refused, match="gelu"):
        tower_shape(E11B | {"vision_config": E11B["vision_config"] | {"hidden_act": "quick_gelu"}})


@pytest.mark.parametrize(
    ("word", "is_"), [("89", "8.9"), ("sm_89", "8.9"), ("8.9", "8.9"), ("120", "12.0"), ("SM86", "8.6")]
)
def test_a_compute_capability_may_be_spelled_as_people_do(word: str, is_: str) -> None:
    assert capability(word) == is_


@pytest.mark.parametrize("word", ["", "8", "sm", "ada", "8.9.1", "1234"])
def test_what_is_no_compute_capability_says_so(word: str) -> None:
    with pytest.raises(BadInput, match="compute capability"):
        capability(word)


@pytest.mark.parametrize(
    ("target", "precision", "capabilities", "kind", "says"),
    [
        ("rtx", "fp8", ("8.0",), Refused, "no FP8 arithmetic"),
        ("rtx", "fp8", ("8.9", "8.6"), Refused, "8.6 has no FP8"),
        ("rtx", "fp16", ("9.0",), BadInput, "builds nothing for 9.0"),
        ("rtx", "fp16", (), BadInput, "for which GPU"),
        ("onnx", "fp16", ("8.9",), BadInput, "for no GPU"),
        ("rtx", "bf16", ("7.5",), Refused, "bfloat16"),
        ("rtx", "fp32", ("7.5",), Refused, "7.5"),
    ],
)
def test_a_target_refuses_before_a_builder_does(
    target: str, precision: str, capabilities: tuple[str, ...], kind: type[QuantlabError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        require(target, precision, capabilities)


def test_what_a_target_has_is_let_through() -> None:
    require("rtx", "fp8", ("8.9", "12.0"))
    require("rtx", "int8", ("8.0", "8.6"))
    require("onnx", "fp8", ())
    assert lacking("9.0", "fp8") == ""


def test_the_command_refuses_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlab.host.gpus", tuple)

    def error(*words: str) -> QuantlabError:
        done = CliRunner().invoke(cli, ["build", "--into", str(tmp_path / "x"), *words])
        assert isinstance(done.exception, QuantlabError), done.output
        return done.exception

    assert "no FP8" in error("-m", "11b", "--precision", "fp8", "--target", "rtx", "--sm", "80").problem
    assert "text only" in error("-m", "3b").problem
    assert "no int4" in error("-m", "11b", "--precision", "int4_awq").problem
    assert "no sizes" in error("-m", "11b", "--batch", "one").problem
    assert "no sizes" in error("-m", "11b", "--batch", "4,1").problem
    assert "there is none here" in error("-m", "mllama-easyvqa", "--target", "tensorrt").problem
    monkeypatch.setenv("QUANTLAB_ENGINE_RTX", sys.executable)
    bare = error("-m", "mllama-easyvqa", "--target", "rtx", "--sm", "89")
    assert isinstance(bare, NoAccess)
    assert "engines setup rtx" in bare.cure
    assert "cannot be read" in error("-m", "mllama-easyvqa", "--questions", str(tmp_path / "none")).problem
    assert "no folder" in error("-m", "mllama-easyvqa", "--pictures", str(tmp_path / "none")).problem
    assert "no picture" in error("-m", "mllama-easyvqa", "--pictures", str(tmp_path)).problem
    assert not (tmp_path / "x").exists()


def test_a_dry_run_says_what_would_be_done() -> None:
    done = CliRunner().invoke(cli, ["build", "-m", "mllama-easyvqa", "--target", "rtx", "--sm", "89", "--dry-run"])
    assert "4 x 17 vectors of 128" in done.output
    assert "plan of rtx for 8.9" in done.output


def test_a_record_whose_files_were_cut_is_not_used(tmp_path: Path) -> None:
    from quantlab.records import encode
    from quantlab.records.encoder import Encoder

    asked = job(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"12345")
    record = Encoder(
        job=kept.placeless(asked), protocol=kept.PROTOCOL, files={"model.onnx": 5}, tokens=68, width=128, versions={}
    )
    (tmp_path / kept.RECORD).write_bytes(encode(record))
    assert kept.usable(tmp_path, asked) == record
    assert kept.usable(tmp_path, job(tmp_path, "fp16")) is None
    assert kept.usable(tmp_path, job(tmp_path, data="other pictures")) is None
    (tmp_path / "model.onnx").write_bytes(b"1234")
    assert kept.usable(tmp_path, asked) is None
    with pytest.raises(BadInput, match="no whole encoder"):
        kept.require(tmp_path)


# --- TensorRT-LLM's legacy flow


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_legacy_commands_say_only_what_the_contract_knows(precision: str) -> None:
    flow = legacy("meta-llama/Llama-3.2-11B-Vision-Instruct", precision)
    known = {flag for words in json.loads(CONTRACT.read_text())["build_flags"] for flag in words.split("/")}
    (build,) = [command for command in flow.commands if command[0] == "trtllm-build"]
    said = {word for word in build if word.startswith("--")}
    assert said <= known
    assert build[build.index("--max_encoder_input_len") + 1] == "6404"
    assert "not run" in flow.state
    assert next(iter(flow.lines())).startswith("# not run here")


def test_the_legacy_flow_has_no_int4_awq() -> None:
    with pytest.raises(Refused, match="int4_awq"):
        legacy("x", "int4_awq")
    done = CliRunner().invoke(cli, ["build", "--part", "text", "-m", "11b", "--precision", "fp8"])
    assert isinstance(done.exception, Refused)
    assert "not run" in done.exception.problem


def test_the_legacy_commands_are_printed_with_the_models_own_sizes() -> None:
    done = CliRunner().invoke(
        cli, ["build", "--part", "text", "-m", "mllama-easyvqa", "--precision", "bf16", "--dry-run"]
    )
    assert "--max_encoder_input_len 68" in done.output
    assert "build_multimodal_engine.py --model_type mllama" in done.output


# --- with onnx and ONNX Runtime


@pytest.fixture(scope="module")
def sdk() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def rounded(sdk: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One encoder of each precision: precision -> (folder, record)."""
    from quantlab.encoder.make import run

    place = tmp_path_factory.mktemp("encoders")
    kinds = ("fp32", "fp16", "int8", "fp8", "bf16")
    return {one: (place / one, run(job(place / one, one), Reporter())) for one in kinds}


@pytest.mark.parametrize(("precision", "norm"), [("fp32", 2e-6), ("fp16", 2e-3), ("int8", 0.04), ("fp8", 0.06)])
def test_the_graph_computes_what_torch_does(rounded: dict[str, Any], precision: str, norm: float) -> None:
    _, record = rounded[precision]
    assert [one.batch for one in record.differences] == [1, 4]
    assert all(0 < one.norm < norm for one in record.differences), record.differences


def test_narrower_graphs_are_smaller_and_further_off(rounded: dict[str, Any]) -> None:
    sizes = [rounded[one][1].files["model.onnx.data"] for one in ("fp32", "fp16", "int8")]
    norms = [rounded[one][1].differences[0].norm for one in ("fp32", "fp16", "int8")]
    assert sizes == sorted(sizes, reverse=True)
    assert norms == sorted(norms)


def test_bfloat16_is_written_and_says_that_it_was_not_checked(rounded: dict[str, Any]) -> None:
    _, record = rounded["bf16"]
    assert record.differences == ()
    assert "not checked" in record.notes[0]


def test_every_aspect_ratio_is_computed_right(sdk: None, rounded: dict[str, Any]) -> None:
    """One table row, one mask and one order of tiles each: a wrong row would pass with square pictures alone."""
    import torch

    from quantlab.encoder.runtime import OnnxTower
    from quantlab.encoder.stored import open_tower

    tower, shape = open_tower(MODEL, torch.float32)
    graph = OnnxTower(rounded["fp32"][0] / "model.onnx", "fp32", 1)
    ratios = tower.vision_model.config.supported_aspect_ratios
    made = torch.Generator().manual_seed(3)
    for row, (high, wide) in enumerate(ratios, start=1):
        pixels = torch.randn(1, 1, shape.tiles, 3, shape.image, shape.image, generator=made)
        mask = (torch.arange(shape.tiles) < high * wide).long()[None, None]
        ids = torch.tensor([[row]])
        with torch.inference_mode():
            wanted = tower(pixels, ids, mask).numpy()
        found = graph(pixels.numpy(), ids.numpy(), mask.numpy())
        assert np.abs(found - wanted).max() < 1e-4, (high, wide)


def test_a_row_or_a_gate_that_is_wrong_is_seen(sdk: None, tmp_path: Path) -> None:
    """The check must be able to fail: a tower with one other gate is another tower."""
    import torch

    from quantlab.encoder import graph
    from quantlab.encoder.check import Pictures, differences
    from quantlab.encoder.runtime import OnnxTower
    from quantlab.encoder.stored import open_tower, source_of

    tower, shape = open_tower(MODEL, torch.float32)
    graph.write(shape, source_of(MODEL), tmp_path, "fp32")
    with torch.no_grad():
        tower.vision_model.post_tile_positional_embedding.gate += 0.05
    pictures = Pictures(MODEL, PICTURES, shape.image, tower.vision_model.config.supported_aspect_ratios)
    (found,) = differences(tower, OnnxTower(tmp_path / "model.onnx", "fp32", 1), pictures, [1])
    assert found.norm > 1e-4


def test_answers_are_held_against_torchs_and_a_blind_tower_shows(
    sdk: None, rounded: dict[str, Any], tmp_path: Path
) -> None:
    import torch

    from quantlab.encoder.answers import held
    from quantlab.encoder.runtime import OnnxTower
    from quantlab.encoder.stored import open_tower

    items = catalog.builtin() / "evals" / "items" / "easyvqa_shape.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()[:40]]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(json.dumps(row | {"image": str(items.parent / row["image"])}) for row in rows))
    tower, _ = open_tower(MODEL, torch.float32)
    graph = OnnxTower(rounded["fp32"][0] / "model.onnx", "fp32", 1)
    same = held(MODEL, [str(few)], tower, graph)
    assert (same.questions, same.changed) == (40, 0)
    assert same.score[0] > 0.9
    assert abs(same.nats[0] - same.nats[1]) < 1e-4
    with torch.no_grad():
        tower.multi_modal_projector.weight.zero_()
    blind = held(MODEL, [str(few)], tower, graph)
    assert blind.changed > 5
    assert blind.nats[0] > blind.nats[1]


@pytest.mark.parametrize("text", ["", "{", '{"image": "x.png", "query": "q", "choices": ["a"]}'])
def test_files_that_hold_no_questions_say_so(tmp_path: Path, text: str) -> None:
    from quantlab.encoder.answers import read

    file = tmp_path / "items.jsonl"
    file.write_text(text)
    with pytest.raises(BadInput, match="question"):
        list(read(file))


def test_an_encoder_is_taken_as_it_is_and_never_written_over_something_else(
    sdk: None, rounded: dict[str, Any], tmp_path: Path
) -> None:
    from quantlab.encoder.make import run

    folder, record = rounded["fp16"]
    before = (folder / "model.onnx").stat().st_mtime_ns
    assert run(job(folder, "fp16"), Reporter()) == record
    assert (folder / "model.onnx").stat().st_mtime_ns == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="something already"):
        run(job(tmp_path), Reporter())


def test_bad_input_leaves_no_folder(sdk: None, tmp_path: Path, tiny_model: Path) -> None:
    from quantlab.encoder.make import run

    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(PICTURES[0]).read_bytes()[:60])
    cases: list[tuple[type[QuantlabError], str, dict[str, Any]]] = [
        (BadInput, "reads text only", {"source": str(tiny_model)}),
        (BadInput, "cannot be read", {"pictures": (str(broken),)}),
        (BadInput, "no picture", {"pictures": ()}),
        (Broken, "config.json says", {"source": str(edited(tmp_path / "wider", intermediate_size=512))}),
    ]
    for kind, says, words in cases:
        with pytest.raises(kind, match=says):
            run(job(tmp_path / "out", "int8", **words), Reporter())
        assert not (tmp_path / "out").exists()


def test_a_range_that_nobody_saw_is_no_scale(sdk: None, tmp_path: Path) -> None:
    import torch

    from quantlab.encoder import graph
    from quantlab.encoder.stored import open_tower, source_of

    _, shape = open_tower(MODEL, torch.float32)
    with pytest.raises(Broken, match="input range"):
        graph.write(shape, source_of(MODEL), tmp_path, "int8", {})


def test_without_onnx_runtime_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantlab.encoder.make import run

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NoAccess) as caught:
        run(job(tmp_path / "out"), Reporter())
    assert "engines setup ortgenai" in caught.value.cure


# --- with TensorRT-RTX, which builds without a GPU


@pytest.fixture(scope="module")
def rtx() -> Any:
    from quantlab.encoder.builder import sdk as found

    try:
        return found("rtx")
    except NoAccess as error:
        pytest.skip(error.problem)


def test_a_plan_is_built_without_a_gpu_and_marked(rtx: Any, rounded: dict[str, Any]) -> None:
    from quantlab.encoder.make import plan
    from quantlab.records.encoder import PlanJob

    folder, _ = rounded["fp8"]
    spec = PlanJob(folder=str(folder), target="rtx", capability="8.9")
    made = plan(spec, Reporter())
    written = (folder / made.file).stat().st_mtime_ns
    assert plan(spec, Reporter()) == made
    assert (folder / made.file).stat().st_mtime_ns == written, "what is there is taken as it is"
    assert (made.state, made.capability, made.precision) == ("built, not run", "8.9", "fp8")
    assert (folder / made.file).stat().st_size == made.bytes
    assert made.weights_bytes is not None
    assert made.weights_bytes < 1_300_000


def test_what_the_preflight_refuses_the_builder_refuses_too(rtx: Any, rounded: dict[str, Any]) -> None:
    """The table is the builder's own: where it says no, TensorRT-RTX says no."""
    from quantlab.encoder import builder
    from quantlab.errors import StageFailed

    with pytest.raises(StageFailed, match="fp8"):
        builder.build(rtx, rounded["fp8"][0] / "model.onnx", (1, 1, 1), "8.6")
    with pytest.raises(BadInput, match=re.escape("9.0")):
        builder.build(rtx, rounded["fp16"][0] / "model.onnx", (1, 1, 1), "9.0")


def test_without_tensorrt_the_cure_is_named() -> None:
    from quantlab.encoder.builder import sdk as found

    code = "import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_bindings'] = None"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom quantlab.encoder.builder import sdk\nsdk('tensorrt')"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "NoAccess" in done.stderr
    assert "--target onnx or rtx" in done.stderr
    assert callable(found)


def test_records_cross_the_wall_whole() -> None:
    one = Difference(batch=1, absolute=0.1, relative=0.01, norm=0.001)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Difference) == one
