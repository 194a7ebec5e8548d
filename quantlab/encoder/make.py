"""The jobs of a child: an encoder's folder, and the plans in it.

quantlab_encoder.json     what it is, what was checked     model.onnx, model.onnx.data
check.safetensors         one picture and torch's states of it, for plans
rtx-8.9.plan, rtx-8.9.json
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from quantlab import disk, weights
from quantlab.encoder import kept
from quantlab.encoder.kept import CHECK, PROTOCOL, RECORD
from quantlab.encoder.shape import STATES
from quantlab.errors import BadInput, NoAccess
from quantlab.formats.onnx_model import needs_onnx
from quantlab.records import encode
from quantlab.records.encoder import AnswersHeld, Difference, Encoder, EncoderJob, EncoderPlan, PlanJob

if TYPE_CHECKING:
    from quantlab.worker import Reporter

VERSIONS = ("onnx", "onnxruntime", "torch", "transformers")
UNCHECKED = "not checked: ONNX Runtime has no bfloat16 kernels on a CPU; the graph is fp16's in another type."
EMULATED = "FP8 was checked with true E4M3 rounding and products in float16 (ONNX Runtime has no product of FP8)."


def run(spec: EncoderJob, reporter: Reporter) -> Encoder:
    """The task "encoder". One that is there already, whole and the same, is taken as it is.

    Raises:
        NoAccess: onnx or ONNX Runtime is not installed here.
        BadInput: no Mllama, no pictures where they are needed, or the target is something else's folder.
        Refused, Broken: what stored.py, graph.py and check.py say.
    """
    into = Path(spec.into)
    if (found := kept.usable(into, spec)) is not None:
        return found
    if kept.known(into) is None and into.exists() and any(into.iterdir()):
        raise BadInput("there is something already.", place=spec.into, cure="Name a folder that does not exist.")
    if not spec.pictures:
        raise BadInput("no picture to check with.", place="build", cure="Give --pictures FOLDER.")
    from quantlab.encoder.runtime import imported

    imported()
    with needs_onnx("build"):
        import onnx  # noqa: F401
    with weights.written_whole(into) as folder:
        record = _make(spec, folder, reporter)
        (folder / RECORD).write_bytes(msgspec.json.format(encode(record), indent=1))
    return record


def _make(spec: EncoderJob, folder: Path, reporter: Reporter) -> Encoder:
    import torch

    from quantlab.encoder import graph
    from quantlab.encoder.check import Pictures
    from quantlab.encoder.ranges import input_ranges
    from quantlab.encoder.stored import open_tower, source_of

    source = Path(spec.source)
    tower, shape = open_tower(source, torch.float32)
    ratios = tower.vision_model.config.supported_aspect_ratios
    pictures = Pictures(source, spec.pictures, shape.image, ratios)
    rounded = spec.precision in graph.LARGEST
    reporter.progress("encoder", 0, 4, "looking at pictures")
    ranges = input_ranges(tower, graph.linears(shape), pictures.batches()) if rounded else {}
    reporter.progress("encoder", 1, 4, "writing the graph")
    graph.write(shape, source_of(source), folder, spec.precision, ranges)
    reporter.progress("encoder", 2, 4, "checking it against torch")
    differences, answers = _checked(spec, folder, tower, pictures, reporter)
    reporter.progress("encoder", 4, 4)
    return Encoder(
        job=kept.placeless(spec),
        protocol=PROTOCOL,
        files={file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        tokens=shape.tiles * shape.tokens,
        width=shape.out,
        differences=differences,
        answers=answers,
        versions={name: metadata.version(name) for name in VERSIONS},
        notes=tuple(_notes(spec)),
    )


def _checked(
    spec: EncoderJob, folder: Path, tower: Any, pictures: Any, reporter: Reporter
) -> tuple[tuple[Difference, ...], AnswersHeld | None]:
    import torch
    from safetensors.torch import save_file

    from quantlab.encoder.check import differences
    from quantlab.encoder.runtime import OnnxTower

    given = pictures.batch(1)
    with torch.inference_mode():
        states = tower(*given)
    named = dict(zip((*kept.INPUTS, STATES), (*given, states), strict=True))
    save_file({name: one.contiguous() for name, one in named.items()}, folder / CHECK)
    if spec.precision == "bf16":
        return (), None
    model = OnnxTower(folder / "model.onnx", spec.precision, torch.get_num_threads())
    found = tuple(differences(tower, model, pictures, spec.batches))
    if not spec.questions:
        return found, None
    from quantlab.encoder.answers import held

    reporter.progress("encoder", 3, 4, "asking questions")
    return found, held(Path(spec.source), spec.questions, tower, model)


def _notes(spec: EncoderJob) -> list[str]:
    notes = {"bf16": [UNCHECKED], "fp8": [EMULATED]}.get(spec.precision, [])
    if spec.precision in ("int8", "fp8"):
        kept16 = "patches, attention and projector stay float16"
        notes.append(f"scales from the largest inputs over {len(spec.pictures)} pictures; {kept16}.")
    return notes


def plan(spec: PlanJob, reporter: Reporter) -> EncoderPlan:
    """The task "plan". One of the same builder that is there already, whole, is taken as it is.

    Raises:
        NoAccess: the builder is not installed here.
        BadInput: no encoder in the folder, or a GPU that the builder does not know.
        StageFailed: the builder refuses.
    """
    from quantlab.encoder import builder

    folder = Path(spec.folder)
    encoder = kept.require(folder)
    trt = builder.sdk(spec.target)
    capability, version = spec.capability or _here(), f"{trt.__name__} {trt.__version__}"
    found = kept.plan(folder, spec, capability, version)
    if found is not None and (found.state == "run" or not _runs(capability)):
        return found
    reporter.progress("plan", 0, 1, f"building for {capability}")
    made = builder.build(trt, folder / "model.onnx", spec.batches, spec.capability)
    record = EncoderPlan(
        target=spec.target,
        capability=capability,
        precision=encoder.job.precision,
        state="built, not run",
        file=f"{spec.target}-{capability}.plan",
        bytes=len(made.plan),
        weights_bytes=made.weights_bytes,
        build_seconds=made.seconds,
        batches=spec.batches,
        version=version,
    )
    disk.write(folder / record.file, made.plan)
    record = _ran(trt, record, made.plan, folder)
    disk.write(folder / f"{spec.target}-{capability}.json", msgspec.json.format(encode(record), indent=1))
    reporter.progress("plan", 1, 1)
    return record


def _here() -> str:
    from quantlab.host import gpus

    found = gpus()
    if not found:
        cure = "Take --target rtx --sm ..., which needs none to build, or --target onnx."
        raise NoAccess("TensorRT builds on the GPU that it builds for, and there is none.", place="build", cure=cure)
    return found[0].compute_capability


def _runs(capability: str) -> bool:
    """There is a GPU of this kind here."""
    from quantlab.host import gpus

    return any(gpu.compute_capability == capability for gpu in gpus())


def _ran(trt: Any, record: EncoderPlan, plan: bytes, folder: Path) -> EncoderPlan:
    """The record with what running it told, where there is a GPU of its kind and a torch that uses it."""
    if not _runs(record.capability):
        return record
    try:
        from quantlab.encoder.timed import timed
    except ModuleNotFoundError as error:
        note = f"there is a GPU for it, and no {error.name} in this Python to run it with."
        return msgspec.structs.replace(record, notes=(note,))
    return timed(trt, record, plan, folder)
