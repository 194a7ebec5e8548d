"""Is a checkpoint that was made elsewhere a quantization of this model, and where does it hurt?

Nobody can ask the calibrated model, so there is one witness: the 16-bit weights. What is not quantized must be theirs,
bit for bit or within the rounding of a 16-bit type, except norms into which a scale was moved; what is quantized must
be their rounding, after undoing what was moved (moved.py). Another model, a fine-tune, a swapped layer or a wrong scale
all fail one of the two. What cannot be seen from weights (the range of the inputs, the cache) is left to the canary and
to fidelity, which measure it.

The tokenizer is compared because every number after this one depends on it: a difference is said, and only one that
changes token ids ends the walk.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from quantlab import finished, sameness
from quantlab import weights as folders
from quantlab.calibrate import damage, moved
from quantlab.calibrate.accounting import bits_of
from quantlab.calibrate.exported import Exported
from quantlab.calibrate.moved import Fit
from quantlab.errors import QuantlabError
from quantlab.formats.lint import lint_trtllm
from quantlab.formats.readers import reader_of
from quantlab.records import Check, Finished, FinishedJob, LayerDamage, Verification, VerifyJob

if TYPE_CHECKING:
    from torch import Tensor

    from quantlab.worker import Reporter

MEDIAN = {"fp8": 0.06, "fp8_rowwise": 0.06, "int8_sq": 0.15, "int8_wo": 0.05, "int8_rowwise": 0.15, "mxfp8": 0.06}
"""Largest error of the middle layer, relative; 0.35 for four bits. Rounding alone: FP8 0.026, int8 0.01 (more where
outliers were moved into the weights), int4 in groups 0.1."""
FOUR_BITS = 0.35
WORST, GAIN = 0.7, (0.85, 1.18)
"""Of any layer: its error (two unrelated matrices: 1.4), and the best multiple of the whole matrix."""
SAME_16_BIT = 2.0**-7
"""Relative distance of a number from itself in another 16-bit type; bfloat16 has 8 bits of mantissa."""
TEXT = "The capital of France is Paris, 12,345.67 €.\n\tdef f(x):\n        return x**2  # naïve, 東京, 🙂"
EXTRA = re.compile(r"\.(k_scale|v_scale|q_scale|kv_scale|prob_output_scale|inv_freq)$")
"""Tensors that belong to no weight."""

Finding = tuple[bool, str]


def run(spec: FinishedJob, reporter: Reporter) -> Verification:
    """All checks, in order; nothing is raised for a checkpoint that is wrong."""
    started, checks = time.monotonic(), list[Check]()
    found = spec.calibrated.finished
    assert found is not None, "the job is for a checkpoint that was recognised"
    work = _Work(spec, found)
    steps: list[tuple[str, Callable[[], Finding]]] = [
        ("recognised", work.recognised),
        ("model", work.model),
        ("tokenizer", work.tokenizer),
        *([] if found.unknown else [("weights", work.weights)]),
        ("kept", work.kept),
        *([("trtllm", work.trtllm)] if found.layout == "modelopt" else []),
    ]
    for done, (name, check) in enumerate(steps):
        reporter.progress("verify", done, len(steps), name)
        try:
            passed, finding = check()
        except (
            QuantlabError,
            ValueError,
            RuntimeError,
        ) as error:  # RuntimeError: shapes that torch cannot bring together
            passed, finding = False, str(error)
        checks.append(Check(name=name, passed=passed, finding=finding))
        if not passed and name in ("recognised", "model"):
            break
    reporter.progress("verify", 1, 1, "")
    return Verification(checks=tuple(checks), damage=tuple(work.damage), seconds=round(time.monotonic() - started, 3))


class _Work:
    """Both folders, and what was found on the way."""

    def __init__(self, spec: FinishedJob, found: Finished) -> None:
        self.spec, self.found = spec, found
        self.folder, self.base = Path(spec.checkpoint_path), Path(spec.weights.path)
        self.damage: list[LayerDamage] = []
        self.folded: set[str] = set()
        """Norms whose change some layer undoes."""

    def recognised(self) -> Finding:
        again = finished.recognise(self.folder, self.found.place, self.found.commit)
        text = " ".join(finished.sentences(again, self.spec.calibrated.checkpoint.bytes))
        return again == self.found, text if again == self.found else "its files changed since it was planned."

    def model(self) -> Finding:
        apart = list(sameness.differences(folders.config(self.base), folders.config(self.folder)))
        if apart:
            return False, f"it is no quantization of this model: {'; '.join(apart[:3])}."
        return True, "architecture, dimensions and rotary embedding are the model's."

    def tokenizer(self) -> Finding:
        mine, theirs = (_tokenizer(each) for each in (self.base, self.folder))
        if mine.get_vocab() != theirs.get_vocab() or mine(TEXT).input_ids != theirs(TEXT).input_ids:
            return False, (
                f"another tokenizer: {len(theirs):,} entries against {len(mine):,}, or other ids for the same text. "
                "Scores of other prompts cannot be compared; copy the model's tokenizer files beside the weights."
            )
        said = list(_said(mine, theirs, self.base, self.folder))
        return True, f"same {len(mine):,} entries and ids; {'; '.join(said) if said else 'same chat template'}."

    def weights(self) -> Finding:
        """Every quantized layer against the model's weights, one in memory at a time."""
        export = Exported.open(_as_verify(self.spec))
        fits: dict[str, Fit] = {}
        for name, source, made in _layers(export):
            norm, fits[name] = _fitted(export, name, source, made)
            self.folded |= {norm} if norm else set()
        pairs = dict(_pairs(fits))
        errors = {name: getattr(one, pairs.get(name, "plain")) for name, one in fits.items()}
        self.damage = [_damage(export, name, errors[name]) for name in fits]
        return self._judged(fits, errors, pairs)

    def _judged(self, fits: dict[str, Fit], errors: dict[str, float], pairs: dict[str, str]) -> Finding:
        if not errors:
            return True, "no layer is quantized."
        middle = float(torch.tensor(sorted(errors.values())).median())
        worst = max(errors, key=lambda name: errors[name])
        off = {n: one.gain for n, one in fits.items() if n not in pairs and not GAIN[0] < one.gain < GAIN[1]}
        limit = MEDIAN.get(self.found.format, FOUR_BITS)
        text = (
            f"{len(errors)} layers differ from the model's by {middle:.1%} (median), most {worst} ({errors[worst]:.1%})"
        )
        text += f"; scales were moved between {len(pairs)} of them" if pairs else ""
        text += f" and into {len(self.folded)} norms" if self.folded else ""
        if middle > limit or errors[worst] > WORST:
            return (
                False,
                f"{text}. Rounding gives less than {limit:.0%}: it is another model's, a fine-tune, or damaged.",
            )
        if off:
            name = max(off, key=lambda each: abs(off[each] - 1))
            return False, f"{text}. The weight of {name} is off by a factor of {1 / off[name]:.2f}: a wrong scale."
        return True, f"{text}."

    def kept(self) -> Finding:
        """Tensors that are not quantized are the model's; nothing is missing and nothing is left over."""
        export = Exported.open(_as_verify(self.spec))
        codes = {f"{name}.weight" for name in self.found.layers}
        rest = [name for name in export.source if name not in codes]
        lost = [name for name in rest if name not in export.made and not name.startswith("lm_head.")]
        prefixes = tuple(f"{name}." for name in self.found.layers)
        more = [n for n in export.made if n not in export.source and not n.startswith(prefixes) and not EXTRA.search(n)]
        more = [name for name in more if not (name == "lm_head.weight" and self._is_embedding(export))]
        problems = [*damage_words("missing", lost), *damage_words("of no layer", more)]
        apart = {name: far for name in rest if name in export.made and (far := _apart(export, name)) > SAME_16_BIT}
        moved_ = [name for name in apart if name in self.folded]
        strange = sorted((name for name in apart if name not in self.folded), key=lambda name: -apart[name])
        problems += damage_words("not the model's, and nothing explains it", strange)
        if problems:
            return False, f"{'; '.join(problems)}. It is another model's, a fine-tune, or damaged."
        text = f"{len(rest) - len(lost) - len(moved_)} tensors in 16 bit are the model's"
        return True, text + (f"; {len(moved_)} norms took a scale that their layers undo." if moved_ else ".")

    def _is_embedding(self, export: Exported) -> bool:
        """A tied head that was written out."""
        name = next((one for one in export.source if one.endswith("embed_tokens.weight")), "")
        if name not in export.made:
            return False
        head, embedding = export.read("lm_head.weight"), export.read(name)
        return bool(head.shape == embedding.shape and torch.equal(head, embedding))

    def trtllm(self) -> Finding:
        """Information: who serves with TensorRT-LLM wants to know, and nobody else is stopped."""
        faults = [f"{one.name}: {one.finding}" for one in lint_trtllm(self.folder) if not one.passed]
        if faults:
            return True, f"TensorRT-LLM's loader as it is written would object: {' '.join(faults[:3])}"
        return True, "nothing that TensorRT-LLM's loader would object to."


def damage_words(what: str, found: list[str]) -> list[str]:
    """ "3 missing, e.g. a, b" """
    return [f"{len(found)} {what}, e.g. {', '.join(found[:2])}"] if found else []


def _as_verify(spec: FinishedJob) -> VerifyJob:
    """Both sides side by side are what an export's own check reads as well."""
    return VerifyJob(
        weights=spec.weights, recipe=spec.recipe, calibrated=spec.calibrated, checkpoint_path=spec.checkpoint_path
    )


def _layers(export: Exported) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, 16-bit weight, and the weight that the codes stand for; float32."""
    reader = reader_of(export.folder, export.layers)
    for name in export.layers:
        source = export.read_source(f"{name}.weight").float()
        yield name, source, reader.layer(name, (source.shape[0], source.shape[1])).dense()


def _fitted(export: Exported, name: str, source: Tensor, made: Tensor) -> tuple[str | None, Fit]:
    """The norm whose change the layer undoes, and how it fits then. Judged with the best multiple of each row, because
    rows may have been divided as well."""
    found: dict[str | None, Fit] = {None: moved.fit(source, made)}
    for norm, ratio in damage.norm_ratios(export, name, source.shape[1]):
        found[norm] = moved.fit(source, made * ratio.nan_to_num(1.0))
    best = min(found, key=lambda each: found[each].by_rows)
    return best, found[best]


def _pairs(fits: dict[str, Fit]) -> Iterator[tuple[str, str]]:
    """Layer -> which error counts, for those between which a scale was moved."""
    for name in fits:
        for rows, columns in moved.PAIRS:
            other = name.removesuffix(columns) + rows
            if name.endswith(columns) and other in fits and moved.explained(fits[other], fits[name]):
                yield name, "by_columns"
                yield other, "by_rows"


def _damage(export: Exported, name: str, error: float) -> LayerDamage:
    count = torch.Size(export.source[f"{name}.weight"]["shape"]).numel()
    parts = [one for part, one in export.made.items() if part.startswith(f"{name}.") and not part.endswith(".bias")]
    bits = sum(bits_of(one) for one in parts if "k_scale" not in one["stored"] and "v_scale" not in one["stored"])
    shown = round(error, 6) if error != float("inf") else 1e9
    return LayerDamage(layer=name, weights=count, bits=round(bits / count, 3), weight_error=shown)


def _apart(export: Exported, name: str) -> float:
    """Largest distance of any number from the model's, over the model's; infinite for other shapes."""
    made, source = export.read(name).float(), export.read_source(name).float()
    if made.shape != source.shape:
        return float("inf")
    tiny = 2.0**-14  # what float16 holds with all its bits
    far = float(((made - source).abs() / source.abs().clamp_min(tiny)).max()) if made.numel() else 0.0
    return far if far == far else float("inf")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _said(mine: Any, theirs: Any, base: Path, folder: Path) -> Iterator[str]:
    """Differences that change no id of plain text."""
    if mine.chat_template != theirs.chat_template:
        yield "another chat template, so tasks that apply it are not compared"
    for word in ("bos_token", "eos_token"):
        if getattr(mine, word) != getattr(theirs, word):
            yield f"{word} {getattr(theirs, word)!r} against {getattr(mine, word)!r}"
