"""What GPUs that share a layer say to each other: one all-reduce after attention and one after the MLP of each layer.

    seconds = latency + slowdown x 2 (n - 1) / n x bytes / bandwidth

`bandwidth` is the link's in one direction, from the data sheet; 2 (n - 1) / n is what a ring sends. Latency and
slowdown lie in the middle of what NVIDIA's own timings give, which aiconfigurator-core 0.12.0 ships (vLLM and
TensorRT-LLM on 2, 4 and 8 of H100, H200, A100, B200, L40S and RTX PRO 6000): `python benchmarks/all_reduce.py` fits
each. Over NVLink 3 to 9 us and 1.2 to 2.0, and a line through them is mostly within a factor of 1.1 to 1.4. Over PCIe
two GPUs are as predictable, four or eight are not: what a machine's switches and sockets do between them is on no data
sheet (2.4 to 18 times), so the interval says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["nvlink", "pcie"]
NVLINK_LATENCY, NVLINK_SLOWDOWN = 5e-6, 1.6
PCIE_LATENCY = 3.2e-6
"""Times the number of GPUs: 4 to 8 us for two, 12 to 14 for four, 22 to 27 for eight."""
PCIE_SLOWDOWN = {2: (1.7, 1.3), 4: (4.0, 2.1), 8: (6.0, 3.0)}
"""GPUs up to this number -> slowdown, and the factor by which it was less or more."""
NVLINK_SLACK = 1.4


@dataclass(frozen=True, slots=True)
class Link:
    """Between `gpus` GPUs of one machine."""

    gpus: int
    latency: float
    rate: float
    """Bytes a second that an all-reduce really moves in one direction."""
    slack: float
    """It takes up to this factor less or more."""

    def seconds(self, size: float) -> float:
        """One all-reduce of `size` bytes."""
        return self.latency + 2 * (self.gpus - 1) / self.gpus * size / self.rate


def link(kind: Kind, bandwidth: float, gpus: int) -> Link | None:
    """The link between `gpus` GPUs; `bandwidth` in bytes a second and one direction. None for one GPU."""
    if gpus < 2:
        return None
    if kind == "nvlink":
        return Link(gpus, NVLINK_LATENCY, bandwidth / NVLINK_SLOWDOWN, NVLINK_SLACK)
    slowdown, slack = PCIE_SLOWDOWN[next((most for most in PCIE_SLOWDOWN if gpus <= most), 8)]
    return Link(gpus, PCIE_LATENCY * gpus, bandwidth / slowdown, slack)
