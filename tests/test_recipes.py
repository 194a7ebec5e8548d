"""Every built-in recipe against what its format stores and who serves it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import yaml

from quantlab import catalog
from quantlab.catalog import sense
from quantlab.engines import engine
from quantlab.plans import plan
from quantlab.records import FORMATS, Checkpoint, Gpu, Host, Recipe, unserved

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(path.stem for path in (ROOT / "calibration").glob("*.yaml"))
HOST = Host(system="Linux", python="3.11", cpu="x", cores=2, memory_bytes=64 * 2**30, versions={})


def recipe(name: str) -> Recipe:
    return msgspec.convert(yaml.safe_load((ROOT / "calibration" / f"{name}.yaml").read_text()), Recipe)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_makes_sense_and_is_explained(name: str) -> None:
    record = recipe(name)
    assert list(sense.recipe(record)) == []
    assert record.format in FORMATS
    text = (ROOT / "calibration" / f"{name}.yaml").read_text()
    assert all(f"# {word} " in text for word in ("What", "Served", "Cost"))
    assert f"| `{name}` |" in (ROOT / "calibration" / "README.md").read_text()
    wants_data = FORMATS[record.format].input_scale or record.format.endswith("awq")
    assert (record.calibration is not None) == wants_data


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_flags_what_nobody_serves(name: str) -> None:
    record = recipe(name)
    made = plan(catalog.model("smollm2-135m"), None, name, record, HOST, None, None, 10**12)
    flagged = [note for note in made.notes if "nothing to ship" in note]
    alone = name in ("int8_sq", "int8_wo", "nvfp4_awq", "mxfp4")
    assert bool(flagged) == bool(unserved(record.format)) == alone


@pytest.mark.parametrize("name", NAMES)
def test_the_summary_says_who_serves_it(name: str) -> None:
    """The engines a summary names are those that load the format."""
    what, text = FORMATS[recipe(name).format], recipe(name).summary
    if name in ("bf16", "fp8", "int4_awq"):
        return  # told by GPU, not by engine
    loads = {"TensorRT-LLM": bool(what.trtllm), "vLLM": what.vllm is not None}
    for word, yes in loads.items():
        assert word in text
        assert yes != any(f"{no} {word}" in text for no in ("not", "neither", "nor")), text


@pytest.mark.parametrize("capability", ["8.0", "8.9", "9.0", "10.0", "12.0"])
@pytest.mark.parametrize("word", FORMATS)
def test_engines_refuse_what_the_table_does_not_have(
    word: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantlab.engines import trtllm, vllm

    monkeypatch.setattr(trtllm, "_installed", lambda: "1.2.1")
    monkeypatch.setattr(vllm, "installed", lambda: ("vllm", "0.24.0"))
    card = Gpu(name="card", memory_bytes=80 * 10**9, compute_capability=capability, driver="1")
    host = msgspec.structs.replace(HOST, gpus=(card,))
    made = Checkpoint(path="x", digest="d", recipe=word, format=word, architecture="LlamaForCausalLM")
    served = FORMATS[word]
    assert (engine("trtllm").supports(made, host) is None) == (capability in served.trtllm)
    least = served.vllm
    number = tuple(int(part) for part in capability.split("."))
    assert (engine("vllm").supports(made, host) is None) == (least is not None and number >= least)
    assert engine("torch").supports(made, host) is None


def test_bits_of_a_layer() -> None:
    rows, columns = 8, 256
    bits = {word: each.layer_bits(rows, columns, 64) for word, each in FORMATS.items()}
    weights = rows * columns
    assert bits["bf16"] == 16 * weights
    assert bits["fp8"] == 8 * weights + 64
    assert bits["fp8_rowwise"] == 8 * weights + 32 * rows
    assert bits["int8_sq"] == 8 * weights + 32 * rows + 32
    assert bits["int4"] == bits["int4_awq"] == 4 * weights + 32 * rows * 4
    assert bits["w4a8_awq"] == bits["int4_awq"] + 64
    assert bits["mxfp8"] == 8 * weights + 8 * rows * 8
    assert bits["mxfp4"] == 4 * weights + 8 * rows * 8
    assert bits["nvfp4"] == bits["nvfp4_awq"] == 4 * weights + 8 * rows * 16 + 64


def test_a_group_size_belongs_to_formats_that_leave_it_open() -> None:
    for word in FORMATS:
        record = msgspec.structs.replace(recipe("fp8"), format=word, group_size=64)
        complaints = [where for where, *_ in sense.recipe(record) if where == ("group_size",)]
        assert bool(complaints) == (word not in ("int4", "int4_awq", "w4a8_awq"))
