"""Int4 codes in bytes, as ModelOpt's unified export lays them out.

    byte [i, k]:  low nibble  = code of row 2i     (output 2i,     input k)
                  high nibble = code of row 2i + 1 (output 2i + 1, input k)
    code:         two's complement, -8..7 (ModelOpt writes -7..7); no zero point
    scale:        float32 [outputs, inputs / group]; weight = code * scale of its group

Rows are paired along the *output* axis. Most other formats (AutoAWQ, GPTQ, compressed-tensors) pair along the input
axis, so a file read with the wrong rule still has the right shape and is silent garbage.
"""

from __future__ import annotations

import torch


def unpack_codes(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [outputs / 2, inputs] -> int8 [outputs, inputs], each in -8..7."""
    codes = torch.empty(2 * packed.shape[0], packed.shape[1], dtype=torch.int8, device=packed.device)
    # (n ^ 8) - 8 is the sign extension of a 4-bit number.
    codes[0::2] = ((packed & 0xF).to(torch.int8) ^ 8) - 8
    codes[1::2] = ((packed >> 4).to(torch.int8) ^ 8) - 8
    return codes


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """int8 [outputs, inputs], each in -8..7 -> uint8 [outputs / 2, inputs]. The inverse of `unpack_codes`.

    Raises:
        ValueError: an odd number of rows, or a code outside -8..7.
    """
    if codes.shape[0] % 2:
        raise ValueError(f"rows are packed in pairs, and {codes.shape[0]} is odd")
    if codes.numel() and (int(codes.min()) < -8 or int(codes.max()) > 7):
        raise ValueError("an int4 code lies in -8..7")
    low, high = (codes[0::2].to(torch.uint8) & 0xF), (codes[1::2].to(torch.uint8) & 0xF)
    return low | (high << 4)


def unpack_int4(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The weight that a packed layer stands for.

    Args:
        packed: uint8 [outputs / 2, inputs].
        scale: [outputs, groups], any float type; `groups` divides `inputs`.

    Returns:
        float32 [outputs, inputs] = code * scale.

    Raises:
        ValueError: shapes that do not fit together.
    """
    codes = unpack_codes(packed)
    outputs, inputs = codes.shape
    if scale.dim() != 2 or scale.shape[0] != outputs or scale.shape[1] == 0 or inputs % scale.shape[1]:
        raise ValueError(f"scale {list(scale.shape)} does not fit a weight of {[outputs, inputs]}")
    grouped = codes.view(outputs, scale.shape[1], -1).float() * scale.float().unsqueeze(-1)
    return grouped.view(outputs, inputs)


def pack_int4(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to nearest int4 with one scale a group (largest magnitude / 7), as ModelOpt does without a search.

    Args:
        weight: [outputs, inputs]; outputs even, inputs a multiple of `group_size`.

    Returns:
        (packed uint8 [outputs / 2, inputs], scale float32 [outputs, inputs / group_size]).
    """
    outputs, inputs = weight.shape
    grouped = weight.float().view(outputs, inputs // group_size, group_size)
    scale = grouped.abs().amax(-1) / 7
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = torch.round(grouped / scale.unsqueeze(-1)).clamp(-8, 7).to(torch.int8).view(outputs, inputs)
    return pack_codes(codes), scale
