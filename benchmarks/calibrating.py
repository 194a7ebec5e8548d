"""All recipes of one model calibrated in one run, against ModelOpt by hand, one process a recipe. Both in one go.

    python benchmarks/calibrating.py [--model FOLDER] [--out benchmarks/results/calibrating.json]

By hand is what ModelOpt's own `hf_ptq.py` does: load the model, `mtq.quantize` with a loop over the calibration data,
`export_hf_checkpoint`. It is given what quantlab found out: float32 (bfloat16 is six times slower on this CPU), the
body without the output head, batches of 8, all samples of an AWQ search in one batch, group sizes that divide the
widths, and the token ids ready made. quantlab does all that and more: finite weights, digests, a probe of the
calibrated model, the baseline's entry, the ledger. A recipe that ModelOpt by hand cannot calibrate here (NVFP4-AWQ
searches with a CUDA kernel) is named with its error and left out of both sides.

CPU seconds of whole process trees are the figure, because the machine may be shared; wall is beside it. One import of
the SDKs is measured by itself, so that one can also take all but one of them off by hand. The scales of both exports
are compared, bit by bit.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="word or folder")
    parser.add_argument("--recipes", default="", help="by comma; all that calibrate, if empty")
    parser.add_argument("--fewer", type=int, default=1, help="divide the samples of every recipe, on a busy machine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--hand", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.hand:
        by_hand(*words.hand)
        return
    with tempfile.TemporaryDirectory() as folder:
        names = words.recipes.split(",") if words.recipes else every_recipe()
        found = compared(words.model, names, Path(folder), words.fewer)
    print(text := json.dumps(found, indent=1))
    if words.out:
        words.out.write_text(text + "\n")


def compared(word: str, recipes: list[str], place: Path, fewer: int) -> dict[str, Any]:
    weights = word if Path(word).is_dir() else str(materialize(place, word))
    imports = timed(
        [sys.executable, "-c", "import torch, transformers, modelopt.torch.quantization, modelopt.torch.export"]
    )
    files = {name: str(written(name, place, fewer)) for name in recipes}
    made_ready = {name: prepare(file, weights, place) for name, file in files.items()}
    hand: dict[str, dict[str, float]] = {}
    stopped: dict[str, str] = {}
    for name, file in made_ready.items():
        try:
            hand[name] = timed([sys.executable, __file__, "--hand", weights, str(file), str(place / name)])
        except subprocess.CalledProcessError as error:
            stopped[name] = (error.stderr.splitlines() or [f"{error}"])[-1]  # killed, it says nothing
        print(f"{name} by hand: {hand.get(name) or stopped[name]}", file=sys.stderr, flush=True)
    ledger = place / "runs"
    ours = timed([sys.executable, "-m", "quantlab", "run", *(files[name] for name in hand), "--model", weights,
                  "--stage", "calibrate", "--ledger", str(ledger)])  # fmt: skip
    cpu = sum(one["cpu_seconds"] for one in hand.values())
    spared = cpu - (len(hand) - 1) * imports["cpu_seconds"]
    return {
        "dated": f"{dt.date.today()}",
        "model": Path(word).name,
        "cores": os.cpu_count(),
        "samples_divided_by": fewer,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "by_hand": hand,
        "stopped_by_hand": stopped,
        "import_of_sdks": imports,
        "by_hand_cpu_seconds": round(cpu, 1),
        "by_hand_wall_seconds": round(sum(one["wall_seconds"] for one in hand.values()), 1),
        "quantlab": ours,
        "quantlab_recipes": recorded(ledger),
        "ratio_cpu": round(ours["cpu_seconds"] / cpu, 3),
        "ratio_wall": round(ours["wall_seconds"] / sum(one["wall_seconds"] for one in hand.values()), 3),
        "ratio_cpu_had_by_hand_imported_once": round(ours["cpu_seconds"] / spared, 3),
        "equal_scales": {name: same_scales(ledger, name, place / name) for name in hand},
    }


def every_recipe() -> list[str]:
    from quantlab import catalog

    return [found.name for found in catalog.names("recipe") if catalog.recipe(found.name).record.preset]  # type: ignore[attr-defined]


def written(name: str, place: Path, fewer: int) -> Path:
    """The recipe as a file, with as many samples as this run takes."""
    import msgspec
    import yaml

    from quantlab import catalog

    record: Any = catalog.recipe(name).record
    if record.calibration is not None:
        samples = max(1, record.calibration.samples // fewer)
        record = msgspec.structs.replace(
            record, calibration=msgspec.structs.replace(record.calibration, samples=samples)
        )
    plain = {key: value for key, value in msgspec.to_builtins(record).items() if value not in (None, [], ())}
    (file := place / f"{name}.yaml").write_text(str(yaml.safe_dump(plain)))
    return file


def materialize(place: Path, word: str) -> Path:
    from quantlab import catalog, fetch
    from quantlab.records import FetchJob
    from quantlab.worker import Reporter

    return Path(fetch.run(FetchJob(model=catalog.model(word), into=str(place / "models" / word)), Reporter()).path)


def prepare(name: str, weights: str, place: Path) -> Path:
    """Configuration and token ids of a recipe, as both sides use them; outside the timed part."""
    import pickle

    import modelopt.torch.quantization as mtq
    from transformers import AutoTokenizer

    from quantlab import catalog
    from quantlab.calibrate import presets, samples
    from quantlab.plans import sizes_of
    from quantlab.sizes import group_size

    found = catalog.recipe(name)
    recipe: Any = found.record
    group = group_size(recipe, sizes_of(catalog.model(weights), Path(weights), recipe).layers)[0]
    named = {each: getattr(mtq, each) for each in dir(mtq) if each.endswith("_CFG")}
    config, ids = presets.configuration(recipe, group, named), None
    if recipe.calibration:
        data = catalog.calibration_set(recipe.calibration.set, found.path.parent)
        tokenizer = AutoTokenizer.from_pretrained(weights)
        chat = catalog.model(weights).chat
        ids = samples.samples(data.record, recipe.calibration, str(catalog.base(data)), tokenizer, chat=chat).ids
    file = place / f"{found.name}.pickle"
    file.write_bytes(pickle.dumps((config, ids, presets.method(config).startswith("awq"))))
    return file


def by_hand(weights: str, file: str, into: str) -> None:
    """ModelOpt as its own example uses it."""
    import pickle

    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, ids, together = pickle.loads(Path(file).read_bytes())  # our own file of a minute ago
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()

    def feed(quantized: Any) -> None:
        for batch in ids.split(len(ids) if together else 8):
            quantized.model(batch, use_cache=False)

    with torch.inference_mode():
        mtq.quantize(model, config, forward_loop=None if ids is None else feed)
        export_hf_checkpoint(model, dtype=torch.float32, export_dir=into)
    AutoTokenizer.from_pretrained(weights).save_pretrained(into)


def timed(command: list[str]) -> dict[str, float]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    before, start = cpu_of_children(), time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wall = time.perf_counter() - start
    return {"cpu_seconds": round(cpu_of_children() - before, 1), "wall_seconds": round(wall, 1)}


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def recorded(ledger: Path) -> dict[str, Any]:
    """What quantlab's own records say of each recipe."""
    from quantlab.ledgers import Ledger

    kept = Ledger(ledger)
    return {
        entry.recipe: {"seconds": entry.result["seconds"], "peak_bytes": entry.result["peak_bytes"],
                       "notes": list(entry.result["notes"])}
        for entry in kept.entries("calibrate")
    }  # fmt: skip


def same_scales(ledger: Path, name: str, hand: Path) -> str:
    """ "420 of 420": tensors of scales that are equal, bit by bit."""
    from safetensors.torch import load_file

    from quantlab.ledgers import Ledger

    kept = Ledger(ledger)
    entry = next(each for each in kept.entries("calibrate", recipe=name))
    folder = kept.path(entry.result["checkpoint"]["path"])
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, hand))
    scales = [each for each in theirs if "_scale" in each and not each.endswith("pre_quant_scale")]
    return f"{sum(each in ours and bool((ours[each] == theirs[each]).all()) for each in scales)} of {len(scales)}"


if __name__ == "__main__":
    main()
