"""What a run is made of, for the report's tests: scores, flips, cells with the shape of real ones."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from quantlab.records import (
    Accuracy,
    Calibrated,
    Canary,
    CanaryPrompt,
    Category,
    Cell,
    Check,
    Checkpoint,
    Comparison,
    Fidelity,
    Flip,
    LayerDamage,
    Number,
    TaskComparison,
    TaskScore,
    Throughput,
    Verification,
)

SCORES = {
    # task: items, chance, bf16, fp8, int4_awq
    "facts": (745, 0.25, 0.750, 0.727, 0.620),
    "elements": (309, 0.25, 0.628, 0.608, 0.531),
    "definitions": (300, 0.25, 0.773, 0.767, 0.737),
    "kinds": (300, 0.25, 0.573, 0.580, 0.557),
    "agreement": (300, 0.50, 0.823, 0.813, 0.810),
    "cloze": (150, 0.25, 0.773, 0.767, 0.747),
    "arithmetic": (300, 0.25, 0.450, 0.450, 0.397),
}
FLIPPED = {"fp8": 0.059, "int4_awq": 0.159}
Column = Literal["bf16", "fp8", "int4_awq"]
Numerics = Literal["native", "emulated", "simulated"]
COLUMNS: dict[Column, int] = {"bf16": 2, "fp8": 3, "int4_awq": 4}


def calibrated(name: str, size: int, bits: float, *notes: str) -> Calibrated:
    return Calibrated(
        checkpoint=Checkpoint(
            path=f"checkpoints/smollm2-135m-{name}",
            digest="c0ffee" * 10 + "beef",
            recipe=name,
            format=name,
            architecture="LlamaForCausalLM",
            group_size=64 if name.startswith("int4") else None,
            bytes=size,
            source_bytes=269_060_552,
            bits_per_weight=bits,
        ),
        layers=() if name == "bf16" else tuple(f"model.layers.{place}.mlp.down_proj" for place in range(30)),
        calibration_digest=None if name == "bf16" else "5ca1ab1e" * 8,
        samples=0 if name == "bf16" else 64,
        tokens=0 if name == "bf16" else 32_768,
        seconds=12.4 if name == "bf16" else 96.1,
        peak_bytes=1_900_000_000,
        notes=notes,
    )


KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def damage(base: float, bits: float) -> tuple[LayerDamage, ...]:
    """Errors that grow towards the end, with one layer that stands out."""
    return tuple(
        LayerDamage(
            layer=f"model.layers.{depth}.{kind}",
            weights=110_592,
            bits=bits,
            weight_error=base,
            output_error=4.2 * base if (depth, kind) == (7, "mlp.down_proj") else base * (0.8 + depth / 30),
            outlier=12.5 + depth,
            outlier_channel=depth,
        )
        for depth in range(30)
        for kind in KINDS
    )


def verified(located: tuple[LayerDamage, ...] = ()) -> Verification:
    return Verification(
        damage=located,
        checks=(
            Check(name="size", passed=True, finding="163 MB, 0.61 of 16 bit, as 8.01 bits predict."),
            Check(name="coverage", passed=True, finding="210 layers quantized, lm_head and embeddings not."),
            Check(name="amax", passed=True, finding="420 of 420 enabled quantizers saw data."),
            Check(name="reopened", passed=True, finding="Codes and scales equal; largest difference of an output 0.0."),
        ),
        seconds=8.4,
    )  # fmt: skip


def canary(text: str) -> Canary:
    prompt = CanaryPrompt(prompt="The capital of France is", completion=text, distinct=0.97, nll=3.1, passed=True)
    return Canary(passed=True, reason="finite logits, no repetition, prompts as likely as expected", prompts=(prompt,))


def fidelity(kl: float, error: float, top1: float, ratio: float) -> Fidelity:
    def number(value: float, unit: str, spread: float, better: Any) -> Number:
        return Number(
            value=value, unit=unit, n=11_520, standard_error=spread,
            low=value - 1.96 * spread, high=value + 1.96 * spread, confidence=0.95, better=better,
            provenance="emulated",
        )  # fmt: skip

    return Fidelity(
        text_digest="7e" * 32,
        positions=11_520,
        kl=number(kl, "nats", error, "lower"),
        kl_percentiles={"50": 0.4 * kl, "90": 2.2 * kl, "95": 3.4 * kl, "99": 7.9 * kl, "max": 61 * kl},
        top1=number(top1, "share", 0.003, "higher"),
        perplexity=number(17.4 * ratio, "ratio", 0.2, "lower"),
        perplexity_ratio=number(ratio, "ratio", 0.002, "lower"),
        seconds=31.0,
    )


def accuracy(name: Column, how: Numerics) -> Accuracy:
    tasks = tuple(
        TaskScore(
            task=task, metric="acc", n=row[0], chance=row[1],
            score=_share(float(row[COLUMNS[name]]), row[0], "measured" if how == "native" else "emulated"),
        )
        for task, row in SCORES.items()
    )  # fmt: skip
    return Accuracy(suite="quick", tasks=tasks, items=f"items/{name}.parquet", seconds=212.0, requests=9_016)


def _share(value: float, n: int, provenance: Any = "measured") -> Number:
    error = (value * (1 - value) / n) ** 0.5
    return Number(value=value, unit="share", n=n, standard_error=error, provenance=provenance)


def compared(name: str, n: int, before: float, after: float, flipped: float, metric: str = "acc") -> TaskComparison:
    change = after - before
    error = max((flipped - change**2) / n, 1e-9) ** 0.5
    regressed = round(n * (flipped - change) / 2)
    return TaskComparison(
        task=name,
        metric=metric,
        n=n,
        baseline=_share(before, n),
        candidate=_share(after, n),
        difference=Number(
            value=100 * change, unit="points", n=n, standard_error=100 * error,
            low=100 * (change - 1.96 * error), high=100 * (change + 1.96 * error), confidence=0.95,
        ),
        recovery=Number(
            value=after / before, unit="share", n=n, low=(after - 1.96 * error) / before,
            high=(after + 1.96 * error) / before, confidence=0.95,
        ),
        regressed=regressed,
        improved=max(0, regressed + round(n * change)),
        churn=round(n * flipped / 3),
        detectable_drop=100 * 2.8 * error,
    )  # fmt: skip


def comparison(name: Column, withheld: str = "") -> Comparison:
    tasks = []
    for task, row in SCORES.items():
        found = compared(task, row[0], row[2], float(row[COLUMNS[name]]), FLIPPED[name])
        if task == withheld:
            why = "the rendered prompts differ, first at item arithmetic-0001: another tokenizer, template or BOS."
            found = msgspec.structs.replace(found, difference=None, recovery=None, regressed=0, improved=0, churn=0,
                                            detectable_drop=None, incomparable=why)  # fmt: skip
        tasks.append(found)
    n = sum(row[0] for row in SCORES.values())
    before = sum(row[2] for row in SCORES.values()) / len(SCORES)
    after = sum(float(row[COLUMNS[name]]) for row in SCORES.values()) / len(SCORES)
    whole = compared("all", n, before, after, FLIPPED[name], metric="mean of tasks")
    return Comparison(suite=whole, tasks=tuple(tasks))


def flips(count: int) -> tuple[Flip, ...]:
    questions = (
        ("facts", "Question: What is the capital city of Bhutan?\nAnswer:", "Thimphu", "Kathmandu"),
        ("elements", "The chemical symbol of tungsten is", "W", "Ti"),
        ("definitions", "Definition: a portable device that fires shots.\nWord:", "firearm", "harpoon"),
        ("agreement", "The keys to the cabinet", "are", "is"),
    )
    found = []
    for place in range(count):
        task, prompt, right, wrong = questions[place % len(questions)]
        way: Any = ("regressed", "improved", "regressed", "churn", "regressed")[place % 5]
        before, after = {"regressed": (right, wrong), "improved": (wrong, right), "churn": (wrong, "neither")}[way]
        found.append(
            Flip(
                task=task,
                id=f"{task}-{place:04d}",
                kind="geography" if task == "facts" else "",
                direction=way,
                prompt=prompt,
                right=right,
                baseline=before,
                candidate=after,
                margin_baseline=2.5 if before == right else -0.75,
                margin_candidate=1.25 if after == right else -3.5,
                surprise=6.0 - 0.01 * place,
            )
        )
    return tuple(found)


def categories() -> tuple[Category, ...]:
    """Ranked as `quantlab.categories` ranks them: one surely damaged, the rest within their noise."""
    rows = (("facts", "geography", 120, -11.7, 6.2), ("facts", "history", 90, -6.7, 8.0), ("kinds", "", 300, -1.6, 4.1))
    return tuple(
        Category(
            task=task,
            kind=kind,
            n=n,
            difference=Number(
                value=value, unit="points", n=n, low=value - half, high=value + half, confidence=1 - 0.05 / 3
            ),
            regressed=round(n * 0.14),
            improved=round(n * (0.14 + value / 100)),
            churn=3,
        )
        for task, kind, n, value, half in rows
    )


def throughput(how: Numerics, base: float, device: str) -> Throughput:
    kind: Any = "measured" if how == "native" else "emulated"
    cells = []
    for isl in (128, 512):
        for batch in (1, 4):
            rate = base * batch**0.8 / (1 + isl / 2048)
            cells.append(_cell(isl, batch, rate, kind))
    cells[2] = Cell(
        isl=512, osl=32, batch=1, valid=False, reason="repeats spread by 41 %, more than 15 %: the machine was busy"
    )
    return Throughput(
        grid="quick", cells=tuple(cells), numerics=how, device=device, peak_bytes=1_100_000_000, seconds=74.0
    )


def _cell(isl: int, batch: int, rate: float, kind: Any) -> Cell:
    def number(value: float, unit: str, better: Any = "higher") -> Number:
        return Number(value=value, unit=unit, n=3, low=0.97 * value, high=1.02 * value, better=better, provenance=kind)

    return Cell(
        isl=isl,
        osl=32,
        batch=batch,
        ttft_seconds=number(isl * batch / (rate * 22), "seconds", "lower"),
        tpot_seconds=number(batch / rate, "seconds", "lower"),
        prefill_tokens_per_second=number(rate * 22, "tokens/s"),
        decode_tokens_per_second=number(rate * 1.1, "tokens/s"),
        tokens_per_second=number(rate, "tokens/s"),
        bandwidth_share=number(0.41, "share") if kind == "measured" else None,
    )
