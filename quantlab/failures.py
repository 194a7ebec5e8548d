"""The one place where foreign errors become ours, and where secrets are taken out of texts.

torch, safetensors, pyarrow and the operating system each have their own way to say "no memory" and "no space". A
user needs one sentence and a cure. The rest, an error nobody foresaw, becomes StageFailed with its traceback.

A child that died says nothing itself. Its exit code, the end of its log and the kernel's count of out-of-memory
kills speak for it.

A text that leaves a process is redacted: SDKs put request headers and whole environments into their messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from quantlab import disk
from quantlab.errors import KINDS, Interrupted, LedgerProblem, NoAccess, QuantlabError, StageFailed
from quantlab.records.jobs import Failure

TRACE_CHARACTERS = 8000
"""Longest traceback kept; its end says what happened."""

TAIL_LINES = 8
"""Lines of the log in the error of a child that died."""

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
_NO_SPACE = ("No space left on device", "os error 28", "Disk quota exceeded")
_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)


class ChildTrace(Exception):
    """The traceback of an error that happened in a child, as text, for whoever prints the whole chain."""


def redact(text: str) -> str:
    """`text` without Hugging Face tokens, those of the environment included."""
    for name in _SECRETS:
        value = os.environ.get(name, "").strip()
        if len(value) >= 8:
            text = text.replace(value, "[token]")
    return _TOKEN.sub("[token]", text)


def failure_of(error: BaseException, folder: Path) -> Failure:
    """`error` as a record that may cross a process wall or stay in the ledger.

    Args:
        error: any exception; of ours only those that `error_of` made carry a trace.
        folder: where the job was writing, named when the disk is full.
    """
    ours = error if isinstance(error, QuantlabError) else _translated(error, folder)
    return Failure(
        kind=type(ours).__name__,
        problem=redact(ours.problem),
        place=redact(ours.place),
        cure=redact(ours.cure),
        trace=redact(_trace(error))[-TRACE_CHARACTERS:],
    )


def error_of(failure: Failure) -> QuantlabError:
    """The exception a Failure was made from, of its own class; its `__cause__` is the child's trace."""
    error = KINDS.get(failure.kind, StageFailed)(failure.problem, place=failure.place, cure=failure.cure)
    if failure.trace:
        error.__cause__ = ChildTrace(failure.trace)
    return error


def death_of(task: str, code: int, log: Path, *, oom: bool) -> QuantlabError:
    """The error for a child that left no answer.

    Args:
        task: what it was at.
        code: its exit code, or minus the signal that killed it.
        log: where its output lies; the last lines go into the error.
        oom: the kernel has counted an out-of-memory kill meanwhile.
    """
    tail = _tail(log)
    # A full disk: the worker could not write its answer, and said so on its last line.
    if code == LedgerProblem.exit_code and tail:
        return LedgerProblem(tail[-1], place=f"stage {task}")
    how, cure = _how(code, oom)
    last = "".join(f"\n    {line}" for line in tail)
    return StageFailed(
        f"{how}. {f'Its last lines:{last}' if tail else 'It printed nothing.'}\n",
        place=f"stage {task}",
        cure=f"{cure} The whole log is {log}.".strip(),
    )


def _how(code: int, oom: bool) -> tuple[str, str]:
    """How a process with this exit code ended, and what to do."""
    from signal import Signals, strsignal

    if code >= 0:
        return f"ended without a result (exit code {code})", ""
    name = Signals(-code).name if -code in set(Signals) else f"signal {-code}"
    if name != "SIGKILL":
        return f"died of {name} ({strsignal(-code)})", ""
    why = "out of memory, as the kernel says" if oom else "most likely out of memory"
    return f"killed (SIGKILL), {why}", "Close other programs, or take a smaller batch, sample count or model."


def oom_kills() -> int:
    """Processes the kernel has killed for want of memory since it booted; 0 where it does not say."""
    counters = Path("/proc/vmstat")
    lines = counters.read_text().splitlines() if counters.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _tail(log: Path) -> list[str]:
    """Last lines of the log, without secrets; of a progress bar only its last state."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16384))
        text = redact(file.read().decode("utf-8", "replace"))
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
    return [line[:300] for line in lines if line.strip()][-TAIL_LINES:]


def _translated(error: BaseException, folder: Path) -> QuantlabError:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped by Ctrl-C.", cure="The same command goes on where it was.")
    for link in _chain(error):
        if _is_full_disk(link):
            return disk.full(_folder_of(link, folder))
        if _is_no_memory(link):
            return _no_memory(link)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "quantlab").startswith("quantlab"):
        return NoAccess(f"the Python package {error.name!r} is missing.", cure="Install it and start again.")
    return StageFailed(f"{type(error).__name__}: {error}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from: SDKs wrap "no space" into something of their own."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _is_full_disk(error: BaseException) -> bool:
    # safetensors and other Rust code report errno as text only.
    return (isinstance(error, OSError) and error.errno in disk.FULL) or any(sign in str(error) for sign in _NO_SPACE)


def _folder_of(error: BaseException, folder: Path) -> Path:
    name = error.filename if isinstance(error, OSError) else None
    return Path(os.fsdecode(name)).absolute().parent if isinstance(name, str | bytes) else folder


def _is_no_memory(error: BaseException) -> bool:
    # By name: torch.OutOfMemoryError is known without importing torch into the parent.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or any(sign in str(error) for sign in _NO_MEMORY)


def _no_memory(error: BaseException) -> StageFailed:
    gpu = "CUDA" in str(error) or "CUBLAS" in str(error)
    first = (str(error).splitlines() or [""])[0]
    return StageFailed(
        f"out of {'GPU ' if gpu else ''}memory. {first}".strip(),
        cure="Close what else uses it, or take fewer samples, a smaller batch or a smaller model.",
    )


def _trace(error: BaseException) -> str:
    """The traceback; none for our own errors, which say all in one sentence, unless a child sent one."""
    import traceback

    if isinstance(error, QuantlabError):
        return str(error.__cause__) if isinstance(error.__cause__, ChildTrace) else ""

    return "".join(traceback.format_exception(error))
