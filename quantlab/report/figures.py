"""Numbers as a person reads them: enough digits to decide on, none that the uncertainty does not carry.

One place for all faces of the report, so that the screen, the Markdown and the page never disagree by a rounding.
A missing number is an en dash. A number that is not finite is written out as what it is, never as a blank: a blank
looks like "not measured", and an overflow is a finding.
"""

from __future__ import annotations

import math

from quantlab.records import Cell, Number, TaskComparison

NOTHING = "–"
"""Stands where nothing was measured."""


def fixed(value: float | None, digits: int, *, sign: bool = False) -> str:
    """`value` with a fixed number of decimals and thousands separators; -0.0 is written 0.0."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    rounded = round(value, digits) + 0.0
    return f"{rounded:+,.{digits}f}" if sign and rounded else f"{rounded:,.{digits}f}"


def three(value: float | None) -> str:
    """Three significant digits without an exponent: 1,204 and 38.1 and 0.0341; below 1e-4 with one."""
    if value is None or not math.isfinite(value):
        return fixed(value, 0)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value:.2e}" if exponent < -4 else fixed(value, max(0, 2 - exponent))


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent, without the sign: columns say it in their heading."""
    return fixed(None if value is None else 100 * value, digits)


def score(number: Number | None) -> str:
    """A share in percent with its standard error: "65.3 ± 1.1"."""
    if number is None:
        return NOTHING
    error = "" if number.standard_error is None else f" ± {percent(number.standard_error)}"
    return percent(number.value) + error


def interval(number: Number | None, digits: int = 1) -> str:
    """The interval alone, in the number's own unit: "[-7.3, -3.9]"."""
    if number is None or number.low is None or number.high is None:
        return ""
    return f"[{fixed(number.low, digits, sign=True)}, {fixed(number.high, digits, sign=True)}]"


def points(number: Number | None) -> str:
    """A difference in points with its sign: "-5.6"."""
    return NOTHING if number is None else fixed(number.value, 1, sign=True)


def difference(number: Number | None) -> str:
    """A difference in points with its interval: "-5.6 [-7.3, -3.9]"."""
    return f"{points(number)} {interval(number)}".strip()


def recovery(number: Number | None) -> str:
    """Candidate over baseline in percent with its interval: "91.4 [88.9, 93.8]"."""
    if number is None:
        return NOTHING
    ends = "" if number.low is None or number.high is None else f" [{percent(number.low)}, {percent(number.high)}]"
    return percent(number.value) + ends


def size(count: int | None) -> str:
    """Bytes in decimal units, as disks and model cards count: "163 MB", "16.1 GB"."""
    if not count:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale * (10 if unit == "GB" else 1):
            return f"{three(count / scale)} {unit}"
    return f"{three(count / 1e3)} kB"


def times(value: float | None) -> str:
    """A ratio with two decimals: "0.61x"."""
    return NOTHING if value is None else f"{fixed(value, 2)}x"


def seconds(value: float | None) -> str:
    """A duration: "740 ms", "73.2 s", "10 min 22 s"."""
    if not value:
        return NOTHING
    if value < 1:
        return f"{three(1000 * value)} ms"
    if value < 120:
        return f"{three(value)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def shape(cell: Cell) -> str:
    """A throughput cell's place in the grid: "128 in, 32 out, batch 1"."""
    return f"{cell.isl} in, {cell.osl} out, batch {cell.batch}"


def clip(text: str, most: int) -> str:
    """`text`, or its beginning and its end where it is longer than `most` characters.

    The end of a few-shot prompt is the question itself, so three quarters of what is kept are the end.
    """
    if len(text) <= most:
        return text
    head = most // 4
    return f"{text[:head]} [... {len(text) - most} characters left out ...] {text[-(most - head) :]}"


def mean(number: Number) -> str:
    """A mean with its standard error, three digits each: "0.0343 ± 0.00110"."""
    error = "" if number.standard_error is None else f" ± {three(number.standard_error)}"
    return three(number.value) + error


def rate(cell: Cell | None, mark: str) -> str:
    """Output tokens per second of a cell with its mark of provenance; "invalid" where the cell failed a check."""
    if cell is None or (cell.valid and cell.tokens_per_second is None):
        return NOTHING
    if not cell.valid or cell.tokens_per_second is None:
        return "invalid"
    return three(cell.tokens_per_second.value) + mark


def nats(task: TaskComparison) -> tuple[str, str]:
    """What the right answer costs the baseline, and how much more the candidate: ("0.0064", "+0.0003 [-0.0001,
    +0.0007]")."""
    found = task.nll_change
    if found is None or task.nll_baseline is None:
        return NOTHING, NOTHING
    ends = interval(found, 4)
    return three(task.nll_baseline), f"{fixed(found.value, 4, sign=True)}{f' {ends}' if ends else ''}"
