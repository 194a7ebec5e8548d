"""What lies in an encoder's folder, read without an SDK."""

from __future__ import annotations

from pathlib import Path

import msgspec

from quantlab.encoder.shape import IDS, MASK, PIXELS
from quantlab.errors import BadInput
from quantlab.formats.onnx_model import damage
from quantlab.records.encoder import Encoder, EncoderJob, EncoderPlan, PlanJob

RECORD, CHECK = "quantlab_encoder.json", "check.safetensors"
INPUTS = (PIXELS, IDS, MASK)
PROTOCOL = 1
"""Raised by hand when quantlab writes another graph for the same job."""


def known(folder: Path) -> Encoder | None:
    """The record, or None where there is none that can be read."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Encoder)
    except (OSError, msgspec.DecodeError):
        return None


def usable(folder: Path, job: EncoderJob) -> Encoder | None:
    """The whole encoder in `folder` if it is what `job` would write, else None."""
    found = known(folder)
    fits = found is not None and (found.job, found.protocol) == (placeless(job), PROTOCOL) and not damage(folder, found)
    return found if fits else None


def require(folder: Path) -> Encoder:
    """Raises: BadInput, where there is no whole encoder."""
    found = known(folder)
    if found is None or damage(folder, found):
        raise BadInput("holds no whole encoder.", place=str(folder), cure="quantlab build --part vision makes one.")
    return found


def plan(folder: Path, spec: PlanJob, capability: str, version: str) -> EncoderPlan | None:
    """The whole plan that `spec` would give with this builder, or None. A folder is made anew as a whole, so what lies
    in it is of this encoder."""
    name = f"{spec.target}-{capability}"
    try:
        found = msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=EncoderPlan)
        size = (folder / f"{name}.plan").stat().st_size
    except (OSError, msgspec.DecodeError):
        return None
    fits = (found.batches, found.version, found.bytes) == (spec.batches, version, size)
    return found if fits else None


def placeless(job: EncoderJob) -> EncoderJob:
    """`job` without places of this machine; of its files the digest stays."""
    return msgspec.structs.replace(job, source="", into="", pictures=(), questions=())
