"""A recipe of mixed precision as a file that a person reads: which layers, why, and what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from quantlab import budget, catalog, disk, kept
from quantlab.catalog import Found
from quantlab.catalog.files import SUFFIXES
from quantlab.errors import BadInput
from quantlab.records import Keep, Recipe
from quantlab.records.repair import GroupCost, Sensitivity


def keeps(layers: dict[str, tuple[str, ...]]) -> tuple[Keep, ...]:
    """The field `keep` of a recipe."""
    return tuple(Keep(format=word, layers=names) for word, names in layers.items())  # type: ignore[arg-type]


def portable(word: str, found: Found) -> str:
    """A calibration set as a recipe in another folder must name it: a word stays, a file gets its full path."""
    if not word.endswith((*catalog.DATA, *SUFFIXES)):
        return word
    return str(catalog.calibration_set(word, found.path.parent).path.resolve())


def written(found: Found, recipe: Recipe, costs: Sensitivity, choice: budget.Choice, header: str) -> str:
    """The file's text."""
    base = recipe.format
    all_ = budget.predicted(costs.groups, base, {})
    left = budget.predicted(costs.groups, base, choice)
    before, after = (budget.mean_bits(costs.groups, base, each) for each in ({}, choice))
    lines = [
        header,
        "",
        f"What    {found.name}, and {sum(map(len, choice))} of {sum(len(each.layers) for each in costs.groups)} layers "
        f"in more bits: {before:.2f} -> {after:.2f} bits a weight.",
        f"Why     Of about {all_:.4f} nats of KL lost on calibration text, each group of layers causes",
        f"        a share. Those that save the most for a bit are kept; {left:.4f} nats are expected to remain. Shares",
        "        rank layers; what this mixture really loses is measured (quantlab repair, quantlab run).",
        f"Served  {_served(recipe)}",
    ]
    yaml = _yaml({key: value for key, value in _plain(recipe).items() if key not in ("keep", "calibration")})
    body = [f"# {line}".rstrip() for line in lines] + [yaml.rstrip(), "keep:"]
    for part in recipe.keep:
        body += [f"  - format: {part.format}", "    layers: # nats that the group causes"]
        for group in sorted(costs.groups, key=lambda each: -_saved(each, base, part.format)):
            if choice.get(group.layers) == part.format:
                body += _lines(group, base, part.format)
    if recipe.calibration is not None:
        body.append(_yaml({"calibration": _plain(recipe.calibration)}).rstrip())
    return "\n".join(body) + "\n"


def _served(recipe: Recipe) -> str:
    """Who takes such a checkpoint, as far as is known here."""
    others = kept.others(recipe)
    if not others:
        return "As the recipe it was made from: layers in 16 bit are left out in hf_quant_config.json."
    if kept.unserved(recipe):
        return "By engine torch. It says MIXED_PRECISION, and no server is known here that loads this mixture."
    return "MIXED_PRECISION: TensorRT-LLM documents it (quant_cfg.json names the layers); not run here. Engine torch."


def _lines(group: GroupCost, base: str, word: str) -> list[str]:
    costs = f"{base} {budget.cost(group, base):.5f}, {word} {budget.cost(group, word):.5f}"
    first, *rest = group.layers
    return [f"      - {first} # {costs}", *(f"      - {name} # with it" for name in rest)]


def _saved(group: GroupCost, base: str, word: str) -> float:
    return budget.cost(group, base) - budget.cost(group, word)


def _plain(record: Any) -> dict[str, Any]:
    """The fields that are not at their default; `summary`, `preset` and `format` have none."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(record)}
    plain: dict[str, Any] = msgspec.to_builtins(record)
    return {key: value for key, value in plain.items() if getattr(record, key) != defaults[key]}


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=118))


def save(path: Path, text: str) -> str:
    """Write it; a file of the same content is left alone.

    Returns:
        The word of the recipe.

    Raises:
        BadInput: another file is there, it has no YAML suffix, or the folder cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise BadInput("a recipe is a .yaml file.", place=str(path), cure=f"Write --out {path}.yaml.")
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return path.stem
    if path.exists():
        raise BadInput("exists already and says something else.", place=str(path), cure="Choose another with --out.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot be written ({error.strerror}).", place=str(path.parent), cure="Choose another."
        ) from error
    disk.write(path, text.encode())
    return path.stem
