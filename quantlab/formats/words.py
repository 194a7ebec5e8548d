"""Eight int4 codes in one int32, as AutoAWQ, GPTQ and compressed-tensors keep them.

A code of -8..7 is stored as u = code + 8, so that it has no sign. The eight lie along the last axis of the tensor that
is packed, the first in the lowest four bits, or in an order of the layout's own. ModelOpt does neither: it pairs rows
in bytes and keeps the sign (packing.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

EIGHT = 8
STRAIGHT = tuple(range(EIGHT))


def pack(codes: torch.Tensor, order: Sequence[int] = STRAIGHT) -> torch.Tensor:
    """int8 [..., 8 n], each in -8..7 -> int32 [..., n].

    Args:
        codes: what to pack.
        order: `order[i]` is the place, among eight neighbours, of the code that goes into nibble i.

    Raises:
        ValueError: a last axis that is no multiple of eight, or a code outside -8..7.
    """
    if codes.shape[-1] % EIGHT:
        raise ValueError(f"eight codes make a word, and {codes.shape[-1]} is no multiple of it")
    if codes.numel() and (int(codes.min()) < -8 or int(codes.max()) > 7):
        raise ValueError("an int4 code lies in -8..7")
    unsigned = (codes + 8).unflatten(-1, (-1, EIGHT))
    words = torch.zeros(unsigned.shape[:-1], dtype=torch.int32)
    for nibble, place in enumerate(order):
        words |= unsigned[..., place].to(torch.int32) << (4 * nibble)
    return words


def unpack(words: torch.Tensor, order: Sequence[int] = STRAIGHT) -> torch.Tensor:
    """int32 [..., n] -> int8 [..., 8 n], each in -8..7. The inverse of `pack`."""
    codes = torch.empty((*words.shape, EIGHT), dtype=torch.int8)
    for nibble, place in enumerate(order):
        # The shift of a negative word drags its sign along; the mask takes it off again.
        codes[..., place] = ((words >> (4 * nibble)) & 0xF).to(torch.int8) - 8
    return codes.flatten(-2)
