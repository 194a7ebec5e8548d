"""What OpenMP's wait policy costs on a busy machine: the reason why children get OMP_WAIT_POLICY=passive.

    python benchmarks/threads.py [REPEATS]

A thread that finished its share spins while it waits for the others ("active"), and burns the core that the others need
as soon as something else runs there. Each cell is one process that computes the same small matrix products with as many
threads as cores, while a second process keeps one core busy. Printed: wall and CPU seconds by policy, and the ratio.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

WORK = """
import resource, time, torch
a, b = torch.rand(256, 576), torch.rand(576, 1536)
torch.mm(a, b)
start = time.perf_counter()
for _ in range(1500):
    torch.mm(a, b)
used = resource.getrusage(resource.RUSAGE_SELF)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime)
"""
BUSY = "while True: pass"


def main(repeats: int) -> None:
    cores = len(os.sched_getaffinity(0))
    times: dict[str, list[tuple[float, float]]] = {"active": [], "passive": []}
    for _ in range(repeats):
        for policy, found in times.items():
            found.append(once(policy, cores))
            time.sleep(0.2)
    for policy, found in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{policy:<8} wall {wall:6.2f} s   cpu {cpu:6.2f} s   n={repeats}, {cores} threads, one core busy")
    ratio = statistics.median(a[0] / p[0] for a, p in zip(times["active"], times["passive"], strict=True))
    print(f"active / passive, wall, pair by pair: {ratio:.2f}")


def once(policy: str, threads: int) -> tuple[float, float]:
    """(wall, CPU) seconds of the work beside a busy process."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy, "OMP_NUM_THREADS": str(threads)}
    busy = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        done = subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, text=True, check=True)
    finally:
        busy.kill()
        busy.wait()
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
