"""Environments for engines that cannot live in this one: `quantlab engines setup`.

A virtual environment does not move: its scripts hold its path. So it is made where it will stay, and counts only once
its stamp is written, as the last step. What has no stamp is taken away and made anew; nothing half made looks ready,
whether it was Ctrl-C, kill -9 or a full disk. The lock is a file beside the folder and is handed down to pip, so that
an orphan of a killed setup still holds it and the next one waits for it to end.

What is installed is written down in environments/*.txt, one file an environment. quantlab itself is not installed: it
comes along when a child is started (launch.py), so that both sides are always the same version.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab import catalog, disk, places, probe
from quantlab.engines import sdks
from quantlab.errors import BadInput, Broken, Interrupted, NoAccess, Refused, StageFailed
from quantlab.ingredients import ENVIRONMENTS, MEASURING, Environment
from quantlab.places import STAMP, Place
from quantlab.records import digest, encode


@dataclass(frozen=True, slots=True)
class Setup:
    """What a setup will do (`--dry-run`), or has done."""

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    """In order; empty when the environment is ready already."""


def planned(name: str, into: Path | None = None, python: str | None = None) -> Setup:
    """What would be done. Nothing is written.

    Args:
        into: another folder than the one in quantlab's home, which then links to it.
        python: the interpreter to make it with; None looks for one that fits.

    Raises:
        BadInput: no such environment, or a folder that holds something else.
        Refused: this machine or every Python here does not fit, or a library is missing.
    """
    made_of = _environment(name)
    _require_machine(name, made_of)
    folder = _folder(made_of, into)
    _require_ours(folder)
    uv = shutil.which("uv")
    version, found = _python(made_of, python, uv is not None)
    own = str(folder / "bin" / "python")
    pins, packages = str(constraints(name)), _packages(made_of)
    if uv:
        install: tuple[str, ...] = (uv, "pip", "install", "--python", own, "-c", pins, *packages)
        commands = [(uv, "venv", "--python", found or version, str(folder)), install]
    else:
        pip = (own, "-m", "pip", "--disable-pip-version-check")
        commands = [(found, "-m", "venv", str(folder)), (*pip, "install", "-c", pins, *packages)]
    if made_of.unwanted:
        out = (uv, "pip", "uninstall", "--python", own) if uv else (own, "-m", "pip", "uninstall", "-y")
        commands.append((*out, *made_of.unwanted))
    return Setup(name, folder, tuple(commands))


def setup(
    name: str,
    into: Path | None = None,
    python: str | None = None,
    *,
    again: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Setup:
    """Make the environment, or find that it is ready. pip's and uv's own words go to standard error.

    Args:
        again: make it anew even if it is ready.
        say: told each step.

    Raises:
        StageFailed: a command failed. Broken: all was installed and the engine is still not ready.
        Interrupted: Ctrl-C. BadInput, Refused: as `planned`.
    """
    plan = planned(name, into, python)
    with _locked(plan.folder, lambda: say(f"another setup is at {plan.folder}; waiting.")) as lock:
        if not again and _is_ready(plan):
            _link(plan)
            return Setup(name, plan.folder, ())
        _remove(plan.folder)
        for command in plan.commands:
            say(f"$ {' '.join(command)}")
            _run(command, lock, name)
        _finish(plan)
        _link(plan)
    return plan


def constraints(name: str) -> Path:
    """The file with an environment's versions."""
    return catalog.builtin() / "environments" / f"{name}.txt"


def _packages(made_of: Environment) -> tuple[str, ...]:
    return (*made_of.packages, *(MEASURING if made_of.measures else ()))


def _environment(name: str) -> Environment:
    if name not in ENVIRONMENTS:
        hint = catalog.nearest(name, ENVIRONMENTS)
        cure = f"{hint} Environments: {', '.join(ENVIRONMENTS)}.".strip()
        raise BadInput(f"no environment {name!r}.", place="quantlab engines setup", cure=cure)
    return ENVIRONMENTS[name]


def _require_machine(name: str, made_of: Environment) -> None:
    here = f"{platform.system()} {platform.machine()}"
    if here != "Linux x86_64":
        cure = "Name an interpreter or a container in engines.toml."
        raise Refused(f"there are wheels for Linux x86_64, and this is {here}.", place=name, cure=cure)
    if made_of.library:
        from ctypes.util import find_library

        if find_library(made_of.library) is None:
            raise Refused(f"lib{made_of.library} is missing here.", place=name, cure=made_of.library_cure)


def _folder(made_of: Environment, into: Path | None) -> Path:
    home = places.made(made_of.engine)
    return Path(os.path.abspath(into)) if into else home.resolve() if home.is_symlink() else home


def _require_ours(folder: Path) -> None:
    """Only an environment is ever taken away."""
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / "pyvenv.cfg").is_file())):
        raise BadInput("holds something that is no environment.", place=str(folder), cure="Choose another --into.")


def _python(made_of: Environment, given: str | None, uv: bool) -> tuple[str, str]:
    """(version, interpreter). uv finds or fetches an interpreter by its version alone."""
    names = [given] if given else [sys.executable, *(f"python{version}" for version in made_of.pythons)]
    for name in names:
        path = shutil.which(name)
        found = probe.look(Place((path,), ""), ()).python if path else ()
        version = ".".join(map(str, found[:2]))
        if path and version in made_of.pythons:
            return version, path
    wanted = " or ".join(made_of.pythons)
    if uv and not given:
        return made_of.pythons[0], ""
    raise Refused(
        f"Python {wanted} is needed, and {given or 'none of it is here'}{' is none' if given else ''}.",
        place=f"environment of {made_of.engine}",
        cure="Name one with --python, or install uv, which fetches it.",
    )


@contextmanager
def _locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[int]:
    """One setup a folder. The descriptor is inherited: whoever still installs there still holds the lock."""
    path = folder.with_name(f".{folder.name}.lock")
    with disk.trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def _wanted(plan: Setup) -> str:
    """What the environment would be made of: another pin is another environment."""
    made_of = ENVIRONMENTS[plan.name]
    own, more = made_of.packages, MEASURING if made_of.measures else ()
    return digest(plan.name, constraints(plan.name).read_text(encoding="utf-8"), own, more)


def _is_ready(plan: Setup) -> bool:
    import msgspec

    stamp = plan.folder / STAMP
    if not stamp.is_file():
        return False
    kept: dict[str, Any] = msgspec.json.decode(stamp.read_bytes())
    return kept.get("wanted") == _wanted(plan) and not _fault(plan)[0]


def _fault(plan: Setup) -> tuple[str, dict[str, str]]:
    """Why the engine is not ready in the folder, or nothing; and the versions there."""
    engine = ENVIRONMENTS[plan.name].engine
    place = Place((str(plan.folder / "bin" / "python"),), str(plan.folder))
    found = probe.look(place, (*sdks.packages(engine), *sdks.MEASURING, "torch", "tokenizers", "msgspec"))
    stands = probe.judged(engine, place, found)
    return (stands.why or ("" if stands.state == "ready" else stands.state)), found.versions


def _remove(folder: Path) -> None:
    """The stamp first: a removal that is interrupted leaves nothing that looks ready."""
    with disk.trouble(folder):
        (folder / STAMP).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)


def _run(command: Sequence[str], lock: int, name: str) -> None:
    from subprocess import DEVNULL, Popen

    # A PYTHONPATH would make pip find there what it shall install here.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    out = sys.stderr.fileno()
    try:
        process = Popen(command, stdin=DEVNULL, stdout=out, env=env, pass_fds=(lock,), start_new_session=True)
    except OSError as error:
        raise NoAccess(f"{command[0]} cannot be started: {error.strerror}.", place=name) from error
    try:
        code = process.wait()
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("stopped by Ctrl-C.", cure="The same command begins again.") from None
        raise
    if code != 0:
        cure = "Its own words stand above. What it left does not count; the same command begins again."
        raise StageFailed(f"{Path(command[0]).name} ended with exit code {code}.", place=f"setup of {name}", cure=cure)


def _finish(plan: Setup) -> None:
    why, versions = _fault(plan)
    if why:
        raise Broken(f"installed, and not ready: {why}", place=str(plan.folder), cure=f"See {constraints(plan.name)}.")
    record = {"environment": plan.name, "wanted": _wanted(plan), "versions": versions}
    disk.write(plan.folder / STAMP, encode(record))


def _link(plan: Setup) -> None:
    """Let quantlab's home point to an environment that lies elsewhere."""
    home = places.made(ENVIRONMENTS[plan.name].engine)
    if home.resolve() == plan.folder.resolve():
        return
    with disk.trouble(home):
        home.parent.mkdir(parents=True, exist_ok=True)
        if home.is_dir() and not home.is_symlink():
            _remove(home)
        fresh = home.with_name(f".{home.name}.{os.getpid()}.tmp")
        fresh.symlink_to(plan.folder)
        os.replace(fresh, home)
