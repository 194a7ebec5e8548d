"""The tables of measured kernels: what is asked, what is refused, and the real package where it is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from quantlab import advice, catalog
from quantlab.errors import BadInput
from quantlab.kernels import FORMATS, SYSTEMS, KernelTables, KernelTime, Question, config
from quantlab.records import Shape

TABLES = KernelTables()
needs_tables = pytest.mark.skipif(
    not TABLES.here, reason="no aiconfigurator-core (pip install -e '.[kernels]', or QUANTLAB_KERNELS)"
)


def shape(word: str) -> Shape:
    found = catalog.model(word).shape
    assert found is not None
    return found


ASKED = Question(shape("3b"), "h200", "trtllm", "bf16", "none", 1, 100, 100, (1,))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "int4_awq"}, "no format int4_awq"),
        ({"gpu": "rtx4090"}, "no GPU rtx4090"),
        ({"engine": "trtllm-0.6"}, "no engine trtllm-0.6"),
        ({"osl": 1}, "two tokens out"),
    ],
)
def test_what_the_tables_cannot_know_is_refused_without_asking(changes: dict[str, object], match: str) -> None:
    nobody = KernelTables(("/no/such/python",))
    (answer,) = nobody.ask([replace(ASKED, **changes)])  # type: ignore[arg-type]
    assert isinstance(answer, str)
    assert match in answer


def test_four_bits_are_never_asked_for() -> None:
    assert FORMATS == ("bf16", "fp8")


def test_every_system_is_a_gpu_of_the_catalog() -> None:
    assert all(catalog.gpu(word) for word in SYSTEMS)


def test_mllama_is_asked_for_as_the_llama_that_text_runs_through() -> None:
    made = config(shape("90b"))
    assert (made["architectures"], made["num_hidden_layers"], made["hidden_size"]) == (["LlamaForCausalLM"], 80, 8192)


@pytest.mark.parametrize("command", [("/no/such/python",), (sys.executable, "-S"), ("false",), ("echo",)])
def test_a_python_that_cannot_answer_is_named_with_the_cure(command: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="kernel tables cannot be asked") as caught:
        KernelTables(command).ask([ASKED])
    assert command[0] in caught.value.place
    assert "--no-kernels" in caught.value.cure


def test_another_version_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("""#!/bin/sh\ncat > /dev/null\necho '{"version": "9.9", "answers": [{"cells": {}}]}'\n""")
    python.chmod(0o755)
    with pytest.raises(BadInput, match=r"aiconfigurator-core 9\.9 is there, and 0\.12\.0 was tested"):
        KernelTables((str(python),)).ask([ASKED])


def test_without_tables_a_recommendation_is_made_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTLAB_KERNELS", "/no/such/python")
    found = advice.recommend("3b", gpu="h200", folders=[tmp_path], kernels=False, unproven=True)
    assert found.choice is not None
    with pytest.raises(BadInput, match="kernel tables"):
        advice.recommend("3b", gpu="h200", folders=[tmp_path], unproven=True)


@needs_tables
def test_the_real_tables_say_what_they_said() -> None:
    """H200, 3B, TensorRT-LLM, 100 in and 100 out, batch 1: 378 tokens/s in bf16, 488 in static FP8 (read by hand)."""
    questions = [
        ASKED,
        replace(ASKED, format="fp8"),
        replace(ASKED, shape=shape("1b"), gpu="a100", engine="vllm"),
        replace(ASKED, gpu="a100", format="fp8"),
    ]
    plain, static, small, old = TABLES.ask(questions)
    for answer, speed in ((plain, 377.8), (static, 488.0)):
        assert isinstance(answer, dict)
        time = answer[1]
        assert isinstance(time, KernelTime)
        assert 100 / (time.first_seconds + 99 * time.step_seconds) == pytest.approx(speed, rel=0.02)
        assert time.measured_share > 0.8
    for refused in (small, old):
        assert isinstance(refused, str)
        assert "do not cover it" in refused


@needs_tables
def test_a_recommendation_with_kernels_labels_them(tmp_path: Path) -> None:
    found = advice.recommend("3b", gpu="h200", folders=[tmp_path], unproven=True, engine="vllm", batch="1..16")
    rows = {row.recipe: row for row in found.record.rows}
    for name in ("bf16", "fp8"):
        assert {speed.tier for speed in rows[name].speeds} <= {"kernels", "transfer"}
        assert {speed.provenance for speed in rows[name].speeds} == {"predicted"}
    assert "kernels" in {speed.tier for speed in rows["fp8"].speeds}
    assert "kernels" not in {speed.tier for speed in rows["int4_awq"].speeds}
    assert any("no format int4_awq" in line for line in found.record.missing)
