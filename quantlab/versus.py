"""Did it get worse? Two runs of the same question, before and after something changed. Pure.

A new driver, engine, ModelOpt or recipe moves every number a little. What counts is decided as between two precisions:
accuracy by the paired non-inferiority test on the same items (judge.py), only where comparable.py lets a difference be
formed. The paired test sees what two verdicts hide: both may say accept, against baselines that moved together.

Speed is judged only on the same device, by the format's own kernels, and where the spreads of the repeats lie apart:
a median that moved inside its own spread moved by chance. Size and KL are shown; KL is against each run's own baseline.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from quantlab import judge
from quantlab.changes import between, device, engine_change, lifted, recipe_changes
from quantlab.records import SCHEMA, Accuracy, Candidate, Comparison, Policy, Run
from quantlab.records.versus import RecipePair, Side, SpeedPair, Versus
from quantlab.speedpairs import speed_pairs

Tables = Mapping[str, Mapping[str, judge.Items] | str]
"""Recipe -> items by task, or why they are not here."""

AWAY = "the items are not here"
MAX_SLOWER = 5.0
"""Percent of speed that may be lost, by default; between two sessions of one machine a few percent are usual."""


def versus(
    before: Run,
    after: Run,
    left: Tables,
    right: Tables,
    *,
    names: tuple[str, str] = ("before", "after"),
    max_slower: float = MAX_SLOWER,
    engines: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> Versus:
    """Hold `after` against `before`, recipe by recipe, under the policy of `after`.

    Args:
        before, after: the run that sets the mark, and the one that is judged.
        left, right: their items.
        names: of the two runs, for the report.
        max_slower: percent of speed that a cell may lose.
        engines: recipe -> version of the engine that measured it, of both runs, where known.
    """
    old = {each.recipe_name: each for each in before.candidates}
    new = {each.recipe_name: each for each in after.candidates}
    units = _units(before, after, left, right)
    both = [name for name in old if name in new]
    shared, own = lifted({n: (*engine_change(n, *engines), *recipe_changes(old[n], new[n])) for n in both})
    pairs = []
    for name in dict.fromkeys([*old, *new]):
        if name not in both:
            pairs.append(_alone(name, old.get(name), new.get(name)))
            continue
        refusal = units or _elsewhere(device(before, old[name]), device(after, new[name]))
        speed = speed_pairs(old[name], new[name], max_slower, refusal)
        items = (left.get(name, AWAY), right.get(name, AWAY))
        pair = _pair(old[name], new[name], items, speed, after.policy)
        pairs.append(msgspec.structs.replace(pair, changes=own[name]))
    return Versus(
        schema=SCHEMA,
        before=_side(before, names[0]),
        after=_side(after, names[1]),
        policy=after.policy,
        max_slower=max_slower,
        changes=(*between(before, after), *shared),
        pairs=tuple(pairs),
        summary=summary(pairs),
        notes=tuple(_notes(before, after, units)),
    )


def failed(found: Versus) -> bool:
    """A regression beyond the policy, in any recipe."""
    return any(pair.status == "regression" for pair in found.pairs)


def unjudged(found: Versus) -> bool:
    """A recipe of both runs could not be compared, or there is none: a gate that let this through would not check."""
    both = [pair.status for pair in found.pairs if pair.status not in ("gone", "new")]
    return not both or "not comparable" in both


def summary(pairs: list[RecipePair]) -> str:
    """The answer in one or two sentences."""
    words = {
        "regression": "worse",
        "accept": "no worse",
        "unchanged": "unchanged",
        "insufficient": "undecided",
        "not comparable": "not comparable",
        "gone": "only in the earlier run",
        "new": "only in the later run",
    }
    found = {status: [p.recipe_name for p in pairs if p.status == status] for status in words}
    told = [f"{', '.join(names)}: {words[status]}" for status, names in found.items() if names]
    head = "A regression beyond the policy." if found["regression"] else "No regression beyond the policy was found."
    if found["not comparable"] and not found["regression"]:
        head = "No regression beyond the policy was found, but not all could be compared."
    return f"{head} {'; '.join(told)}." if told else "Neither run holds a recipe."


def _pair(
    old: Candidate,
    new: Candidate,
    items: tuple[Mapping[str, judge.Items] | str, Mapping[str, judge.Items] | str],
    speed: tuple[SpeedPair, ...],
    policy: Policy,
) -> RecipePair:
    comparison, why = _compared(old, new, *items, policy)
    status, reason = _judged(old, new, comparison, why, speed, policy)
    return RecipePair(
        recipe_name=new.recipe_name,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        before=old.verdict,
        after=new.verdict,
        comparison=comparison,
        kl_before=old.fidelity.kl if old.fidelity else None,
        kl_after=new.fidelity.kl if new.fidelity else None,
        bytes_before=_bytes(old),
        bytes_after=_bytes(new),
        speed=speed,
    )


def _compared(
    old: Candidate,
    new: Candidate,
    left: Mapping[str, judge.Items] | str,
    right: Mapping[str, judge.Items] | str,
    policy: Policy,
) -> tuple[Comparison | None, str]:
    """The paired comparison, or why there is none."""
    if old.accuracy is None or new.accuracy is None:
        which = "neither run" if old.accuracy is new.accuracy else "only one of the runs"
        return None, f"{which} scored it."
    if old.accuracy == new.accuracy:
        return None, "both runs show the same measurement."
    for side, items in (("earlier", left), ("later", right)):
        if isinstance(items, str):
            return None, f"{side} run: {items}."
    assert not isinstance(left, str)
    assert not isinstance(right, str)
    shared = {task.task for task in old.accuracy.tasks} & {task.task for task in new.accuracy.tasks}
    if not shared:
        return None, "the two suites share no task."
    a, b = _only(old.accuracy, shared), _only(new.accuracy, shared)
    return judge.compare(a, b, left, right, policy), ""


def _only(accuracy: Accuracy, tasks: set[str]) -> Accuracy:
    return msgspec.structs.replace(accuracy, tasks=tuple(task for task in accuracy.tasks if task.task in tasks))


def _judged(
    old: Candidate,
    new: Candidate,
    comparison: Comparison | None,
    why: str,
    speed: tuple[SpeedPair, ...],
    policy: Policy,
) -> tuple[str, str]:
    """Status and its reason; the first that applies wins."""
    if _works(old) and not _works(new):
        return "regression", f"it worked before; now it is {new.verdict.status}: {new.verdict.reason}"
    found = judge.verdict(policy, comparison=comparison, accuracy=new.accuracy) if comparison else None
    if found is not None and found.status == "regression":
        return "regression", found.reason
    slower = [pair for pair in speed if pair.finding == "slower"]
    if slower:
        worst = min(slower, key=lambda pair: pair.ratio or 1.0)
        place = f"{worst.isl} in, {worst.osl} out, batch {worst.batch}"
        return "regression", f"slower in {len(slower)} of {len(speed)} cells, at worst {worst.ratio:.2f}x at {place}."
    timed = sum(pair.finding != "not judged" for pair in speed)
    if _same_entries(old, new):
        return "unchanged", "both runs show the same measurements of the ledger."
    if found is not None and found.status in ("accept", "insufficient"):
        return found.status, found.reason
    if timed and old.accuracy == new.accuracy:  # scored once and shared, or asked for its speed alone
        return "accept", f"no cell of {timed} is slower; {why}"
    reason = found.reason if found else why
    return "not comparable", reason.removeprefix("not comparable with the baseline: ")


def _works(candidate: Candidate) -> bool:
    """It ran, its export is sound, and it is still a language model: a collapse is found before anything is scored."""
    found = candidate.verdict
    return found.status not in ("infeasible", "anomalous") and found.rung not in ("canary", "fidelity")


def _same_entries(old: Candidate, new: Candidate) -> bool:
    """The records themselves, not their identities: two machines give one identity two measurements."""
    measured = (old.accuracy, old.throughput, old.fidelity, old.canary)
    return any(measured) and measured == (new.accuracy, new.throughput, new.fidelity, new.canary)


def _alone(name: str, old: Candidate | None, new: Candidate | None) -> RecipePair:
    return RecipePair(
        recipe_name=name,
        status="gone" if old else "new",
        reason=f"only the {'earlier' if old else 'later'} run has it.",
        before=old.verdict if old else None,
        after=new.verdict if new else None,
    )


def _bytes(candidate: Candidate) -> int | None:
    made = candidate.calibrated.checkpoint if candidate.calibrated else None
    return made.bytes or None if made and not made.simulated else None


def _elsewhere(before: str, after: str) -> str:
    return "" if before == after else f"another device: {after} against {before}"


def _units(before: Run, after: Run, left: Tables, right: Tables) -> str:
    """Why tokens a second are not the same unit; "" where nothing speaks against it."""
    shapes = [run.model.shape for run in (before, after)]
    if shapes[0] and shapes[1] and shapes[0].vocabulary != shapes[1].vocabulary:
        return "another tokenizer, so a token is another amount of text"
    for name in left.keys() & right.keys():
        a, b = left[name], right[name]
        if not isinstance(a, str) and not isinstance(b, str) and any(_retold(a[t], b[t]) for t in a.keys() & b.keys()):
            return "another tokenizer, so a token is another amount of text"
    return ""


def _retold(a: judge.Items, b: judge.Items) -> bool:
    """The same text in another number of tokens."""
    rows = zip(a.prompts, b.prompts, a.tokens, b.tokens, strict=False)
    return list(a.ids) == list(b.ids) and any(p == q and n != m for p, q, n, m in rows)


def _side(run: Run, name: str) -> Side:
    return Side(
        name=name,
        model=run.model.word,
        engine=run.engine,
        device=run.host.gpus[0].name if run.host.gpus else f"cpu: {run.host.cpu}",
        created=run.created,
        command=run.command,
    )


def _notes(before: Run, after: Run, units: str) -> list[str]:
    notes = []
    if before.model.word != after.model.word:
        notes.append(f"The runs are of two models, {before.model.word} and {after.model.word}.")
    if units:
        notes.append(f"The models have {units}: speeds are shown and not judged.")
    if before.policy != after.policy:
        notes.append("The runs were judged by two policies; here the later one's holds.")
    if before.created > after.created:
        notes.append("The first run named is the younger one: what is called earlier here came later in time.")
    return notes
