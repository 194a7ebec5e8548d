"""The source: weights into a transformers model, and calibration ids for it. Refused here is what would only be noticed
after minutes of calibrating: weights that are not finite, an architecture nobody knows, samples that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from quantlab import kept
from quantlab import weights as folders
from quantlab.calibrate import devices
from quantlab.calibrate.pictures import Pictures, pictures
from quantlab.calibrate.samples import Samples, samples
from quantlab.calibrate.stored import Stored
from quantlab.errors import BadInput, Broken, Refused
from quantlab.formats.modelopt import auto_class
from quantlab.records import CalibrateJob, Calibration, CalibrationSet


def check_finite(path: str) -> None:
    """Raises Broken when a weight is NaN or infinite, naming the first such tensor: one of them spoils every range."""
    stored = Stored(path)
    for name, one in stored.headers.items():
        count = sum(_not_finite(part) for part in stored.parts(name))
        if count:
            raise Broken(
                f"{count} of {torch.Size(one['shape']).numel():,} weights of {one['stored']} are NaN or infinite.",
                place=f"{path}/{one['file']}",
                cure="Fetch the model again; if it stays, its training broke it.",
            )


def _not_finite(part: torch.Tensor) -> int:
    """How many are not; counted one by one only where the sum says that there are some."""
    if not part.is_floating_point() or bool(torch.isfinite(part.float().sum())):
        return 0
    return int((~torch.isfinite(part)).sum())


COPIED = sorted(set(folders.IDENTITY) - {"config.json", "hf_quant_config.json", "quant_cfg.json"})
"""Files that are taken over as they are: the tokenizer, its chat template, generation defaults."""


def copy_small(spec: CalibrateJob, folder: Path) -> None:
    """Take COPIED over from the weights' folder, as far as they are there."""
    for name in COPIED:
        if (Path(spec.weights.path) / name).is_file():
            shutil.copyfile(Path(spec.weights.path) / name, folder / name)


def arithmetic(spec: CalibrateJob) -> tuple[torch.dtype, torch.device]:
    """Type and device of the calibration: as stored on a GPU, float32 on a CPU."""
    if devices.on_gpu(spec):
        return stored_type(spec.weights.path), torch.device("cuda" if spec.device == "auto" else spec.device)
    return torch.float32, torch.device("cpu")


def load(spec: CalibrateJob) -> nn.Module:
    """The whole model, on one device or with its blocks on several (devices.py).

    Raises:
        BadInput: more GPUs than there are.
        Refused: GPUs that are too small together; what transformers cannot load.
    """
    where = devices.placement(spec)
    try:
        model: nn.Module = auto_class(spec.weights.path).from_pretrained(
            spec.weights.path,
            dtype="auto" if devices.on_gpu(spec) else torch.float32,
            device_map=where,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except ValueError as error:
        first = str(error).partition("\n")[0]
        cure = "Take a causal language model that transformers knows."
        raise Refused(f"transformers cannot load it: {first}", place=spec.weights.architecture, cure=cure) from error
    if spec.gpus > 1 and not devices.on_gpu(spec):
        devices.rehearse(model, spec)
    return model.eval().requires_grad_(False)


def calibration(spec: CalibrateJob, model: nn.Module) -> Samples | Pictures | None:
    """What is fed, of the kind that the model takes.

    Raises:
        BadInput: no set, or one that cannot be used; a set without pictures for a model with images.
        Broken: the tokenizer does not belong to the model.
    """
    asked = spec.recipe.calibration
    if asked is None:
        return None
    if spec.set is None:
        raise BadInput("it names no calibration set.", place=f"recipe {spec.recipe_name}", cure="Add calibration.set.")
    config: Any = model.config
    found = (
        _pictures(spec, spec.set, asked) if hasattr(config, "vision_config") else _text(spec, spec.set, asked, config)
    )
    # Llama 3.2 Vision embeds eight more tokens than it can say; the image token is one of them.
    if found.largest_id >= int(model.get_input_embeddings().weight.shape[0]):
        raise Broken(
            "the tokenizer knows tokens that the model has no row for.", place=spec.weights.path, cure="Fetch it again."
        )
    return found


def wider(spec: CalibrateJob, own: Samples | Pictures) -> Samples | Pictures:
    """Ten times the recipe's text, or as much as the set has, for what one pass over it shows; pictures as they are.

    Raises as `calibration`.
    """
    asked = spec.recipe.calibration
    if asked is None or spec.set is None or not isinstance(own, Samples):
        return own
    more = msgspec.structs.replace(asked, samples=kept.WIDER * asked.samples)
    return _text(spec, spec.set, more, least=asked.samples)


def _pictures(spec: CalibrateJob, data: CalibrationSet, asked: Calibration) -> Pictures:
    if data.image is None:
        cure = "Take a calibration set with `image`, e.g. easyvqa, or one of your own pictures and questions."
        problem = (
            "the model takes images and the calibration set has none; its cross-attention layers would see nothing."
        )
        raise BadInput(problem, place=f"recipe {spec.recipe_name}", cure=cure)
    return pictures(data, asked, spec.set_folder, Path(spec.weights.path), chat=spec.model.chat)


def _text(
    spec: CalibrateJob, data: CalibrationSet, asked: Calibration, config: Any = None, least: int | None = None
) -> Samples:
    from transformers import AutoTokenizer

    if asked.length > (context := getattr(config, "max_position_embeddings", asked.length)):
        cure = f"Set calibration.length to at most {context}."
        raise BadInput(f"{asked.length} tokens do not fit its context of {context}.", place=spec.model.word, cure=cure)
    tokenizer = AutoTokenizer.from_pretrained(spec.weights.path, local_files_only=True, trust_remote_code=False)
    return samples(data, asked, spec.set_folder, tokenizer, chat=spec.model.chat, least=least)


def stored_type(path: str) -> torch.dtype:
    """The type that config.json names for the weights; bfloat16 where it names none."""
    config = folders.config(path)
    word = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "bfloat16"
    found = getattr(torch, str(word).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise Broken(f"config.json names the type {word!r}.", place=path, cure="It should be bfloat16 or float16.")
    return found
