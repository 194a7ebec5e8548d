"""Tasks for test_child.py: every way a job can go, and go wrong. Run by the real worker in a real process."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from quantlab.errors import Broken
from quantlab.records import Canary, Check
from quantlab.records.jobs import Spec
from quantlab.worker import Reporter


class Ask(Spec, frozen=True):
    """What the tasks below are told."""

    text: str = ""
    folder: str = ""
    count: int = 0


def echo(spec: Ask, reporter: Reporter) -> dict[str, Any]:
    reporter.note("echo", spec.text)
    return {"text": spec.text, "count": spec.count}


def environment(spec: Ask, reporter: Reporter) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in spec.text.split()} | {"path": " ".join(sys.path)}


def talk(spec: Ask, reporter: Reporter) -> int:
    for step in range(spec.count):
        reporter.progress("talk", step, spec.count)
    reporter.progress("talk", spec.count, spec.count)
    reporter.result("canary", Canary(passed=True, reason="größer ✓", prompts=()), {"items": spec.folder})
    return spec.count


def noisy(spec: Ask, reporter: Reporter) -> str:
    """An SDK that prints: from Python, from C and from a process of its own."""
    for line in range(spec.count):
        print(f"{line:07d} {'x' * 91}")
    os.write(1, "from C: ä\n".encode())
    subprocess.run([sys.executable, "-c", "print('from a grandchild')"], check=True)
    return "done"


def crash(spec: Ask, reporter: Reporter) -> None:
    raise RuntimeError(f"the weights hate {spec.text}")


def refuse(spec: Ask, reporter: Reporter) -> None:
    raise Broken("a scale is zero.", place="layer 3", cure="Calibrate again.")


def leave(spec: Ask, reporter: Reporter) -> None:
    sys.exit(3)


def vanish(spec: Ask, reporter: Reporter) -> None:
    print("about to vanish")
    os._exit(spec.count)


def kill(spec: Ask, reporter: Reporter) -> None:
    for line in range(50):
        print(f"line {line}", end="\r" if line < 40 else "\n")
    print("my token is hf_" + "Q" * 34)
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(spec: Ask, reporter: Reporter) -> None:
    ctypes.string_at(0)


def no_memory(spec: Ask, reporter: Reporter) -> None:
    raise MemoryError


def no_space(spec: Ask, reporter: Reporter) -> None:
    """As safetensors says it: wrapped twice, without an errno."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device", f"{spec.folder}/model.safetensors")
    except OSError as error:
        raise ValueError("could not serialize") from error


def no_package(spec: Ask, reporter: Reporter) -> None:
    import a_package_that_nobody_wrote  # type: ignore[import-not-found] # noqa: F401


def not_finite(spec: Ask, reporter: Reporter) -> None:
    reporter.result("canary", Canary(passed=True, reason="", prompts=(), seconds=float("nan")))


def not_json(spec: Ask, reporter: Reporter) -> object:
    return {"when": object()}


def record(spec: Ask, reporter: Reporter) -> Check:
    return Check(name="size", passed=True, finding=spec.text)


def leak(spec: Ask, reporter: Reporter) -> None:
    raise RuntimeError(f"401 for header Bearer {os.environ['HF_TOKEN']} and hf_{'Z' * 34}")


def family(spec: Ask, reporter: Reporter) -> None:
    """Start a grandchild by fork and one by exec, tell who we all are, and work on."""
    pids = [
        os.getpid(),
        _fork(),
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"]).pid,
    ]
    _tell(spec, pids)
    time.sleep(120)


def stubborn(spec: Ask, reporter: Reporter) -> None:
    """Deaf to SIGTERM, and inside one long call into C that never gives the GIL away."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _tell(spec, [os.getpid()])
    ctypes.PyDLL(None).sleep(120)


def orphan(spec: Ask, reporter: Reporter) -> str:
    """Finish, but leave a forked grandchild behind that keeps every descriptor open."""
    _tell(spec, [_fork()])
    return "done"


def linger(spec: Ask, reporter: Reporter) -> str:
    """An SDK whose thread keeps the interpreter from ending."""
    import threading

    threading.Thread(target=time.sleep, args=(120,)).start()
    return "done"


def chatter(spec: Ask, reporter: Reporter) -> None:
    """Report for ever; the parent's end of the pipe will be gone."""
    _tell(spec, [os.getpid()])
    while True:
        reporter.note("chatter", "still here")


def _fork() -> int:
    pid = os.fork()
    if pid == 0:
        time.sleep(120)
        os._exit(0)
    return pid


def _tell(spec: Ask, pids: list[int]) -> None:
    staged = Path(spec.folder) / "pids.part"
    staged.write_text(" ".join(map(str, pids)))
    staged.rename(Path(spec.folder) / "pids")
