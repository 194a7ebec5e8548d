"""How long `quantlab --help` takes, whole process, against `lm_eval --help` and an empty Python.

    python benchmarks/startup.py [RUNS]

A command line that answers late is used less. Goal: median under 150 ms. The rivals are run in turn with ours, so
that a machine that slows down slows all three.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path


def main(runs: int) -> None:
    here = Path(sys.executable).parent
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "quantlab --help": [str(here / "quantlab"), "--help"],
        "lm_eval --help": [str(here / "lm_eval"), "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            if turn:  # the first turn warms the page cache
                seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        low, high = min(times), max(times)
        middle = f"median {statistics.median(times) * 1e3:7.0f} ms"
        print(f"{name:<18} {middle}   [{low * 1e3:.0f}, {high * 1e3:.0f}]   n={runs}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
