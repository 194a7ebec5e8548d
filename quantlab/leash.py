"""A program that surely ends when we do: a server, a load generator. `start` it, and `stop` it.

The program gets a session of its own, so that all it starts can be ended together. A keeper stands between: it reads a
pipe of which we hold the other end. However we end, Ctrl-C, kill -9 or the kernel for want of memory, the pipe ends
with us, and the keeper ends the whole group: politely first (SIGTERM, a server then frees its shared memory), by
SIGKILL two seconds later. Standard library only: this file is run by its path, under any Python.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

GRACE_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""


def start(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start `command` on a leash; what it says goes to `log`. Its exit code is the keeper's.

    Raises:
        OSError: this Python cannot be started again.
    """
    words = [sys.executable, "-S", str(Path(__file__).resolve()), *command]
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the program and all it started; returns when none of them is left to be waited for."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=5 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        print("a program did not end in time and is killed.", file=sys.stderr)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(command: Sequence[str]) -> int:
    """The keeper."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}.", file=sys.stderr)
        return 127
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # our own, in _end; not handed down to the program
    ending = threading.Event()
    watch = threading.Thread(target=_watch, args=(process, ending), daemon=True)
    watch.start()
    code = process.wait()
    if ending.is_set():
        watch.join()  # the program listened to SIGTERM; what it started may not have, and SIGKILL is still to come
    return code


def _watch(process: subprocess.Popen[bytes], ending: threading.Event) -> None:
    while os.read(0, 1):
        pass
    ending.set()
    os.killpg(os.getpgrp(), signal.SIGTERM)
    ends = time.monotonic() + GRACE_SECONDS
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
