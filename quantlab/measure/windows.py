"""Held-out text -> windows of token ids, the same for every precision.

Windows are spread evenly over the text and do not overlap, so that one long chapter does not speak for all.
If the tokenizer begins a text with BOS, every window does: Llama without its BOS is another model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantlab.errors import BadInput
from quantlab.records import FidelityAsk, digest

Ids = npt.NDArray[np.int32]


def windows(text: str, tokenizer: Any, ask: FidelityAsk) -> Ids:
    """Token ids int32 [windows, length], evenly spread over the text, BOS included where the tokenizer writes
    one.

    Raises:
        BadInput: the text is too short, or no position would be scored.
    """
    if not 1 <= ask.burn_in < ask.length:
        raise BadInput(
            f"burn_in {ask.burn_in} must lie between 1 and length {ask.length} - 1.",
            place="suite, field fidelity",
            cure="Correct it.",
        )
    bos = _bos(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    fresh = ask.length - len(bos)
    if len(ids) < ask.windows * fresh:
        raise BadInput(
            f"the text has {len(ids)} tokens, {ask.windows} windows of {ask.length} need more.",
            place=f"fidelity text {ask.text}",
            cure="Take a longer text, or fewer or shorter windows.",
        )
    last = len(ids) - fresh
    starts = [round(last * place / max(1, ask.windows - 1)) for place in range(ask.windows)]
    return np.array([bos + ids[start : start + fresh] for start in starts], dtype=np.int32)


def text_digest(ids: Ids) -> str:
    """SHA-256 over the token ids of all windows, BOS included."""
    return digest(ids.tolist())


def _bos(tokenizer: Any) -> list[int]:
    """[BOS] if the tokenizer begins ordinary text with it, else []."""
    with_special = tokenizer.encode("a")
    first = with_special[:1]
    return first if first == [tokenizer.bos_token_id] and len(with_special) > 1 else []
