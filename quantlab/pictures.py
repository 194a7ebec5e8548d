"""Altair charts in notebooks, without network and without scripts, whose marks answer to a pointer.

JupyterLab shows an SVG as an image, in which nothing can be pointed at; Altair's own renderers fetch Vega from the net,
or need a widget that nbconvert's page does not have. So a chart becomes SVG inside HTML, and what Vega writes into each
mark for screen readers ("batch: 4; tokens/s: 1,529; recipe: fp8") becomes its title, which every browser shows.

A line or an area is one mark for many rows and Vega names it after the first of them: it gets no title and lets the
pointer through to the points below. Give such a chart points (`mark_line(point=True)`).
"""

from __future__ import annotations

import re
from typing import Any

_MARK = re.compile(
    r'<(path|line) aria-label="([^"]*)" role="graphics-symbol" aria-roledescription="([^"]*)"([^>]*?)(?:/>|></\1>)'
)
_MANY = ("line mark", "area mark", "trail mark")


def pictures() -> None:
    """Make Altair draw so, from now on: `ql.pictures()` in the first cell.

    Raises:
        ImportError: altair or vl-convert is not installed (pip install 'quantlab[lab]').
    """
    import altair

    altair.renderers.register("quantlab", _render)
    altair.renderers.enable("quantlab")


def titled(svg: str) -> str:
    """The SVG of a chart with a title in every mark that stands for one row."""
    return _MARK.sub(_title, svg)


def _title(found: re.Match[str]) -> str:
    name, label, kind, rest = found.groups()
    whole = f'<{name} aria-label="{label}" role="graphics-symbol" aria-roledescription="{kind}"{rest}'
    if kind in _MANY:
        return f'{whole} pointer-events="none"/>'
    return f"{whole}><title>{label.replace('; ', '&#10;')}</title></{name}>"


def _render(spec: dict[str, Any], **options: Any) -> dict[str, str]:
    import vl_convert

    svg = titled(vl_convert.vegalite_to_svg(spec))
    return {"text/html": f'<div class="quantlab-picture">{svg}</div>'}
