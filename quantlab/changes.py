"""What differs between two runs, of all that can change a number: the parts of a stage's identity. Pure.

A difference of two numbers says nothing before one knows what else changed with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from quantlab.records import Candidate, Run
from quantlab.records.versus import Change

SHORT = 12
"""Digits of a digest that are shown."""
NONE = "none"


def between(before: Run, after: Run) -> tuple[Change, ...]:
    """What differs for all recipes of the two runs: weights, suite, grid, engine, device, versions."""
    return tuple(_between(before, after))


def _between(before: Run, after: Run) -> Iterator[Change]:
    yield from _fields("weights", {"model": before.model.word}, {"model": after.model.word})
    yield from _fields("weights", {"16-bit weights": _weights(before)}, {"16-bit weights": _weights(after)})
    yield from _fields("suite", {"name": before.suite_name}, {"name": after.suite_name})
    yield from _fields("suite", _plain(before.suite), _plain(after.suite))
    yield from _fields("grid", {"name": before.grid_name}, {"name": after.grid_name})
    yield from _fields("grid", _plain(before.grid), _plain(after.grid))
    yield from _fields("engine", {"name": before.engine}, {"name": after.engine})
    yield from _fields("device", _machine(before), _machine(after))
    yield from _fields("versions", before.host.versions, after.host.versions)


def recipe_changes(old: Candidate, new: Candidate) -> tuple[Change, ...]:
    """What differs for one recipe: its fields, its calibration data, the bytes of what it made, the prompts it was
    asked."""
    found = [*_fields("recipe", _plain(old.recipe), _plain(new.recipe))]
    found += _fields("recipe", _made(old), _made(new))
    found += _fields("suite", _prompts(old), _prompts(new), shared=True)
    return tuple(found)


def engine_change(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    """Another version of the engine that measured a recipe, where both are known."""
    if name not in before or name not in after:
        return ()
    return tuple(_fields("engine", {"version": before[name]}, {"version": after[name]}))


def device(run: Run, candidate: Candidate) -> str:
    """Where the recipe was timed; the machine's first GPU or CPU where it was not."""
    if candidate.throughput is not None:
        return candidate.throughput.device
    return run.host.gpus[0].name if run.host.gpus else f"cpu: {run.host.cpu}"


def _weights(run: Run) -> str:
    """Digest of the source, which the 16-bit baseline is; "" where the run has none."""
    plain = [each.calibrated for each in run.candidates if each.recipe.preset is None and each.calibrated]
    return plain[0].checkpoint.digest[:SHORT] if plain else ""


def _machine(run: Run) -> dict[str, Any]:
    host = run.host
    gpus = ", ".join(gpu.name for gpu in host.gpus)
    drivers = ", ".join(dict.fromkeys(gpu.driver for gpu in host.gpus))
    return {"GPU": gpus, "driver": drivers, "CPU": host.cpu, "cores": host.cores, "system": host.system}


def _made(candidate: Candidate) -> dict[str, Any]:
    if candidate.calibrated is None:
        return {}
    made = candidate.calibrated
    digest = (made.calibration_digest or "")[:SHORT]
    return {"calibration tokens": digest, "checkpoint": made.checkpoint.digest[:SHORT]}


def _prompts(candidate: Candidate) -> dict[str, str]:
    tasks = candidate.accuracy.tasks if candidate.accuracy else ()
    return {f"prompts of {task.task}": task.prompts_digest[:SHORT] for task in tasks}


def _plain(record: msgspec.Struct | None) -> dict[str, Any]:
    """A record as dotted fields; its summary is words and changes no number."""
    fields = msgspec.to_builtins(record) if record is not None else {}
    return dict(_flat("", {name: value for name, value in fields.items() if name != "summary"}))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Inner records field by field; a list of records one by one, by task where they are tasks."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), each)
    elif isinstance(value, list | tuple) and value and all(isinstance(each, dict) for each in value):
        for place, each in enumerate(value, 1):
            yield f"{name}.{each.get('task', place)}", ", ".join(_said(each))
    else:
        yield name, value


def _said(record: dict[str, Any]) -> Iterator[str]:
    """What a record of a list says beyond its name and the usual: "metric acc", "limit 40"."""
    for key, value in record.items():
        if value and key != "task" and (key, value) != ("images", "own"):
            yield f"{key} {_words(value)}"


def lifted(found: Mapping[str, tuple[Change, ...]]) -> tuple[tuple[Change, ...], dict[str, tuple[Change, ...]]]:
    """Changes that every recipe has, once, and what is left of each."""
    every = [set(each) for each in found.values()]
    shared = set.intersection(*every) if len(every) > 1 else set()
    first = next(iter(found.values()), ())
    left = {name: tuple(change for change in each if change not in shared) for name, each in found.items()}
    return tuple(change for change in first if change in shared), left


def _fields(
    part: str, before: Mapping[str, Any], after: Mapping[str, Any], *, shared: bool = False
) -> Iterator[Change]:
    """Every field whose value differs. `shared`: only fields that both have."""
    names = [name for name in before if name in after] if shared else dict.fromkeys([*before, *after])
    for name in names:
        old, new = _words(before.get(name)), _words(after.get(name))
        if old != new:
            yield Change(part=part, name=name, before=old, after=new)  # type: ignore[arg-type]


def _words(value: Any) -> str:
    if value in (None, "", [], (), {}):
        return NONE
    return value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()
