"""One checkpoint calibrated on one GPU and again with its blocks on two: is every exported tensor the same?

    python benchmarks/gpu/spread.py WORK/3b OUT.json [--recipe fp8] [--gpus 2] [--samples 16] [--length 512]
    python benchmarks/gpu/spread.py FOLDER OUT.json --rehearse      the same under accelerate's hooks on a CPU

Each calibration is a child of its own, through quantlab's calibrate stage. Reported: exported tensors and how many of
them differ (and by how much), wall seconds of the child's work and of ModelOpt's step, peak allocated memory of each
GPU beside what `plan` predicts for it. The same batch is forced on both, because AWQ's search over another batch is
another search. Exit code 1 where a tensor differs. With 16 samples of 512 tokens a child took 31 to 41 s for a 3B
on H200s, most of it reading and writing.

What a user does, with the same model in WORK/3b, is the second proof; its log and record say what lay where:

    quantlab run fp8 --model WORK/3b --gpus 2 --stage calibrate --stage verify
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
CHILD = """
import sys
from pathlib import Path
import msgspec
from quantlab.calibrate import accounting, modelopt
from quantlab.records import CalibrateJob
from quantlab.worker import Reporter
accounting.forget_peak()
spec = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=CalibrateJob)
Path(sys.argv[2]).write_bytes(msgspec.json.encode(modelopt.run(spec, Reporter())))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", action="append", dest="recipes", help="fp8 and int4_awq unless named")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rehearse", action="store_true")
    words = parser.parse_args()
    found: dict[str, Any] = {"date": dt.date.today().isoformat(), "model": words.model.name, "on": machine(words)}
    found |= {"gpus": words.gpus, "samples": words.samples, "length": words.length, "recipes": {}}
    with tempfile.TemporaryDirectory(dir=words.out.resolve().parent) as folder:
        for name in words.recipes or ("fp8", "int4_awq"):
            found["recipes"][name] = compared(name, words, Path(folder) / name)
            words.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(any(one["different"] or one["only_in_one"] for one in found["recipes"].values()))


def machine(words: argparse.Namespace) -> dict[str, str]:
    import torch
    import transformers

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    where = "cpu, rehearsed" if words.rehearse else ", ".join(names)
    return {"device": where, "torch": torch.__version__, "transformers": transformers.__version__}


def compared(name: str, words: argparse.Namespace, place: Path) -> dict[str, Any]:
    """One GPU, then several."""
    place.mkdir()
    one, several = (calibrated(name, words, place / word, gpus) for word, gpus in (("one", 1), ("all", words.gpus)))
    return {
        **differences(place / "one", place / "all"),
        "one": said(one),
        "all": said(several),
        "predicted_bytes": predicted(name, words),
    }


def calibrated(name: str, words: argparse.Namespace, into: Path, gpus: int) -> dict[str, Any]:
    spec, result = into.with_suffix(".job.json"), into.with_suffix(".json")
    spec.write_bytes(msgspec.json.encode(job(name, words, into, gpus)))
    subprocess.run([sys.executable, "-c", CHILD, str(spec), str(result)], cwd=ROOT, check=True)
    made: dict[str, Any] = json.loads(result.read_bytes())
    return made


def job(name: str, words: argparse.Namespace, into: Path, gpus: int) -> Any:
    """What the pipeline would hand to the child."""
    from quantlab import catalog, weights
    from quantlab.records import CalibrateJob, CalibrationSet, Weights

    recipe, model = recipe_of(name, words), catalog.model(str(words.model.resolve()))
    found = catalog.calibration_set(recipe.calibration.set)
    assert isinstance(found.record, CalibrationSet)
    return CalibrateJob(
        weights=Weights(
            path=str(words.model.resolve()),
            digest="not read",
            architecture=weights.architecture(words.model),
            bytes=weights.weight_bytes(words.model),
        ),
        model=model,
        recipe=recipe,
        recipe_name=name,
        group_size=group(words, recipe),
        set=found.record,
        set_folder=str(catalog.base(found)),
        into=str(into),
        device="cpu" if words.rehearse else "cuda",
        gpus=gpus,
    )


def recipe_of(name: str, words: argparse.Namespace) -> Any:
    """With so many samples, all in one batch."""
    from quantlab import catalog

    recipe = catalog.recipe(name).record
    changed = {"samples": words.samples, "length": words.length, "batch": words.samples}
    return msgspec.structs.replace(recipe, calibration=msgspec.structs.replace(recipe.calibration, **changed))


def group(words: argparse.Namespace, recipe: Any) -> int | None:
    from quantlab import catalog, sizes

    model = catalog.model(str(words.model.resolve()))
    return sizes.group_size(recipe, sizes.sizes(model, words.model, recipe).layers)[0]


def predicted(name: str, words: argparse.Namespace) -> list[int]:
    """Bytes on each GPU, as the plan has them; no GPU is that large."""
    from quantlab import catalog, sight
    from quantlab.sizes import sizes
    from quantlab.spread import parts, spread

    model, recipe = catalog.model(str(words.model.resolve())), recipe_of(name, words)
    known, eye = sizes(model, words.model, recipe), sight.eye(model, words.model)
    found = spread(recipe, known, eye, parts(known, words.model), [80 * 10**9] * words.gpus)
    return list(found.peaks) if found else []


def said(made: dict[str, Any]) -> dict[str, Any]:
    kept = ("seconds", "calibrate_seconds", "peak_bytes", "peak_by_gpu", "device", "notes")
    return {name: made[name] for name in kept if name in made}


def differences(left: Path, right: Path) -> dict[str, Any]:
    """Of all exported tensors, bit by bit."""
    import torch

    from quantlab.calibrate.stored import Stored

    one, other = Stored(left), Stored(right)
    shared = sorted(one.headers.keys() & other.headers.keys())
    off: dict[str, float] = {}
    for name in shared:
        mine, theirs = one.read(name), other.read(name)
        if mine.dtype != theirs.dtype or mine.shape != theirs.shape:
            off[name] = float("inf")
        elif not torch.equal(raw(mine), raw(theirs)):
            off[name] = float((mine.float() - theirs.float()).norm() / mine.float().norm().clamp_min(1e-30))
    return {
        "tensors": len(shared),
        "only_in_one": sorted(one.headers.keys() ^ other.headers.keys()),
        "different": len(off),
        "worst": dict(sorted(off.items(), key=lambda each: -each[1])[:10]),
    }


def raw(tensor: Any) -> Any:
    import torch

    return tensor.reshape(-1).contiguous().view(torch.uint8)


if __name__ == "__main__":
    main()
