"""`build`: one part of a model for a runtime of its own: the encoder of a model with images, or TensorRT-LLM's flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--part", type=click.Choice(["vision", "text"]), default="vision", show_default=True)
@click.option("--model", "-m", required=True, help="Catalog word (11b, 90b, mllama-easyvqa), hub id or directory.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "fp8", "int4_awq"]),
    default="fp16",
    show_default=True,
    help="Of the encoder; with --part text of the decoder (bf16, fp8).",
)
@click.option(
    "--target",
    type=click.Choice(["onnx", "rtx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="Who runs the encoder: ONNX Runtime, TensorRT-RTX (built anywhere), TensorRT (built on its GPU).",
)
@click.option("--sm", multiple=True, help="Compute capability for --target rtx: 89 or 8.9; may be repeated.")
@click.option("--batch", default="1,4,16", show_default=True, help="Pictures at once: smallest, best served, largest.")
@click.option("--into", type=click.Path(path_type=Path), help="Folder; default: runs/encoders/MODEL-PRECISION.")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder of pictures to calibrate and check with.")
@click.option("--questions", multiple=True, type=click.Path(path_type=Path), help="Items whose answers must hold.")
@click.option("--engine", type=click.Choice(["trtllm"]), default="trtllm", help="With --part text.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="The record as JSON on standard output.")
def build(**words: Any) -> None:
    """Build the vision encoder of MODEL (tower and projector) and hold it against torch: differences of its states and
    answers that changed. Plans of TensorRT-RTX for a GPU that is not here are marked "built, not run".

    \b
    quantlab build --part vision --model mllama-easyvqa --precision int8
    quantlab build --part vision --model 11b --target rtx --sm 89 --sm 120 --pictures photos/
    quantlab build --part text --model 11b --precision fp8 --dry-run      TensorRT-LLM 1.2's own scripts, as commands
    """
    if words["part"] == "text":
        _text(words)
        return
    ask = _ask(words)
    if words["dry_run"]:
        _dry(ask)
        return
    from quantlab.cli.progress import watching
    from quantlab.pipeline.encoding import build_encoder

    with watching(words["as_json"]) as watch:
        made = build_encoder(ask, watch)
    if words["as_json"]:
        _json(made)
        return
    from quantlab.report.encoder import lines

    for line in lines(made):
        click.echo(line)


def _ask(words: dict[str, Any]) -> Any:
    from quantlab.encoder.targets import capability
    from quantlab.errors import BadInput
    from quantlab.pipeline.encoding import EncoderAsk

    if words["precision"] == "int4_awq":
        cure = "Take int8 or fp8."
        raise BadInput("the encoder has no int4: its products are large, and weights are not their cost.", cure=cure)
    try:
        batches = tuple(int(one) for one in words["batch"].split(","))
    except ValueError:
        cure = "Write 1,4,16."
        raise BadInput(f"{words['batch']!r} are no sizes.", place="--batch", cure=cure) from None
    return EncoderAsk(
        model=words["model"],
        precision=words["precision"],
        target=words["target"],
        capabilities=tuple(dict.fromkeys(capability(one) for one in words["sm"])),
        batches=batches,
        into=words["into"],
        pictures=words["pictures"],
        questions=words["questions"] or None,
    )


def _dry(ask: Any) -> None:
    from quantlab import places
    from quantlab.pipeline.encoding import WRITES_ONNX, encoder_folder, encoder_refusals

    shape = encoder_refusals(ask)
    click.echo(f"{encoder_folder(ask)}: vision encoder of {ask.model}, {ask.precision}")
    if shape is not None:
        click.echo(f"  a picture becomes {shape.tiles} x {shape.tokens} vectors of {shape.out}")
    click.echo(f"  ONNX model, written and checked in {places.find(WRITES_ONNX)}")
    for one in ask.capabilities or ((None,) if ask.target != "onnx" else ()):
        click.echo(f"  plan of {ask.target} for {one or 'the GPU at hand'}, built in {places.find(ask.target)}")


def _text(words: dict[str, Any]) -> None:
    from quantlab.engines.trtllm_mllama import ENCODER_TOKENS, legacy
    from quantlab.errors import Refused
    from quantlab.pipeline.encoding import tower_of

    model, shape = tower_of(words["model"])
    tokens = shape.tiles * shape.tokens if shape else ENCODER_TOKENS
    flow = legacy(model.location, words["precision"], tokens)
    if not words["dry_run"]:
        cure = "Take --dry-run, and run its commands in NVIDIA's container of TensorRT-LLM 1.2.1."
        raise Refused("these scripts are TensorRT-LLM's own, and quantlab has not run them.", place="build", cure=cure)
    if words["as_json"]:
        _json(flow)
        return
    for line in flow.lines():
        click.echo(line)


def _json(made: Any) -> None:
    import msgspec

    click.echo(msgspec.json.encode(made, order="deterministic"))
