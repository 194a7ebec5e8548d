"""How much faster INT4 decodes than the same engine's float32, batch 1, on a CPU: engine ortgenai, five forms.

    python benchmarks/ortgenai.py BF16_CHECKPOINT INT4_CHECKPOINT WORK [--rounds 5] [--json FILE]

Run it where onnxruntime-genai is installed (`quantlab engines setup ortgenai`). The forms are decoded in turn, in an
order that turns around each round, with the same random prompt, so that a machine that slows down slows all of them.
Decode is the difference between 41 tokens and 1, in CPU seconds of this process with one thread. Goals of the project:
INT4 1.4 times float32, and 2.5 times with the output head quantized as a recorded choice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from quantlab.engines import GenerateRequest
from quantlab.engines.ortgenai_session import OrtGenaiSession
from quantlab.formats.onnx_export import export
from quantlab.records import Artifact, Checkpoint, EngineConfig, OnnxJob

INPUT, OUTPUT = 100, 40
FORMS: dict[str, tuple[str, dict[str, str]]] = {
    "float32": ("bf16", {}),
    "INT4, inputs kept": ("int4", {"activations": "keep"}),
    "INT4, int8 inputs": ("int4", {"activations": "int8"}),
    "INT4, inputs kept, int8 head": ("int4", {"activations": "keep", "head": "int8"}),
    "INT4, int8 inputs, int8 head": ("int4", {"activations": "int8", "head": "int8"}),
}


def opened(name: str, checkpoints: dict[str, Path], work: Path) -> OrtGenaiSession:
    """The form `name`, written to `work` if it is not there yet, in a session of one thread."""
    which, choices = FORMS[name]
    into = work / name.replace(", ", "-").replace(" ", "_")
    source = checkpoints[which]
    job = OnnxJob(source=str(source), into=str(into), digest=which, **choices)  # type: ignore[arg-type]
    model = export(job)
    none = Checkpoint(path="", digest=which, recipe=which, format="", architecture="")
    return OrtGenaiSession(Artifact(engine="ortgenai", path=str(into), checkpoint=none), EngineConfig(), model)


def seconds(session: OrtGenaiSession, prompt: tuple[int, ...], tokens: int) -> float:
    """CPU seconds of one completion of exactly `tokens` tokens."""
    start = time.process_time()
    [completion] = session.generate([GenerateRequest(prompt, tokens, ignore_eos=True)])
    spent = time.process_time() - start
    if len(completion.tokens) != tokens:
        raise SystemExit(f"{len(completion.tokens)} tokens came, {tokens} were asked for")
    return spent


def measured(sessions: dict[str, OrtGenaiSession], rounds: int) -> dict[str, list[float]]:
    """Tokens a CPU second of each form in each round; the round before the first warms up."""
    rng = np.random.default_rng(0)
    rates: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        prompt = tuple(int(token) for token in rng.integers(3, 49000, INPUT))
        for name in list(sessions)[:: 1 if turn % 2 else -1]:
            first, whole = seconds(sessions[name], prompt, 1), seconds(sessions[name], prompt, OUTPUT + 1)
            if turn:
                rates[name].append(OUTPUT / (whole - first))
    return rates


def table(rates: dict[str, list[float]]) -> list[dict[str, object]]:
    """Median rate of each form, and its ratio to float32 in the same round: median, least and most."""
    base = next(iter(rates.values()))
    rows: list[dict[str, object]] = []
    for name, own in rates.items():
        ratios = [a / b for a, b in zip(own, base, strict=True)]
        spread = [round(min(ratios), 2), round(max(ratios), 2)]
        ratio = round(statistics.median(ratios), 2)
        rate = round(statistics.median(own), 1)
        rows.append({"form": name, "tokens_a_cpu_second": rate, "ratio": ratio, "spread": spread})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bf16", type=Path, help="the source model")
    parser.add_argument("int4", type=Path, help="its INT4-AWQ checkpoint")
    parser.add_argument("work", type=Path, help="folder for the ONNX models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    checkpoints = {"bf16": words.bf16, "int4": words.int4}
    rows = table(measured({name: opened(name, checkpoints, words.work) for name in FORMS}, words.rounds))
    for row in rows:
        rate = f"{row['tokens_a_cpu_second']:>6} tokens a CPU second"
        print(f"{row['form']:<30} {rate}   {row['ratio']} of float32 {row['spread']}")
    if words.json:
        words.json.write_text(json.dumps({"rounds": words.rounds, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
