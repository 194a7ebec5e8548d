"""The sweeps over requests in flight of GPU ledgers as one Markdown table, and their knees.

python benchmarks/gpu/load.py OUT/3b
"""

from __future__ import annotations

import sys
from pathlib import Path

from quantlab.ledgers import Ledger
from quantlab.records import LoadCell
from quantlab.report import figures
from quantlab.report.load import HEADER, fields


def main(folders: list[Path]) -> None:
    header = ("machine", "recipe", "how", "in", "out", "in flight", *HEADER, "computed", "varies", "J a token")
    print(f"| {' | '.join(header)} |")
    print("|---" * len(header) + "|")
    knees = []
    for folder in folders:
        ledger = Ledger(folder)
        for entry in ledger.entries("throughput"):
            if entry.status != "done":
                continue
            record = ledger.result(entry)
            for cell in record.load:
                print(f"| {folder.name} | {entry.recipe} | {' | '.join(row(cell))} |")
            knees += [f"- {folder.name}, {entry.recipe}, {knee.mode}: {knee.text}" for knee in record.knees]
    print("\n".join(["", *knees]))


def row(cell: LoadCell) -> list[str]:
    place = [cell.mode, *(str(each) for each in (cell.isl, cell.osl, cell.concurrency))]
    if not cell.valid:
        return [*place, f"invalid: {cell.reason}", *[""] * (len(HEADER) + 2)]
    joules = cell.power.joules_per_token if cell.power else None
    return [
        *place,
        *fields(cell),
        "" if cell.computed is None else figures.fixed(cell.computed, 1),
        "" if cell.variation is None else f"{cell.variation:.1%}",
        f"{joules.value:.4f}" if joules else cell.power.reason if cell.power else "",
    ]


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
