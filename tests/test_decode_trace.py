"""The parser of decode traces, on hand-made traces of two layers: what each microsecond is said to be for.

A step of the trace below, in microseconds from its output head (the next one begins at 100):

    0-40 head, 42-46 argmax, 46-48 copy to the host | 48-60 waits for a launch (begun at 58), 60-61 copy of the inputs,
    61-62 attention's plan on another stream beside 61-63 norm, 63-67 qkv, 65-69 rope on another stream (2 of its 4
    beside qkv), 69-72 attention, 72-75 o, 75-76 its splitK reduce, 77-82 gate and up, 82-83 silu, 83-87 down | and the
    second layer from 87 to 98, 2 us before the head.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEP = (
    # name, start, end, launch
    ("nvjet_tst_64x8_64x16_2x1_v_bz_TNT", 0, 40, -20),
    ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::ArgMaxOps<float>>>", 42, 46, -18),
    ("Memcpy DtoH (Device -> Pageable)", 46, 48, -16),
    ("Memcpy HtoD (Pinned -> Device)", 60, 61, 58),
    ("flash::prepare_varlen_num_blocks_kernel<1, true>", 61, 62, 59),
    ("triton_red_fused__to_copy_add_embedding_mean_mul_pow_rsqrt_0", 61, 63, 59),
    ("nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT", 63, 67, 59),
    ("triton_poi_fused_add_cat_index_select_mul_sub_1", 65, 69, 59),
    ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<bf16>>", 69, 72, 59),
    ("nvjet_tst_64x8_64x16_4x1_v_bz_splitK_TNT", 72, 75, 59),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", 75, 76, 59),
    ("void cutlass::device_kernel<gemm::sm90_fp8>", 77, 82, 59),
    ("triton_poi_fused_mul_silu_slice_2", 82, 83, 59),
    ("void machete::mm", 83, 87, 59),
    ("vllm::rms_norm_static_fp8_quant_kernel", 87, 88, 59),
    ("nvjet_a", 88, 90, 59),
    ("void vllm::reshape_and_cache_flash_kernel<bf16>", 90, 91, 59),
    ("flash_fwd_splitkv_kernel", 91, 92, 59),
    ("flash_fwd_splitkv_combine_kernel", 92, 93, 59),
    ("nvjet_b", 93, 94, 59),
    ("nvjet_c", 94, 95, 59),
    ("void vllm::scaled_fp8_quant_kernel<bf16>", 95, 96, 59),
    ("nvjet_d", 96, 97, 59),
    ("made_up_by_nobody", 97, 98, 59),
)
EXPECTED = {
    "GEMM lm_head": (40, 1),
    "sampling and logits": (4 + 2, 2),
    "inputs of the step": (1, 1),
    "norm": (2 - 1, 1),
    "norm and quantize, fused": (1, 1),
    "GEMM qkv_proj": (4 + 2, 2),
    "rope and KV-cache write": (4 - 2 + 1, 2),
    "attention": (1 + 3 + 2, 4),
    "GEMM o_proj": (3 + 1 + 1, 3),
    "GEMM gate_up_proj": (5 + 1, 2),
    "GEMM down_proj": (4 + 1, 2),
    "activation": (1, 1),
    "quantize activations": (1, 1),
    "other": (1, 1),
    "gap between steps, not launched yet": (58 - 48, 1),
    "gap between steps, launched": (60 - 58, 1),
    "gap in a step, launched": (42 - 40 + 77 - 76 + 100 - 98, 3),
}
"""Class -> microseconds and calls a step."""


@pytest.fixture(scope="module")
def parser() -> ModuleType:
    """benchmarks/gpu is a folder of scripts, and no package."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))
    try:
        import decode_trace
    finally:
        sys.path.remove(str(ROOT / "benchmarks" / "gpu"))
    return decode_trace


def trace(parser: ModuleType, steps: int, *, launches: bool = True) -> list[dict[str, Any]]:
    """`steps` equal steps of 100 us and one more head; the CPU's n-th step launches from the copy of the inputs on."""
    found: list[dict[str, Any]] = []
    for number in range(steps + 1):
        origin = 1000 + 100 * number
        if launches:
            found.append(event(parser.MARK, "user_annotation", origin - 44, 40))
        for name, start, end, launch in STEP if number < steps else STEP[:1]:
            key = len(found)
            kind = "gpu_memcpy" if name.startswith("Memcpy") else "kernel"
            found.append(event(name, kind, origin + start, end - start, stream=7, correlation=key))
            if launches:
                found.append(event("cudaLaunchKernel", "cuda_runtime", origin + launch, 1, correlation=key))
    return found[::-1]  # traces are in no order


def event(name: str, kind: str, start: float, took: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": kind, "ts": start, "dur": took, "args": more}


def test_every_microsecond_of_a_step_is_in_one_class(parser: ModuleType) -> None:
    found = parser.steps(parser.on_gpu(trace(parser, 3)))
    assert found.steps == 3
    assert found.total_us == pytest.approx(100)
    assert {kind: (each["us"], each["calls"]) for kind, each in found.classes.items()} == EXPECTED
    assert sum(each["us"] for each in found.classes.values()) == pytest.approx(100)
    assert found.overlapped_us == pytest.approx(2 + 1), "rope ran beside qkv for 2 us, the norm beside the plan"
    assert found.busy_us == pytest.approx(100 - 10 - 2 - 5)
    other = [each for each in found.kernels if each["class"] == "other"]
    assert [(each["name"], each["us"]) for each in other] == [("made_up_by_nobody", 1)]
    assert sum(each["us"] for each in found.kernels) == pytest.approx(found.busy_us)


def test_without_launches_a_gap_is_nobodys_and_the_sum_holds(parser: ModuleType) -> None:
    found = parser.steps(parser.on_gpu(trace(parser, 2, launches=False)))
    gaps = {kind: each["us"] for kind, each in found.classes.items() if kind in parser.GAPS}
    assert gaps == {"gap in a step, launched": pytest.approx(10 + 2 + 5)}
    assert sum(each["us"] for each in found.classes.values()) == pytest.approx(100)


def test_a_kernel_that_outlasts_the_next_ones_counts_once(parser: ModuleType) -> None:
    """A copy on a second stream from 10 to 50 of each step lies beside the head, argmax and another copy."""
    events = trace(parser, 2)
    events += [event("Memcpy HtoD", "gpu_memcpy", 1000 + 100 * n + 10, 40, stream=9) for n in range(2)]
    found = parser.steps(parser.on_gpu(events))
    assert found.total_us == pytest.approx(100)
    assert sum(each["us"] for each in found.classes.values()) == pytest.approx(100)
    # 30 of it beside the head; then argmax (4) and the copy to the host (2) beside it, rope and plan as ever (3).
    assert found.overlapped_us == pytest.approx(30 + 4 + 2 + 3)


def test_read_takes_both_kinds_of_file_and_whole_events_only(parser: ModuleType, tmp_path: Path) -> None:
    events = [event("a", "kernel", 1, 2), {"ph": "i", "name": "an instant", "ts": 1}]
    text = json.dumps({"traceEvents": events}).encode()
    (tmp_path / "a.json").write_bytes(text)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    assert parser.read(tmp_path / "a.json") == parser.read(tmp_path / "a.json.gz") == events[:1]


def test_a_trace_without_two_heads_or_products_says_so(parser: ModuleType) -> None:
    with pytest.raises(ValueError, match="no matrix product among 1 events"):
        parser.steps(parser.on_gpu([event("made_up", "kernel", 0, 1)]))
    with pytest.raises(ValueError, match="1 output heads"):
        parser.steps(parser.on_gpu([event("nvjet", "kernel", 0, 1)]))


def test_operators_of_a_cpu_stand_in_for_kernels_without_those_that_called_others(parser: ModuleType) -> None:
    ops = [
        event("aten::linear", "cpu_op", 0, 10),
        event("aten::mm", "cpu_op", 1, 8),
        event("aten::to", "cpu_op", 10, 6),
        event("aten::copy_", "cpu_op", 11, 4),
    ]
    found = parser.on_cpu(ops)
    assert [(each.name, each.start, each.end) for each in found] == [("aten::linear", 0, 10), ("aten::copy_", 11, 15)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("triton_red_fused_fused_add_rms_norm_machete_mm_0", "norm"),
        ("triton_poi_fused_machete_mm_mul_silu_slice_1", "activation"),
        (
            "triton_red_fused__to_copy_clamp_cutlass_scaled_mm_fused_add_rms_norm_mul_reciprocal_3",
            "norm and quantize, fused",
        ),
        (
            "triton_poi_fused__to_copy_clamp_cutlass_scaled_mm_mul_reciprocal_silu_slice_2",
            "activation and quantize, fused",
        ),
        ("triton_poi_fused__to_copy_clamp_cutlass_scaled_mm_mul_reciprocal_view_0", "quantize activations"),
        ("void cutlass::device_kernel<vllm::cutlass_3x_gemm_sm90_fp8<cutlass::float_e4m3_t>>", "GEMM"),
        ("void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<machete::MacheteCollectiveMma>>", "GEMM"),
        ("void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90>>", "attention"),
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT", "GEMM"),
        ("void vllm::reshape_and_cache_flash_kernel<(vllm::Fp8KVCacheDataType)0>", "rope and KV-cache write"),
    ],
)
def test_names_of_a_real_trace(parser: ModuleType, name: str, kind: str) -> None:
    """Of vLLM 0.24 on an H200: a fused kernel bears the names of the products it feeds and is none."""
    assert parser.by_name(name) == kind


def test_what_lies_between_the_products_of_a_layer(parser: ModuleType) -> None:
    """A kernel without a telling name between qkv and attention is rope; a fill before a product is its workspace."""
    names = [
        "gemm_head",
        "triton_red_fused_rms_norm_0",
        "gemm_qkv",
        "triton_poi_fused_3",
        "flash_fwd",
        "Memset (Device)",
        "gemm_o",
    ]
    names += ["gemm_gate", "gemm_down", "gemm_head"]
    took = {"gemm_head": 9.0}
    events, at = [], 0.0
    for name in names:
        events.append(parser.Event(name, at, at + took.get(name, 1.0), copies=name.startswith("Mem")))
        at = events[-1].end
    parser.classify(events)
    kinds = [event.kind for event in events]
    assert kinds[2:7] == ["GEMM qkv_proj", "rope and KV-cache write", "attention", parser.WORKSPACE, "GEMM o_proj"]
    assert kinds[7:] == ["GEMM gate_up_proj", "GEMM down_proj", parser.HEAD]
