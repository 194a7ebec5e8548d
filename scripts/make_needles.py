"""Write evals/items/long_*.jsonl: needles in contexts of growing length. Same seed, same bytes; needs no data.

python scripts/make_needles.py
"""

from __future__ import annotations

from pathlib import Path

from items.needles import make
from items.squares import write

SEED = 4096
LENGTHS = (512, 1024, 2048, 4096)
ITEMS = Path(__file__).parent.parent / "evals" / "items"


def main() -> None:
    for length in LENGTHS:
        path = ITEMS / f"long_{length}.jsonl"
        print(f"{path.name}: {write(path, make(length, SEED))} items")


if __name__ == "__main__":
    main()
