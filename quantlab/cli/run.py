"""`run`, `calibrate`, `eval`, `bench`: the same ask with fewer or more stages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FAILING = {"regression": 10, "anomalous": 11, "infeasible": 12, "insufficient": 13}
"""Exit code of `--gate` for a verdict that is not accept."""


def _complete(kind: str) -> Callable[..., list[str]]:
    """Shell completion from the catalog."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from quantlab import catalog

        return [each.name for each in catalog.names(kind) if each.name.startswith(incomplete)]

    return complete


def options(function: F) -> F:
    """Options that all four share; the niche comes last in the help."""
    function = _choices(function)
    for option in reversed(
        (
            click.argument("recipes", nargs=-1, required=True, shell_complete=_complete("recipes")),
            click.option(
                "--model",
                "-m",
                required=True,
                help="Catalog word (1b, 3b, 11b, 90b, smollm2-135m), hub id or directory.",
                shell_complete=_complete("models"),
            ),
            click.option("--suite", default="quick", show_default=True, help="Suite name or file."),
            click.option("--grid", default="quick", show_default=True, help="Throughput grid, name or file."),
            click.option("--policy", default="default", show_default=True, help="Policy name or file."),
            click.option("--calibration-set", help="Calibration set, name or file, instead of the recipes'."),
            click.option("--layerwise", is_flag=True, help="Calibrate one decoder block at a time: little memory."),
            click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs to calibrate on; 0: as few as do."),
            click.option("--engine", default="torch", show_default=True, help="Or auto: the best for all recipes."),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1."),
            click.option(
                "--dtype",
                type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
                default="auto",
                show_default=True,
                help="Arithmetic of what is not quantized.",
            ),
            click.option("--tp", type=click.IntRange(min=1), default=1, help="GPUs that share each layer."),
            click.option("--pp", type=click.IntRange(min=1), default=1, help="Groups of layers on GPUs of their own."),
            click.option(
                "--flow", type=click.Choice(["auto", "engine", "pytorch"]), default="auto", help="TensorRT-LLM's."
            ),
            click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0: all cores."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--ledger", help="Run folder; default $QUANTLAB_LEDGER or ./runs."),
            click.option("--json", "as_json", is_flag=True, help="The run as JSON on standard output."),
            click.option("--dry-run", is_flag=True, help="Show the plan and the estimate; run nothing."),
        )
    ):
        function = option(function)
    return function


def _choices(function: F) -> F:
    """What trades accuracy of an int4 checkpoint for speed in engine ortgenai."""
    head, inputs = click.Choice(["keep", "int8", "int4"]), click.Choice(["auto", "keep", "int8"])
    function = click.option("--activations", type=inputs, default="auto", help="Inputs of int4 layers, ortgenai.")(
        function
    )
    return click.option("--head", type=head, default="keep", help="Output head of int4 checkpoints, ortgenai.")(
        function
    )


def claim(function: F) -> F:
    """Options of the two that score: what is claimed, whether to stop as soon as that is decided, and what fails.
    Where nothing is scored nothing can be accepted, so a gate would never open."""
    for option in reversed(
        (
            click.option("--max-drop", type=float, help="Accepted drop in points, instead of the policy's."),
            click.option("--gate", is_flag=True, help="Exit non-zero unless every recipe is accepted (for CI)."),
            click.option(
                "--early/--no-early", default=None, help="Score only until every verdict on the suite is certain."
            ),
            click.option(
                "--scope",
                type=click.Choice(["population", "suite"]),
                help="Claim: about items like these beyond the suite, or about this suite in full.",
            ),
        )
    ):
        function = option(function)
    return function


@click.command()
@options
@claim
@click.option("--stage", "stages", multiple=True, help="Only these stages (repeatable); calibrate is always there.")
def run(**words: Any) -> None:
    """Quantize MODEL to each of RECIPES, score and time it against the baseline, and judge.

    \b
    quantlab run fp8 int4_awq --model smollm2-135m
    quantlab run fp8 int4_awq --model smollm2-135m --early
    quantlab run fp8 --model 3b --suite llama32 --max-drop 1
    quantlab run ./my_recipe.yaml --model ./my-finetune --dry-run
    """
    _go(words, words.pop("stages") or None)


@click.command()
@options
def calibrate(**words: Any) -> None:
    """Quantize MODEL to each of RECIPES, export a unified Hugging Face checkpoint and verify it."""
    _go(words, ("calibrate", "verify"))


@click.command(name="eval")
@options
@claim
def evaluate(**words: Any) -> None:
    """Score each of RECIPES against the baseline: canary, fidelity, accuracy."""
    _go(words, ("calibrate", "verify", "canary", "fidelity", "accuracy"))


@click.command()
@options
def bench(**words: Any) -> None:
    """Time each of RECIPES and the baseline on a throughput grid."""
    _go(words, ("calibrate", "verify", "canary", "throughput"))


def _go(words: dict[str, Any], stages: tuple[str, ...] | None) -> None:
    from quantlab import pipeline
    from quantlab.ledgers import Ledger
    from quantlab.records import EngineConfig

    as_json, dry, gate = words.pop("as_json"), words.pop("dry_run"), words.pop("gate", False)
    ledger = Ledger(words.pop("ledger"))
    names = {"device": "device", "dtype": "dtype", "tp": "tensor_parallel", "pp": "pipeline_parallel", "flow": "flow"}
    names |= {"head": "head", "activations": "activations"}
    config = EngineConfig(**{field: words.pop(word) for word, field in names.items()})
    ask = pipeline.Ask(**words, config=config, stages=stages or pipeline.ask.STAGES)
    if dry:
        _plan(pipeline.plan_run(ask, ledger), as_json)
        return
    from quantlab.cli.progress import watching

    with watching(quiet=as_json) as watch:
        found = pipeline.run(ask, ledger, watch)
    _show(found, ledger, as_json)
    if gate:
        codes = [FAILING[each.verdict.status] for each in found.candidates if each.verdict.status in FAILING]
        sys.exit(max(codes, default=0))


def _show(found: Any, ledger: Any, as_json: bool) -> None:
    from quantlab import report

    stem = stem_of(found)
    paths = report.write(found, ledger.root / "reports", stem)
    if as_json:
        click.echo(report.to_json(found).decode())
        return
    from rich.console import Console

    console = Console()
    report.terminal(found, console)
    console.print(f"Report: {_short(paths['html'])}", soft_wrap=True)


def stem_of(found: Any) -> str:
    """File name of a run's report: model and time, so that a later run does not replace an earlier one's."""
    model = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in found.model.word).strip("-.")
    return f"{model[-60:]}-{found.created[:19].replace(':', '')}"


def _short(path: Any) -> str:
    """Relative to where the user stands, when that is shorter."""
    from pathlib import Path

    try:
        return str(Path(path).resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _plan(planned: Any, as_json: bool) -> None:
    from quantlab.plans import explain

    if as_json:
        import msgspec

        plans = dict(planned.plans)
        click.echo(msgspec.json.encode({"model": planned.resolved.model, "plans": plans}, order="deterministic"))
        return
    click.echo(
        f"{planned.resolved.model.word}: " + ("weights are here" if planned.weights else "weights to be fetched")
    )
    for note in planned.resolved.notes:
        click.echo(note)
    for name, plan in planned.plans:
        click.echo(f"\n{name}")
        for line in explain(plan):
            click.echo(f"  {line}")
