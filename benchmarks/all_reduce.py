"""What an all-reduce takes: latency and slowdown fitted to the timings that aiconfigurator-core ships.

    $QUANTLAB_KERNELS benchmarks/all_reduce.py          the Python that has the package; nothing of quantlab is imported

The constants of quantlab/predict/links.py lie in the middle of what this prints. Sizes in the tables are elements of 16
bits (at 2^29 of them 8 H100 reach the link's bandwidth, and would be at twice its speed were they bytes).
"""

from __future__ import annotations

from pathlib import Path

import aiconfigurator_core
import numpy as np
import pandas as pd
from scipy.optimize import nnls

LINKS = {
    "h100_sxm": 450e9,
    "h200_sxm": 450e9,
    "a100_sxm": 300e9,
    "b200_sxm": 900e9,
    "l40s": 32e9,
    "rtx_pro_6000_server": 64e9,
}
"""One direction, bytes a second: systems/*.yaml of the package."""
VERSIONS = ("vllm/0.14.0", "vllm/0.24.0", "trtllm/1.0.0", "trtllm/1.3.0rc20")


def main() -> None:
    data = Path(aiconfigurator_core.__file__).parent / "systems" / "data"
    print("| GPU | engine | GPUs | latency us | slowdown | error of a time: 80 % within | largest |")
    print("|---|---|---|---|---|---|---|")
    for system, bandwidth in LINKS.items():
        for version in VERSIONS:
            path = data / system / "comm" / version / "custom_allreduce_perf.parquet"
            if path.is_file():
                rows(system, version, bandwidth, pd.read_parquet(path))


def rows(system: str, version: str, bandwidth: float, table: pd.DataFrame) -> None:
    """One line for each number of GPUs; of vLLM the recorded graph, as it serves."""
    if "vllm" in version:
        table = table[table.backend.str.contains("graph")]
    for gpus, here in table.groupby("num_gpus"):
        times = here.groupby("message_size").latency.median() / 1e3
        ring = 2 * (gpus - 1) / gpus * 2 * np.array(times.index, float) / bandwidth
        terms = np.column_stack([1 / times, ring / times])
        (latency, slowdown), _ = nnls(terms, np.ones(len(times)))
        off = np.exp(np.abs(np.log(terms @ [latency, slowdown])))
        print(
            f"| {system} | {version} | {gpus} | {latency * 1e6:.1f} | {slowdown:.2f} "
            f"| x{np.quantile(off, 0.8):.2f} | x{off.max():.2f} |"
        )


if __name__ == "__main__":
    main()
