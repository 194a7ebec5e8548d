"""`ls`, `show`, `cp`: the vocabulary, to be read and to be changed. `completion`: the line for the shell."""

from __future__ import annotations

import shutil

import click

KINDS = ("models", "recipes", "sets", "suites", "grids", "policies", "gpus")
ONE = ("model", "recipe", "set", "suite", "grid", "policy", "gpu")
COPIED = ("recipe", "set", "suite", "grid", "policy")


@click.command()
@click.argument("kind", required=False, type=click.Choice([*KINDS, "runs"]))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--ledger", help="Run folder, for `ls runs`.")
def ls(kind: str | None, as_json: bool, ledger: str | None) -> None:
    """List what there is: models, recipes, calibration sets, suites, grids, policies, GPUs, or past runs."""
    if kind == "runs":
        _runs(ledger, as_json)
        return
    kinds = [kind] if kind else list(KINDS)
    if as_json:
        import json

        found = {each: dict(_rows(each)) for each in kinds}
        click.echo(json.dumps(found, indent=1))
        return
    for each in kinds:
        if len(kinds) > 1:
            click.secho(each, bold=True)
        rows = _rows(each)
        formatter = click.HelpFormatter(width=max(60, shutil.get_terminal_size((100, 40)).columns))
        formatter.write_dl(rows)
        click.echo(formatter.getvalue())


def _rows(kind: str) -> list[tuple[str, str]]:
    """Word and summary of everything of a kind."""
    from quantlab import catalog

    if kind == "gpus":
        return [(each.word, each.summary) for each in catalog.gpus()]
    return [(item.name, item.record.summary) for item in catalog.names(kind)]


def _runs(ledger: str | None, as_json: bool) -> None:
    from quantlab.ledgers import Ledger

    runs = Ledger(ledger).runs()
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(runs, order="deterministic"))
        return
    if not runs:
        click.echo("no run yet; `quantlab run fp8 --model smollm2-135m` makes one")
    for run in runs:
        verdicts = ", ".join(f"{each.recipe_name} {each.verdict.status}" for each in run.candidates)
        click.echo(f"{run.created}  {run.model.word}  {verdicts}")


@click.command()
@click.argument("kind", type=click.Choice(ONE))
@click.argument("word")
def show(kind: str, word: str) -> None:
    """Print a recipe, suite, grid, policy, set, model or GPU as it is."""
    from quantlab import catalog

    click.echo(catalog.text(kind, word), nl=False)


@click.command()
@click.argument("kind", type=click.Choice(COPIED))
@click.argument("word")
@click.argument("to", default=".")
def cp(kind: str, word: str, to: str) -> None:
    """Copy a recipe, suite, grid, policy or set to TO, a folder or file, to change it there; nothing is overwritten."""
    from quantlab import catalog

    click.echo(catalog.copy(kind, word, to))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the line that switches on completion: put it into the shell's start file."""
    lines = {
        "bash": 'eval "$(_QUANTLAB_COMPLETE=bash_source quantlab)"',
        "zsh": 'eval "$(_QUANTLAB_COMPLETE=zsh_source quantlab)"',
        "fish": "_QUANTLAB_COMPLETE=fish_source quantlab | source",
    }
    click.echo(lines[shell])
