"""A command at a pseudo-terminal: what it draws is read, Ctrl-C is a key. Linux.

A test that wants to stop a run inside a stage must see what a user sees: the bar of that stage, with the words the
stage itself sends. They come from the child while it works, so the stage has begun for certain.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C = b"\x03"


class Terminal:
    """One command in a session of its own, with a controlling terminal."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self._master, slave = os.openpty()
        self.drawn = b""
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "50", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    @property
    def text(self) -> str:
        """All that was drawn, without colours and movements."""
        return CONTROL.sub(b"", self.drawn).decode(errors="replace")

    def until(self, pattern: str, seconds: float = 600) -> None:
        """Read until `pattern` was drawn."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, f"{pattern!r} never came:\n{self.text[-2000:]}"
            assert self._read(1.0), f"the command ended before {pattern!r}:\n{self.text[-2000:]}"

    def kill(self) -> int:
        """`kill -9` of the command alone, as by the kernel; returns its exit code."""
        self.process.send_signal(signal.SIGKILL)
        return self.wait()

    def press_ctrl_c(self) -> int:
        """The key: the terminal signals everybody in the foreground. Returns the exit code."""
        os.write(self._master, CTRL_C)
        return self.wait()

    def wait(self, seconds: float = 900) -> int:
        """Read to the end; returns the exit code."""
        end = time.monotonic() + seconds
        while self._read(1.0):
            assert time.monotonic() < end, f"it does not end:\n{self.text[-2000:]}"
        code = self.process.wait(30)
        os.close(self._master)
        return code

    def _read(self, seconds: float) -> bool:
        """Take what comes within `seconds`; False at the end."""
        if select.select([self._master], [], [], seconds)[0]:
            try:
                self.drawn += (more := os.read(self._master, 1 << 16))
            except OSError:  # Linux says EIO when the last one has closed the other side
                return False
            return bool(more)
        return self.process.poll() is None


def workers(place: Path) -> list[int]:
    """Processes that have `place` on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(place).encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def require_gone(place: Path, seconds: float = 20) -> None:
    """Nobody works at `place` any more."""
    end = time.monotonic() + seconds
    while left := workers(place):
        assert time.monotonic() < end, f"still running: {left}"
        time.sleep(0.05)
