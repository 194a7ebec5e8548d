"""Which ranking of layers repairs best at the same bits? The search of `quantlab repair` against its rivals, measured.

    python benchmarks/repair.py --weights DIR --export int4_awq=DIR --export int8_wo=DIR --work DIR --ranking search

The exports are checkpoints of one model (`quantlab run ...`; they lie in the ledger's folder `checkpoints`). Every
ranking fills the same budget with layers of the second export, puts them into the live model beside the first one's,
and takes KL against 16 bit on a few windows of held-out text, which no ranking has seen. One ranking a call, so that a
busy machine can be left to others in between; results are collected in benchmarks/results/repair.json.

    none          nothing is kept: what the recipe loses
    all           everything is kept
    search        share of the recipe's KL, from one backward pass on calibration text (calibrate/sensitivity.py)
    output_error  |Wq x - W x| / |W x| of each layer, which `verify` measures anyway (calibrate/damage.py)
    ends          folklore: whole blocks from both ends of the model
    random        groups in a random order
    autoquantize_gradient, autoquantize_kl_div
                  ModelOpt's AutoQuantize (autoquantize.py beside this), on the same text
"""

from __future__ import annotations

import argparse
import json
import random
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import autoquantize
import msgspec
import torch

from quantlab import budget, catalog, host, kept
from quantlab import weights as folders
from quantlab.calibrate import damage, sensitivity, source
from quantlab.calibrate.bench import Bench
from quantlab.formats import names
from quantlab.formats.modelopt import read_quantization
from quantlab.measure.windows import windows
from quantlab.records import Calibrated, CalibrateJob, Calibration, Checkpoint, FidelityAsk, Model, Recipe, Weights
from quantlab.records.repair import Donor, GroupCost, SearchJob
from quantlab.worker import Reporter

RESULTS = Path(__file__).parent / "results" / "repair.json"
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def donor(word: str, folder: str, weights: str) -> Donor:
    """A finished export as the search takes it."""
    recipe = catalog.recipe(word).record
    assert isinstance(recipe, Recipe)
    header = names.headers(folder)
    layers = [name.removesuffix(".weight_scale") for name in header if name.endswith(".weight_scale")]
    layers.sort(key=lambda name: (int(name.split(".")[2]), ORDER.index(name.rpartition(".")[2])))
    made = Checkpoint(
        path=folder,
        digest="",
        recipe=word,
        format=recipe.format,
        architecture=folders.architecture(weights),
        group_size=read_quantization(folder).group_size,
    )
    found = catalog.calibration_set("python-docs")
    job = CalibrateJob(
        weights=Weights(path=weights, digest="", architecture=made.architecture, bytes=0),
        model=Model(word="model", source="path", location=weights, chat=True),
        recipe=recipe,
        recipe_name=word,
        group_size=made.group_size,
        set=found.record,  # type: ignore[arg-type]
        set_folder=str(catalog.base(found)),
        into=folder,
        device="cpu",
    )
    return Donor(
        format=recipe.format, calibrated=Calibrated(checkpoint=made, layers=tuple(layers)), path=folder, recipe=job
    )


def text_of(args: Any) -> Calibration:
    return Calibration(set="python-docs", samples=args.samples, length=args.length, seed=1)


def searched(donors: Sequence[Donor], args: Any) -> tuple[GroupCost, ...]:
    text = text_of(args)
    job = msgspec.structs.replace(
        donors[0].recipe, recipe=msgspec.structs.replace(donors[0].recipe.recipe, calibration=text)
    )
    return sensitivity.run(SearchJob(text=job, donors=tuple(donors), folder=args.work), Reporter()).groups


def filled(groups: Sequence[GroupCost], order: Iterable[GroupCost], base: str, word: str, bits: float) -> budget.Choice:
    """Groups in `order`, as long as they fit."""
    choice: budget.Choice = {}
    for group in order:
        if budget.mean_bits(groups, base, choice | {group.layers: word}) <= bits:
            choice |= {group.layers: word}
    return choice


def chosen(groups: Sequence[GroupCost], donors: Sequence[Donor], args: Any) -> budget.Choice:
    base, word = donors[0].format, donors[1].format
    depth = [int(group.layers[0].split(".")[2]) for group in groups]
    by_depth = dict(zip((group.layers for group in groups), depth, strict=True))
    if args.ranking == "none":
        return {}
    if args.ranking == "all":
        return {group.layers: word for group in groups}
    if args.ranking == "search":
        return budget.choose(groups, base, (word,), args.bits)
    if args.ranking.startswith("autoquantize_"):
        return autoquantize.chosen(args.ranking.removeprefix("autoquantize_"), groups, donors, text_of(args), args.bits)
    order = list(groups)
    if args.ranking == "random":
        random.Random(0).shuffle(order)
    elif args.ranking == "ends":
        order.sort(key=lambda group: min(by_depth[group.layers], max(depth) - by_depth[group.layers]))
    else:
        errors = {one.layer: one.error for one in damage.locate(sensitivity.exported(donors[0]))}
        order.sort(key=lambda group: -max(errors[name] for name in group.layers))
    return filled(groups, order, base, word, args.bits)


def measured(donors: Sequence[Donor], groups: Sequence[GroupCost], choice: budget.Choice, args: Any) -> dict[str, Any]:
    """KL of the mixture on held-out windows, windows as clusters."""
    from transformers import AutoTokenizer

    model: Any = source.load(donors[0].recipe)
    tokenizer = AutoTokenizer.from_pretrained(donors[0].recipe.weights.path, local_files_only=True)
    text = (catalog.builtin() / "evals/texts/heldout.txt").read_text(encoding="utf-8")
    ask = FidelityAsk(windows=args.windows, length=args.window)
    ids = torch.from_numpy(windows(text, tokenizer, ask)).long()

    def logprobs() -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False).logits[:, ask.burn_in :].float().log_softmax(-1)

    wanted = logprobs()
    opened = {one.format: sensitivity.exported(one) for one in donors}
    bench = Bench(model, opened, kept.groups(donors[0].calibrated.layers))
    with bench.quantized():
        for layers, word in choice.items():
            for name in layers:
                model.set_submodule(name, bench.layer(word, name))
        found = logprobs()
    each = (wanted.exp() * (wanted - found)).sum(-1).mean(1).double()
    return {
        "kl": round(float(each.mean()), 5),
        "kl_standard_error": round(float(each.std() / len(each) ** 0.5), 5),
        "kl_by_window": [round(float(one), 5) for one in each],
        "top1": round(float((wanted.argmax(-1) == found.argmax(-1)).float().mean()), 4),
        "positions": wanted.shape[0] * wanted.shape[1],
        "bits": round(budget.mean_bits(groups, donors[0].format, choice), 3),
        "layers": sum(map(len, choice)),
        "predicted": round(budget.predicted(groups, donors[0].format, choice), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="folder of the 16-bit model")
    parser.add_argument("--export", action="append", required=True, help="RECIPE=FOLDER: the recipe, then what is kept")
    parser.add_argument("--work", required=True, help="folder of the search's journal")
    names_ = ("none", "all", "search", "output_error", "ends", "random", "autoquantize_gradient", "autoquantize_kl_div")
    parser.add_argument("--ranking", default="search", choices=names_)
    parser.add_argument("--bits", type=float, default=5.2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=160)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--window", type=int, default=320)
    args = parser.parse_args()
    donors = [donor(*one.split("=", 1), args.weights) for one in args.export]
    groups = searched(donors, args)
    row = measured(donors, groups, chosen(groups, donors, args), args)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    here = host.describe()
    found["device"] = f"{here.cpu}, {here.cores} cores, busy with other work"
    found["set"] = "python-docs"
    key = f"{args.ranking} {donors[1].format}" + ("" if args.ranking in ("none", "all") else f" {args.bits:g}")
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    text = {"samples": args.samples, "length": args.length}
    found.setdefault("rows", {})[key] = row | text | {"cpu_seconds": round(cpu.ru_utime + cpu.ru_stime, 1)}
    whole = found["rows"].get(f"none {donors[1].format}")
    for one in found["rows"].values() if whole else ():
        one["recovered"] = round(1 - one["kl"] / whole["kl"], 3)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(key, found["rows"][key])


if __name__ == "__main__":
    main()
