"""Look at an engine where it runs, before anything stands on it.

The look is a few lines of Python that even Python 2 takes, so that "this is no Python", "this Python is too old", "this
Python lacks msgspec" and "another version of the SDK" are different sentences with different cures. No SDK is imported:
versions come from package metadata. In this Python nothing is started at all.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from quantlab import host, launch, places
from quantlab.child import NO_PROGRAM, environment
from quantlab.engines import ENGINES, check, sdks
from quantlab.errors import BadInput, NoAccess, QuantlabError, Refused
from quantlab.places import HERE, Place

OLDEST = (3, 11)
"""First Python that quantlab runs under."""
SECONDS = 60.0
"""Longest time to start; the first start from a network disk, or of a container, takes half of it."""
WITH_SETUP = ("vllm", "trtllm", "ortgenai", *sdks.CLIENTS, "rtx")
"""Engines, clients and builders that `quantlab engines setup` knows."""
MARK = "quantlab-probe "
_LOOK = f"""
import sys
sys.path[:] = [entry for entry in sys.path if entry not in ("", ".")]
import json
found, fault = {{}}, ""
try:
    if sys.version_info >= {OLDEST}:
        from importlib.metadata import PackageNotFoundError, version
        for package in sys.argv[1:]:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue  # absent: the caller asked which are here
        import quantlab.worker
except Exception as error:
    fault = "%s: %s" % (type(error).__name__, error)
said = {{"python": list(sys.version_info[:3]), "versions": found, "fault": fault}}
sys.stdout.write("\\n{MARK}" + json.dumps(said) + "\\n")
"""

State = Literal["ready", "absent", "wrong version", "does not start"]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One engine on this machine: a line of `quantlab engines`."""

    engine: str
    state: State
    version: str
    """Package and version of its SDK; empty where there is none."""
    place: str
    """Interpreter or command."""
    source: str
    """Who named it: a file and line, a variable, the setup, or nobody ("this Python")."""
    python: str = ""
    why: str = ""
    """What is wrong, or what a ready one lacks for measuring."""
    cure: str = ""
    abilities: tuple[str, ...] = ()
    """What its sessions answer."""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What a Python said of itself."""

    python: tuple[int, ...] = ()
    versions: dict[str, str] = {}
    """Package -> version, of those that were asked for."""
    fault: str = ""
    """Why it cannot be used; empty when it can."""


def standings() -> list[Standing]:
    """All engines in the order of their table, then the load generators."""
    return [standing(name) for name in (*ENGINES, *sdks.CLIENTS)]


def standing(engine: str) -> Standing:
    """How `engine` stands on this machine. A wrong engines.toml is a standing, too: "does not start"."""
    if engine not in sdks.CLIENTS:
        check(engine)
    try:
        place = places.find(engine)
    except BadInput as error:
        return _standing(engine, Place((), error.place), "does not start", "", error.problem, error.cure)
    return judged(engine, place, look(place, (*sdks.packages(engine), *sdks.MEASURING)))


def require(engine: str, place: Place, needs: tuple[str, ...] = sdks.MEASURING) -> Look:
    """The look of an engine that can be used at `place`. `needs`: packages beside the SDK.

    Raises:
        NoAccess: its SDK, or what measuring needs, is not installed.
        Refused: in another version.
        BadInput: what was named does not start.
    """
    found = look(place, (*sdks.packages(engine), *sdks.MEASURING, *host.PACKAGES))
    stands = judged(engine, place, found, needs)
    if stands.state == "ready" and stands.why:
        raise NoAccess(stands.why, place=f"engine {engine}", cure=stands.cure)
    if stands.state == "ready":
        return found
    kinds: dict[str, type[QuantlabError]] = {"absent": NoAccess, "wrong version": Refused, "does not start": BadInput}
    raise kinds[stands.state](stands.why, place=f"engine {engine}", cure=stands.cure)


def judged(engine: str, place: Place, found: Look, needs: tuple[str, ...] = sdks.MEASURING) -> Standing:
    """What a look means for an engine of which `needs` is asked."""
    cure = f"`quantlab engines setup {engine}` makes an environment for it." if engine in WITH_SETUP else "Install it."
    cure += "" if place.source == HERE else f" Or correct {place.source}."
    python = ".".join(map(str, found.python))
    if found.fault:
        return _standing(engine, place, "does not start", "", f"{place} {found.fault}", cure, python)
    wanted = sdks.SDKS.get(engine, ())
    here = sdks.present(engine, found.versions)
    if here is None and wanted:
        why = f"{' or '.join(sdk.package for sdk in wanted)} is not installed in {place}."
        return _standing(engine, place, "absent", "", why, cure, python)
    version = f"{here[0].package} {here[1]}" if here else ""
    if here and not sdks.fits(here[1], here[0].low, here[0].high):
        why = f"{version} is in {place}, and quantlab knows {here[0]}."
        return _standing(engine, place, "wrong version", version, why, cure, python)
    wanting = needs if engine in ENGINES else ()
    if missing := [name for name in wanting if name not in found.versions]:
        why = f"{', '.join(missing)} is not installed in {place}, and measuring needs it there."
        return _standing(engine, place, "ready", version, why, f"pip install {' '.join(missing)} there.", python)
    return _standing(engine, place, "ready", version, "", "", python)


def _standing(engine: str, place: Place, state: State, version: str, why: str, cure: str, python: str = "") -> Standing:
    from quantlab.engines import engine as made

    able = made(engine).abilities if engine in ENGINES else ()
    abilities = tuple(sorted((one.name or "").lower() for one in able))
    return Standing(
        engine=engine,
        state=state,
        version=version,
        place=str(place) if place.command else f"{HERE} ({sys.executable})" if place.source == HERE else "-",
        source=place.source,
        python=python,
        why=why,
        cure=cure,
        abilities=abilities,
    )


def look(place: Place, packages: tuple[str, ...]) -> Look:
    """Start what stands at `place` and let it say its versions. Never raises: what goes wrong is its `fault`."""
    if not place.command:
        return Look(python=sys.version_info[:3], versions=host.versions(packages))
    import tempfile

    with tempfile.TemporaryDirectory(prefix="quantlab-look-") as folder:
        return _started(place.command, packages, Path(folder))


def _started(command: tuple[str, ...], packages: tuple[str, ...], folder: Path) -> Look:
    import subprocess

    variables = environment(command, folder)
    words = [*launch.expanded(command, None, folder, variables), "-c", _LOOK, *packages]
    try:
        done = subprocess.run(
            words,
            env=variables,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return Look(fault=f"gave no answer within {SECONDS:.0f} s.")
    except OSError as error:
        if error.errno not in NO_PROGRAM:
            raise
        return Look(fault=f"cannot be started: {os.strerror(error.errno or 0)}.")
    return _read(done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"), done.returncode)


def _read(out: str, err: str, code: int) -> Look:
    said = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    if not said:
        lines = [line.strip() for line in f"{out}\n{err}".splitlines() if line.strip()]
        last = " / ".join(lines[-2:]) or "nothing"  # docker's last line only points to its help
        return Look(fault=f"is no Python that answers (exit code {code}); it said: {last[:300]}")
    answer: dict[str, Any] = json.loads(said[-1])
    python = tuple(answer["python"])
    fault = answer["fault"] and f"cannot run quantlab's worker: {answer['fault']}."
    if python < OLDEST:
        fault = f"is Python {'.'.join(map(str, python))}; quantlab needs {'.'.join(map(str, OLDEST))} or newer."
    return Look(python=python, versions=answer["versions"], fault=fault)
