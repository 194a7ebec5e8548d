"""The encoder of a model with images: weights, then its ONNX model in one child, then each plan in another.

The first child runs where ONNX Runtime is (engine ortgenai's place), the others where the builder is (places rtx and
tensorrt): see places.py. What lies in the folder already and fits is not made again.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from quantlab import catalog, child, fetch, host, places, probe, weights
from quantlab.encoder.shape import TowerShape, tower_shape
from quantlab.encoder.targets import require
from quantlab.errors import BadInput, Broken, Refused
from quantlab.pipeline.stage import Watcher
from quantlab.records import FetchJob, Model, Weights
from quantlab.records.encoder import Encoder, EncoderBuild, EncoderJob, EncoderPlan, EncoderPrecision, PlanJob, Target

WRITES_ONNX = "ortgenai"
"""The engine in whose place onnx and ONNX Runtime are."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OWN_MODEL = "mllama-easyvqa"
OWN_QUESTIONS = tuple(f"evals/items/easyvqa_{kind}.jsonl" for kind in ("yesno", "colour", "shape"))


@dataclass(frozen=True, slots=True)
class EncoderAsk:
    """What a person wants."""

    model: str
    """Word of the catalog, hub id or folder."""
    precision: EncoderPrecision = "fp16"
    target: Target = "onnx"
    capabilities: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 4, 16)
    into: Path | None = None
    pictures: Path | None = None
    """Folder of pictures; None: those of the calibration set easyvqa."""
    questions: tuple[Path, ...] | None = None
    """None: the built-in ones, for the model that can answer them."""


def encoder_folder(ask: EncoderAsk) -> Path:
    """Where it goes if nobody says."""
    return ask.into or Path("runs") / "encoders" / f"{Path(ask.model).name}-{ask.precision}"


def encoder_refusals(ask: EncoderAsk) -> TowerShape | None:
    """Everything that can be said without starting anything. Returns the tower's sizes where the weights are here.

    Raises:
        BadInput, Refused: a text-only model, a GPU that the target does not know, a precision that it has not.
    """
    require(ask.target, ask.precision, ask.capabilities)
    if len(ask.batches) < 1 or sorted(set(ask.batches)) != list(ask.batches) or ask.batches[0] < 1:
        raise BadInput(f"{ask.batches} are no sizes.", place="--batch", cure="Give growing numbers from 1 on: 1,4,16.")
    return tower_of(ask.model)[1]


def tower_of(word: str) -> tuple[Model, TowerShape | None]:
    """The model, and its tower's sizes where the weights are here. Raises BadInput: a text-only model."""
    model = catalog.model(word)
    if model.modality != "vision":
        cure = "Take a model with images: 11b, 90b or mllama-easyvqa."
        raise BadInput(f"{model.word} reads text only, it has no vision encoder.", place="--model", cure=cure)
    here = fetch.local(model, places.home())
    return model, tower_shape(weights.config(here.path)) if here else None


def build_encoder(ask: EncoderAsk, watch: Watcher) -> EncoderBuild:
    """Make what `ask` says.

    Raises:
        QuantlabError: as `encoder_refusals`, and what a child says.
    """
    encoder_refusals(ask)
    _require_builder(ask.target)
    source, into = _weights(catalog.model(ask.model), watch), encoder_folder(ask).absolute()
    pictures, questions = _pictures(ask.pictures), _questions(ask)
    job = EncoderJob(
        source=source.path,
        into=str(into),
        digest=source.digest,
        precision=ask.precision,
        batches=ask.batches,
        pictures=pictures,
        questions=questions,
        data=_digest(pictures + questions),
    )
    encoder = _in_child("encoder", job, WRITES_ONNX, watch)
    assert isinstance(encoder, Encoder)
    plans = [] if ask.target == "onnx" else [_plan(ask, into, one, watch) for one in ask.capabilities or (None,)]
    return EncoderBuild(folder=str(into), encoder=encoder, plans=tuple(plans))


def _require_builder(target: Target) -> None:
    """Before the minutes that an encoder takes. Raises: Refused, NoAccess, BadInput, as probe.require."""
    if target == "tensorrt" and not host.gpus():
        cure = "Take --target rtx --sm ..., which needs none to build, or --target onnx."
        raise Refused(
            "TensorRT builds on the GPU that it builds for, and there is none here.", place="build", cure=cure
        )
    if target != "onnx":
        probe.require(target, places.find(target))


def _plan(ask: EncoderAsk, into: Path, capability: str | None, watch: Watcher) -> EncoderPlan:
    assert ask.target != "onnx"
    middle = ask.batches[len(ask.batches) // 2]
    profile = (ask.batches[0], middle, ask.batches[-1])
    job = PlanJob(folder=str(into), target=ask.target, capability=capability, batches=profile)
    made = _in_child("plan", job, ask.target, watch)
    assert isinstance(made, EncoderPlan)
    return made


def _in_child(task: str, spec: EncoderJob | PlanJob, where: str, watch: Watcher) -> Encoder | EncoderPlan:
    """Its work folder stays when it fails: the log lies there."""
    folder = Path(tempfile.mkdtemp(prefix=f"quantlab-{task}-"))
    command = places.find(where).command
    made: Encoder | EncoderPlan = child.run(
        task, spec, workdir=folder, command=command, on_event=lambda event: watch.event("", event)
    )
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _weights(model: Model, watch: Watcher) -> Weights:
    found = fetch.local(model, places.home())
    if found is None:
        folder = Path(tempfile.mkdtemp(prefix="quantlab-fetch-"))
        spec = FetchJob(model=model, into=str(fetch.place(model, places.home())))
        found = child.run("fetch", spec, workdir=folder, on_event=lambda event: watch.event("", event))
        shutil.rmtree(folder, ignore_errors=True)
    if not isinstance(found, Weights):
        raise Broken("what was fetched is no model.", place=model.word)
    return found


def _pictures(folder: Path | None) -> tuple[str, ...]:
    chosen = folder or catalog.builtin() / "calibration" / "sets" / "easyvqa"
    if not chosen.is_dir():
        raise BadInput("is no folder.", place=str(chosen), cure="Give a folder of PNG, JPEG or WebP files.")
    found = sorted(str(file.absolute()) for file in chosen.iterdir() if file.suffix.lower() in SUFFIXES)
    if not found:
        raise BadInput("holds no picture.", place=str(chosen), cure="Give a folder of PNG, JPEG or WebP files.")
    return tuple(found)


def _digest(files: tuple[str, ...]) -> str:
    found = sha256()
    for file in files:
        try:
            found.update(Path(file).read_bytes())
        except OSError as error:
            raise BadInput(f"cannot be read: {error.strerror}.", place=file, cure="Check the path.") from None
    return found.hexdigest()


def _questions(ask: EncoderAsk) -> tuple[str, ...]:
    if ask.questions is not None:
        return tuple(str(file.absolute()) for file in ask.questions)
    if catalog.model(ask.model).word != OWN_MODEL or ask.precision == "bf16":
        return ()
    return tuple(str(catalog.builtin() / name) for name in OWN_QUESTIONS)
