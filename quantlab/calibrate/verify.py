"""Hold an export against what was meant, before anything is paid for.

ModelOpt, transformers and the engines accept most broken checkpoints without a word: a layer that was left in 16 bit,
an FP8 weight without `input_scale`, a `pre_quant_scale` nobody applies. Each check below is one such silence. They ask
three witnesses: the headers (names, types, shapes), the source weights (are these codes the rounding of those weights?)
and the probe (does the reopened model compute what the calibrated one did?).

A check that cannot be carried out has failed, with the reason as its finding. The last one judges nothing: it measures
what quantizing did to each layer (damage.py), for whoever asks where a loss comes from.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from quantlab.calibrate import compare, damage
from quantlab.calibrate.exported import Exported
from quantlab.errors import QuantlabError
from quantlab.formats import names
from quantlab.formats.declared import MIXED, Quantization
from quantlab.formats.modelopt import read_quantization
from quantlab.records import Check, LayerDamage, Verification, VerifyJob

if TYPE_CHECKING:
    from quantlab.worker import Reporter

SIZE_TOLERANCE = 0.02
SATURATED = {"tensor": 0.01, "row": 0.05, "group": 0.25}
"""Share of codes at the end of their range above which a scale is too small, by what shares a scale: one code of it is
there by right."""

Finding = tuple[bool, str]


def run(spec: VerifyJob, reporter: Reporter) -> Verification:
    """All checks, in order; nothing is raised for a checkpoint that is wrong."""
    started = time.monotonic()
    checks: list[Check] = []
    located: tuple[LayerDamage, ...] = ()
    export: Exported | None = None

    def attempt(name: str, check: Callable[[], Finding]) -> None:
        try:
            passed, finding = check()
        except (QuantlabError, ValueError) as error:  # ValueError: shapes that do not fit together
            passed, finding = False, str(error)
        checks.append(Check(name=name, passed=passed, finding=finding))

    def opened() -> Finding:
        nonlocal export
        export = Exported.open(spec)
        return True, f"{len(export.made)} tensors in whole files"

    def locate() -> Finding:
        nonlocal located
        assert export is not None
        located = damage.locate(export)
        return True, damage.finding(located)

    attempt("files", opened)
    if export is not None:
        steps = [*_steps(export), *([("damage", locate)] if export.layers else [])]
        for done, (name, check) in enumerate(steps):
            reporter.progress("verify", done, len(steps), name)
            attempt(name, check)
    reporter.progress("verify", 1, 1, "")
    return Verification(checks=tuple(checks), damage=located, seconds=round(time.monotonic() - started, 3))


def _steps(export: Exported) -> list[tuple[str, Callable[[], Finding]]]:
    always: list[tuple[str, Callable[[], Finding]]] = [
        ("metadata", lambda: metadata(export)),
        ("coverage", lambda: coverage(export)),
        ("size", lambda: size(export)),
    ]
    if export.sees:
        always.append(("sight", lambda: sight(export)))
    if not export.quantized and not export.simulated:
        return always
    probed: list[tuple[str, Callable[[], Finding]]] = [
        ("weights", lambda: _by_format(export, compare.weights)),
        ("reopened", lambda: compare.reopened(export)),
    ]
    if export.simulated:
        return [*always, *probed]
    scaled: list[tuple[str, Callable[[], Finding]]] = [
        ("input_scale", lambda: _by_format(export, input_scale)),
        ("pre_quant_scale", lambda: _by_format(export, pre_quant_scale)),
        ("scales", lambda: compare.scales(export)),
        ("saturation", lambda: _by_format(export, lambda each: compare.saturation(each, SATURATED[each.rules.scales]))),
    ]
    return [*always, *scaled, *probed]


def _by_format(export: Exported, check: Callable[[Exported], Finding]) -> Finding:
    """A check that asks what one format should have, of the layers of every format."""
    found = {view.format: check(view) for view in export.views()}
    if len(found) == 1:
        return next(iter(found.values()))
    return all(good for good, _ in found.values()), " ".join(f"{word}: {text}" for word, (_, text) in found.items())


def metadata(export: Exported) -> Finding:
    """hf_quant_config.json and config.json say what was meant, and the tokenizer loads."""
    from transformers import AutoTokenizer

    said = read_quantization(export.folder)
    mixed = export.quantized and len(export.views()) > 1
    expected = (MIXED,) if mixed else export.rules.algorithms if export.quantized else (None,)
    group = export.group_size if export.quantized and export.rules.scales == "group" else None
    cache = "FP8" if export.spec.recipe.kv_cache == "fp8" and not export.simulated else None
    problems = []
    if said.algorithm not in expected:
        problems.append(f"algorithm {said.algorithm} where {expected[0]} was meant")
    fixed = export.rules.exponents and said.group_size is None  # the format's name says it, and ModelOpt nothing
    if mixed:
        problems += _named("declared in another precision than meant", _misdeclared(export, said))
    elif group is not None and said.group_size != group and not fixed:
        problems.append(f"group size {said.group_size} where {group} was meant")
    if said.kv_cache != cache:
        problems.append(f"KV cache {said.kv_cache} where {cache} was meant")
    if export.quantized and not (export.folder / "hf_quant_config.json").is_file():
        problems.append("no hf_quant_config.json, without which TensorRT-LLM takes the weights for 16 bit")
    try:
        tokenizer = AutoTokenizer.from_pretrained(export.folder, local_files_only=True, trust_remote_code=False)
        entries = len(tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"the tokenizer does not load ({error})")
    if problems:
        return False, "; ".join(problems) + "."
    words = f"{said.algorithm or '16 bit'}{f', groups of {group}' if group else ''}{', FP8 KV cache' if cache else ''}"
    return True, f"{words}; tokenizer with {entries:,} entries."


def _misdeclared(export: Exported, said: Quantization) -> set[str]:
    """Layers of a mixed export of which the file says something else than the recipe."""
    wrong = set(said.layers) ^ set(export.layers)
    for name in set(export.layers) - wrong:
        rules, own = export.rules_of(name), said.of(name)
        grouped = rules.scales == "group" and not rules.exponents  # ModelOpt names no group where it is a power of two
        grouped = grouped and own.group_size != (rules.group or export.group_size)
        if own.algorithm not in rules.algorithms or grouped:
            wrong.add(name)
    return wrong


def coverage(export: Exported) -> Finding:
    """Every intended layer is quantized and no other; everything of the source is there."""
    meant = set(export.layers) if export.quantized else set()
    found = {name for code in {export.rules_of(layer).codes for layer in meant} for name in export.layers_with(code)}
    other = {name for name in meant & found if export.made[f"{name}.weight"]["dtype"] != export.rules_of(name).codes}
    problems = _named("in another format than meant", other)
    problems += _named("left in 16 bit", meant - found) + _named("quantized and not meant to be", found - meant)
    problems += _named("in the source and quantized in other layers only", export.forgotten() if meant else set())
    problems += _named("missing", export.missing())
    odd = {n for n, one in export.made.items() if n.endswith(".weight") and one["dtype"] not in ("BF16", "F16", "F32")}
    problems += _named("not 16 bit", {name.removesuffix(".weight") for name in odd} - found)
    if problems:
        return False, "; ".join(problems) + "."
    rest = sorted(name for name in export.matrices() if name not in found)
    return True, f"{len(found)} layers quantized, all that were meant; in 16 bit: {', '.join(rest[:4]) or 'none'}."


def sight(export: Exported) -> Finding:
    """Vision tower and projector are the source's, bit for bit, unless an override of the recipe switched a layer
    on."""
    asked = [one.quantizer for one in export.spec.recipe.overrides if one.enable is not False]
    wanted = {n for n in export.layers if any(fnmatchcase(f"{n}.weight_quantizer", wildcard) for wildcard in asked)}
    parts = {name for name in export.source if names.SIGHT.search(name)}
    quantized = {name for name in export.layers if names.SIGHT.search(name)}
    problems = _named("quantized though no override asks for it", quantized - wanted)
    kept = [name for name in parts if name.rpartition(".")[0] not in quantized]
    changed = {name for name in kept if name in export.made and not export.same(name)}
    problems += _named("not the source's", changed)
    if problems:
        return False, "; ".join(problems) + "."
    more = f", {len(quantized)} layers quantized as the recipe says" if quantized else ""
    return True, f"{len(kept)} tensors of vision tower and projector as in the source{more}."


def _named(what: str, names: set[str]) -> list[str]:
    return [f"{len(names)} {what}, e.g. {', '.join(sorted(names)[:3])}"] if names else []


def size(export: Exported) -> Finding:
    """Bytes of all tensors against the bits a weight that the recipe promises."""
    expected, actual, source = export.expected_bytes(), export.tensor_bytes(), export.source_bytes()
    off = actual / expected - 1
    text = f"{actual:,} bytes, {actual / source:.3f} of the source; {expected:,} expected ({off:+.2%})."
    return abs(off) <= SIZE_TOLERANCE, text


def input_scale(export: Exported) -> Finding:
    """Where activations are rounded statically: without `input_scale` an engine takes 1.0, and clips or flushes nearly
    everything."""
    have = {name for name in export.layers if f"{name}.input_scale" in export.made}
    wanted = set(export.layers) if export.rules.input_scale else set()
    problems = _named("without input_scale", wanted - have)
    problems += _named("with an input_scale it should not have", have - wanted)
    text = f"present for all {len(have)} layers." if wanted else "none, as no range of activations is stored."
    return not problems, "; ".join(problems) + "." if problems else text


def pre_quant_scale(export: Exported) -> Finding:
    """AWQ and SmoothQuant have it, and then for all layers of a kind: AWQ folds that of q, k, v, gate and up into
    a norm.

    Gate and up are one matrix product in every fast runtime, which has room for one input scale and not for two. In the
    cross-attention layers of Llama 3.2 Vision they keep two where the export's own forward pass had no image.
    """
    have = {name for name in export.layers if f"{name}.pre_quant_scale" in export.made}
    kinds = {names.kind(name) for name in have}
    lost = {name for name in export.layers if names.kind(name) in kinds} - have
    problems = _named("without pre_quant_scale although others of their kind have it", lost)
    if export.format.startswith("int4_awq"):
        split = {name for name in have if name.endswith(("gate_proj", "up_proj"))}
        problems += _named("with a pre_quant_scale of its own where gate and up need a common one", split)
    if not export.rules.moves_scales:
        problems += _named("with a pre_quant_scale that nothing asked for", have)
    text = f"present for {len(have)} layers ({', '.join(sorted(kinds))})." if have else "none."
    return not problems, "; ".join(problems) + "." if problems else text
