"""`report`: the report of one run, of several, or of one run against another, on the screen and as files."""

from __future__ import annotations

import sys
from typing import Any

import click

GATE = {"regression": 10, "unjudged": 11}
"""Exit code of `--gate` with `--compare`."""


@click.command()
@click.argument("which", nargs=-1)
@click.option("--ledger", help="Run folder; default $QUANTLAB_LEDGER or ./runs.")
@click.option("--to", help="Folder for the files; default <ledger>/reports.")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output, without writing files.")
@click.option("--all", "every", is_flag=True, help="Every run of the ledger on one page.")
@click.option("--compare", nargs=2, metavar="BEFORE AFTER", help="Two runs: what changed and what got worse.")
@click.option("--max-slower", type=float, default=5.0, show_default=True, help="Percent of speed --compare lets go.")
@click.option(
    "--gate", is_flag=True, help="With --compare: exit 10 on a regression, 11 if a recipe could not be compared."
)
def report(
    which: tuple[str, ...],
    ledger: str | None,
    to: str | None,
    as_json: bool,
    every: bool,
    compare: tuple[str, str] | None,
    max_slower: float,
    gate: bool,
) -> None:
    """Show runs and write their HTML, Markdown and JSON. A run is named by its id, time, model word or JSON file.

    \b
    quantlab report                       the newest run
    quantlab report 3b 1b                 the newest of each model, on one page
    quantlab report --all
    quantlab report --compare 2026-11-23 3b --gate
    """
    from pathlib import Path

    from quantlab.chosen import choose
    from quantlab.chosen import every as all_of
    from quantlab.errors import BadInput
    from quantlab.ledgers import Ledger

    if bool(which) + every + bool(compare) > 1 or (gate and not compare):
        raise BadInput(
            "these words do not go together.",
            place="report",
            cure="Name runs, or give --all, or --compare BEFORE AFTER (and then --gate, if you like).",
        )
    book = Ledger(ledger)
    folder = Path(to) if to else book.root / "reports"
    if compare:
        _compare(book, compare, max_slower, folder, as_json, gate)
        return
    chosen = all_of(book) if every else [choose(book, word) for word in which] or all_of(book)[-1:]
    if every or len(chosen) > 1:
        _several(chosen, folder, as_json)
    else:
        _one(chosen[0].run, folder, as_json)


def _one(run: Any, folder: Any, as_json: bool) -> None:
    from rich.console import Console

    from quantlab import report as room
    from quantlab.cli.run import stem_of

    if as_json:
        click.echo(room.to_json(run).decode())
        return
    paths = room.write(run, folder, stem_of(run))
    console = Console()
    room.terminal(run, console)
    _say(paths, console)


def _several(chosen: list[Any], folder: Any, as_json: bool) -> None:
    from rich.console import Console

    from quantlab import report as room
    from quantlab.cli.run import stem_of
    from quantlab.records import encode
    from quantlab.report import overview

    runs: dict[str, Any] = {}
    for each in chosen:
        stem = stem_of(each.run)
        if runs.get(stem, each.run) != each.run:  # two runs of one model that ended in the same second
            stem = f"{stem}-{len(runs)}"
        runs[stem] = each.run
    if as_json:
        click.echo(encode(list(runs.values())).decode())
        return
    paths = room.write_several(list(runs.items()), folder)
    console = Console()
    overview.terminal(list(runs.items()), console)
    _say(paths, console)


def _compare(book: Any, words: tuple[str, str], max_slower: float, folder: Any, as_json: bool, gate: bool) -> None:
    from rich.console import Console

    from quantlab import report as room
    from quantlab.chosen import choose
    from quantlab.cli.run import stem_of
    from quantlab.pipeline.compared import compared
    from quantlab.records import encode
    from quantlab.report import versus as face
    from quantlab.versus import failed, unjudged

    before, after = (choose(book, word) for word in words)
    found = compared(before, after, max_slower)
    if as_json:
        click.echo(encode(found).decode())
    else:
        stem = f"{stem_of(after.run)}-against-{stem_of(before.run)}"
        paths = room.write_versus(found, folder, stem)
        console = Console()
        face.terminal(found, console)
        _say(paths, console)
    if gate and (failed(found) or unjudged(found)):
        sys.exit(GATE["regression" if failed(found) else "unjudged"])


def _say(paths: dict[str, Any], console: Any) -> None:
    for kind, path in paths.items():
        console.print(f"{kind}: {path}", soft_wrap=True, highlight=False)
