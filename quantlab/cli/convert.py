"""`convert`: an int4 checkpoint in the layout of another program."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("to", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(["compressed-tensors", "autoawq"]),
    default="compressed-tensors",
    show_default=True,
    help="Who reads it: compressed-tensors for vLLM and transformers, autoawq also for ONNX Runtime's builder.",
)
@click.option(
    "--o-proj",
    type=click.Choice(["refuse", "average"]),
    default="refuse",
    show_default=True,
    help="Where a scale has no place under grouped-query attention: refuse, or average it and round o_proj again.",
)
@click.option("--json", "as_json", is_flag=True, help="The record as JSON on standard output.")
def convert(checkpoint: Path, to: Path, layout: str, o_proj: str, as_json: bool) -> None:
    """Write CHECKPOINT, an int4 export of ModelOpt, as the folder TO in another layout. What was chosen, and what it
    cost, is written beside the weights and printed.

    \b
    quantlab convert runs/checkpoints/ab12... ./awq --layout autoawq --o-proj average
    """
    made = _convert(checkpoint, to, layout, o_proj)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(made, order="deterministic"))
        return
    click.echo(f"{to}: {len(made.layers)} int4 layers in groups of {made.group_size}, {made.bytes / 1e9:.3f} GB")
    for note in made.notes:
        click.echo(f"  {note}")


def _convert(checkpoint: Path, to: Path, layout: Any, o_proj: Any) -> Any:
    """In a child, as everything that holds weights. Its folder stays when it fails: the log lies there."""
    from quantlab import child
    from quantlab.records import ConvertJob

    spec = ConvertJob(source=str(checkpoint.resolve()), into=str(to.absolute()), layout=layout, o_proj=o_proj)
    folder = Path(tempfile.mkdtemp(prefix="quantlab-convert-"))
    made = child.run("convert", spec, workdir=folder)
    shutil.rmtree(folder, ignore_errors=True)
    return made
