"""The run on a screen: one table, then a sentence per recipe.

The table is laid out in one, two or three lines a recipe, or as blocks of names and values. The widest layout that fits
the console is taken, so a number is never cut. Meaning is in words and signs; colour only repeats it (NO_COLOR, pipes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from quantlab.records import Run
from quantlab.report import damage, figures, load, rows
from quantlab.report.clean import clean, line
from quantlab.report.rows import MARKS, Row

STYLES = {
    "baseline": "bold",
    "accept": "bold green",
    "regression": "bold red",
    "anomalous": "bold magenta",
    "infeasible": "bold bright_black",
    "insufficient": "bold yellow",
}
"""Colour of a verdict's word."""

ASCII = str.maketrans({"±": "+-", "–": "-", "†": "*", "‡": "#", "·": "-"})
"""For consoles that cannot show more."""

Field = tuple[str, str, str]
"""Heading, value, style."""


def terminal(run: Run, console: Console, paths: Mapping[str, Path] | None = None) -> None:
    """Print the run.

    Args:
        run: what to show.
        console: where; its width, colours and encoding are respected.
        paths: written files by kind, shown at the end.
    """
    run = clean(run)
    found = rows.rows(run)
    fields = [_fields(run, row) for row in found]
    console.print(_text(console, line(run.model.word), "bold"), _text(console, _setting(run)), sep="\n")
    console.print()
    console.print(_fitting(console, fields))
    console.print()
    for row in found:
        console.print(_sentence(console, row))
    console.print()
    _footer(console, run, found, paths or {})


def _setting(run: Run) -> str:
    policy = f"{run.policy_name}: {rows.claim(run)}"
    return line(f"engine {run.engine} · suite {run.suite_name} · grid {run.grid_name} · policy {policy}")


def _fields(run: Run, row: Row) -> list[Field]:
    """All figures of a row; the layouts choose how to arrange them."""
    fidelity, counted = row.candidate.fidelity, row.comparison if row.difference else None
    flips = f"-{counted.regressed} +{counted.improved}" if counted else figures.NOTHING
    size = f"{figures.size(row.bytes)}{f' {figures.times(row.size_ratio)}' if row.size_ratio else ''}"
    return [
        ("recipe", line(row.name) + row.mark, "bold"),
        ("verdict", row.status, STYLES[row.status]),
        ("score\n%", figures.score(row.score), ""),
        ("points", figures.points(row.difference), ""),
        (_brackets(run), figures.interval(row.difference) or figures.NOTHING, ""),
        ("flips", flips, ""),
        ("KL", figures.three(fidelity.kl.value if fidelity else None), ""),
        ("top-1\n%", figures.percent(fidelity.top1.value if fidelity else None), ""),
        ("ppl\nratio", figures.fixed(fidelity.perplexity_ratio.value if fidelity else None, 3), ""),
        ("size", size, ""),
        *_speeds(run, row),
    ]


def _brackets(run: Run) -> str:
    return "bounds at\nany look" if run.policy.claims == "suite" else f"{100 * run.policy.confidence:g} %\ninterval"


def _speeds(run: Run, row: Row) -> list[Field]:
    places = dict.fromkeys(rows.key(place) for place in rows.ends(run) or ())
    cells = {rows.key(cell): cell for cell in row.ends if cell is not None}
    return [
        (f"tok/s\n{isl}/{osl} b{batch}", figures.rate(cells.get((isl, osl, batch)), row.mark), "")
        for isl, osl, batch in places
    ]


LAYOUTS: tuple[tuple[tuple[int, ...], ...], ...] = (
    tuple((place,) for place in range(12)),
    ((0, 1), (2,), (3, 4), (5,), (6,), (7, 8), (9,), (10, 11)),
    ((0, 1), (2, 3, 4), (5,), (6, 7, 8), (9,), (10, 11)),
)
"""Tables from wide to narrow: which fields, by place, share a column."""


def _fitting(console: Console, fields: Sequence[Sequence[Field]]) -> RenderableType:
    """The widest layout that the console holds."""
    for layout in LAYOUTS if fields else ():
        table = _table(console, fields, layout)
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            return table
    return _blocks(console, fields)


def _table(console: Console, fields: Sequence[Sequence[Field]], layout: Sequence[Sequence[int]]) -> Table:
    flat = all(len(places) == 1 for places in layout)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    table.show_edge = False
    columns = [[place for place in places if place < len(fields[0])] for places in layout]
    for places in filter(None, columns):
        heading = "\n".join(fields[0][place][0] if flat else line(fields[0][place][0]) for place in places)
        left = places[0] == 0 or (flat and places[0] == 1)
        table.add_column(
            _text(console, heading, "dim"),
            justify="left" if left else "right",
            no_wrap=True,
            vertical="bottom" if flat else "top",
        )
    for place, row in enumerate(fields, 1):
        cells = [_stack(console, [row[place] for place in places], flat) for places in filter(None, columns)]
        if not flat and place < len(fields):
            tallest = max(cell.plain.count("\n") for cell in cells)
            cells[0].append("\n" * (1 + tallest - cells[0].plain.count("\n")))
        table.add_row(*cells)
    return table


def _stack(console: Console, parts: Sequence[Field], flat: bool) -> Text:
    """The values of one column under each other; flips and size take two lines where there is room below."""
    while len(parts) > 1 and parts[-1][1] == figures.NOTHING:
        parts = parts[:-1]
    lines = [
        _text(
            console,
            value if flat or heading not in ("flips", "size") else value.replace(" +", "\n+").replace("B ", "B\n"),
            style,
        )
        for heading, value, style in parts
    ]
    return Text("\n").join(lines)


def _blocks(console: Console, fields: Sequence[Sequence[Field]]) -> Table:
    """Names and values under each other, for a console that is narrower than any table."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in fields:
        for heading, value, style in row:
            if value != figures.NOTHING:
                table.add_row(_text(console, line(heading), "dim"), _text(console, value, style))
        table.add_row("", "")
    return table


def _sentence(console: Console, row: Row) -> RenderableType:
    candidate = row.candidate
    text = Text.assemble(
        _text(console, line(row.name), "bold"), " ", _text(console, row.status, STYLES[row.status]), ": "
    )
    text.append_text(_text(console, line(candidate.verdict.reason)))
    if candidate.failure is not None and candidate.failure.cure:
        text.append_text(_text(console, f" {line(candidate.failure.cure)}"))
    for said in load.words(candidate):
        text.append_text(_text(console, f"\n  {line(said)}", "dim"))
    if worst := damage.words(candidate):
        text.append_text(_text(console, f"\n  {line(worst)}", "dim"))
    if candidate.calibrated is not None:
        text.append_text(_text(console, f"\n  {line(candidate.calibrated.checkpoint.path)}", "dim"))
    return text


def _footer(console: Console, run: Run, found: Sequence[Row], paths: Mapping[str, Path]) -> None:
    for how in ("emulated", "simulated"):
        if any(row.how == how for row in found):
            console.print(_text(console, f"{MARKS[how]} {how}: {rows.MEANINGS[how]}", "yellow"))
    for note in rows.notes(run):
        console.print(_text(console, f"· {line(note)}", "dim"))
    console.print(_text(console, line(run.summary), "bold"))
    for kind, path in paths.items():
        console.print(Text(f"{kind:<5}", "dim"), Text(str(path)), soft_wrap=True)


def _text(console: Console, words: str, style: str = "") -> Text:
    """Never parsed as markup; in plain letters where the console has no others."""
    if console.options.ascii_only:
        words = words.translate(ASCII).encode("ascii", "backslashreplace").decode()
    return Text(words, style, overflow="fold")
