"""Peak memory of calibrating one decoder block at a time, against the whole model. Both in one go, one child each.

    python benchmarks/layerwise.py [--recipe fp8] [--layers 32] [--batch 1] [--images] [--out FILE]

The model is a Llama of random weights, because memory does not ask what they are: 32 blocks of 16.8 million weights,
1.1 GB in bfloat16, 2.1 GB in the float32 that a CPU computes in. With --images it is a Llama 3.2 Vision: the same
blocks, every fifth a cross-attention block, behind the vision tower of mllama-easyvqa. Reported are the peak of
resident memory as the kernel counted it (VmHWM of the child, what `peak_bytes` of the record is), the same above a
child that only imports the SDKs, what `plan` had predicted, and whether all tensors of the two exports are equal.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
IMPORTS = """
from quantlab.calibrate import accounting, modelopt
modelopt._presets()
import modelopt.torch.export
print(accounting.peak_bytes())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="fp8")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, help="samples in one pass, of both ways; quantlab's choice if left out")
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = compared(words, Path(folder))
    print(text := json.dumps(found, indent=1))
    if words.out:
        words.out.write_text(text + "\n")


def compared(words: argparse.Namespace, place: Path) -> dict[str, Any]:
    made, recipe = random_mllama if words.images else random_llama, place / f"{words.recipe}.yaml"
    model = made(place / "model", words.layers, words.hidden)
    recipe.write_text(shortened(words.recipe, words.samples, words.length, words.batch))
    base = int(python("-c", IMPORTS).split()[-1])
    whole, blocks = (
        calibrated(model, recipe, place / name, more) for name, more in (("whole", []), ("blocks", ["--layerwise"]))
    )
    predicted = json.loads(python("-m", "quantlab", "run", str(recipe), "--model", str(model), "--dry-run", "--json"))
    plan = predicted["plans"][words.recipe]
    peak, small = whole["peak_bytes"], blocks["peak_bytes"]
    return {
        "dated": f"{dt.date.today()}",
        "architecture": "MllamaForConditionalGeneration" if words.images else "LlamaForCausalLM",
        "recipe": words.recipe,
        "weights_bytes_bf16": plan["weights_bytes"],
        "blocks": words.layers,
        "batch": words.batch or "quantlab's choice",
        ("pictures" if words.images else "tokens"): words.samples * (1 if words.images else words.length),
        "imports_bytes": base,
        "whole": {"peak_bytes": peak, "predicted": plan["calibration_peak_bytes"], "seconds": whole["seconds"]},
        "layerwise": {"peak_bytes": small, "predicted": plan["layerwise_peak_bytes"], "seconds": blocks["seconds"]},
        "ratio": round(small / peak, 3),
        "ratio_above_imports": round((small - base) / (peak - base), 3),
        "equal_tensors": equal(place / "whole", place / "blocks"),
    }


def random_llama(folder: Path, layers: int, hidden: int) -> Path:
    """With a byte-pair tokenizer of 512 words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import _tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=16, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="300MB")
    _tokenizer(folder)
    return folder


def random_mllama(folder: Path, layers: int, hidden: int) -> Path:
    """With tokenizer, processor and the dimensions of the tower of mllama-easyvqa."""
    import shutil

    import torch
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    source = ROOT / "evals" / "models" / "mllama-easyvqa"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "cross_attention_layers": list(range(3, layers, 5)), "max_position_embeddings": 1024,
    }  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = MllamaForConditionalGeneration(MllamaConfig(**config))
    for name, parameter in model.named_parameters():
        if name.endswith("gate") and parameter.numel() == 1:
            torch.nn.init.constant_(parameter, 0.5)  # zero would hide what the cross-attention layers compute
    model.save_pretrained(folder, max_shard_size="300MB")
    return folder


def shortened(name: str, samples: int, length: int, batch: int | None) -> str:
    """The recipe on so much text."""
    import msgspec
    import yaml

    from quantlab import catalog

    record: Any = catalog.recipe(name).record
    if record.calibration is not None:
        fewer = msgspec.structs.replace(record.calibration, samples=samples, length=length, images=samples)
        fewer = msgspec.structs.replace(fewer, batch=batch or fewer.batch)
        record = msgspec.structs.replace(record, calibration=fewer)
    plain = {key: value for key, value in msgspec.to_builtins(record).items() if value not in (None, [], ())}
    return str(yaml.safe_dump(plain | {"preset": record.preset}))


def calibrated(model: Path, recipe: Path, ledger: Path, more: list[str]) -> dict[str, Any]:
    from quantlab.ledgers import Ledger

    python(
        "-m",
        "quantlab",
        "run",
        str(recipe),
        "--model",
        str(model),
        "--stage",
        "calibrate",
        "--ledger",
        str(ledger),
        *more,
    )
    return next(dict(entry.result) for entry in Ledger(ledger).entries("calibrate") if entry.result["layers"])


def equal(whole: Path, blocks: Path) -> str:
    """ "1283 of 1283": tensors that are equal, bit by bit."""
    import torch

    from quantlab.calibrate.stored import Stored

    left, right = (Stored(next(each.glob("checkpoints/*/config.json")).parent) for each in (whole, blocks))
    same = [name in right and torch.equal(raw(left.read(name)), raw(right.read(name))) for name in left.headers]
    return f"{sum(same)} of {len(set(left.headers) | set(right.headers))}"


def raw(tensor: Any) -> Any:
    import torch

    return tensor.reshape(-1).contiguous().view(torch.uint8)


def python(*words: str) -> str:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
