"""Checkpoints that were made elsewhere, for tests: ModelOpt's own exports, and the tiny model in layouts of others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from quantlab import finished, weights
from quantlab.calibrate import finished as inspection
from quantlab.records import Calibrated, FinishedJob, Verification, Weights
from quantlab.worker import Reporter

MODEL = "model.safetensors"


def copied(source: Path, folder: Path) -> Path:
    """All files of `source`, to be changed."""
    return Path(shutil.copytree(source, folder))


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """Let `how` change the tensors in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / MODEL).items()}
    how(tensors)
    save_file(tensors, folder / MODEL, metadata={"format": "pt"})
    return folder


def say(folder: Path, name: str, **fields: Any) -> Path:
    """Set fields of a JSON file; None takes one away."""
    path = folder / name
    said = json.loads(path.read_text()) if path.is_file() else {}
    said |= fields
    path.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return folder


def written(
    base: Path,
    folder: Path,
    config: Mapping[str, Any],
    layer: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
) -> Path:
    """The tiny model in another program's layout: `layer` makes the tensors of each linear layer of the decoder."""

    def rewrite(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors |= layer(name.removesuffix(".weight"), tensors.pop(name).float())

    return say(change(copied(base, folder), rewrite), "config.json", quantization_config=dict(config))


def here(folder: Path) -> Weights:
    return Weights(
        path=str(folder),
        digest=weights.digest_folder(folder),
        architecture=weights.architecture(folder),
        bytes=weights.weight_bytes(folder),
    )


def inspected(base: Path, folder: Path) -> Verification:
    """The checks of the checkpoint in `folder` against `base`."""
    found = finished.recognise(folder, folder.name)
    made = finished.checkpoint(found, here(folder), folder.name, weights.weight_bytes(base))
    job = FinishedJob(
        weights=here(base),
        recipe=finished.recipe(found),
        calibrated=Calibrated(checkpoint=made, layers=found.layers, finished=found),
        checkpoint_path=str(folder),
    )
    return inspection.run(job, Reporter())


def failed(found: Verification) -> dict[str, str]:
    """Check -> finding, of those that did not pass."""
    return {check.name: check.finding for check in found.checks if not check.passed}
