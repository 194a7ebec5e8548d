"""How a child is started under another interpreter or in a container: the words before `-m quantlab.worker`.

A prefix is a path to a Python, or a command line that ends where Python's arguments begin. Three of its words are
replaced, because a container sees neither our files nor our environment:

    {mounts}   `-v PLACE:PLACE` for every folder that the job reads or writes, at the same path inside and outside
    {env}      `-e NAME` for every variable that the child needs; docker and podman take the value from themselves, so
               that no token stands on a command line
    {user}     "1000:1000": who we are, so that files in the ledger do not become root's

Ending it. docker's client dies with our process group, the container does not. So the worker is told to watch its
standard input (`QUANTLAB_WATCHED`), which ends when we do: that needs `-i`, and an init (`--init`), because the kernel
lets nobody inside a container kill its first process.

quantlab itself need not be installed over there. It comes through PYTHONPATH: from a checkout as it is, from an
installation as a folder with a link to the one package (all of site-packages would put this torch before that one).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlab import disk
from quantlab.errors import BadInput

PACKAGE = Path(__file__).resolve().parent
"""The folder `quantlab`."""
WORDS = ("{mounts}", "{env}", "{user}")
WATCHED = "QUANTLAB_WATCHED"
"""Set where the worker leads no session of its own and still has a parent at its standard input."""
PASSED = re.compile(
    r"(QUANTLAB|HF|OMP|MKL|KMP|TOKENIZERS|VLLM|TRTLLM|NCCL|CUDA_VISIBLE)_?\w*|PYTHON(PATH|FAULTHANDLER)"
)
"""Variables that go into a container."""
_RUNNERS = ("docker", "podman", "nerdctl")


def check_command(words: Sequence[str], place: str) -> None:
    """Refuse a prefix that would start and then go wrong in silence.

    Raises:
        BadInput: an unknown {word}, or a container without what ends it.
    """
    for word in words:
        odd = [found for found in re.findall(r"\{[^}]*\}", word) if found not in WORDS]
        if odd or (word not in WORDS and any(known in word for known in WORDS)):
            cure = f"Words that are replaced stand alone: {', '.join(WORDS)}."
            raise BadInput(f"{word!r} is not understood.", place=place, cure=cure)
    if Path(words[0]).name not in _RUNNERS:
        return
    flags = {"-i" if re.fullmatch(r"-[a-z]*i[a-z]*|--interactive", word) else word for word in words}
    if missing := [word for word in ("-i", "--init", "{mounts}", "{env}") if word not in flags]:
        cure = "docker run --rm -i --init --gpus all {mounts} {env} IMAGE python3"
        raise BadInput(f"a container needs {', '.join(missing)} here.", place=place, cure=f"As in: {cure}")


def expanded(command: Sequence[str], spec: Any, workdir: Path, environment: Mapping[str, str]) -> list[str]:
    """The prefix with its {words} replaced.

    Args:
        spec: the job's spec as plain data; absolute paths in it are what a container must see.
        workdir: folder of the job.
        environment: all variables of the child.
    """
    words: list[str] = []
    for word in command:
        if word == "{mounts}":
            words += [part for place in places(spec, workdir, environment) for part in ("-v", f"{place}:{place}")]
        elif word == "{env}":
            names = sorted(name for name in environment if PASSED.fullmatch(name))
            words += [part for name in names for part in ("-e", name)]
        else:
            words.append(f"{os.getuid()}:{os.getgid()}" if word == "{user}" else word)
    return words


def in_container(command: Sequence[str]) -> bool:
    """The child sees only what is handed in."""
    return "{mounts}" in command


def python_path(command: Sequence[str], workdir: Path) -> str:
    """PYTHONPATH for the child: where it finds this very quantlab; empty where its own Python has it."""
    root = PACKAGE.parent
    if root.name not in ("site-packages", "dist-packages"):
        own = "" if command else os.environ.get("PYTHONPATH")  # the user's is meant for this Python
        return os.pathsep.join(filter(None, (str(root), own)))
    if not command:
        return os.environ.get("PYTHONPATH", "")
    link = workdir / "python" / PACKAGE.name
    with disk.trouble(workdir):
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(PACKAGE)
    return str(link.parent)


def places(spec: Any, workdir: Path, environment: Mapping[str, str]) -> list[str]:
    """Folders that the job reads or writes, outermost only: a folder brings what is below it."""
    named = [workdir.absolute(), PACKAGE.parent if PACKAGE.parent.name != "site-packages" else PACKAGE]
    named += [Path(value) for value in _texts(spec) if value.startswith("/")]
    named += [Path(environment[name]) for name in ("HF_HOME", "HF_HUB_CACHE") if environment.get(name)]
    found = {folder for path in named for folder in _folders(path)}
    return sorted(str(one) for one in found if not any(parent in found for parent in one.parents))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for each in value:
            yield from _texts(each)


def _folders(path: Path) -> Iterator[Path]:
    """The nearest folder that exists, where it really lies, and where its links lead: the hub's cache is all links."""
    folder = next((place for place in (path, *path.parents) if place.is_dir()), None)
    if folder is None or folder == Path("/"):
        return
    yield folder
    if folder.resolve() != folder:
        yield folder.resolve()
    if folder == path:
        yield from {link.resolve().parent for link in folder.iterdir() if link.is_symlink()} - {folder}
