"""This machine, and machines that answer otherwise, through the same files and the same command."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab import host
from quantlab.records import Gpu, Host

H100 = "0, GPU-855725b2-0616-bdbb-dd07-5e93effd5cf9, NVIDIA H100 80GB HBM3, 81559, 9.0, 580.159.04, 700.00"
L4 = "1, GPU-11111111-2222-3333-4444-555555555555, NVIDIA L4, 23034, 8.9, 580.159.04, 72.00"
SPARK = "0, GPU-22222222-2222-3333-4444-555555555555, NVIDIA GB10, [N/A], 12.1, 580.95.05, [N/A]"


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put an nvidia-smi on the path that runs `script`."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def lines(*cards: str) -> str:
    return "\n".join(f'echo "{card}"' for card in cards)


def test_this_machine_is_described_without_names() -> None:
    here = host.describe(extra=["pytest"])
    assert here.python == platform.python_version()
    assert 1 <= here.cores <= (os.cpu_count() or 1)
    assert here.memory_bytes > 1 << 28
    assert here.cpu
    assert here.versions["pytest"] == pytest.__version__
    assert here.versions["torch"].startswith("2.")
    assert "vllm" not in here.versions or here.versions["vllm"]
    text = msgspec.json.encode(here).decode()
    assert platform.node() not in text.replace(here.cpu, "") or len(platform.node()) < 4
    assert msgspec.json.decode(text, type=Host) == here


def test_gpus_as_the_driver_reports_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, lines(H100, L4))
    assert host.gpus() == (
        Gpu(
            name="NVIDIA H100 80GB HBM3",
            memory_bytes=81559 << 20,
            compute_capability="9.0",
            driver="580.159.04",
            power_limit_watts=700.0,
        ),
        Gpu(
            name="NVIDIA L4",
            memory_bytes=23034 << 20,
            compute_capability="8.9",
            driver="580.159.04",
            power_limit_watts=72.0,
        ),
    )


def test_a_gpu_that_shares_the_hosts_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, lines(SPARK))
    [card] = host.gpus()
    assert (card.memory_bytes, card.power_limit_watts) == (host.memory_bytes(), None)


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("0,1", ["H100", "L4"]),
        ("1, 0", ["L4", "H100"]),
        ("1", ["L4"]),
        ("GPU-8557", ["H100"]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["L4"]),
        ("7", []),
    ],
)
def test_only_visible_gpus_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    driver(tmp_path, monkeypatch, lines(H100, L4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [card.name.split()[1] for card in host.gpus()] == names


@pytest.mark.parametrize(
    "script", ["exit 9", "echo NVIDIA-SMI has failed; exit 9", "echo No devices were found", "exec sleep 60"]
)
def test_a_driver_that_does_not_answer_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    driver(tmp_path, monkeypatch, script)
    monkeypatch.setattr(host, "NVIDIA_SMI_SECONDS", 0.3)
    assert host.gpus() == ()


def test_no_driver_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.gpus() == ()


def machine(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: set[int]) -> None:
    """Another machine: its files under /proc and /sys, and the processors it lets us use."""
    monkeypatch.setattr(host, "_read", lambda path: files.get(str(path), ""))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus, raising=False)


def siblings(pairs: int) -> dict[str, str]:
    """Topology of `pairs` cores with two hyperthreads each, numbered as Linux does: n and n + pairs."""
    path = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return {path.format(cpu): f"{cpu % pairs},{cpu % pairs + pairs}" for cpu in range(2 * pairs)}


@pytest.mark.parametrize(
    ("cpus", "cgroup", "limits", "cores"),
    [
        (range(16), "", {}, 8),
        ([0, 8], "", {}, 1),
        ([0, 1, 8], "", {}, 2),
        (range(16), "0::/pod/box", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "250000 100000"}, 3),
        (range(16), "0::/of/the/host", {"cpu.max": "50000 100000"}, 1),
        (range(16), "3:cpu,cpuacct:/b\n2:memory:/", {"cpu,cpuacct/b/cpu.cfs_quota_us": "-1"}, 8),
        (
            range(16),
            "3:cpu,cpuacct:/b",
            {"cpu,cpuacct/b/cpu.cfs_quota_us": "400000", "cpu,cpuacct/b/cpu.cfs_period_us": "100000"},
            4,
        ),
    ],
)
def test_cores_by_topology_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, cpus: Any, cgroup: str, limits: dict[str, str], cores: int
) -> None:
    files = siblings(8) | {"/proc/self/cgroup": cgroup}
    machine(monkeypatch, files | {f"/sys/fs/cgroup/{name}": text for name, text in limits.items()}, set(cpus))
    assert host.physical_cores() == cores


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "1000"}, 1000),
        ("0::/a", {"a/memory.max": "2000", "memory.max": "max"}, 2000),
        ("4:memory:/a\n0::/", {"memory/a/memory.limit_in_bytes": "3000"}, 3000),
        ("4:memory:/a", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_memory_by_the_smallest_limit(
    monkeypatch: pytest.MonkeyPatch, cgroup: str, limits: dict[str, str], expected: int | None
) -> None:
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = {"/proc/self/cgroup": cgroup} | {f"/sys/fs/cgroup/{name}": text for name, text in limits.items()}
    machine(monkeypatch, files, {0})
    assert host.memory_bytes() == (expected or here)


def test_the_fingerprint_is_of_what_makes_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, lines(H100))
    here = host.describe()
    same = msgspec.structs.replace(here, memory_bytes=1, versions={}, python="3.12.9")
    assert host.fingerprint(here) == host.fingerprint(same)
    capped = msgspec.structs.replace(here.gpus[0], power_limit_watts=350.0)
    for other in ({"cores": 999}, {"cpu": "another"}, {"gpus": ()}, {"gpus": (capped,)}):
        assert host.fingerprint(msgspec.structs.replace(here, **other)) != host.fingerprint(here)
