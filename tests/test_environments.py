"""`quantlab engines` and `engines setup`: real environments, made without the network; killed, and two at once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from quantlab import environments, places, probe
from quantlab.cli import cli
from quantlab.engines import sdks
from quantlab.environments import ENVIRONMENTS
from quantlab.errors import BadInput, Broken, Refused, StageFailed
from tests.test_child import dead, until
from tests.test_places import alone as alone

ROOT = Path(__file__).resolve().parent.parent
MINE = f"{sys.version_info[0]}.{sys.version_info[1]}"


FILL = """
import sys
from pathlib import Path
site = next(Path(sys.argv[1]).glob("lib/python*/site-packages"))
site.joinpath("more.pth").write_text(sys.argv[2])
for line in Path(sys.argv[3]).read_text().splitlines():
    name, version = line.split("==")
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
"""
"""What stands for pip: it "installs" the pins, and lets the environment read this one's packages."""


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment "ortgenai" is a real one, made without pip in a second; returns its file of versions."""
    file = tmp_path / "pins.txt"
    file.write_text("onnxruntime-genai==0.18.7\n")
    more = "\n".join(path for path in sys.path if path.endswith("site-packages"))

    def planned(name: str, into: Path | None = None, python: str | None = None) -> environments.Setup:
        folder = environments._folder(ENVIRONMENTS[name], into)
        environments._require_ours(folder)
        make = (sys.executable, "-m", "venv", "--without-pip", str(folder))
        fill = (sys.executable, "-c", FILL, str(folder), more, str(file))
        return environments.Setup(name, folder, (make, fill))

    monkeypatch.setattr(environments, "planned", planned)
    monkeypatch.setattr(environments, "constraints", lambda name: file)
    return file


def test_every_environment_has_its_file_and_its_file_what_measuring_needs() -> None:
    for name, recipe in ENVIRONMENTS.items():
        lines = environments.constraints(name).read_text(encoding="utf-8").splitlines()
        pins = {}
        for line in lines:
            if line and not line.startswith("#"):
                found = Requirement(line)
                pins[re.sub(r"[-_.]+", "-", found.name).lower()] = found.specifier
        assert not recipe.measures or set(environments.MEASURING) <= set(pins), name
        assert recipe.packages[0] in pins
        assert recipe.engine in sdks.SDKS
        sdk = next(sdk for sdk in sdks.SDKS[recipe.engine] if sdk.package == recipe.packages[0])
        exact = str(pins[sdk.package]).removeprefix("==")
        assert sdks.fits(exact, sdk.low, sdk.high), f"{name} pins {exact}"
        assert all(tuple(map(int, version.split("."))) >= probe.OLDEST for version in recipe.pythons)
    assert {recipe.engine for recipe in ENVIRONMENTS.values()} == set(probe.WITH_SETUP)


def test_an_environment_is_made_and_found_and_not_made_again(pins: Path, alone: Path) -> None:
    said: list[str] = []
    done = environments.setup("ortgenai", say=said.append)
    assert done.folder == places.made("ortgenai")
    assert len(said) == 2
    stamp = json.loads((done.folder / places.STAMP).read_text())
    assert stamp["versions"]["onnxruntime-genai"] == "0.18.7"
    assert places.find("vllm").command == ()
    assert environments.setup("ortgenai").commands == ()
    pins.write_text("onnxruntime-genai==0.18.8\n")
    assert environments.setup("ortgenai").commands, "other pins are another environment"


def test_elsewhere_it_is_linked_from_home(pins: Path, alone: Path) -> None:
    there = alone / "big disk"
    environments.setup("ortgenai", into=there)
    assert places.made("ortgenai").resolve() == there
    python = places.Place((str(places.made("ortgenai") / "bin" / "python"),), "test")
    found = probe.look(python, ("onnxruntime-genai",))
    assert (found.fault, found.versions) == ("", {"onnxruntime-genai": "0.18.7"})
    assert environments.planned("ortgenai").folder == there
    (alone / "mine").mkdir()
    (alone / "mine" / "thesis.txt").write_text("two years of work")
    with pytest.raises(BadInput, match="no environment"):
        environments.setup("ortgenai", into=alone / "mine")
    assert (alone / "mine" / "thesis.txt").read_text()


def test_what_fails_does_not_look_ready(pins: Path, alone: Path) -> None:
    environments.setup("ortgenai")
    pins.write_text("rubbish\n")
    with pytest.raises(StageFailed, match="exit code"):
        environments.setup("ortgenai", again=True)
    assert not (places.made("ortgenai") / places.STAMP).exists()
    assert not places.find("ortgenai").command
    pins.write_text("onnxruntime-genai==0.18.7\n")
    assert environments.setup("ortgenai").commands, "and is made anew"


def test_all_installed_and_still_not_ready_is_said(pins: Path, alone: Path) -> None:
    pins.write_text("onnxruntime-genai==0.99.0\n")
    with pytest.raises(Broken, match=re.escape("onnxruntime-genai>=0.18,<0.19")):
        environments.setup("ortgenai")
    assert not places.find("ortgenai").command


SETUP = """
import sys
from quantlab import environments
environments.planned = lambda *words: environments.Setup("ortgenai", environments._folder(
    environments.ENVIRONMENTS["ortgenai"], None), tuple(map(tuple, eval(sys.argv[1]))))
environments._finish = lambda plan: (plan.folder / "quantlab.json").write_text("{}")
environments.setup("ortgenai", say=lambda text: print(text, flush=True))
"""
SLOW = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "log", "a") as log:
    print("begin", os.getpid(), file=log, flush=True)
    time.sleep(float(sys.argv[2]))
    print("end", os.getpid(), file=log)
"""


def slow(home: Path, seconds: float) -> subprocess.Popen[str]:
    """A setup whose only step takes its time."""
    command = [sys.executable, "-c", SLOW, str(home / "engines" / "ortgenai"), str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-c", SETUP, repr([command])],
        env={**os.environ, "QUANTLAB_HOME": str(home), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def log(home: Path) -> list[list[str]]:
    path = home / "engines" / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_ctrl_c_leaves_nothing_that_looks_ready(tmp_path: Path) -> None:
    process = slow(tmp_path, 60)
    until(lambda: log(tmp_path))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "Interrupted" in errors
    assert dead(int(log(tmp_path)[0][1])), "pip ends, too"
    assert not (tmp_path / "engines" / "ortgenai" / places.STAMP).exists()


def test_two_at_once_go_one_after_the_other_also_behind_an_orphan(tmp_path: Path) -> None:
    first = slow(tmp_path, 2)
    until(lambda: log(tmp_path))
    first.kill()
    first.wait()
    second = slow(tmp_path, 0)
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert "waiting" in out
    assert [line[0] for line in log(tmp_path)] == ["begin", "end", "begin", "end"]
    assert (tmp_path / "engines" / "ortgenai" / places.STAMP).exists()


def test_no_python_no_library_no_such_name(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments.shutil, "which", lambda name: None)
    with pytest.raises(Refused, match="none of it is here") as caught:
        environments.planned("vllm")
    assert "--python" in caught.value.cure
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(Refused, match="libmpi") as caught:
        environments.planned("trtllm")
    assert "libopenmpi-dev" in caught.value.cure
    monkeypatch.setattr(environments.platform, "machine", lambda: "arm64")
    with pytest.raises(Refused, match="arm64"):
        environments.planned("vllm")
    with pytest.raises(BadInput) as wrong:
        environments.planned("vlm")
    assert "Did you mean 'vllm'" in wrong.value.cure


def test_uv_is_used_where_it_is(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    first, second = environments.planned("vllm").commands
    assert first == ("/bin/uv", "venv", "--python", "3.12", str(places.made("vllm")))
    assert second[:4] == ("/bin/uv", "pip", "install", "--python")
    assert str(environments.constraints("vllm")) in second


def test_the_list_and_its_json(alone: Path) -> None:
    alone.joinpath("engines.toml").write_text('[vllm]\npython = "/nowhere/python"\n')
    shown = CliRunner().invoke(cli, ["engines"])
    assert shown.exit_code == 0
    assert re.search(r"^vllm +does not start", shown.output, re.MULTILINE)
    assert "engines.toml, line 2" in shown.output
    assert "engines setup trtllm" in shown.output
    found = {each["engine"]: each for each in json.loads(CliRunner().invoke(cli, ["engines", "--json"]).output)}
    assert found["torch"]["state"] == "ready"
    assert "logprobs" in found["torch"]["abilities"]
    assert found["vllm"]["cure"]


def test_a_dry_run_makes_nothing(alone: Path) -> None:
    shown = CliRunner().invoke(cli, ["engines", "setup", "ortgenai", "--dry-run", "--into", str(alone / "x")])
    assert shown.exit_code == 0, shown.output
    assert "environments/ortgenai.txt" in shown.output
    assert not (alone / "x").exists()
    assert not places.home().exists()
