"""Llama 3.2 Vision before the linter for TensorRT-LLM and the converter: each refusal has the true reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantlab import catalog
from quantlab.engines import engine
from quantlab.engines.trtllm import TrtllmEngine
from quantlab.errors import Refused
from quantlab.formats.convert import convert
from quantlab.formats.lint import lint_trtllm
from quantlab.records import Checkpoint, Gpu, Host

EXCLUDED = ["language_model.lm_head", "language_model.model.embed_tokens", "multi_modal_projector", "vision_model*"]


def said(into: Path, algorithm: str) -> Path:
    """mllama-easyvqa with the quantization file of ModelOpt's export of it."""
    shutil.copytree(catalog.builtin() / "evals" / "models" / "mllama-easyvqa", into)
    words = {"quant_algo": algorithm, "kv_cache_quant_algo": None, "group_size": 128, "exclude_modules": EXCLUDED}
    file = {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": words}
    (into / "hf_quant_config.json").write_text(json.dumps(file))
    return into


@pytest.mark.parametrize(("algorithm", "passed"), [("FP8", True), ("W4A16_AWQ", False), ("W4A8_AWQ", False)])
def test_the_linter_knows_what_is_listed_for_models_with_images(tmp_path: Path, algorithm: str, passed: bool) -> None:
    (check,) = [one for one in lint_trtllm(said(tmp_path / "x", algorithm)) if one.name == "sight"]
    assert check.passed is passed
    assert ("lists no" in check.finding) is not passed


@pytest.mark.parametrize("layout", ["compressed-tensors", "autoawq"])
def test_the_converter_says_why_not(tmp_path: Path, layout: Any) -> None:
    with pytest.raises(Refused, match="fold into nothing") as caught:
        convert(said(tmp_path / "x", "W4A16_AWQ"), tmp_path / "y", layout)
    assert "engine torch" in caught.value.cure
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(("format_", "served"), [("bf16", True), ("fp8", True), ("int4_awq", False)])
def test_engine_trtllm_refuses_it_before_anything_is_calibrated(format_: str, served: bool) -> None:
    made = Checkpoint(
        path="x", digest="0", recipe=format_, format=format_, architecture="MllamaForConditionalGeneration"
    )
    gpu = Gpu(name="NVIDIA H100", compute_capability="9.0", memory_bytes=80 * 10**9, driver="580")
    host = Host(system="test", python="3.12", cpu="test", cores=2, memory_bytes=2**33, gpus=(gpu,))
    trtllm = engine("trtllm")
    assert isinstance(trtllm, TrtllmEngine)
    why = trtllm.serves(made, host)
    assert (why is None) is served
    assert served or "lists bf16 and fp8" in str(why)
