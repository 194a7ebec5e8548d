"""The source: weights into a transformers model, and calibration ids for it. Refused here is what would only be noticed
after minutes of calibrating: weights that are not finite, an architecture nobody knows, samples that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantlab import weights as folders
from quantlab.calibrate.samples import Samples, samples
from quantlab.errors import BadInput, Broken, Refused
from quantlab.records import CalibrateJob


def check_finite(path: str) -> None:
    """Raises Broken when a weight is NaN or infinite, naming the first such tensor: one of them spoils every range."""
    from safetensors import safe_open

    for file in sorted({one["file"] for one in folders.headers(path).values()}):
        with safe_open(Path(path) / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float().sum())):
                    count = int((~torch.isfinite(tensor)).sum())
                    if count:
                        cure = "Fetch the model again; if it stays, its training broke it."
                        raise Broken(
                            f"{count} of {tensor.numel():,} weights of {name} are NaN or infinite.",
                            place=f"{path}/{file}",
                            cure=cure,
                        )


def load(spec: CalibrateJob) -> nn.Module:
    from transformers import AutoModelForCausalLM

    cuda = spec.device.startswith("cuda") or (spec.device == "auto" and torch.cuda.is_available())
    where = ("auto" if spec.device == "auto" else spec.device) if cuda else "cpu"
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            spec.weights.path,
            dtype="auto" if cuda else torch.float32,
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
    return model.eval().requires_grad_(False)


def calibration(spec: CalibrateJob, model: nn.Module) -> Samples | None:
    from transformers import AutoTokenizer

    asked = spec.recipe.calibration
    if asked is None:
        return None
    if spec.set is None:
        raise BadInput("it names no calibration set.", place=f"recipe {spec.recipe_name}", cure="Add calibration.set.")
    config: Any = model.config
    if asked.length > (context := getattr(config, "max_position_embeddings", asked.length)):
        cure = f"Set calibration.length to at most {context}."
        raise BadInput(f"{asked.length} tokens do not fit its context of {context}.", place=spec.model.word, cure=cure)
    tokenizer = AutoTokenizer.from_pretrained(spec.weights.path, local_files_only=True, trust_remote_code=False)
    found = samples(spec.set, asked, spec.set_folder, tokenizer, chat=spec.model.chat)
    if int(found.ids.max()) >= config.get_text_config().vocab_size:
        raise Broken(
            "the tokenizer knows tokens that the model has no row for.", place=spec.weights.path, cure="Fetch it again."
        )
    return found


def stored_type(path: str) -> torch.dtype:
    """The type that config.json names for the weights; bfloat16 where it names none."""
    config = folders.config(path)
    word = config.get("dtype") or config.get("torch_dtype") or config.get("text_config", {}).get("dtype") or "bfloat16"
    found = getattr(torch, str(word).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise Broken(f"config.json names the type {word!r}.", place=path, cure="It should be bfloat16 or float16.")
    return found
