"""`plan`: will it run, before anything is downloaded: here, or on a GPU of the catalog."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("recipes", nargs=-1, required=True)
@click.option("--model", "-m", required=True, help="Catalog word (1b, 3b, 11b, 90b), hub id or directory.")
@click.option("--gpu", help="GPU of the catalog (`quantlab ls gpus`), or a YAML file; default: this machine.")
@click.option("--tp", type=click.IntRange(1, 64), default=1, show_default=True, help="GPUs that share each layer.")
@click.option("--grid", help="Throughput grid whose cells must fit, name or file.")
@click.option("--suite", help="Suite, name or file: which of its data sets need the network, a licence or a token.")
@click.option("--context", help="Tokens of a sequence, e.g. 8192 or 8k, instead of a grid.")
@click.option("--batch", default="1", show_default=True, help="Sequences at once with --context: 8, or 1..64.")
@click.option("--images", type=click.IntRange(0, 16), default=1, show_default=True, help="A sequence, with --context.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def plan(**words: Any) -> None:
    """Say whether each of RECIPES of MODEL can be served on a GPU, from dimensions alone, with the arithmetic.

    \b
    quantlab plan fp8 int4_awq --model 90b --gpu h200 --tp 2
    quantlab plan int4_awq --model 3b --gpu agx-orin --context 8k --batch 1..16
    quantlab plan fp8 --model 3b                        on this machine, as `run --dry-run` says it
    """
    if words["gpu"] is None:
        _here(words)
        return
    from quantlab.advice import plan_gpu

    as_json, names, suite = words.pop("as_json"), words.pop("recipes"), words.pop("suite")
    found = plan_gpu(words.pop("model"), names, **words)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(list(found), order="deterministic"))
        return
    from quantlab.preflight import explain

    for index, each in enumerate(found):
        click.echo(("\n" if index else "") + click.style(each.recipe, bold=True))
        for line in explain(each):
            click.echo(f"  {line}")
    if suite is not None:
        click.echo(f"\n{click.style(suite, bold=True)}")
        for line in _data(suite):
            click.echo(f"  {line}")


def _data(word: str) -> list[str]:
    """What the suite asks of the hub."""
    from quantlab import catalog, sight
    from quantlab.records import Suite

    record = catalog.suite(word).record
    assert isinstance(record, Suite)
    notes, refusals = sight.data(record)
    return [*(f"Note: {each}" for each in notes), *(f"Refused: {each}" for each in refusals)] or ["All data are here."]


def _here(words: dict[str, Any]) -> None:
    from quantlab import pipeline
    from quantlab.cli.run import _plan
    from quantlab.ledgers import Ledger
    from quantlab.records import EngineConfig

    config = EngineConfig(tensor_parallel=words["tp"])
    ask = pipeline.Ask(
        model=words["model"],
        recipes=words["recipes"],
        suite=words["suite"] or "quick",
        grid=words["grid"] or "quick",
        config=config,
    )
    _plan(pipeline.plan_run(ask, Ledger(None)), words["as_json"])
