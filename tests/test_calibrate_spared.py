"""What a child that calibrates does not import, and that it can still be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHILD = """
import sys
from quantlab.calibrate import modelopt, spared

presets = modelopt._presets()
import modelopt.torch.export
print(len(presets) > 20, [name for name in (*spared.NEVER_CALLED, "pandas") if name in sys.modules])

import datasets, sklearn.metrics
print(datasets.Dataset.from_dict({"text": ["a"]})[0], sklearn.metrics.roc_curve([0, 1], [0.1, 0.9])[1][-1])

with spared.hidden():
    import datasets as again
print(again is datasets)
"""


def test_modelopt_comes_without_them_and_they_can_come_later() -> None:
    """In a process of its own: this one has imported everything."""
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True []", "{'text': 'a'} 1.0", "True"]
