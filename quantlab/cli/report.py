"""`report`: the report of a run that the ledger holds, on the screen and as files."""

from __future__ import annotations

import click


@click.command()
@click.argument("which", required=False)
@click.option("--ledger", help="Run folder; default $QUANTLAB_LEDGER or ./runs.")
@click.option("--to", help="Folder for the files; default <ledger>/reports.")
@click.option("--json", "as_json", is_flag=True, help="The run as JSON on standard output.")
def report(which: str | None, ledger: str | None, to: str | None, as_json: bool) -> None:
    """Show the newest run, or the newest of the model word WHICH, and write its HTML, Markdown and JSON."""
    from pathlib import Path

    from rich.console import Console

    from quantlab import report as room
    from quantlab.cli.run import stem_of
    from quantlab.errors import BadInput
    from quantlab.ledgers import Ledger

    book = Ledger(ledger)
    runs = [run for run in book.runs() if which is None or run.model.word == which]
    if not runs:
        what = f"of model {which!r} " if which else ""
        raise BadInput(
            f"the ledger holds no run {what}to report.",
            place=str(book.root),
            cure="`quantlab run fp8 --model smollm2-135m` makes one; `quantlab ls runs` lists them.",
        )
    if as_json:
        click.echo(room.to_json(runs[-1]).decode())
        return
    paths = room.write(runs[-1], Path(to) if to else book.root / "reports", stem_of(runs[-1]))
    console = Console()
    room.terminal(runs[-1], console)
    for kind, path in paths.items():
        console.print(f"{kind}: {path}", soft_wrap=True, highlight=False)
