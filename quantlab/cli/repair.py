"""`repair`: a recipe that lost too much -> one that keeps its most sensitive layers in more bits."""

from __future__ import annotations

from typing import Any

import click

from quantlab.cli.run import _complete


@click.command()
@click.option(
    "--model", "-m", required=True, help="Catalog word, hub id or directory.", shell_complete=_complete("models")
)
@click.option("--recipe", "-r", required=True, help="The recipe to repair.", shell_complete=_complete("recipes"))
@click.option(
    "--bits", type=float, help="Most bits a weight, scales included; default: half a bit more than the recipe."
)
@click.option("--max-drop", type=float, help="Accepted drop in points, instead of the policy's.")
@click.option(
    "--keep",
    multiple=True,
    type=click.Choice(["int4_awq_g64", "int4_awq_g32", "int8_wo", "fp8", "bf16"]),
    help="Keep layers in these (repeatable).",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "compensated"]),
    default="compensated",
    show_default=True,
    help="Of the new recipe's int4 weights.",
)
@click.option("--points", type=click.IntRange(1, 20), default=3, show_default=True, help="Mixtures on the curve.")
@click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="Sequences the search reads.")
@click.option("--length", type=click.IntRange(40), default=256, show_default=True, help="Tokens in each.")
@click.option(
    "--rounds", type=click.IntRange(1, 10), default=2, show_default=True, help="Rounds, if no smaller groups are kept."
)
@click.option("--suite", default="quick", show_default=True, help="Suite that the result is judged on.")
@click.option("--policy", default="default", show_default=True, help="Policy name or file.")
@click.option("--calibration-set", help="Calibration set, name or file, instead of the recipe's.")
@click.option("--out", type=click.Path(dir_okay=False), help="File of the new recipe; default calibration/NAME.yaml.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0: all cores.")
@click.option("--ledger", help="Run folder; default $QUANTLAB_LEDGER or ./runs.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
@click.option("--dry-run", is_flag=True, help="Say what it will take; run nothing.")
def repair(**words: Any) -> None:
    """Keep the layers of RECIPE that lose most in more bits, under a budget of bits, and prove what that brings.

    \b
    quantlab repair --model smollm2-135m --recipe int4_awq --bits 5.0 --max-drop 1
    quantlab repair --model 3b --recipe int4_awq --keep bf16 --bits 5.0     for GPUs without FP8 units
    """
    from quantlab import pipeline
    from quantlab.cli.progress import watching
    from quantlab.ledgers import Ledger
    from quantlab.records import EngineConfig

    as_json, ledger, recipe = words.pop("as_json"), Ledger(words.pop("ledger")), words.pop("recipe")
    dry = words.pop("dry_run")
    own = {
        name: words.pop(name) for name in ("bits", "keep", "rounding", "points", "samples", "length", "rounds", "out")
    }
    ask = pipeline.Ask(recipes=(recipe,), config=EngineConfig(device=words.pop("device")), **words)
    if dry:
        click.echo("\n".join(pipeline.foretold(pipeline.RepairAsk(ask=ask, **own), ledger)))
        return
    with watching(quiet=as_json) as watch:
        found = pipeline.repair(pipeline.RepairAsk(ask=ask, **own), ledger, watch)
    _show(found, ledger, as_json)


def _show(found: Any, ledger: Any, as_json: bool) -> None:
    from quantlab import report
    from quantlab.cli.run import _short, stem_of

    path = report.write_repair(found, ledger.root / "reports", f"{stem_of(found.run)}-repair")
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found, order="deterministic"))
        return
    from rich.console import Console

    console = Console()
    report.repair_terminal(found, console)
    console.print(f"Report: {_short(path)}", soft_wrap=True)
