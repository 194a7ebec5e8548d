"""`recommend`: which precision to ship on a GPU, from what the ledger holds, published tables and predictions."""

from __future__ import annotations

from typing import Any

import click


@click.command()
@click.argument("recipes", nargs=-1)
@click.option("--model", "-m", required=True, help="Catalog word (1b, 3b, 11b, 90b), hub id or directory.")
@click.option("--gpu", required=True, help="GPU of the catalog (`quantlab ls gpus`), or a YAML file of your own.")
@click.option("--objective", default="throughput", show_default=True, help="throughput, latency, memory, energy, cost.")
@click.option("--max-drop", type=float, default=1.0, show_default=True, help="Accepted loss of accuracy in points.")
@click.option("--ttft", help="Limit of the time to the first token: 200ms.")
@click.option("--tpot", help="Limit of the time per output token: 20ms.")
@click.option(
    "--by",
    type=click.Choice(["load", "batch"]),
    help="Rank by measured loads (users within the limits) or static batches; default: by load with --ttft or --tpot.",
)
@click.option("--context", default="8192", show_default=True, help="Tokens of a sequence, for the memory.")
@click.option("--batch", default="1..64", show_default=True, help="Sequences at once: 8, or 1..64.")
@click.option("--tp", type=click.IntRange(1, 64), default=1, show_default=True, help="GPUs that share each layer.")
@click.option("--engine", help="Engine whose speeds count; default: the one about which most is known.")
@click.option("--isl", type=int, help="Tokens in, for the speed; default: the lengths that were measured.")
@click.option("--osl", type=int, help="Tokens out, for the speed.")
@click.option("--unproven", is_flag=True, help="Weigh recipes whose accuracy was not shown, too.")
@click.option("--images", type=int, default=0, help="Images of a sequence (11b and 90b), of four tiles each.")
@click.option("--kernels/--no-kernels", default=True, help="Ask the tables of measured kernels, where installed.")
@click.option("--price", type=float, help="Dollars an hour of one GPU, instead of the catalog's assumption.")
@click.option(
    "--ledger",
    "folders",
    multiple=True,
    help="Ledger, or folder of ledgers (repeatable); default: ./runs, and the GPU runs that travel along.",
)
@click.option("--published", type=click.Path(dir_okay=False), help="Another file of published tables.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def recommend(**words: Any) -> None:
    """Say which of RECIPES (default bf16, fp8, int4_awq) to ship, the runner-up, and why the others lost.

    \b
    quantlab recommend --model 3b --gpu rtx4090 --max-drop 1 --tpot 20ms --context 8k --batch 1..64
    quantlab recommend --model 3b --gpu h100 --ledger benchmarks/results/gpu --unproven
    """
    from quantlab import advice

    as_json, model, recipes = words.pop("as_json"), words.pop("model"), words.pop("recipes")
    found = advice.recommend(model, recipes=recipes, **words)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(found.record, order="deterministic"))
        return
    for line in str(found).splitlines():
        click.echo(line)
