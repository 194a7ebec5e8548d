"""The 90B text path in FP8 on one GPU: a random-weight checkpoint in ModelOpt's layout, timed through engine vllm.

    python benchmarks/gpu/deep.py make OUT [--word 90b] [--layers 80]
    python benchmarks/gpu/deep.py bench OUT LEDGER --grid FILE [--grid FILE] [--tp 2]

16 bit of 90B fits on no single GPU, so nothing can be calibrated here first; speed does not depend on the values, and
FP8 of a tensor by its own largest value is what `calibrate fp8` writes. One decoder layer is held at a time. The 80
self-attention layers are what a text prompt walks through: the 20 cross-attention layers are skipped without an image.
The entry lands in LEDGER as one of `quantlab bench` would, under the model word WORD-LAYERS.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from shapes import fields, tokenizer
from timing import checkpoint, opened

from quantlab import catalog, host
from quantlab.engines import engine
from quantlab.ledgers import Ledger
from quantlab.pipeline import identity
from quantlab.pipeline.entry import Clock, without_paths
from quantlab.records import SCHEMA, EngineConfig, Entry, Grid, Host, MeasureJob, Shape, digest

if TYPE_CHECKING:
    import torch

LARGEST, INPUT_AMAX = 448.0, 16.0
"""Of E4M3; and of activations, as calibrated models have it."""
EXCLUDED = ["lm_head", "model.embed_tokens"]
PRODUCER = {"name": "quantlab benchmarks/gpu/deep.py, random weights", "version": "1"}


def make(word: str, into: Path, layers: int | None, device: str) -> None:
    """Write the checkpoint, a shard a layer."""
    import torch
    from safetensors.torch import save_file

    shape = catalog.model(word).shape
    assert shape is not None
    into.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    count, size = layers or shape.layers, 0
    where: dict[str, str] = {}
    for name, tensors in shards(shape, count, device):
        save_file(tensors, into / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (into / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    settings(into, fields(shape, count))
    tokenizer(into)


def shards(shape: Shape, layers: int, device: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """File name and tensors: first embedding and head, then the layers."""
    import torch

    table = (shape.vocabulary, shape.hidden)
    ends = {"model.embed_tokens.weight": normal(table, device), "model.norm.weight": ones(shape.hidden)}
    if not shape.tied:
        ends["lm_head.weight"] = normal(table, device)
    yield f"model-00000-of-{layers:05}.safetensors", ends
    queries, keys, wide = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
    linears = {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "mlp.gate_proj": (wide, shape.hidden),
        "mlp.up_proj": (wide, shape.hidden),
        "mlp.down_proj": (shape.hidden, wide),
    }
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        tensors = {
            f"{stem}{norm}.weight": ones(shape.hidden) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for name, size in linears.items():
            weight = normal(size, device)
            scale = weight.abs().max().float() / LARGEST
            tensors[f"{stem}{name}.weight"] = (weight / scale).to(torch.float8_e4m3fn).cpu()
            tensors[f"{stem}{name}.weight_scale"] = scale.cpu()
            tensors[f"{stem}{name}.input_scale"] = torch.tensor(INPUT_AMAX / LARGEST)
        yield f"model-{layer + 1:05}-of-{layers:05}.safetensors", tensors


def normal(size: tuple[int, int], device: str) -> torch.Tensor:
    import torch

    return torch.randn(size, dtype=torch.bfloat16, device=device).mul_(0.02)


def ones(size: int) -> torch.Tensor:
    import torch

    return torch.ones(size, dtype=torch.bfloat16)


def settings(into: Path, config: dict[str, object]) -> None:
    """config.json and hf_quant_config.json, as ModelOpt 0.47 exports them for FP8."""
    eight = {"dynamic": False, "num_bits": 8, "type": "float"}
    groups = {"group_0": {"input_activations": eight, "weights": eight, "targets": ["Linear"]}}
    quantization = {"config_groups": groups, "ignore": EXCLUDED, "quant_algo": "FP8", "producer": PRODUCER}
    whole = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        **config,
        "quantization_config": {**quantization, "quant_method": "modelopt"},
    }
    (into / "config.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    own = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": EXCLUDED}
    said = json.dumps({"producer": PRODUCER, "quantization": own}, indent=1)
    (into / "hf_quant_config.json").write_text(said, encoding="utf-8")


def bench(folder: Path, ledger: Path, words: list[str], tp: int, name: str) -> None:
    """Time the checkpoint on the grids, opened once, and write an entry a grid."""
    vllm, here = engine(name), host.describe(("vllm",))
    grids = [grid for word in words if isinstance(grid := catalog.grid(word).record, Grid)]
    config = EngineConfig(max_length=max(max(grid.isl) + max(grid.osl) for grid in grids), tensor_parallel=tp)
    artifact = vllm.build(checkpoint(folder, "fp8", digest("random", name)), folder, config, here)
    gpu = catalog.gpu(here.gpus[0].name) if here.gpus else None
    with opened(artifact, config, bandwidth=gpu.bandwidth * tp if gpu else None, hear=print) as timed:
        for grid in grids:
            clock = Clock()
            spec, record = timed(grid)
            write(Ledger(ledger), folder.name, spec, record, clock, here)


def write(ledger: Ledger, model: str, spec: MeasureJob, record: msgspec.Struct, clock: Clock, here: Host) -> None:
    """The entry, as the pipeline would write it."""
    found = identity.measure("throughput", spec.artifact, spec.config, here, grid=spec.grid)
    ledger.append(
        Entry(
            schema=SCHEMA,
            stage="throughput",
            identity=found,
            model=model,
            recipe="fp8",
            status="done",
            spec=without_paths(msgspec.to_builtins(spec)),
            host=here,
            started=clock.started,
            seconds=clock.lap(),
            result=msgspec.to_builtins(record),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    making = steps.add_parser("make")
    making.add_argument("into", type=Path)
    making.add_argument("--word", default="90b", help="a model of the catalog")
    making.add_argument("--layers", type=int, help="fewer than the model's own")
    making.add_argument("--device", default="cuda")
    timing = steps.add_parser("bench")
    timing.add_argument("folder", type=Path)
    timing.add_argument("ledger", type=Path)
    timing.add_argument("--grid", action="append", required=True)
    timing.add_argument("--tp", type=int, default=1)
    timing.add_argument("--engine", default="vllm")
    words = parser.parse_args()
    if words.step == "make":
        make(words.word, words.into, words.layers, words.device)
    else:
        bench(words.folder, words.ledger, words.grid, words.tp, words.engine)


if __name__ == "__main__":
    main()
