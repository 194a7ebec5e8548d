"""The baseline's distributions over the held-out text as a file.

The k likeliest tokens and one tail bucket for the rest: 24 windows of 512 tokens with k = 512 are 47 MB,
where full log-probabilities of Llama 3 would be 6 GB.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantlab import disk
from quantlab.errors import BadInput


@dataclass(frozen=True)
class Kept:
    """The baseline's distributions. Rows are positions, window after window."""

    ids: npt.NDArray[np.int32]
    """int32 [positions, k], likeliest first."""
    logprobs: npt.NDArray[np.float32]
    """float32 [positions, k]"""
    tail: npt.NDArray[np.float32]
    """float32 [positions]: log-probability of all other tokens together."""
    nll: npt.NDArray[np.float32]
    """float32 [positions]: of the token that really comes next, in nats."""
    top_k: int
    """As asked for; k is smaller where the vocabulary is."""
    text_digest: str


def save(kept: Kept, path: Path) -> None:
    """Write a reference in one step."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        ids=kept.ids,
        logprobs=kept.logprobs,
        tail=kept.tail,
        nll=kept.nll,
        top_k=np.array(kept.top_k),
        text_digest=np.array(kept.text_digest),
    )
    disk.write(path, buffer.getvalue())


def read(path: Path) -> Kept:
    """Read a reference.

    Raises:
        BadInput: there is none, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            fields = {name: file[name] for name in ("ids", "logprobs", "tail", "nll")}
            return Kept(**fields, top_k=int(file["top_k"]), text_digest=str(file["text_digest"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        cure = "Measure the baseline again."
        raise BadInput(f"the reference cannot be read: {error}.", place=str(path), cure=cure) from error
