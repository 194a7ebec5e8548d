"""Which machine this is, asked without importing anything heavy.

Three traps. `os.cpu_count()` is the machine's, not what an affinity mask or a container's quota lets us use:
a pod with 4 of 128 CPUs that starts 128 threads crawls. The memory that counts is the smallest limit of all
cgroups above us. And `nvidia-smi` ignores CUDA_VISIBLE_DEVICES, so a shared server would show its neighbours'
GPUs as ours.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantlab.records import Gpu, Host, digest

PACKAGES = (
    "quantlab",
    "torch",
    "transformers",
    "nvidia-modelopt",
    "lm-eval",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "vllm",
    "tensorrt-llm",
    "onnxruntime-genai",
)
"""Packages that can change a number, in the order of a report."""

NVIDIA_SMI_SECONDS = 5.0
"""A hung driver must not hang quantlab."""

_QUERY = "index,uuid,name,memory.total,compute_cap,driver_version,power.limit"


def describe(extra: Iterable[str] = ()) -> Host:
    """This machine, as far as this process may use it.

    Args:
        extra: further packages whose versions matter, e.g. an engine's SDK.
    """
    return Host(
        system=f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
        python=platform.python_version(),
        cpu=_cpu(),
        cores=physical_cores(),
        memory_bytes=memory_bytes(),
        gpus=gpus(),
        versions=versions((*PACKAGES, *extra)),
    )


def fingerprint(host: Host) -> str:
    """Digest of what a speed depends on: CPU, cores, and each GPU with driver and power limit.

    Memory size and package versions are not in it: the engine's version is part of a measurement's identity
    anyway.
    """
    cards = [(gpu.name, gpu.compute_capability, gpu.driver, gpu.power_limit_watts) for gpu in host.gpus]
    return digest(host.cpu, host.cores, cards)


def physical_cores() -> int:
    """Physical cores this process may use, by affinity and cgroup quota; at least 1."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = len({_read(topology.format(cpu)) or str(cpu) for cpu in cpus})
    return max(1, min([cores, *_quotas()]))


def memory_bytes() -> int:
    """Memory this process may use, by cgroup limit and machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = _limits("memory", "memory.limit_in_bytes", "memory.max")
    return min([machine, *(int(limit) for limit in limits if limit.isdigit())])


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves us, in its order; empty without a driver."""
    rows = [[field.strip() for field in line.split(",")] for line in _nvidia_smi().splitlines()]
    cards = {(row[0], row[1]): _gpu(row[2:]) for row in rows if len(row) == 7}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(cards.values())
    return tuple(_visible(cards, visible))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of `packages` that are installed, from their metadata: nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _visible(cards: dict[tuple[str, str], Gpu], visible: str) -> Iterator[Gpu]:
    """CUDA's rule: numbers or beginnings of UUIDs; everything from the first unknown word on is not seen."""
    for word in (part.strip() for part in visible.split(",")):
        named = [card for (index, uuid), card in cards.items() if word and (word == index or uuid.startswith(word))]
        if len(named) != 1:
            return
        yield named[0]


def _nvidia_smi() -> str:
    import subprocess

    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def _gpu(fields: list[str]) -> Gpu:
    """One line of nvidia-smi. Unified-memory devices answer "[N/A]" for their memory: it is the host's."""
    name, memory, capability, driver, power = fields
    mebibytes, watts = _number(memory), _number(power)
    return Gpu(
        name=name,
        memory_bytes=memory_bytes() if mebibytes is None else int(mebibytes) << 20,
        compute_capability=capability if _number(capability) is not None else "",
        driver=driver,
        power_limit_watts=watts,
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _cpu() -> str:
    lines = _read("/proc/cpuinfo").splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _quotas() -> Iterator[int]:
    """CPU quotas of cgroup 2 ("200000 100000" in one file) and 1 (two files), rounded up to whole cores."""
    pairs = [limit.split() for limit in _limits("cpu", "", "cpu.max")]
    quotas = _limits("cpu", "cpu.cfs_quota_us", "")
    pairs += [list(pair) for pair in zip(quotas, _limits("cpu", "cpu.cfs_period_us", ""), strict=False)]
    for quota, period in pairs:
        if quota.isdigit() and int(period) > 0:
            yield max(1, math.ceil(int(quota) / int(period)))


def _limits(controller: str, first: str, second: str) -> list[str]:
    """Contents of a limit file in this process's cgroup and in every one above it: the smallest binds.

    Args:
        controller: "cpu" or "memory".
        first: name of the file in cgroup version 1; empty to leave that version out.
        second: name of the file in cgroup version 2, likewise.
    """
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        name = first if controllers else second
        if not name or (controllers and controller not in controllers.split(",")):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        own = root / path.lstrip("/")
        # In a container the path may be the host's and not exist here; then the mount's root has the limit.
        found += [_read(str(place / name)) for place in (own, *own.parents) if place.is_relative_to(root)]
    return [text for text in found if text]


def _read(path: str) -> str:
    """The file's text without its last newline, or nothing where the system has no such file or hides it."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
