"""What this machine has, whether it fits together, and what to do where it does not.

Every question is answered without importing an SDK here: versions come from package metadata, torch is asked
in a process of its own, the hub in a thread that may be left behind. The slow ones run side by side.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from quantlab import disk, host, places, probe
from quantlab.child import thread_policy
from quantlab.engines.sdks import fits, numbers
from quantlab.records import Gpu

PYTHON = ((3, 11), (3, 13))
"""First Python that fits, first that does not."""

SUPPORTED: dict[str, tuple[str, str]] = {
    "torch": ("2.9", ""),
    "transformers": ("5.0", "5.15"),
    "nvidia-modelopt": ("0.47", "0.48"),
    "lm-eval": ("0.4.13", "0.5"),
    "datasets": ("3.0", ""),
    "tokenizers": ("0.21", ""),
    "safetensors": ("0.5", ""),
    "numpy": ("2.0", ""),
}
"""Core package -> (first version that fits, first that does not, empty for open); as in pyproject.toml."""

FORMATS = ((8.0, "INT4-AWQ"), (8.9, "FP8"), (10.0, "NVFP4"))
"""Compute capability from which a GPU computes a format with its own units."""

HUB_SECONDS = 3.0
TORCH_SECONDS = 20.0
LOW_DISK_BYTES = 10 * 10**9
LOW_MEMORY_BYTES = 6 * 10**9

_ASK_TORCH = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.device_count())"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `quantlab doctor`."""

    name: str
    """What was looked at."""
    state: Literal["ok", "warn", "missing"]
    """missing: needed and not there. What is optional and absent is "ok"."""
    found: str
    """What is there."""
    cure: str = ""
    """What to do; empty when nothing is to be done."""


def doctor(ledger: Path | None = None) -> tuple[Finding, ...]:
    """Look at everything, in the order of a report. Takes as long as importing torch once, and as long as the
    engines that were given a place of their own take to start.

    Args:
        ledger: folder whose disk is looked at; None is the one that a run would take.
    """
    cards = host.gpus()
    slow = (
        _aside("engine torch", lambda: _torch(bool(cards)), TORCH_SECONDS + 1),
        _aside("hub", _hub, HUB_SECONDS + 1),
    )
    findings = [_python(), *_packages(), *_torchvision(), *_gpus(cards), *_engines()]
    findings += [_token(), *_disks(ledger), _memory(), _threads()]
    return (*findings, *(answer() for answer in slow))


def _aside(name: str, ask: Callable[[], Finding], seconds: float) -> Callable[[], Finding]:
    """Ask in a thread; the returned function waits. A thread that hangs in a resolver is left behind."""
    from threading import Thread

    answers: list[Finding] = []
    thread = Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()

    def answer() -> Finding:
        thread.join(seconds)
        late = Finding(name=name, state="warn", found=f"no answer within {seconds:.0f} s")
        return answers[0] if answers else late

    return answer


def _python() -> Finding:
    found = f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}"
    if PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        return Finding(name="python", state="ok", found=found)
    return Finding(name="python", state="warn", found=found, cure="Use Python 3.11 or 3.12.")


def _packages() -> Iterator[Finding]:
    found = host.versions(SUPPORTED)
    for name, (low, high) in SUPPORTED.items():
        wanted = f"{name}>={low}" + (f",<{high}" if high else "")
        cure = f'pip install "{wanted}"'
        if name not in found:
            yield Finding(name=name, state="missing", found="not installed", cure=cure)
        elif fits(found[name], low, high):
            yield Finding(name=name, state="ok", found=found[name])
        else:
            yield Finding(name=name, state="warn", found=f"{found[name]}, tested with {wanted}", cure=cure)


def _torchvision() -> Iterator[Finding]:
    """torchvision carries compiled operators: beside another torch, importing a vision model fails."""
    found = host.versions(("torch", "torchvision"))
    if len(found) < 2:
        return
    torch, vision = found["torch"], found["torchvision"]
    paired = numbers(torch)[0] != 2 or numbers(vision)[1] == numbers(torch)[1] + 15
    if paired and torch.partition("+")[2] == vision.partition("+")[2]:
        yield Finding(name="torchvision", state="ok", found=vision)
    else:
        cure = "Install both from one index in one command, or uninstall torchvision: text models need none."
        yield Finding(
            name="torchvision",
            state="warn",
            found=f"{vision}, made for another torch than {torch}",
            cure=cure,
        )


def _gpus(cards: tuple[Gpu, ...]) -> Iterator[Finding]:
    if not cards:
        cure = "Scores are right on a CPU; the speed of FP8 and INT4 is not measured but marked as emulated."
        yield Finding(name="gpu", state="warn", found="none (no nvidia-smi, or none visible)", cure=cure)
    for number, card in enumerate(cards):
        memory = f"{card.memory_bytes / 2**30:.0f} GiB"
        capability = f"compute capability {card.compute_capability or 'unknown'}"
        text = f"{card.name}, {memory}, driver {card.driver}, {capability}"
        yield Finding(name=f"gpu {number}", state="ok", found=f"{text}; native formats: {native(card)}")


def native(card: Gpu) -> str:
    """The formats this GPU has units or kernels for, e.g. "INT4-AWQ, FP8"."""
    capability = float(card.compute_capability or 0)
    return ", ".join(name for least, name in FORMATS if capability >= least) or "none"


def _torch(cards: bool) -> Finding:
    import subprocess

    try:
        answer = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
            env={**os.environ, **thread_policy()},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(name="engine torch", state="warn", found=f"no answer within {TORCH_SECONDS:.0f} s")
    if answer.returncode != 0:
        last = (answer.stderr.strip().splitlines() or ["it died"])[-1]
        return Finding(name="engine torch", state="missing", found=last, cure="Install torch in this environment.")
    version, cuda, seen = answer.stdout.split()
    found = f"{version} at {sys.executable}, CUDA {cuda.replace('None', 'no')}, sees {seen} GPU(s)"
    if cards and seen == "0":
        cure = "Install a torch built for a CUDA that this driver supports."
        return Finding(name="engine torch", state="warn", found=found, cure=cure)
    return Finding(name="engine torch", state="ok", found=found)


def _engines() -> Iterator[Finding]:
    """As `quantlab engines` sees them. torch has a line of its own; who named no place misses nothing."""
    for each in probe.standings():
        if each.engine in ("torch", "fake"):
            continue
        text = f"{each.version} at {each.place}" if each.version else each.why
        if each.state == "absent" and each.source == places.HERE:
            yield Finding(name=f"engine {each.engine}", state="ok", found=f"not installed (optional). {each.cure}")
        elif each.why:
            yield Finding(name=f"engine {each.engine}", state="warn", found=each.why, cure=each.cure)
        else:
            yield Finding(name=f"engine {each.engine}", state="ok", found=text)


def _hub() -> Finding:
    """Ask the hub for its front page; any answer, also a refusal, shows that there is a way."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding(name="hub", state="ok", found="switched off (HF_HUB_OFFLINE); only local models and data")
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=HUB_SECONDS).close()
    except HTTPError as error:
        return Finding(name="hub", state="ok", found=f"{endpoint} answers ({error.code})")
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        cure = "Check network and proxy, or set HF_HUB_OFFLINE=1 and use what lies on this machine."
        return Finding(name="hub", state="warn", found=f"{endpoint} is not reachable: {reason}", cure=cure)
    return Finding(name="hub", state="ok", found=f"{endpoint} answers")


def _token() -> Finding:
    home = hub_home()
    stored = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    names = [name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)]
    if names or stored.is_file():
        return Finding(
            name="hub token",
            state="ok",
            found=f"present ({names[0] if names else 'stored by hf auth login'})",
        )
    cure = "For gated models (Llama): accept the licence on the hub, then `hf auth login` or set HF_TOKEN."
    return Finding(name="hub token", state="warn", found="none", cure=cure)


def hub_home() -> Path:
    """Where the hub's client keeps token and cache, by its own rules."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


def _disks(ledger: Path | None) -> Iterator[Finding]:
    runs = ledger or Path(os.environ.get("QUANTLAB_LEDGER") or "runs")
    cache = Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub")
    for name, folder in (("disk of the ledger", runs), ("disk of the hub cache", cache)):
        free = disk.free_bytes(folder)
        low = free < LOW_DISK_BYTES
        cure = "Checkpoints of one 3B model take about 12 GB: free some space or choose another folder." if low else ""
        found = f"{free / 1e9:.1f} GB free at {folder}"
        yield Finding(name=name, state="warn" if low else "ok", found=found, cure=cure)


def _memory() -> Finding:
    size = host.memory_bytes()
    low = size < LOW_MEMORY_BYTES
    cure = "Take a small model: the demo needs 6 GB." if low else ""
    return Finding(name="memory", state="warn" if low else "ok", found=f"{size / 1e9:.1f} GB", cure=cure)


def _threads() -> Finding:
    policy, cores = thread_policy(), host.physical_cores()
    found = f"{cores} core(s); children get " + ", ".join(f"{name}={value}" for name, value in policy.items())
    count = policy["OMP_NUM_THREADS"]
    if policy["OMP_WAIT_POLICY"].lower() == "active" or (count.isdigit() and int(count) > cores):
        cure = "Unset OMP_NUM_THREADS and OMP_WAIT_POLICY: too many or spinning threads slow torch down."
        return Finding(name="threads", state="warn", found=found, cure=cure)
    return Finding(name="threads", state="ok", found=found)
