"""What a run advises to ship: an acceptance alone is not enough, somebody must serve it."""

from __future__ import annotations

import msgspec
import pytest

from quantlab.pipeline.headline import hindrance, servers, summary, takes
from quantlab.records import Candidate, Gpu, Host, Keep, Recipe, Verdict
from quantlab.records.finished import PRESET
from tests.report_runs import demo

H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 10**9, compute_capability="9.0")


def recipe(word: str, **fields: object) -> Recipe:
    return msgspec.convert({"summary": "x", "preset": "X", "format": word, **fields}, Recipe)


def candidate(word: str, status: str, bits: float, **fields: object) -> Candidate:
    """A real one with another format, verdict and size."""
    kept = demo().candidates[-1]
    assert kept.calibrated is not None
    checkpoint = msgspec.structs.replace(kept.calibrated.checkpoint, bits_per_weight=bits)
    return msgspec.structs.replace(
        kept,
        accuracy=demo().candidates[0].accuracy,
        recipe_name=word,
        recipe=recipe(word, **fields),
        verdict=Verdict(status=status, reason="because.", scope="population"),  # type: ignore[arg-type]
        calibrated=msgspec.structs.replace(kept.calibrated, checkpoint=checkpoint),
    )


def host(*gpus: Gpu) -> Host:
    return msgspec.structs.replace(demo().host, gpus=gpus)


BASE = candidate("bf16", "baseline", 16.0)


def test_the_fewest_bits_that_somebody_serves() -> None:
    said = summary(
        "m",
        [
            BASE,
            candidate("fp8", "accept", 8.0),
            candidate("int8_sq", "accept", 7.9),
            candidate("int4_awq", "regression", 4.5),
        ],
        host(),
    )
    assert said.startswith(
        "Ship fp8: of the accepted precisions of m it stores the fewest bits (8.00 per weight). Because."
    )
    assert (
        "served by TensorRT-LLM (compute capability 8.9, 9.0, 10.0, 10.3, 12.0) and vLLM (from compute capability 8.9)."
        in said
    )
    assert "Accepted, but not to be shipped: int8_sq: no server loads it." in said
    assert said.endswith("Not accepted: int4_awq: regression.")


def test_on_a_gpu_without_its_kernels_it_is_not_advised() -> None:
    both = [BASE, candidate("fp8", "accept", 8.0), candidate("nvfp4", "accept", 4.5)]
    assert summary("m", both, host()).startswith("Ship nvfp4:")
    on_hopper = summary("m", both, host(H100))
    assert on_hopper.startswith("Ship fp8:")
    assert "nvfp4: no server has kernels for it on NVIDIA H100" in on_hopper
    only = summary("m", [BASE, candidate("nvfp4", "accept", 4.5)], host(H100))
    assert only.startswith("Stay with bf16: no precision of m was accepted and can be served.")


def test_nothing_accepted_says_in_which_sense() -> None:
    said = summary("m", [BASE, candidate("fp8", "insufficient", 8.0)], host())
    assert (
        said
        == "Stay with bf16: no other precision of m was accepted beyond this suite. Not accepted: fp8: insufficient."
    )


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (recipe("fp8"), ["trtllm", "vllm"]),
        (recipe("w4a8_awq"), ["trtllm"]),
        (recipe("int4"), ["vllm"]),
        (recipe("int8_sq"), []),
        (recipe("int4_awq", keep=[{"format": "fp8", "layers": ["a"]}]), ["trtllm"]),
        (recipe("int4_awq", keep=[{"format": "bf16", "layers": ["a"]}]), ["trtllm", "vllm"]),
        (recipe("int4_awq", keep=[{"format": "int8_wo", "layers": ["a"]}]), []),
    ],
)
def test_who_serves(made: Recipe, expected: list[str]) -> None:
    assert servers(made) == expected


def test_a_mixture_needs_the_kernels_of_all_its_formats() -> None:
    mixed = recipe("int4_awq", keep=[{"format": "fp8", "layers": ["a"]}])
    assert mixed.keep == (Keep(format="fp8", layers=("a",)),)
    assert takes("trtllm", mixed, "8.9")
    assert not takes("trtllm", mixed, "8.0")
    assert takes("trtllm", recipe("int4_awq"), "8.0")
    assert not takes("vllm", recipe("fp8"), "8.6")
    assert takes("vllm", recipe("fp8"), "12.0")


def test_a_simulation_is_nothing_to_ship_and_others_work_is_not_judged_by_our_tables() -> None:
    assert hindrance(recipe("fp8", export="folded"), ()) == "it is a simulation in 16 bit"
    assert hindrance(recipe("other", preset=PRESET), (H100,)) == ""


def unscored(word: str, status: str) -> Candidate:
    return msgspec.structs.replace(candidate(word, status, 8.0), accuracy=None)


def test_a_run_that_scores_nothing_advises_nothing() -> None:
    """Calibrated or timed only: what was not judged is not called refused; what is broken is still named."""
    every = [unscored("bf16", "baseline"), unscored("fp8", "insufficient")]
    assert summary("m", every, host()) == "No precision of m was judged: accuracy was not measured."
    said = summary("m", [*every, unscored("int4_awq", "anomalous")], host())
    assert said.endswith("not measured. Not accepted: int4_awq: anomalous.")
    assert "Stay with bf16" in summary("m", [every[0], unscored("fp8", "anomalous")], host())
    assert "fp8: insufficient" in summary("m", [BASE, unscored("fp8", "insufficient")], host())
