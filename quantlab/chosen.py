"""Which run a person means: its id, the beginning of its time, its model word, or the path of its JSON.

A word that fits several runs means the newest: "compare 3b against last week's file" is what is asked day by day.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from quantlab.errors import BadInput
from quantlab.ledgers import Ledger, read
from quantlab.records import Run


@dataclass(frozen=True)
class Chosen:
    """A run and where it came from."""

    name: str
    """Its id in the ledger, or the file's name."""
    run: Run
    ledger: Ledger
    """Where its item tables lie, if they are here at all."""


def choose(book: Ledger, word: str) -> Chosen:
    """The run that `word` means.

    Raises:
        BadInput: no run fits; says which there are.
        LedgerProblem: the file is no run of a schema that this quantlab reads.
    """
    path = Path(word).expanduser()
    if path.suffix == ".json" and path.is_file():
        return Chosen(path.stem, read(path, Run), _around(path))
    files = {file.stem: file for file in book.run_documents()}
    for stem in reversed(files):
        if word and (stem.startswith(word) or (len(word) >= 4 and stem.rpartition("-")[2].startswith(word))):
            return Chosen(stem, read(files[stem], Run), book)
    runs = {stem: read(file, Run) for stem, file in reversed(files.items())}
    for fits in (str.__eq__, str.startswith):
        for stem, run in runs.items():
            if word and (fits(run.model.word, word) or fits(run.created, word)):
                return Chosen(stem, run, book)
    raise unknown(book, word, runs)


def every(book: Ledger) -> list[Chosen]:
    """All runs of the ledger, oldest first.

    Raises:
        BadInput: it holds none.
    """
    files = book.run_documents()
    if not files:
        raise nothing(book)
    return [Chosen(file.stem, read(file, Run), book) for file in files]


def nothing(book: Ledger) -> BadInput:
    """Why a ledger without a run cannot be reported, and what it does hold."""
    measured = sum(1 for _ in (book.root / "entries").glob("*/*.json"))
    if measured:
        return BadInput(
            f"the ledger holds no run to report, only {measured} entries of single stages.",
            place=str(book.root),
            cure="`quantlab recommend --model M --gpu G --ledger FOLDER` weighs entries; a page needs a run.",
        )
    return BadInput(
        "the ledger holds no run to report.",
        place=str(book.root),
        cure="`quantlab run fp8 --model smollm2-135m` makes one; `quantlab ls runs` lists them.",
    )


def unknown(book: Ledger, word: str, runs: dict[str, Run]) -> BadInput:
    """No run is meant by `word`."""
    if not runs:
        return nothing(book)
    known = list(dict.fromkeys([*(run.model.word for run in runs.values()), *runs]))
    near = difflib.get_close_matches(word, known, 1, 0.5)
    meant = f" Did you mean {near[0]}?" if near else ""
    return BadInput(
        f"no run is {word!r}: neither an id, a time, a model word nor a JSON file of a run.",
        place=str(book.root),
        cure=f"{meant} `quantlab ls runs` lists them; the newest is {next(iter(runs))}.".strip(),
    )


def _around(path: Path) -> Ledger:
    """The ledger in which a run's file lies (in runs/ or reports/); a folder without items where it lies alone."""
    return Ledger(path.absolute().parent.parent)
