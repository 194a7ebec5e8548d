"""Run against run: the same three faces as a run's own report. Pure; versus.py has judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantlab.records import Number
from quantlab.records.versus import RecipePair, SpeedPair, Versus
from quantlab.report import figures
from quantlab.report.clean import cleaned, line

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"regression": "bold red", "accept": "bold green", "insufficient": "bold yellow"}
MEANINGS = {
    "regression": "surely worse than the policy allows, slower beyond the spreads, or broken now",
    "accept": "surely no worse than the policy allows",
    "unchanged": "both runs show the same measurements",
    "insufficient": "too few items to decide",
    "not comparable": "no difference may be formed; the reason says what to do",
    "gone": "only the earlier run has it",
    "new": "only the later run has it",
}
"""Legend: what a finding means."""


def to_html(found: Versus) -> str:
    """One self-contained page."""
    from quantlab.report.html import page

    return page("versus.html", found=cleaned(found), meant=MEANINGS, faces=FACES, compared=compared(found))


def compared(found: Versus) -> list[RecipePair]:
    """Recipes with a difference, or the reason why a task has none."""
    return [pair for pair in found.pairs if pair.comparison]


def difference(pair: RecipePair) -> str:
    """Later minus earlier, in points, with its interval."""
    return figures.difference(pair.comparison.suite.difference) if pair.comparison else figures.NOTHING


def kl(pair: RecipePair) -> str:
    return _both(_value(pair.kl_before), _value(pair.kl_after))


def size(pair: RecipePair) -> str:
    return _both(figures.size(pair.bytes_before), figures.size(pair.bytes_after))


def speed(pair: RecipePair) -> str:
    """The range of the cells' ratios: "0.98x to 1.02x, 1 slower"."""
    ratios = [cell.ratio for cell in pair.speed if cell.ratio is not None]
    if not ratios:
        return figures.NOTHING
    span = (
        f"{figures.times(min(ratios))} to {figures.times(max(ratios))}" if len(ratios) > 1 else figures.times(ratios[0])
    )
    counts = {word: sum(cell.finding == word for cell in pair.speed) for word in ("slower", "faster", "not judged")}
    return ", ".join([span, *(f"{count} {word}" for word, count in counts.items() if count)])


def worst(pair: RecipePair) -> float | None:
    """The lowest ratio of all cells, for sorting."""
    return min((cell.ratio for cell in pair.speed if cell.ratio is not None), default=None)


def rate(number: Number | None) -> str:
    """Tokens a second with the spread of its repeats."""
    if number is None:
        return figures.NOTHING
    ends = (
        ""
        if number.low is None or number.high is None
        else f" [{figures.three(number.low)}, {figures.three(number.high)}]"
    )
    return figures.three(number.value) + ends


def overlap(cell: SpeedPair) -> str:
    return figures.NOTHING if cell.overlap is None else "overlap" if cell.overlap else "apart"


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _value(number: Number | None) -> str:
    return figures.three(number.value if number else None)


def to_markdown(found: Versus) -> str:
    """For a pull request."""
    from quantlab.report.markdown import table, text

    found = cleaned(found)
    sides = [[label, text(s.name), text(s.model), text(s.engine), text(s.device), text(s.created)] for label, s in
             (("before", found.before), ("after", found.after))]  # fmt: skip
    parts = [
        f"# {text(found.after.model)}: run against run",
        text(found.summary),
        table(["side", "run", "model", "engine", "device", "made"], sides),
        "\n".join(f"- {text(note)}" for note in found.notes),
        table(HEADER, [[text(value) for value in _row(pair)] for pair in found.pairs]),
        "\n".join(f"- **{text(pair.recipe_name)}: {pair.status}.** {text(pair.reason)}" for pair in found.pairs),
        "## What changed",
        table(["recipe", "part", "what", "before", "after"], [[text(each) for each in row] for row in changes(found)])
        or "Nothing that the records tell.",
        *(["## Tasks", _tasks(found)] if compared(found) else []),
        *(["## Speed", _speed(found)] if any(pair.speed for pair in found.pairs) else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


HEADER = ["recipe", "finding", "difference, points", "tokens/s, after over before", "KL, nats", "size", "verdict"]


def _row(pair: RecipePair) -> list[str]:
    verdicts = (each.status if each else figures.NOTHING for each in (pair.before, pair.after))
    return [pair.recipe_name, pair.status, difference(pair), speed(pair), kl(pair), size(pair), _both(*verdicts)]


def changes(found: Versus) -> list[tuple[str, str, str, str, str]]:
    """Recipe ("all" for the whole run), part, what, before, after; long values are clipped."""
    every = [("all", change) for change in found.changes]
    every += [(pair.recipe_name, change) for pair in found.pairs for change in pair.changes]
    return [(who, c.part, c.name, figures.clip(c.before, 160), figures.clip(c.after, 160)) for who, c in every]


def _tasks(found: Versus) -> str:
    from quantlab.report.markdown import table, text

    body = []
    for pair in compared(found):
        assert pair.comparison is not None
        for task in pair.comparison.tasks:
            told = figures.difference(task.difference) if task.difference else f"not comparable: {task.incomparable}"
            scores = [figures.score(task.baseline), figures.score(task.candidate)]
            flips = [str(task.regressed), str(task.improved)] if task.difference else [figures.NOTHING] * 2
            body.append([text(pair.recipe_name), text(task.task), str(task.n), *scores, text(told), *flips])
    return table(["recipe", "task", "n", "before, %", "after, %", "difference, points", "worse", "better"], body)


def _speed(found: Versus) -> str:
    from quantlab.report.markdown import table, text

    header = ["recipe", "in", "out", "batch", "before, tokens/s", "after, tokens/s", "ratio", "spreads", "finding"]
    body = [
        [
            *(text(pair.recipe_name), str(cell.isl), str(cell.osl), str(cell.batch), rate(cell.before)),
            *(rate(cell.after), figures.times(cell.ratio), overlap(cell)),
            text(f"{cell.finding}: {cell.why}" if cell.why else cell.finding),
        ]
        for pair in found.pairs
        for cell in pair.speed
    ]
    return table(header, body)


def terminal(found: Versus, console: Console) -> None:
    """One table, then a sentence a recipe and what changed."""
    from rich.table import Table
    from rich.text import Text

    found = cleaned(found)
    console.print(Text(f"{line(found.before.name)}  against  {line(found.after.name)}", style="bold"))
    console.print(Text(line(found.summary)))
    for note in found.notes:
        console.print(Text(f"! {line(note)}", style="yellow"))
    grid = Table(*HEADER[:6], box=None, pad_edge=False)
    for column in grid.columns:
        column.overflow = "fold"
    for pair in found.pairs:
        cells = [Text(line(value)) for value in _row(pair)[:6]]
        cells[1].stylize(STYLES.get(pair.status, ""))
        grid.add_row(*cells)
    console.print(grid)
    for pair in found.pairs:
        console.print(Text(f"{line(pair.recipe_name)}: {line(pair.reason)}"))
    for who, part, name, before, after in changes(found):
        scope = "" if who == "all" else f" of {line(who)}"
        console.print(Text(f"changed {part}{scope}: {line(name)} {line(before)} → {line(after)}", style="dim"))


FACES = {
    "difference": difference,
    "kl": kl,
    "size": size,
    "speed": speed,
    "worst": worst,
    "rate": rate,
    "overlap": overlap,
    "changes": changes,
}
"""What the page's template calls."""
