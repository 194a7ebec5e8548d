"""Write the pictures and questions of easy-VQA that travel with quantlab: evals/items/easyvqa*,
calibration/sets/easyvqa*.

    pip install --no-deps easy-vqa==1.0 && python scripts/make_easyvqa.py

Deterministic: the same package and seed give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from items import easyvqa, hard_shapes

ROOT = Path(__file__).parent.parent
SEED = 2889
PICTURES = 400
"""Of the 1,000 of the test split: 3,900 questions."""
HARDER = 200
"""Pictures drawn by scripts/items/hard_shapes.py, three questions each."""
PAIRS = 128
"""For calibration, one question a picture."""


def main() -> None:
    print("harder:", hard_shapes.make(ROOT / "evals" / "items", HARDER, SEED))
    print("items:", easyvqa.suite(ROOT / "evals" / "items", PICTURES, SEED))
    print("calibration:", easyvqa.calibration(ROOT / "calibration" / "sets", PAIRS, SEED))


if __name__ == "__main__":
    main()
