"""The run as Markdown: for a pull request, a model card or an e-mail. Tables are aligned, so the source reads too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantlab.records import Cell, Run
from quantlab.report import damage, figures, flips, load, pictured, reach, rows, users
from quantlab.report.clean import clean, line
from quantlab.report.rows import MARKS, Row


def to_markdown(run: Run) -> str:
    """All that the HTML page has but the flipped items and the prompts."""
    run = clean(run)
    parts = [
        [f"# {text(run.model.word)}: precision report", text(run.summary), _meta(run)],
        ["## Verdicts", *_verdicts(run)],
        ["## Numbers", _headline(run), *_footnotes(run)],
        ["## Tasks", _tasks(run)],
        ["## Categories", text(flips.note(run)), _categories(run)],
        ["## Fidelity", _fidelity(run)],
        ["## Over length", *_reach(run)],
        ["## Damage", _damage(run)],
        ["## Speed", _speed(run)],
        ["## Under load", _load_words(run), _load(run), _users(run)],
        ["## Checks", _checks(run)],
        ["## Notes", "\n".join(f"- {text(note)}" for note in rows.notes(run))],
        ["## Provenance", *_provenance(run)],
    ]
    kept = ["\n\n".join(piece for piece in part if piece) for part in parts if any(part[1:])]
    return "\n\n".join(kept) + "\n"


def text(value: str) -> str:
    """Other people's text on one line, with all that Markdown or HTML would act on escaped."""
    value = line(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    value = re.sub(r"([\\`*|~$])", r"\\\1", value)
    value = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", value)
    return re.sub(r"\](?=[(\[:])", r"\\]", value)


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """An aligned pipe table; the first column to the left, the others to the right. Cells are Markdown already."""
    from rich.cells import cell_len

    if not body:
        return ""
    every = [header, *body]
    widths = [max(3, *(cell_len(row[place]) for row in every)) for place in range(len(header))]

    def drawn(row: Sequence[str]) -> str:
        gaps = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [row[0] + gaps[0], *(gap + cell for gap, cell in zip(gaps[1:], row[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([drawn(header), f"| {' | '.join(rule)} |", *(drawn(row) for row in body)])


def _meta(run: Run) -> str:
    names = [run.engine, run.suite_name, run.grid_name, run.policy_name]
    engine, suite, grid, rule = map(text, names)
    return f"Engine {engine}, suite {suite}, grid {grid}, policy {rule} ({rows.claim(run)}), {text(run.created)}."


def _verdicts(run: Run) -> list[str]:
    found = []
    for candidate in run.candidates:
        words = f"- **{text(candidate.recipe_name)}: {candidate.verdict.status}.** {text(candidate.verdict.reason)}"
        if effort := rows.effort(candidate):
            words += f" {effort}."
        if candidate.failure is not None and candidate.failure.cure:
            words += f" What to do: {text(candidate.failure.cure)}"
        found.append(words)
    return ["\n".join(found)]


def _headline(run: Run) -> str:
    header = ["recipe", "verdict", "score, %", "difference, points", "worse", "better", "KL, nats", "same token, %"]
    header += ["perplexity ratio", "size", "of 16 bit"]
    places = rows.ends(run)
    header += [f"tokens/s, {figures.shape(place)}" for place in _distinct(places)]
    return table(header, [_headline_row(row, places) for row in rows.rows(run)])


def _distinct(places: tuple[Cell, Cell] | None) -> list[Cell]:
    return list({rows.key(place): place for place in places or ()}.values())


def _headline_row(row: Row, places: tuple[Cell, Cell] | None) -> list[str]:
    fidelity, counted = row.candidate.fidelity, row.comparison if row.difference else None
    return [
        text(row.name) + row.mark,
        row.status,
        figures.score(row.score),
        figures.difference(row.difference),
        figures.fixed(counted.regressed if counted else None, 0),
        figures.fixed(counted.improved if counted else None, 0),
        figures.three(fidelity.kl.value if fidelity else None),
        figures.percent(fidelity.top1.value if fidelity else None),
        figures.fixed(fidelity.perplexity_ratio.value if fidelity else None, 3),
        figures.size(row.bytes),
        figures.times(row.size_ratio),
        *(figures.rate(rows.find(row.candidate, place), row.mark) for place in _distinct(places)),
    ]


def _footnotes(run: Run) -> list[str]:
    used = {row.how for row in rows.rows(run)}
    return [f"{mark} {how}: {rows.MEANINGS[how]}." for how, mark in MARKS.items() if mark and how in used]


def _tasks(run: Run) -> str:
    header = ["task", "recipe", "n", "metric", "baseline, %", "candidate, %", "difference, points"]
    header += ["worse", "better", "churn", "recovery, %", "detectable drop"]
    found = rows.task_rows(run)
    if not any(row.task.nll_change for row in found):
        return table(header, [_task_row(row) for row in found])
    header += ["nats of the right answer", "change, nats"]
    return table(header, [[*_task_row(row), *figures.nats(row.task)] for row in found])


def _task_row(row: rows.TaskRow) -> list[str]:
    task = row.task
    first = [text(task.task), text(row.name) + MARKS[row.how], figures.fixed(task.n, 0), text(task.metric)]
    first += [figures.score(task.baseline), figures.score(task.candidate)]
    if task.difference is None:
        return [*first, f"not comparable: {text(task.incomparable)}", *[figures.NOTHING] * 5]
    counts = (task.regressed, task.improved, task.churn)
    return [
        *first,
        figures.difference(task.difference),
        *(figures.fixed(count, 0) for count in counts),
        figures.recovery(task.recovery),
        figures.fixed(task.detectable_drop, 1),
    ]


def _categories(run: Run) -> str:
    """Every recipe's categories, the most damaged first."""
    body = [
        [
            f"{text(one.found.task)}, {text(one.found.kind)}" if one.found.kind else text(one.found.task),
            text(candidate.recipe_name),
            figures.fixed(one.found.n, 0),
            figures.difference(one.found.difference),
            "yes" if one.surely else "no",
            *(figures.fixed(count, 0) for count in (one.found.regressed, one.found.improved, one.found.churn)),
        ]
        for candidate, ranked in flips.categories(run)
        for one in ranked
    ]
    header = ["category", "recipe", "n", "difference, points", "surely damaged", "worse", "better", "churn"]
    return table(header, body)


def _fidelity(run: Run) -> str:
    names = ("50", "90", "95", "99", "max")
    header = ["recipe", "positions", "KL mean, nats", *(f"KL {name}" for name in names)]
    header += ["same token, %", "perplexity", "ratio"]
    body = [
        [
            text(row.name) + row.mark,
            figures.fixed(found.positions, 0),
            figures.mean(found.kl),
            *(figures.three(found.kl_percentiles.get(name)) for name in names),
            figures.score(found.top1),
            figures.three(found.perplexity.value),
            figures.fixed(found.perplexity_ratio.value, 3),
        ]
        for row in rows.rows(run)
        if (found := row.candidate.fidelity) is not None
    ]
    return table(header, body)


def _reach(run: Run) -> list[str]:
    """A table a chart."""
    return [
        table(heads, [[text(one.name), one.length, one.before, one.change, one.beside] for one in spots])
        for _, spots, heads in reach.charts(run)
    ]


def _damage(run: Run) -> str:
    """The ten most damaged layers of each recipe."""
    body = [
        [text(found.name), text(damage.short(one.layer)), *(value for _, value in damage.facts(one)[:4])]
        for found in damage.charts(run)
        for one in found.layers[:10]
    ]
    return table(["recipe", "layer", "output error, %", "weight error, %", "outlier", "channel"], body)


def _speed(run: Run) -> str:
    header = [
        "recipe",
        "in",
        "out",
        "batch",
        "tokens/s",
        "first token",
        "per token",
        "bandwidth, %",
        "compute, %",
        "mJ a token",
        "remark",
    ]
    body = [
        [
            text(row.name) + row.mark,
            *(figures.fixed(each, 0) for each in rows.key(cell)),
            figures.rate(cell, ""),
            figures.seconds(cell.ttft_seconds.value if cell.ttft_seconds else None),
            figures.seconds(cell.tpot_seconds.value if cell.tpot_seconds else None),
            figures.percent(cell.bandwidth_share.value if cell.bandwidth_share else None, 0),
            figures.percent(cell.compute_share.value if cell.compute_share else None, 0),
            figures.three(1000 * cell.power.joules_per_token.value)
            if cell.power and cell.power.joules_per_token
            else figures.NOTHING,
            text(cell.reason) if not cell.valid else row.how,
        ]
        for row in rows.rows(run)
        if row.candidate.throughput is not None
        for cell in row.candidate.throughput.cells
    ]
    seeing = [[text(word) for word in line] for line in pictured.body(rows.rows(run))]
    return table(header, body) + (f"\n\n{table(pictured.HEADER, seeing)}" if seeing else "")


def _load_words(run: Run) -> str:
    said = [f"- {text(each.recipe_name)}: {text(one)}" for each in run.candidates for one in load.words(each)]
    return "\n".join(said)


def _users(run: Run) -> str:
    body = [[text(word) for word in row] for row in users.body(rows.rows(run))]
    return (
        f"Users within limits of the first token and each further one, by p90:\n\n{table(users.HEADER, body)}"
        if body
        else ""
    )


def _load(run: Run) -> str:
    body = [
        [
            text(row.name) + row.mark,
            cell.mode,
            *(figures.fixed(each, 0) for each in (cell.isl, cell.osl, cell.concurrency)),
            *load.fields(cell),
            row.how if cell.valid else text(f"invalid: {cell.reason}"),
        ]
        for row in rows.rows(run)
        for cell in load.cells(row.candidate)
    ]
    return table(["recipe", "how", "in", "out", "in flight", *load.HEADER, "remark"], body)


def _checks(run: Run) -> str:
    body = [
        [text(candidate.recipe_name), text(check.name), "passed" if check.passed else "FAILED", text(check.finding)]
        for candidate in run.candidates
        if candidate.verification is not None
        for check in candidate.verification.checks
    ]
    body += [
        [text(each.recipe_name), "canary", "passed" if each.canary.passed else "FAILED", text(each.canary.reason)]
        for each in run.candidates
        if each.canary is not None
    ]
    return table(["recipe", "check", "result", "finding"], body)


def _provenance(run: Run) -> list[str]:
    fence = "`" * max(3, 1 + max((len(found) for found in re.findall("`+", run.command)), default=0))
    host = run.host
    machine = ", ".join([host.system, host.cpu, f"{host.cores} cores", *(gpu.name for gpu in host.gpus)])
    versions = ", ".join(f"{name} {version}" for name, version in sorted(host.versions.items()))
    made = [
        [text(each.recipe_name), figures.fixed(found.samples, 0), found.calibration_digest or figures.NOTHING]
        for each in run.candidates
        if (found := each.calibrated) is not None
    ]
    return [
        f"{fence}\n{run.command}\n{fence}",
        f"Machine: {text(machine)}. Python {text(host.python)}, {text(versions)}.",
        table(["recipe", "calibration samples", "digest of the calibration tokens"], made),
    ]
