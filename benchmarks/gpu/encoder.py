"""Llama 3.2 11B's vision encoder on one GPU: torch, torch.compile and TensorRT, in the true shape with random weights.

    python benchmarks/gpu/encoder.py [--layers 32 8] [--batch 1 4 16] [--precision fp16 bf16 fp8] [--skip torch]

Vision tower (32 and 8 layers of 1,280, 16 heads, 4 tiles of 560 pixels) and projector (7,680 to 4,096). Time does not
depend on the values of weights or pixels; differences do, and are those of random weights. One JSON object a line, as
each measurement is finished: milliseconds of a batch (median, fastest, slowest of --repeats), pictures a second, the
largest difference to float32 and the spread of the values beside it. TensorRT is measured where it can be imported.

Needs torch, transformers, numpy and onnx. Without a GPU it is a rehearsal: --layers 4 1 --image 56 --batch 1 2.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from quantlab.encoder import builder, graph, ranges, running
from quantlab.encoder.shape import TowerShape, tower_shape
from quantlab.encoder.towers import TorchTower, source_in
from quantlab.errors import QuantlabError

TYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float16,
    "int8": torch.float16,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def main() -> None:
    words = arguments()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tower, shape = random_tower(*words.layers, words.image)
    say(
        what="machine",
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        torch=torch.__version__,
        attention=attention(tower),
        batches=words.batch,
    )
    with torch.inference_mode():
        reference = tower(*pictures(shape, 1, torch.float32)).float()
        if "tensorrt" not in words.skip:  # before torch narrows the weights in place
            folder = Path(words.folder or tempfile.mkdtemp())
            seen = ranges.input_ranges(
                tower, graph.linears(shape), [pictures(shape, 1, torch.float32, seed) for seed in (0, 1)]
            )
            written = {one: write(shape, tower, folder / one, one, seen) for one in words.precision}
        for precision in ("fp16", "bf16"):
            narrow = copy.deepcopy(tower).to(TYPES[precision])
            in_torch(precision, narrow, shape, reference, words)
            del narrow
        del tower
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        if "tensorrt" not in words.skip:
            for precision, model in written.items():
                guarded(f"TensorRT {precision}", lambda p=precision, m=model: planned(p, m, shape, reference, words))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[32, 8], help="of the tower and of its global half")
    parser.add_argument("--image", type=int, default=560, help="pixels of a tile's side")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--precision", nargs="+", default=["fp16", "bf16", "fp8"], choices=list(TYPES), help="of TensorRT"
    )
    parser.add_argument("--skip", nargs="*", default=[], choices=["torch", "compile", "tensorrt"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--folder", help="where the ONNX models are written; default: a temporary one")
    return parser.parse_args()


def random_tower(layers: int, global_layers: int, image: int) -> tuple[TorchTower, TowerShape]:
    """The tower of 11B in float32 on the GPU. Gates are 0.5: at 0 the tile tables would be switched off."""
    from transformers.models.mllama.configuration_mllama import MllamaConfig, MllamaVisionConfig

    taps = [one for one in (3, 7, 15, 23, 30) if one < layers]
    vision = MllamaVisionConfig(
        hidden_size=1280,
        num_hidden_layers=layers,
        num_global_layers=global_layers,
        attention_heads=16,
        intermediate_size=5120,
        image_size=image,
        patch_size=14,
        max_num_tiles=4,
        intermediate_layers_indices=taps,
        vision_output_dim=1280 * (1 + len(taps)),
    )
    shape = tower_shape({**MllamaConfig().to_dict(), "vision_config": vision.to_dict()})
    with torch.device(DEVICE):
        tower = TorchTower(vision, shape.out).eval()
        for name, parameter in tower.named_parameters():
            if "gate" in name:
                torch.nn.init.constant_(parameter, 0.5)
            elif not torch.isfinite(parameter).all():
                torch.nn.init.normal_(parameter, std=0.02)
    return tower, shape


def attention(tower: TorchTower) -> str:
    return str(tower.vision_model.config._attn_implementation)


def pictures(shape: TowerShape, batch: int, dtype: torch.dtype, seed: int = 0) -> Batch:
    """Random pictures of four tiles."""
    made = torch.Generator(DEVICE).manual_seed(seed)
    size = (batch, 1, shape.tiles, shape.channels, shape.image, shape.image)
    pixels = torch.randn(size, generator=made, device=DEVICE).to(dtype)
    ids = torch.full((batch, 1), 6, device=DEVICE)
    return pixels, ids, torch.ones(batch, 1, shape.tiles, dtype=torch.long, device=DEVICE)


def write(shape: TowerShape, tower: TorchTower, folder: Path, precision: Any, seen: dict[str, float]) -> Path:
    began = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    graph.write(shape, source_in(tower), folder, precision, seen)
    size = sum(file.stat().st_size for file in folder.iterdir())
    say(what=f"ONNX {precision}", seconds=round(time.perf_counter() - began, 1), bytes=size)
    return folder / "model.onnx"


def in_torch(
    precision: str, tower: TorchTower, shape: TowerShape, reference: torch.Tensor, words: argparse.Namespace
) -> None:
    """As transformers computes it, and compiled, anew for each batch size."""
    ways: dict[str, Callable[..., torch.Tensor]] = {}
    if "torch" not in words.skip:
        ways[f"torch eager {precision}"] = tower
    if "compile" not in words.skip:
        torch._dynamo.reset()
        ways[f"torch.compile {precision}"] = torch.compile(tower, dynamic=False)
    for what, call in ways.items():
        guarded(what, lambda w=what, c=call: measure(w, c, shape, TYPES[precision], reference, words))


def planned(precision: str, model: Path, shape: TowerShape, reference: torch.Tensor, words: argparse.Namespace) -> None:
    trt, sizes = builder.sdk("tensorrt"), sorted(words.batch)
    made = builder.build(trt, model, (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    say(
        what=f"TensorRT {precision} plan",
        version=made.version,
        build_seconds=round(made.seconds, 1),
        bytes=len(made.plan),
        weights_bytes=made.weights_bytes,
        warnings=[one[:200] for one in made.warnings[:3]],
    )
    opened = running.OpenedPlan(trt, made.plan)
    measure(f"TensorRT {precision}", opened, shape, opened.dtype, reference, words)


def measure(
    what: str,
    call: Callable[..., torch.Tensor],
    shape: TowerShape,
    dtype: torch.dtype,
    reference: torch.Tensor,
    words: argparse.Namespace,
) -> None:
    """One line a batch; the first also says how far the states are from float32's."""
    gap = (call(*pictures(shape, 1, dtype)).float() - reference).abs()
    far = {"max_difference": float(f"{gap.max().item():.3g}"), "mean_difference": float(f"{gap.mean().item():.3g}"),
           "spread_of_states": float(f"{reference.std().item():.3g}")}  # fmt: skip
    for batch in words.batch:
        given = pictures(shape, batch, dtype)
        times = list(timed(lambda given=given: call(*given), words.repeats))
        middle = statistics.median(times)
        say(what=what, batch=batch, ms=round(middle, 2), fastest=round(min(times), 2), slowest=round(max(times), 2),
            pictures_per_second=round(1000 * batch / middle, 1), **far)  # fmt: skip
        far = {}


def timed(call: Callable[[], Any], repeats: int) -> Iterator[float]:
    """Milliseconds of each call on the GPU, after three that are not counted."""
    for _ in range(3):
        call()
    for _ in range(repeats):
        if DEVICE == "cpu":
            began = time.perf_counter()
            call()
            yield (time.perf_counter() - began) * 1000
            continue
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        yield begin.elapsed_time(end)


def guarded(what: str, call: Callable[[], None]) -> None:
    """What fails is a line of its own, and the next one is measured."""
    try:
        call()
    except (QuantlabError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        say(what=what, failed=f"{type(error).__name__}: {error}"[:600])


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()
