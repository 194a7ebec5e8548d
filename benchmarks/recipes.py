"""The table over all recipes on one model: what each stores, costs, hurts, and where it can be served.

    python benchmarks/recipes.py --ledger LEDGER                 # runs what the ledger lacks, a recipe at a time
    python benchmarks/recipes.py --ledger LEDGER --known         # the table of what is there, nothing is run
    python benchmarks/recipes.py --ledger LEDGER --costs OTHER   # times and memory of calibrations in another ledger

Every recipe is a `quantlab run` of its own against bf16, so a kill costs one stage, and each is judged on the same
items. The table is read from the runs that the ledger keeps; a recipe whose suite was not scored says so. Who serves
what comes from the same tables that `quantlab plan --gpu` asks, GPU by GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from quantlab import catalog, support
from quantlab.engines import ENGINES
from quantlab.ledgers import Ledger
from quantlab.records import Candidate, Number, Recipe, Run
from quantlab.report import figures
from quantlab.report.rows import rows as shown

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "recipes.json"
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- table: benchmarks/recipes.py -->", "<!-- end of table -->"
STAGES = ("calibrate", "verify", "canary", "fidelity", "accuracy")
COSTS = ("calibrate_seconds", "seconds", "cpu_seconds", "peak_bytes")
SERVING = tuple(name for name in ENGINES if name in ("trtllm", "vllm"))
"""Engines that serve users; torch scores, and ortgenai is for CPUs and PCs."""


def words() -> list[str]:
    """Every built-in recipe but the baseline."""
    return [each.name for each in catalog.names("recipes") if each.name != "bf16"]


def measure(recipe: str, args: Any) -> None:
    """Run one recipe; what the ledger has is taken from it."""
    command = [sys.executable, "-m", "quantlab", "run", recipe, "--model", args.model, "--suite", args.suite]
    command += [word for stage in STAGES for word in ("--stage", stage)] + ["--ledger", args.ledger, "--json"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    print(f"{recipe}: {'measured' if done.returncode == 0 else f'exit code {done.returncode}'}")


def found(runs: list[Run], recipe: str, args: Any) -> tuple[Run, Candidate] | None:
    """The newest run of the recipe on this model and suite; one that scored the suite goes first."""
    fitting = [
        (run, each)
        for run in runs
        if run.model.word == args.model and run.suite_name == args.suite
        for each in run.candidates
        if each.recipe_name == recipe
    ]
    return max(fitting, key=lambda pair: (pair[1].accuracy is not None, pair[0].created), default=None)


def served(recipe: Recipe) -> dict[str, list[str]]:
    """Engine -> the data-sheet GPUs on which it serves a Llama of this precision."""
    at: dict[str, list[str]] = {name: [] for name in SERVING}
    for gpu in catalog.gpus():
        for answer in support.engines("LlamaForCausalLM", recipe.format, recipe.kv_cache, gpu):
            if answer.engine in at and not answer.refusal:
                at[answer.engine].append(gpu.word)
    return at


def spent(ledger: str | None, recipe: str) -> dict[str, Any]:
    """What calibrating cost in another ledger than the one with the scores; nothing where it has no such recipe."""
    entries = Ledger(ledger).entries("calibrate", recipe=recipe) if ledger else []
    return {name: each.result[name] or None for each in entries if each.status == "done" for name in COSTS}


def row(recipe: str, pair: tuple[Run, Candidate] | None, costs: str | None) -> dict[str, Any]:
    """One recipe; None where nothing was measured."""
    found = catalog.recipe(recipe).record
    assert isinstance(found, Recipe)
    said: dict[str, Any] = {"recipe": recipe, "served": served(found)}
    if pair is None:
        return said | {"measured": False}
    run, each = pair
    made = each.calibrated
    suite = each.comparison.suite if each.comparison else None
    whole = {
        "measured": True,
        "created": run.created,
        "bits_per_weight": made.checkpoint.bits_per_weight if made else None,
        "bytes": made.checkpoint.bytes if made else None,
        "kl": _number(each.fidelity.kl if each.fidelity else None),
        "top1": _number(each.fidelity.top1 if each.fidelity else None),
        "perplexity_ratio": _number(each.fidelity.perplexity_ratio if each.fidelity else None),
        "score": _number(next(one.score for one in shown(run) if one.candidate is each)),
        "difference": _number(suite.difference if suite else None),
        "regressed": suite.regressed if suite else None,
        "improved": suite.improved if suite else None,
        "verdict": each.verdict.status,
        "calibrate_seconds": made.calibrate_seconds if made else None,
        "seconds": made.seconds if made else None,
        "cpu_seconds": (made.cpu_seconds or None) if made else None,
        "peak_bytes": made.peak_bytes if made else None,
        "verified": each.verification.passed if each.verification else None,
        "failure": each.failure.problem if each.failure else "",
    }
    return said | whole | spent(costs, recipe)


def _number(number: Number | None) -> dict[str, Any] | None:
    if number is None:
        return None
    return {"value": number.value, "low": number.low, "high": number.high, "n": number.n}


def table(rows: list[dict[str, Any]]) -> str:
    """GitHub-flavoured Markdown."""
    heads = ["recipe", "bits a weight", "size", "KL, nats", "same token, %", "score, %", "difference, points [95 %]"]
    heads += ["flips - / +", "verdict", "calibration", "whole step", "CPU time of it", "peak memory"]
    heads += ["export is the calibrated model"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(_line(each) for each in rows)])


def _line(one: dict[str, Any]) -> str:
    if not one["measured"]:
        return f"| `{one['recipe']}` |{' not measured |' + 12 * ' |'}"
    scored = one["difference"] is not None
    cells = [
        f"`{one['recipe']}`",
        figures.fixed(one["bits_per_weight"], 2),
        figures.size(one["bytes"]),
        figures.three(one["kl"]["value"]) if one["kl"] else figures.NOTHING,
        figures.percent(one["top1"]["value"]) if one["top1"] else figures.NOTHING,
        figures.percent(one["score"]["value"]) if one["score"] else "not scored",
        _interval(one["difference"]) if scored else figures.NOTHING,
        f"{one['regressed']} / {one['improved']}" if scored else figures.NOTHING,
        one["verdict"] if scored else figures.NOTHING,
        figures.seconds(one["calibrate_seconds"]),
        figures.seconds(one["seconds"]),
        figures.seconds(one["cpu_seconds"]),
        figures.size(one["peak_bytes"]),
        {True: "yes", False: "NO", None: figures.NOTHING}[one["verified"]],
    ]
    return f"| {' | '.join(cells)} |"


def _interval(one: dict[str, Any]) -> str:
    return f"{one['value']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]"


def serving_table(rows: list[dict[str, Any]]) -> str:
    """Which engine serves which recipe on which of the GPUs of `quantlab ls gpus`."""
    names = {"trtllm": "TensorRT-LLM", "vllm": "vLLM"}
    lines = [f"| recipe | {' | '.join(names[each] for each in SERVING)} |", f"|---|{'---|' * len(SERVING)}"]
    for one in rows:
        cells = [", ".join(one["served"][name]) or "nowhere" for name in SERVING]
        lines.append(f"| `{one['recipe']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the tables between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="The table over all recipes.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--ledger", default="runs")
    parser.add_argument("--costs", help="ledger of calibrations whose times and memory the table takes")
    parser.add_argument("--known", action="store_true", help="run nothing; show what the ledger has")
    parser.add_argument("recipes", nargs="*", help="default: all built-in ones")
    args = parser.parse_args()
    names = args.recipes or words()
    for recipe in names if not args.known else ():
        measure(recipe, args)
    runs = Ledger(args.ledger).runs()
    rows = [row(recipe, found(runs, recipe, args), args.costs) for recipe in ["bf16", *names]]
    machine = next(({"cpu": run.host.cpu, "cores": run.host.cores} for run in runs), {})
    RESULTS.write_text(json.dumps({"model": args.model, "suite": args.suite, "host": machine, "rows": rows}, indent=1))
    text = f"{table(rows)}\n\nServed, of the GPUs of `quantlab ls gpus`:\n\n{serving_table(rows)}"
    write(text)
    print(text)


if __name__ == "__main__":
    main()
