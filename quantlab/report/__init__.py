"""The report: one `Run` in, four faces out (terminal, HTML, Markdown, JSON). A pure function of that record.

    write(run, folder, stem)   {stem}.html, {stem}.md, {stem}.json, each written whole or not at all
    terminal(run, console)     the table and the verdicts on a screen of any width
    to_html, to_markdown, to_json
    write_versus, write_several   run against run; a page over several runs with every run's own beside it

    figures    numbers as a person reads them           clean     other people's texts made harmless
    rows       the run as rows, shared by all faces     charts, forest, damage, scale    where marks lie
    html + page/, markdown, screen                      the faces
    answer, reach                                       charts of load and crossover, of length
    versus, overview                                    faces of two runs, of many

Nothing is measured, judged or looked up here: what a face says stands in the record.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantlab.errors import BadInput, LedgerProblem
from quantlab.records import Run, encode
from quantlab.records.repair import Repair
from quantlab.records.versus import Versus

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "repair_terminal",
    "terminal",
    "to_html",
    "to_json",
    "to_markdown",
    "write",
    "write_repair",
    "write_several",
    "write_versus",
]


def write(run: Run, folder: Path, stem: str) -> dict[str, Path]:
    """Write the three files and return their paths by kind ("html", "md", "json").

    Each file is written under a temporary name and renamed, so a reader sees the old one or the new one, whole.

    Raises:
        BadInput: the stem is not a plain file name.
        LedgerProblem: the folder cannot be written.
    """
    if not stem or Path(stem).name != stem or stem.startswith(".") or "\x00" in stem:
        raise BadInput(f"{stem!r} is not a plain file name", place="report", cure="Use letters, digits and dashes.")
    return _written(
        folder, stem, {"html": to_html(run).encode(), "md": to_markdown(run).encode(), "json": to_json(run)}
    )


def write_versus(found: Versus, folder: Path, stem: str) -> dict[str, Path]:
    """The three files of run against run, as `write`."""
    from quantlab.report import versus

    texts = {"html": versus.to_html(found).encode(), "md": versus.to_markdown(found).encode(), "json": encode(found)}
    return _written(folder, stem, texts)


def write_several(runs: Sequence[tuple[str, Run]], folder: Path, stem: str = "index") -> dict[str, Path]:
    """The page over several runs, named by their stems, and every run's own files beside it.

    Returns:
        The paths of the page over all.
    """
    from quantlab.report import overview

    for name, run in runs:
        write(run, folder, name)
    texts = {"html": overview.to_html(runs).encode(), "md": overview.to_markdown(runs).encode()}
    return _written(folder, stem, texts | {"json": encode(overview.plain(runs))})


def write_repair(found: Repair, folder: Path, stem: str) -> Path:
    """The page and the record of a repair; returns the page's path."""
    from quantlab.report import repair

    return _written(folder, stem, {"html": repair.to_html(found).encode(), "json": encode(found)})["html"]


def repair_terminal(found: Repair, console: Console) -> None:
    """Print a repair on `console`."""
    from quantlab.report import repair

    repair.terminal(found, console)


def _written(folder: Path, stem: str, texts: Mapping[str, bytes]) -> dict[str, Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {kind: _replace(folder / f"{stem}.{kind}", text) for kind, text in texts.items()}
    except OSError as error:
        raise LedgerProblem(
            f"the report cannot be written: {error.strerror or error}",
            place=str(folder),
            cure="Free some space, or choose a folder that can be written.",
        ) from error


def _replace(path: Path, text: bytes) -> Path:
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    try:
        with part.open("xb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def to_json(run: Run) -> bytes:
    """The record itself: sorted keys, exact numbers, nothing clipped."""
    return encode(run)


def to_html(run: Run) -> str:
    """One self-contained page."""
    from quantlab.report.html import to_html as face

    return face(run)


def to_markdown(run: Run) -> str:
    """GitHub-flavoured Markdown."""
    from quantlab.report.markdown import to_markdown as face

    return face(run)


def terminal(run: Run, console: Console) -> None:
    """Print the run on `console`, fitted to its width."""
    from quantlab.report.screen import terminal as face

    face(run, console)
