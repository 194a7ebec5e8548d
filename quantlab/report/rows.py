"""From a `Run` to the rows that all faces of the report show. Pure; nothing is rounded or judged here.

The one decision made here is what may be shown as a precision's own. An emulated run rounds as the format does but
computes with other kernels: its scores are the format's, its speed is not. A simulated checkpoint holds rounded
weights in 16 bit: neither its speed nor its size is the format's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantlab.records import Candidate, Cell, Number, Run, TaskComparison
from quantlab.shares import mean_score, shares, words_of

MARKS = {"native": "", "emulated": "†", "simulated": "‡"}
"""Sign beside a number that is not the format's own, for faces without colour or shape."""

MEANINGS = {
    "measured": "this format's own kernels ran on this machine",
    "emulated": "the format's rounding by other kernels: scores are the format's, speed and memory are not",
    "simulated": "rounded weights in a 16-bit checkpoint: scores are the format's, speed and size are not",
    "predicted": "from a model of the hardware, always an interval",
    "published": "somebody else's measurement, with its source",
}
"""Legend: where a number comes from, and how far it may be trusted."""

STATUSES = {
    "baseline": "what the others are compared with",
    "accept": "the loss is surely within the policy",
    "regression": "the loss is surely beyond the policy",
    "anomalous": "something is wrong with the measurement or the export",
    "infeasible": "it does not work here",
    "insufficient": "too little data to decide",
}
"""Legend: what a verdict means."""


def numerics(candidate: Candidate) -> str:
    """native, emulated or simulated: how this candidate's numbers were computed."""
    if candidate.calibrated is not None and candidate.calibrated.checkpoint.simulated:
        return "simulated"
    if candidate.throughput is not None:
        return candidate.throughput.numerics
    return "emulated" if any(number.provenance == "emulated" for number in _numbers(candidate)) else "native"


def _numbers(candidate: Candidate) -> Iterator[Number]:
    if candidate.accuracy is not None:
        yield from (task.score for task in candidate.accuracy.tasks)
    if candidate.fidelity is not None:
        yield candidate.fidelity.kl


def provenance(number: Number | None, how: str) -> str:
    """The badge of a number: what it says itself, or how its candidate was computed where it says "measured"."""
    said = "measured" if number is None else number.provenance
    return how if said == "measured" and how != "native" else said


@dataclass(frozen=True)
class Row:
    """One recipe in the headline table; None where nothing was measured."""

    candidate: Candidate
    how: str
    """native, emulated or simulated."""
    score: Number | None
    comparison: TaskComparison | None
    """The suite as a whole; None for the baseline."""
    bytes: int | None
    """None for a simulated checkpoint: its size is not the format's."""
    size_ratio: float | None
    """Bytes over the bytes of the 16-bit weights."""
    ends: tuple[Cell | None, Cell | None]
    """The grid's first and last cell."""

    @property
    def name(self) -> str:
        return self.candidate.recipe_name

    @property
    def status(self) -> str:
        return self.candidate.verdict.status

    @property
    def difference(self) -> Number | None:
        return self.comparison.difference if self.comparison else None

    @property
    def mark(self) -> str:
        return MARKS[self.how]


def rows(run: Run) -> list[Row]:
    """The headline table, baseline first as in the run."""
    before = suite_score(run)
    places = ends(run)
    return [_row(candidate, before, places) for candidate in run.candidates]


def _row(candidate: Candidate, before: Number | None, places: tuple[Cell, Cell] | None) -> Row:
    how = numerics(candidate)
    whole = candidate.comparison.suite if candidate.comparison else None
    made = candidate.calibrated.checkpoint if candidate.calibrated else None
    stored = made.bytes if made and made.bytes and how != "simulated" else None
    return Row(
        candidate=candidate,
        how=how,
        score=whole.candidate if whole else before if candidate.verdict.status == "baseline" else own(candidate),
        comparison=whole,
        bytes=stored,
        size_ratio=stored / made.source_bytes if stored and made and made.source_bytes else None,
        ends=(find(candidate, places[0]), find(candidate, places[1])) if places else (None, None),
    )


def suite_score(run: Run) -> Number | None:
    """The baseline's suite score as the comparisons have it; its own mean of tasks where there are none."""
    for candidate in run.candidates:
        if candidate.comparison is not None:
            return candidate.comparison.suite.baseline
    return own(run.candidates[0]) if run.candidates else None


def own(candidate: Candidate) -> Number | None:
    """Mean of the tasks' scores with the error of that mean: tasks are independent."""
    tasks = candidate.accuracy.tasks if candidate.accuracy else ()
    mean = mean_score(tasks)
    if mean is None:
        return None
    errors = [task.score.standard_error for task in tasks]
    parts = [w * each for w, each in zip(shares(words_of(tasks)), errors, strict=True) if each is not None]
    error = sum(part**2 for part in parts) ** 0.5 if len(parts) == len(tasks) else None
    return Number(value=mean, unit="share", n=sum(task.n for task in tasks), standard_error=error)


def ends(run: Run) -> tuple[Cell, Cell] | None:
    """First and last cell of the grid, taken from the first candidate that was timed."""
    for candidate in run.candidates:
        if candidate.throughput is not None and candidate.throughput.cells:
            return candidate.throughput.cells[0], candidate.throughput.cells[-1]
    return None


def find(candidate: Candidate, place: Cell) -> Cell | None:
    """The candidate's cell at the same place of the grid."""
    cells = candidate.throughput.cells if candidate.throughput else ()
    return next((cell for cell in cells if key(cell) == key(place)), None)


def key(cell: Cell) -> tuple[int, int, int]:
    """Place in the grid: input length, output length, batch."""
    return cell.isl, cell.osl, cell.batch


@dataclass(frozen=True)
class TaskRow:
    """One task of one recipe."""

    name: str
    """Recipe."""
    how: str
    task: TaskComparison


def task_rows(run: Run) -> list[TaskRow]:
    """Every task of every compared recipe, the most damaged first; incomparable ones last."""
    return [
        TaskRow(candidate.recipe_name, numerics(candidate), task)
        for candidate in run.candidates
        if candidate.comparison is not None
        for task in by_damage(candidate.comparison.tasks)
    ]


def by_damage(tasks: tuple[TaskComparison, ...]) -> list[TaskComparison]:
    """Largest loss first; tasks without a difference at the end."""
    return sorted(tasks, key=lambda task: task.difference.value if task.difference else float("inf"))


def notes(run: Run) -> list[str]:
    """What the reader must know, each once, in order; what holds for several recipes names them together."""
    names = {candidate.recipe_name for candidate in run.candidates}
    owners: dict[str, list[str]] = {}
    for note in dict.fromkeys(run.notes):
        name, found, text = note.partition(": ")
        if found and name in names:
            owners.setdefault(text, []).append(name)
        else:
            owners.setdefault(note, [])
    return [f"{', '.join(named)}: {text}" if named else text for text, named in owners.items()]


def claim(run: Run) -> str:
    """What an acceptance claims: how much may be lost, of what, and how sure that is; that it was not judged, where
    nothing was scored."""
    policy = run.policy
    if not any(candidate.accuracy for candidate in run.candidates):
        return "not judged, accuracy was not measured"
    where = "on this suite" if policy.claims == "suite" else "beyond this suite"
    rule = f"at most {policy.max_drop:g} points lost {where}, {100 * policy.confidence:g} % sure"
    return f"{rule}, scored until certain" if policy.early else rule


def intervals(run: Run) -> str:
    """What stands in brackets behind a difference."""
    if run.policy.claims == "population":
        return f"its paired {100 * run.policy.confidence:g} % interval"
    return "the bounds that hold at every look, or none where all items are known"


def effort(candidate: Candidate) -> str:
    """How much of the suite the verdict took: "800 of 1,988 items scored, decided after 412, 3 looks"; "" if all."""
    look = candidate.comparison.look if candidate.comparison else None
    if look is None or not look.looks:
        return ""
    decided = f", decided after {look.decided_after:,}" if look.decided_after else ""
    return f"{look.scored:,} of {look.items:,} items scored{decided}, {look.looks} look{'s' * (look.looks > 1)}"
