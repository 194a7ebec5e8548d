"""What lies beside an ONNX model that quantlab wrote, read without an SDK: the parent process and the session ask it.

A model whose data file broke off opens without complaint where the missing bytes are mapped late, so the size of every
file is part of the record and is looked at each time.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from quantlab.records import OnnxJob, OnnxModel

RECORD, CONFIG = "quantlab_onnx.json", "genai_config.json"
PROTOCOL = 1
"""Raised by hand when quantlab writes another graph for the same job."""


def known(folder: Path) -> OnnxModel | None:
    """The record of a model, or None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=OnnxModel)
    except (OSError, msgspec.DecodeError):
        return None


def damage(folder: Path, model: OnnxModel) -> str:
    """One sentence on the first file that is not as it was written; "" where all are."""
    for name, size in model.files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else -1
        if found != size:
            return f"{name} {'is missing' if found < 0 else f'has {found} bytes'}, and {size} were written."
    return ""


def usable(folder: Path, job: OnnxJob) -> OnnxModel | None:
    """The whole model in `folder` if it is what `job` would write, else None."""
    model = known(folder)
    fits = model is not None and (model.job, model.protocol) == (placeless(job), PROTOCOL)
    return model if model is not None and fits and not damage(folder, model) else None


def placeless(job: OnnxJob) -> OnnxJob:
    """`job` without places of this machine."""
    return msgspec.structs.replace(job, source="", into="")
