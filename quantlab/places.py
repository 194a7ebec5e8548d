"""Where an engine runs: this Python, another one, or a container.

TensorRT-LLM, vLLM and ModelOpt pin different versions of torch, so an engine may have an interpreter of its own. The
nearest word wins:

    QUANTLAB_ENGINE_VLLM=/envs/vllm/bin/python     the environment, also a whole command line
    ./engines.toml                                 the working folder's, then
    <quantlab home>/engines.toml                   the user's
    <quantlab home>/engines/vllm                   what `quantlab engines setup vllm` made
    this Python

    [vllm]                                         engines.toml: one table an engine
    python = "/envs/vllm/bin/python"               relative to the file
    [trtllm]
    command = ["docker", "run", "--rm", "-i", "--init", "--gpus", "all", "{mounts}", "{env}", "IMAGE", "python3"]

The words that `command` may hold are explained in launch.py. The file is read strictly: what it names is started.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab.engines import ENGINES
from quantlab.engines.sdks import BUILDERS, CLIENTS
from quantlab.errors import BadInput
from quantlab.launch import check_command

FILE = "engines.toml"
STAMP = "quantlab.json"
"""In an environment that `quantlab engines setup` finished; without it the folder is half made."""
HERE = "this Python"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one engine runs."""

    command: tuple[str, ...]
    """What stands before the arguments of Python; empty for this Python."""
    source: str
    """Who said so, for people."""

    def __str__(self) -> str:
        return shlex.join(self.command) if self.command else HERE


def home() -> Path:
    """$QUANTLAB_HOME, or quantlab's folder in the user's cache."""
    given = os.environ.get("QUANTLAB_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "quantlab"


def made(engine: str) -> Path:
    """Folder of the environment that `quantlab engines setup` makes for an engine."""
    return home() / "engines" / engine


def find(engine: str) -> Place:
    """Where `engine` runs. Nothing is started.

    Raises:
        BadInput: an engines.toml that is wrong, with file, line and field.
    """
    return _of_variable(engine) or _of_files(engine) or _of_setup(engine) or Place((), HERE)


def _of_variable(engine: str) -> Place | None:
    name = f"QUANTLAB_ENGINE_{engine.upper()}"
    value = os.environ.get(name, "").strip()
    if not value:
        return None
    try:
        words = [value] if Path(value).exists() else shlex.split(value)
    except ValueError as error:
        raise BadInput(f"is no command line ({error}).", place=name, cure="Close the quotes.") from None
    check_command(words, name)
    return Place((os.path.expanduser(words[0]), *words[1:]), name)


def _of_files(engine: str) -> Place | None:
    for path in dict.fromkeys((Path.cwd() / FILE, home() / FILE)):
        if path.is_file() and engine in (found := read(path)):
            return found[engine]
    return None


def _of_setup(engine: str) -> Place | None:
    folder = made(engine)
    python = folder / "bin" / "python"
    return Place((str(python),), "quantlab engines setup") if (folder / STAMP).is_file() else None


def read(path: Path) -> dict[str, Place]:
    """Engine -> place, from one engines.toml.

    Raises:
        BadInput: not TOML, an unknown engine or field, a value of the wrong kind; `place` has file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"cannot be read: {error}.", place=str(path), cure="Write it as docs/engines.md shows."
        ) from None
    return {engine: _table(engine, table, path, text) for engine, table in tables.items()}


def _table(engine: str, table: Any, path: Path, text: str) -> Place:
    where = _where(path, text, engine, "")
    known = (*ENGINES, *CLIENTS, *BUILDERS)
    if engine not in known:
        raise BadInput(f"no engine {engine!r}.", place=where, cure=f"Engines: {', '.join(known)}.")
    if not isinstance(table, dict) or len(table) != 1:
        raise BadInput("one of `python` and `command` is wanted.", place=where, cure='python = "/path/to/bin/python"')
    ((field, value),) = table.items()
    where = _where(path, text, engine, field)
    if field == "python" and isinstance(value, str) and value:
        words = [str(path.parent.absolute() / os.path.expanduser(value))]
    elif field == "command" and isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        words = value
    elif field in ("python", "command"):
        kind = "a path" if field == "python" else "a list of words"
        raise BadInput(f"is not {kind}.", place=where, cure=f"Write {kind} in quotes.")
    else:
        raise BadInput("is unknown.", place=where, cure="Fields: python, command.")
    check_command(words, where)
    return Place(tuple(words), where)


def _where(path: Path, text: str, engine: str, field: str) -> str:
    """ "engines.toml, line 3, field vllm.python": tomllib keeps no lines, so the words are looked for."""
    lines = text.splitlines()
    head = next((at for at, line in enumerate(lines) if re.match(rf"\s*\[?\s*[\"']?{re.escape(engine)}\b", line)), 0)
    own = (at for at, line in enumerate(lines) if at >= head and re.search(rf"\b{re.escape(field)}\b[\"']?\s*=", line))
    line = next(own, head) if field else head
    return f"{path}, line {line + 1}, field {engine}{'.' if field else ''}{field}"
