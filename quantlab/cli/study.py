"""`study calibration`: does it matter which set, how many samples, which length?"""

from __future__ import annotations

from typing import Any

import click

from quantlab.cli.run import _complete


@click.group()
def study() -> None:
    """Small experiments that answer a question about a model."""


def _numbers(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Whole numbers above zero, one a time or with commas."""
    words = [word for value in values for word in value.split(",")]
    if bad := [word for word in words if not word.strip().isdecimal() or int(word) < 1]:
        raise click.BadParameter(f"{bad[0]!r} is not a whole number above 0.")
    return tuple(dict.fromkeys(int(word) for word in words))


@study.command()
@click.option(
    "--model", "-m", required=True, help="Catalog word, hub id or directory.", shell_complete=_complete("models")
)
@click.option("--recipe", "-r", required=True, help="Recipe to calibrate.", shell_complete=_complete("recipes"))
@click.option("--set", "sets", multiple=True, help="Calibration set, name or file (repeatable); default: the recipe's.")
@click.option("--samples", multiple=True, callback=_numbers, help="Numbers of samples, e.g. 8,32,128.")
@click.option("--length", "lengths", multiple=True, callback=_numbers, help="Tokens in a sample, e.g. 256,512.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Repeats of each cell.")
@click.option("--suite", default="quick", show_default=True, help="Suite whose held-out text is read.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads; 0: all cores.")
@click.option("--ledger", help="Run folder; default $QUANTLAB_LEDGER or ./runs.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
@click.option("--dry-run", is_flag=True, help="Say what it will take; run nothing.")
def calibration(**words: Any) -> None:
    """KL on held-out text over set x samples x length, each repeated with other seeds: is a difference more than noise?

    \b
    quantlab study calibration --model smollm2-135m --recipe int4_awq --samples 2,8 --length 128,512
    quantlab study calibration --model 3b --recipe fp8 --set ultrachat --set ./traffic.jsonl --seeds 4
    """
    from quantlab import pipeline
    from quantlab.cli.progress import watching
    from quantlab.ledgers import Ledger
    from quantlab.pipeline.study import StudyAsk, estimate, study
    from quantlab.records import EngineConfig

    as_json, dry, ledger, recipe = (
        words.pop("as_json"),
        words.pop("dry_run"),
        Ledger(words.pop("ledger")),
        words.pop("recipe"),
    )
    own = {name: words.pop(name) for name in ("sets", "samples", "lengths", "seeds")}
    ask = pipeline.Ask(recipes=(recipe,), config=EngineConfig(device=words.pop("device")), **words)
    if dry:
        click.echo(estimate(StudyAsk(ask=ask, **own), ledger))
        return
    with watching(quiet=as_json) as watch:
        found = study(StudyAsk(ask=ask, **own), ledger, watch)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found, order="deterministic"))
        return
    _show(found)


def _show(found: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("set")
    for head in ("samples", "length", "KL, nats", "above the best", "between seeds", "s to calibrate"):
        table.add_column(head, justify="right")
    for cell in found.cells:
        above = cell.above_best
        shown = "best" if above is None else f"{above.value:+.4f} [{above.low:+.4f}, {above.high:+.4f}]"
        seeds = f"{min(cell.kl):.4f} to {max(cell.kl):.4f}"
        row = (str(cell.samples), str(cell.length), f"{cell.mean:.4f}", shown, seeds, f"{cell.seconds:.0f}")
        table.add_row(cell.set, *row)
    console = Console()
    console.print(table)
    for axis in found.axes:
        means = ", ".join(f"{value}: {mean:.4f}" for value, mean in axis.means.items())
        console.print(f"{axis.axis}: {means} (p = {axis.p_value:.3g})", markup=False, highlight=False)
    console.print(found.answer, markup=False, highlight=False)
