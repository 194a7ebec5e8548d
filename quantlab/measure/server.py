"""An engine's server while it is measured: a port of our own, waited for until it is healthy, and surely ended.

Who answers on the port must be the server that was started: a stranger who took the port in between would be timed
instead. So the model's name is asked for, and where the server lets us choose it, it is a name nobody else has.
"""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

from quantlab import leash
from quantlab.engines.serving import LOCAL, Server

READY_SECONDS = 1200.0
"""Loading 90B from a network disk and capturing graphs takes ten minutes."""
POLL_SECONDS = 0.5


class NotServed(Exception):
    """The server did not come up; the text is the reason."""


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as found:
        found.bind((LOCAL, 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(make: Callable[[int], Server], log: Path, seconds: float = READY_SECONDS) -> Iterator[tuple[str, str]]:
    """Start a server; yields its URL and the model's name, and ends it.

    Args:
        make: the server for a port.
        log: what it says.
        seconds: longest time until it is healthy.

    Raises:
        NotServed: it ended, was not healthy in time, or somebody else answered.
    """
    port = free_port()
    server = make(port)
    url = f"http://{LOCAL}:{port}"
    with log.open("wb") as file:
        process = leash.start(server.command, {**os.environ, **server.environment}, file)
        try:
            _wait(process, url, log, seconds)
            _require_ours(url, server.model)
            yield url, server.model
        finally:
            leash.stop(process)


def require_healthy(url: str, log: Path) -> None:
    """Raises: NotServed: the server does not answer any more."""
    if _get(f"{url}/health") is None:
        raise NotServed(f"the server does not answer any more: {_last_words(log)}")


def _wait(process: Popen[bytes], url: str, log: Path, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if (code := process.poll()) is not None:
            raise NotServed(f"the server ended with exit code {code}: {_last_words(log)}")
        if _get(f"{url}/health") is not None:
            return
        time.sleep(POLL_SECONDS)
    raise NotServed(f"the server was not ready after {seconds:.0f} s")


def _require_ours(url: str, model: str) -> None:
    found: Any = json.loads(_get(f"{url}/v1/models") or b"{}")
    names = [each.get("id") for each in found.get("data", []) if isinstance(each, dict)]
    if model not in names:
        raise NotServed(f"on our port answers a server of {names or 'no model'}, and {model} was started")


def _get(url: str) -> bytes | None:
    """The body of a good answer; None while nobody answers well."""
    # No proxy: the machine's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError):
        return None


def _last_words(log: Path) -> str:
    """The last line that names an error; the last one where none does."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line]
    return (telling or lines or ["it said nothing"])[-1][-300:]
