"""What lies beside an ONNX model that quantlab wrote, read without an SDK, and the door to writing one.

A model whose data file broke off opens without complaint where the missing bytes are mapped late, so the size of every
file is part of the record and is looked at each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from quantlab.errors import NoAccess
from quantlab.records import OnnxJob, OnnxModel
from quantlab.records.encoder import Encoder

if TYPE_CHECKING:
    from quantlab.worker import Reporter

RECORD, CONFIG = "quantlab_onnx.json", "genai_config.json"
INSTALL = "pip install -c environments/ortgenai.txt onnx"
PROTOCOL = 1
"""Raised by hand when quantlab writes another graph for the same job."""


def known(folder: Path) -> OnnxModel | None:
    """The record of a model, or None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=OnnxModel)
    except (OSError, msgspec.DecodeError):
        return None


def damage(folder: Path, model: OnnxModel | Encoder) -> str:
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


def run(spec: OnnxJob, reporter: Reporter) -> OnnxModel:
    """The task "onnx" of a child process."""
    reporter.progress("onnx", 0, 1, "writing the model")
    made = write(spec)
    reporter.progress("onnx", 1, 1)
    return made


def write(job: OnnxJob) -> OnnxModel:
    """The model that `job` asks for; one that is there already, whole and the same, is taken as it is.

    Raises:
        NoAccess: the package onnx is not installed. All else as `onnx_export.export`.
    """
    if (found := usable(Path(job.into), job)) is not None:
        return found
    with needs_onnx("ONNX"):
        from quantlab.formats.onnx_export import export
    return export(job)


@contextmanager
def needs_onnx(place: str) -> Iterator[None]:
    """What is imported inside needs the package onnx.

    Raises:
        NoAccess: it is not installed in this Python.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        cure = f"`quantlab engines setup ortgenai` makes an environment with it; or {INSTALL}"
        raise NoAccess("the package onnx is not installed in this Python.", place=place, cure=cure) from None


def placeless(job: OnnxJob) -> OnnxJob:
    """`job` without places of this machine."""
    return msgspec.structs.replace(job, source="", into="")
