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
    type=click.Choice(["compressed-tensors", "autoawq", "onnx"]),
    default="compressed-tensors",
    show_default=True,
    help="Who reads it: compressed-tensors for vLLM and transformers, onnx for ONNX Runtime GenAI on a CPU.",
)
@click.option(
    "--o-proj",
    type=click.Choice(["refuse", "average"]),
    default="refuse",
    show_default=True,
    help="Where a scale has no place under grouped-query attention: refuse, or average it and round o_proj again.",
)
@click.option("--head", type=click.Choice(["keep", "int8", "int4"]), default="keep", help="onnx: the output head.")
@click.option("--activations", type=click.Choice(["keep", "int8"]), default="keep", help="onnx: inputs of int4 layers.")
@click.option("--json", "as_json", is_flag=True, help="The record as JSON on standard output.")
def convert(checkpoint: Path, to: Path, layout: str, o_proj: str, head: str, activations: str, as_json: bool) -> None:
    """Write CHECKPOINT, an int4 export of ModelOpt (for onnx any), as the folder TO in another layout. What was
    chosen, and what it cost, is written beside the weights and printed.

    \b
    quantlab convert runs/checkpoints/ab12... ./awq --layout autoawq --o-proj average
    """
    made = _onnx(checkpoint, to, head, activations) if layout == "onnx" else _convert(checkpoint, to, layout, o_proj)
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(made, order="deterministic"))
        return
    click.echo(f"{to}: {_summary(made)}")
    for note in made.notes:
        click.echo(f"  {note}")


def _convert(checkpoint: Path, to: Path, layout: Any, o_proj: Any) -> Any:
    """In a child, as everything that holds weights. Its folder stays when it fails: the log lies there."""
    from quantlab.records import ConvertJob

    spec = ConvertJob(source=str(checkpoint.resolve()), into=str(to.absolute()), layout=layout, o_proj=o_proj)
    return _in_child("convert", spec)


def _onnx(checkpoint: Path, to: Path, head: Any, activations: Any) -> Any:
    from quantlab import weights
    from quantlab.records import OnnxJob

    source = checkpoint.resolve()
    digest = weights.digest_folder(source)
    spec = OnnxJob(source=str(source), into=str(to.absolute()), digest=digest, head=head, activations=activations)
    return _in_child("onnx", spec)


def _in_child(task: str, spec: Any) -> Any:
    from quantlab import child

    folder = Path(tempfile.mkdtemp(prefix="quantlab-convert-"))
    made = child.run(task, spec, workdir=folder)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _summary(made: Any) -> str:
    if hasattr(made, "group_size"):
        return f"{len(made.layers)} int4 layers in groups of {made.group_size}, {made.bytes / 1e9:.3f} GB"
    kept = f", {made.rescaled} pre_quant_scale as a Mul" if made.rescaled else ""
    size = sum(made.files.values()) / 1e9
    return f"{made.layers} decoder layers, {made.quantized} quantized products{kept}, {size:.3f} GB"
