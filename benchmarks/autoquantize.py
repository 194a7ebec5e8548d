"""ModelOpt's AutoQuantize as a ranking of layers, for benchmarks/repair.py: which layers does it keep at the same bits?

AutoQuantize calibrates every format anew, scores each layer by itself against the 16-bit model, and chooses:

    gradient  sum of (g x d)^2 over tokens and outputs, g of the model's own loss on the text at the 16-bit point, d
              what quantizing changes in the output (a diagonal Fisher matrix); integer programming under the bits
    kl_div    KL of the whole model with one group quantized: a forward pass for every group and format; the lowest
              threshold on that KL which the bits allow, whatever a group weighs

Adapted so that both sides choose between the same things: "no quantization" is no choice (`allow_no_quant: False`); the
head is left alone and not counted; `effective_bits` of a format are those that our exports store, scales included,
where ModelOpt counts 4 and 8. AWQ is calibrated on the recipe's own text in one batch, as the export was, and scored
on the text of our search. What it chose goes through the same mixture and the same held-out windows as any ranking: its
own model is not measured (it folds AWQ's scales differently).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import torch

from quantlab import budget
from quantlab.calibrate import presets, source
from quantlab.calibrate.samples import Samples
from quantlab.records import Calibration
from quantlab.records.repair import Donor, GroupCost

TOGETHER = 2
"""Sequences in one pass of the scoring."""


class Texts:
    """What AutoQuantize iterates over: the calibration text once for every format, then the text of the search."""

    def __init__(self, calibrating: torch.Tensor, scoring: Sequence[torch.Tensor], formats: int) -> None:
        self.calibrating, self.scoring, self.left = calibrating, scoring, formats

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.left -= 1
        return iter((self.calibrating,) if self.left >= 0 else self.scoring)


def chosen(
    method: str, groups: Sequence[GroupCost], donors: Sequence[Donor], text: Calibration, bits: float
) -> budget.Choice:
    """The groups that AutoQuantize keeps in the second donor's format; none of its choices tears a group apart."""
    import modelopt.torch.quantization as mtq

    model: Any = source.load(donors[0].recipe)
    scoring = _ids(donors[0], text, model).split(TOGETHER)
    own = donors[0].recipe.recipe.calibration
    assert own is not None
    formats = [_format(donor, groups) for donor in donors]
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": bits, "cost": {"excluded_module_name_patterns": ["lm_head"]}},
        quantization_formats=formats,
        module_search_spaces=[
            {"module_name_patterns": ["model.layers.*"], "quantization_formats": formats, "allow_no_quant": False}
        ],
        data_loader=Texts(_ids(donors[0], own, model), scoring, len(donors)),
        forward_step=lambda it, ids: it(input_ids=ids, use_cache=False).logits,
        loss_func=lambda logits, ids: torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        ),
        disabled_layers=["lm_head"],
        num_calib_steps=4,  # AutoQuantize takes a quarter of it for AWQ: the one batch
        num_score_steps=len(scoring),
        method=method,
    )
    kept = {
        name
        for stats, recipe in zip(state["candidate_stats"].values(), state["best"]["recipe"].values(), strict=True)
        for name in stats["module_names"]
        if name != "lm_head" and recipe.num_bits == 8
    }
    return {group.layers: donors[1].format for group in groups if set(group.layers) & kept}


def _ids(donor: Donor, text: Calibration, model: Any) -> torch.Tensor:
    recipe = msgspec.structs.replace(donor.recipe.recipe, calibration=text)
    found = source.calibration(msgspec.structs.replace(donor.recipe, recipe=recipe), model)
    assert isinstance(found, Samples)
    return found.ids


def _format(donor: Donor, groups: Sequence[GroupCost]) -> dict[str, Any]:
    """ModelOpt's configuration, with the bits a weight that the export really stores."""
    import modelopt.torch.quantization as mtq

    config = presets.configuration(donor.recipe.recipe, donor.recipe.group_size, vars(mtq))
    stored = sum(group.bits[donor.format] for group in groups) / budget.weights(groups)
    return config | {"effective_bits": stored}
