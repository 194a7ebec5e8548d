"""Ledgers of GPU runs as one Markdown table: decode tokens/s by recipe and cell, ratios to bf16 of the same machine.

python benchmarks/gpu/table.py benchmarks/results/gpu/2026-11-24-h100-llama32-3b/*
"""

from __future__ import annotations

import sys
from pathlib import Path

from quantlab.ledgers import Ledger
from quantlab.records import Cell, Throughput

COLUMNS = (
    *(
        "machine",
        "recipe",
        "in",
        "out",
        "batch",
        "decode tokens/s [min, max]",
        "x bf16",
        "TTFT ms",
        "TPOT ms",
        "bandwidth share",
    ),
    *("varies", "J a token", "W", "held down"),
)


def main(folders: list[Path]) -> None:
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for folder in folders:
        ledger = Ledger(folder)
        runs = [(e.recipe, ledger.result(e)) for e in ledger.entries("throughput") if e.status == "done"]
        base = {key(cell): cell for recipe, run in runs if recipe == "bf16" for cell in run.cells}
        for recipe, run in runs:
            rows(folder.name, recipe, run, base)


def key(cell: Cell) -> tuple[int, int, int]:
    return cell.isl, cell.osl, cell.batch


def rows(machine: str, recipe: str, run: Throughput, base: dict[tuple[int, int, int], Cell]) -> None:
    for cell in run.cells:
        head = f"| {machine} | {recipe} | {cell.isl} | {cell.osl} | {cell.batch} |"
        speed, first, each = cell.decode_tokens_per_second, cell.ttft_seconds, cell.tpot_seconds
        if speed is None or first is None or each is None:
            print(f"{head} invalid: {cell.reason} | | | | | | | | |")
            continue
        against = base[key(cell)].decode_tokens_per_second if key(cell) in base else None
        ratio = f"{speed.value / against.value:.2f}" if against else ""
        share = f"{cell.bandwidth_share.value:.2f}" if cell.bandwidth_share else ""
        spread = f"[{speed.low or 0:,.0f}, {speed.high or 0:,.0f}]"
        print(
            f"{head} {speed.value:,.0f} {spread} | {ratio} | {first.value * 1e3:.1f} | {each.value * 1e3:.2f} "
            f"| {share} | {drawn(cell)} |"
        )


def drawn(cell: Cell) -> str:
    """Variation, energy, power and throttling; empty where an older quantlab did not measure them."""
    varies = "" if cell.variation is None else f"{cell.variation:.1%}"
    if cell.power is None:
        return f"{varies} | | |"
    joules = cell.power.joules_per_token
    energy = f"{joules.value:.4f}" if joules else cell.power.reason
    return f"{varies} | {energy} | {cell.power.watts:.0f} | {', '.join(cell.power.throttled)}"


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
