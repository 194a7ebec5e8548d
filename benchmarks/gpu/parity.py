"""The torch engine's real FP8 matrix products against its emulation: same checkpoint, same tokens, on one GPU.

    python benchmarks/gpu/parity.py CHECKPOINT

Both sides feed the same FP8 codes; they differ in accumulation order and in one rounding. Prints the differences of the
logits beside those between two runs that differ only in batch size, the noise floor.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from quantlab.formats.modelopt import open_model


def main(folder: Path) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    ids = torch.randint(0, 250, (4, 256), device=device)
    emulated = logits(folder, ids, native=False)
    native = logits(folder, ids, native=True)
    alone = logits(folder, ids[:1], native=False)
    print(
        json.dumps(
            {
                "native_against_emulated": compare(native, emulated),
                "noise_floor_batch_4_against_1": compare(alone, emulated[:1]),
                "spread_of_logits": round(emulated.std().item(), 4),
                "gpu": torch.cuda.get_device_name(),
            }
        )
    )


@torch.inference_mode()
def logits(folder: Path, ids: torch.Tensor, *, native: bool) -> torch.Tensor:
    model = open_model(folder, torch.bfloat16, ids.device, native_fp8=native)
    found: torch.Tensor = model(ids).logits.float()
    return found


def compare(left: torch.Tensor, right: torch.Tensor) -> dict[str, float]:
    gap = (left - right).abs()
    same = (left.argmax(-1) == right.argmax(-1)).float().mean()
    return {"max": round(gap.max().item(), 4), "mean": round(gap.mean().item(), 5), "top1": round(same.item(), 4)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
