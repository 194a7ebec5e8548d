"""What share of a recipe's KL each group of layers causes, from one forward and one backward pass.

Layer errors (damage.py) do not compare across layers: 10 % in a `v_proj` and 10 % in a `down_proj` are not the same
loss. The quantized model itself tells. Let d be what quantizing changes in a layer's output at one token (the layer of
the export minus the 16-bit one, on the same input) and g the gradient of KL(16 bit || quantized) there. While KL grows
with the square of the changes, a layer's share is

    1/2 g . d          summed over tokens; over all layers it sums to the KL itself

because g already holds what all other changes do: errors that cancel each other, in this layer or another, are not
counted as loss. A layer in another format w costs 1/2 g . d_w. One backward pass gives g for every layer and token, so
all layers in all formats cost about as much as four forward passes, where running the model once for every group and
format takes hundreds (docs/repair.md holds rankings against each other).

The shares rank; they hold for small steps away from the recipe, and keeping a third of the layers is no small step. A
second round asks again about the groups near the margin, where the choice lies: with the layers kept that surely are,
and each contested one halfway between 16 bit and the recipe. There g . d, not half of it, is what keeping the group
saves: with KL = 1/2 s H s, s the sum of all d, taking a whole d out of s saves g . d - 1/2 d H d and putting one in
costs g . d + 1/2 d H d; halfway the second terms cancel (the central difference), so that kept groups and others are
compared at one point and may change places. What a mixture costs is measured, on other text.

Layers that a runtime fuses share an input scale and change together (kept.py); AWQ folded one factor for all of them
into the norm before, which is undone at their input (damage.py). The search reads calibration text; what the result is
judged on is the suite, which it never saw.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantlab import kept
from quantlab.calibrate import source
from quantlab.calibrate.accounting import PARTS, bits_of
from quantlab.calibrate.bench import Bench
from quantlab.calibrate.exported import Exported
from quantlab.calibrate.samples import Samples
from quantlab.errors import Broken, Refused
from quantlab.records import VerifyJob
from quantlab.records.repair import TOGETHER, Donor, GroupCost, SearchJob, Sensitivity

if TYPE_CHECKING:
    from quantlab.worker import Reporter

JOURNAL = "sequences.jsonl"
"""Finished sequences, a line each."""
BURN_IN = 32
"""Positions at the start of a sequence whose predictions are not compared, as in fidelity."""
Costs = dict[str, dict[str, float]]
"""First layer of a group -> format -> nats a position, on one sequence."""


def run(spec: SearchJob, reporter: Reporter) -> Sensitivity:
    """Score every group in every format, one sequence after the other; finished sequences are not repeated.

    Raises:
        Refused: a model with images.
        Broken: a layer of an export that cannot be read, or computes what is no number.
    """
    started = time.monotonic()
    reporter.progress("search", 0, 1, "reading the weights")
    if spec.text.threads:
        torch.set_num_threads(spec.text.threads)
    model = source.load(spec.text)
    data = source.calibration(spec.text, model)
    if not isinstance(data, Samples):
        raise Refused("the search reads text alone.", place="repair", cure="Take a model without images.")
    opened = {donor.format: exported(donor) for donor in spec.donors}
    groups, halfway = kept.groups(next(iter(opened.values())).layers), spec.point.halfway
    journal = Path(spec.folder) / JOURNAL
    known = finished(journal)
    bench = Bench(model, opened, groups, spec.point) if len(known) < data.count else None
    while bench is not None and (place := len(known)) < data.count:
        scored = Pass(bench, reporter, (place, data.count)).run(data.ids[place : place + TOGETHER])
        known += scored
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("ab") as file:
            file.write(b"".join(json.dumps(one).encode() + b"\n" for one in scored))
    reporter.progress("search", 1, 1, "")
    return Sensitivity(
        groups=tuple(_cost(layers, opened, known) for layers in groups if not halfway or layers[0] in halfway),
        positions=data.count * (data.ids.shape[1] - BURN_IN),
        text_digest=data.digest,
        seconds=round(time.monotonic() - started, 3),
    )


def exported(donor: Donor) -> Exported:
    """A finished export beside its source."""
    return Exported.open(
        VerifyJob(
            weights=donor.recipe.weights,
            recipe=donor.recipe.recipe,
            calibrated=donor.calibrated,
            checkpoint_path=donor.path,
        )
    )


def finished(journal: Path) -> list[Costs]:
    """Sequences of an earlier attempt; a line that a kill cut off is taken away and scored again."""
    if not journal.is_file():
        return []
    whole = journal.read_bytes().rpartition(b"\n")[0]
    journal.write_bytes(whole + b"\n" if whole else b"")
    return [json.loads(line) for line in whole.split(b"\n") if line]


class Pass:
    """One pass of the 16-bit model, then one forward and one backward pass of the quantized one."""

    def __init__(self, bench: Bench, reporter: Reporter, place: tuple[int, int]) -> None:
        self.bench, self.reporter, self.place = bench, reporter, place
        self.sums: dict[str, dict[str, Tensor]] = {}
        """First layer of a group -> format -> g . d [sequences], summed over tokens and the group's layers."""
        self.done = 0

    def run(self, ids: Tensor) -> list[Costs]:
        """Nats a position of every group, for each sequence of `ids` [sequences, tokens]."""
        bench = self.bench
        embed = bench.model.get_input_embeddings()
        ids = ids.to(embed.weight.device)
        with torch.no_grad():
            wanted = self._logprobs(embed(ids))
        with bench.quantized(), self._watched():
            found = self._logprobs(embed(ids).detach().requires_grad_(True))
            (wanted.exp() * (wanted - found)).sum().backward()
        return [self._costs(row, wanted.shape[1]) for row in range(len(ids))]

    def _logprobs(self, entering: Tensor) -> Tensor:
        """float32 [sequences, positions, vocabulary]; positions without enough context are not looked at."""
        logits: Tensor = self.bench.model(inputs_embeds=entering, use_cache=False).logits[:, BURN_IN:]
        return logits.float().log_softmax(-1)

    def _costs(self, row: int, positions: int) -> Costs:
        found = {
            first: {word: self.bench.part * float(sums[row]) / positions for word, sums in formats.items()}
            for first, formats in self.sums.items()
        }
        for first, formats in found.items():
            if not all(math.isfinite(value) for value in formats.values()):
                raise Broken("it computes what is no number.", place=first, cure="Calibrate again.")
        return found

    @contextmanager
    def _watched(self) -> Iterator[None]:
        handles = [self.bench.base[name].register_forward_hook(self._keep(name)) for name in self.bench.scored]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            x = args[0].detach()
            y.register_hook(lambda g: self._score(name, x, y.detach(), g))

        return hook

    def _score(self, name: str, x: Tensor, y: Tensor, g: Tensor) -> None:
        """Called in the backward pass, from the last layer to the first."""
        bench = self.bench
        with torch.no_grad():
            exact = bench.own[name](x)
            for word in bench.opened:
                made = y if word == bench.computed(name) else bench.layer(word, name)(x)
                moved = ((made - exact) * g).double().sum((1, 2))
                formats = self.sums.setdefault(bench.group[name], {})
                formats[word] = formats[word] + moved if word in formats else moved
        self.done += 1
        at, total = self.place
        share = self.done / len(bench.scored) * min(TOGETHER, total - at)
        self.reporter.progress("search", at + share, total, "sequences")


def _cost(layers: tuple[str, ...], opened: dict[str, Exported], known: list[Costs]) -> GroupCost:
    """The mean over the sequences and its standard error."""
    kl, errors, bits = {}, {}, {}
    shapes = [next(iter(opened.values())).source[f"{name}.weight"]["shape"] for name in layers]
    weights = sum(math.prod(shape) for shape in shapes)
    for word, export in opened.items():
        values = torch.tensor([costs[layers[0]][word] for costs in known], dtype=torch.float64)
        kl[word] = float(values.mean())
        errors[word] = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
        parts = (export.made.get(f"{name}.{part}") for name in layers for part in PARTS)
        bits[word] = sum(bits_of(part) for part in parts if part is not None)
    return GroupCost(layers=layers, weights=weights, bits=bits | {"bf16": 16 * weights}, kl=kl, errors=errors)
