"""The same job by hand and through quantlab, side by side in one run: FP8 of SmolLM2-135M scored against bf16.

    python benchmarks/by_hand.py [--tasks ql_facts,ql_elements] [--recipe fp8]

By hand is what a user would write today: load the model, score it with lm-eval's `hf` model, quantize it with ModelOpt,
score it again. quantlab does that and more (export, verification, canary, ledger, verdict); for the comparison its own
extras (fidelity, throughput) are left out and both sides see the same items, precision, threads and calibration text.
Both compute in float32 (a CPU without bf16 instructions takes five times as long in bf16) and run as whole processes.
Printed: wall seconds of each side and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("calibrate", "verify", "canary", "accuracy")
"""Without fidelity and throughput, which the other side does not measure."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="ql_facts,ql_elements,ql_definitions", help="tasks of evals/tasks, by comma")
    parser.add_argument("--recipe", default="fp8", choices=["fp8", "int4_awq"])
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-eval's hf model")
    parser.add_argument("--hand", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.hand:
        by_hand(Path(words.hand), words.tasks.split(","), words.recipe, words.batch_size)
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        weights = materialize(place)
        suite = write_suite(place, words.tasks.split(","))
        asked = ["--tasks", words.tasks, "--recipe", words.recipe, "--batch-size", str(words.batch_size)]
        hand = timed([sys.executable, __file__, "--hand", str(weights), *asked])
        asked = [
            words.recipe,
            "--model",
            str(weights),
            "--suite",
            str(suite),
            "--ledger",
            str(place / "runs"),
            "--json",
        ]
        stages = [word for stage in STAGES for word in ("--stage", stage)]
        ours = timed([sys.executable, "-m", "quantlab", "run", *asked, *stages, "--dtype", "float32"])
    print(json.dumps({"recipe": words.recipe, "tasks": words.tasks, "by_hand_seconds": hand, "quantlab_seconds": ours,
                      "ratio": round(ours / hand, 3)}))  # fmt: skip


def timed(command: list[str]) -> float:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - start, 1)


def materialize(place: Path) -> Path:
    """SmolLM2 as safetensors, made by quantlab outside the timed part."""
    from quantlab import catalog, fetch
    from quantlab.records import FetchJob
    from quantlab.worker import Reporter

    into = place / "models" / "smollm2-135m"  # fetch finds what it unpacked under its home
    return Path(fetch.run(FetchJob(model=catalog.model("smollm2-135m"), into=str(into)), Reporter()).path)


def write_suite(place: Path, tasks: list[str]) -> Path:
    path = place / "suite.yaml"
    lines = ["summary: the tasks of the benchmark", "tasks:", *(f"  - task: {task}\n    metric: acc" for task in tasks)]
    path.write_text("\n".join(lines) + "\n")
    return path


def by_hand(weights: Path, tasks: list[str], recipe: str, batch_size: int) -> None:
    """ModelOpt and lm-eval as their own documentation shows them."""
    import modelopt.torch.quantization as mtq
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    configs = task_configs(tasks)

    def score() -> None:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        simple_evaluate(model=wrapped, tasks=configs, task_manager=TaskManager(), bootstrap_iters=0)

    score()
    text = (ROOT / "calibration" / "sets" / "python-docs.txt").read_text()
    ids = torch.tensor(tokenizer(text).input_ids[: 16 * 512]).view(16, 512)
    preset = {"fp8": mtq.FP8_DEFAULT_CFG, "int4_awq": group_64(mtq.INT4_AWQ_CFG)}[recipe]
    with torch.inference_mode():
        mtq.quantize(model, preset, forward_loop=lambda quantized: quantized(ids))
        score()


def group_64(preset: dict[str, object]) -> dict[str, object]:
    """576 inputs do not divide by 128: without this the run fails after calibrating."""
    return json_map(preset, lambda value: 64 if value == 128 else value)  # type: ignore[return-value]


def json_map(value: object, change: object) -> object:
    if isinstance(value, dict):
        return {key: json_map(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [json_map(each, change) for each in value]
    return change(value)  # type: ignore[operator]


def task_configs(tasks: list[str]) -> list[dict[str, object]]:
    """quantlab's task files with their data paths made absolute, as lm-eval wants them."""
    import yaml

    folder = ROOT / "evals" / "tasks"
    configs = []
    for path in sorted(folder.glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        if config["task"] in tasks:
            files = config["dataset_kwargs"]["data_files"]
            config["dataset_kwargs"] = {"data_files": {k: str((folder / v).resolve()) for k, v in files.items()}}
            configs.append(config)
    return configs


if __name__ == "__main__":
    main()
