"""The run as one HTML file that works offline, on a phone, in the dark, on paper and without JavaScript.

Safe by construction, because prompts and names are other people's: every value passes jinja2's autoescape, nothing is
marked safe but the page's own style and script, and a Content-Security-Policy allows exactly these two by their
hashes. Markup that would slip through could neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from quantlab.records import Run
from quantlab.report import answer, charts, damage, figures, flips, forest, load, pictured, reach, rows, users
from quantlab.report.clean import clean

_HYPHEN = re.compile(r"(?<![\w.])-(?=\d)")


def to_html(run: Run) -> str:
    """The whole page, self-contained."""
    run = clean(run)
    table = rows.rows(run)
    return page(
        "template.html",
        run=run,
        rows=table,
        task_rows=rows.task_rows(run),
        nats=any(row.task.nll_change for row in rows.task_rows(run)),
        places=rows.ends(run),
        size_panel=charts.size_panel(run, table),
        speed_panels=charts.speed_panels(run, table),
        pictured=pictured,
        users=users,
        answer_charts=answer.charts(run, table),
        load_charts=load.charts(run, table),
        load_rows=[(row, cell) for row in table for cell in load.cells(row.candidate)],
        load_words=load.words,
        load_fields=load.fields,
        load_header=load.HEADER,
        forests=forest.forests(run),
        flips=flips.shown(run),
        categories=flips.categories(run),
        categories_note=flips.note(run),
        reach=reach.charts(run),
        damage=damage.charts(run),
        damage_words=damage.words,
        notes=rows.notes(run),
        claim=rows.claim(run),
        intervals=rows.intervals(run),
    )  # fmt: skip


def page(template: str, **words: Any) -> str:
    """A template with the page's own style and script, and the policy that allows only these."""
    style, script = _page_files("css", "report", "damage", "flips", "several"), _page_files("js", "report", "flips")
    said: str = _environment().get_template(template).render(
        statuses=rows.STATUSES,
        meanings=rows.MEANINGS,
        style=style,
        script=script,
        policy_of_content=_policy(style, script),
        **words,
    )  # fmt: skip
    return said


def fields(record: Any) -> list[tuple[str, str]]:
    """A record as rows of dotted field and value, for tables of provenance; empty fields are left out."""
    return list(_flat("", msgspec.to_builtins(record)))


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, each in value.items() for row in _flat(f"{name}.{key}" if name else str(key), each)]
    if isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value):
        return [row for place, each in enumerate(value, 1) for row in _flat(f"{name}.{place}", each)]
    if value is None or value in ("", [], ()):
        return []
    if isinstance(value, list | tuple):
        return [(name, ", ".join(str(each) for each in value))]
    return [(name, str(value))]


def typeset(text: str) -> str:
    """A true minus sign before digits: a hyphen is easily overlooked, and here it is the finding."""
    return _HYPHEN.sub("−", text) if "-" in text else text


def td(value: float | None, text: str) -> str:
    """A table cell that sorts by `value` and shows `text`. A page holds thousands, and a macro costs ten times this."""
    from markupsafe import Markup, escape

    sort = "" if value is None else escape(value)
    return Markup(f'<td class="num" data-sort="{sort}">{escape(typeset(text))}</td>')


def spot(bar: damage.Bar, probed: bool) -> str:
    """One layer's bar of damage.html: the reach that a finger finds, the mark, and the error of the weights alone."""
    from markupsafe import Markup, escape

    box, alone = f'x="{bar.x}%" width="{bar.width}%"', ""
    if probed:
        line = f'<line class="alone" x1="0" x2="100%" y1="{bar.weight_y}" y2="{bar.weight_y}"/>'
        alone = f'<svg {box} overflow="visible">{line}</svg>'
    reach = f'<rect class="reach" {box} y="0" height="{damage.HEIGHT}"/>'
    mark = f'<rect class="mark" {box} y="{bar.y}" height="{round(damage.HEIGHT - bar.y, 2)}"/>'
    return Markup(f'<g class="spot"><title>{escape(typeset(bar.tip))}</title>{reach}{mark}{alone}</g>')


def moment(stamp: str) -> str:
    """An ISO time as a person writes it: "2026-11-24 18:42 UTC"; anything else unchanged."""
    found = re.match(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)", stamp)
    return f"{found[1]} {found[2]} UTC" if found else stamp


def _policy(style: str, script: str) -> str:
    def source(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )


@cache
def _page_files(kind: str, *names: str) -> str:
    """The page's own files of one kind, one after the other."""
    from markupsafe import Markup

    folder = files("quantlab.report").joinpath("page")
    return Markup("".join("\n" + folder.joinpath(f"{name}.{kind}").read_text("utf-8") for name in names))


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("quantlab.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "typeset": typeset,
        "moment": moment,
        "fields": fields,
        "prompt": lambda text: figures.clip(text, flips.PROMPT),
        "answer": lambda text: figures.clip(text, flips.ANSWER),
    }
    found.globals |= {"figures": figures, "provenance": rows.provenance, "numerics": rows.numerics, "find": rows.find}
    found.globals |= {"effort": rows.effort, "spot": spot, "td": td}
    return found
