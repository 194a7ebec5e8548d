"""The notebooks: stripped in the repository, whole in the wheel, and two of them executed from first cell to last.

`make notebooks` executes all; here are those that need no long run: 05 measures nothing, and 06 reads the ledger of a
tiny model.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import quantlab as ql
from quantlab.cli import cli
from quantlab.cli.lab import notebooks
from quantlab.errors import NoAccess

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"(?:^|[\s\"'(=])/(?:home|root|Users|mnt|tmp|var|opt|work)\b|[A-Z]:\\\\")
LACKING = [
    name
    for name in ("jupyterlab", "nbconvert", "ipykernel", "altair", "vl_convert")
    if not importlib.util.find_spec(name)
]
needs_lab = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)} (pip install -e '.[lab]')")
SUITE = """\
summary: some items
synthetic: true
tasks:
  - {task: ql_arithmetic, metric: acc, limit: 20}
  - {task: ql_agreement, metric: acc, limit: 20}
canary: [the cat sat on the mat]
"""
RECIPE = """\
summary: FP8 on very little text
preset: FP8_DEFAULT_CFG
format: fp8
calibration: {set: python-docs, samples: 4, length: 64}
"""


def test_there_are_six() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_names_no_machine(path: Path) -> None:
    document = json.loads(path.read_text("utf-8"))
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert code
    assert [cell["source"] for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    assert all(cell["metadata"] == {} for cell in document["cells"]), "no collapsed, timed or tagged cells"
    assert set(document["metadata"]) == {"kernelspec", "language_info"}
    assert document["metadata"]["kernelspec"]["name"] == "python3", "a kernel that everybody has"
    assert document["metadata"]["language_info"] == {"name": "python"}, "no version of somebody's Python"
    sources = ["".join(cell["source"]) for cell in document["cells"]]
    assert [text for text in sources if MACHINE.search(text)] == []
    assert document["cells"][0]["cell_type"] == "markdown"
    assert sources[0].startswith(f"# {path.name[:2]} "), "the title says which one it is"


def test_the_notebooks_travel_in_the_wheel_and_nothing_beside_them() -> None:
    build = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    included = {source for source in build["force-include"] if source.startswith("notebooks")}
    lying = {*NOTEBOOKS, *(ROOT / "notebooks" / "calibration").glob("*.yaml")}
    assert included == {path.relative_to(ROOT).as_posix() for path in lying}


def execute(stem: str, ledger: Path, out: Path) -> list[dict[str, Any]]:
    """The cells of a notebook after running it as `make notebooks` does."""
    source = next(path for path in NOTEBOOKS if path.stem.startswith(stem))
    words = ["-m", "nbconvert", "--execute", "--to", "notebook", "--output-dir", str(out), str(source)]
    mine = {
        "QUANTLAB_LEDGER": str(ledger),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    done = subprocess.run([sys.executable, *words], env={**os.environ, **mine}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    cells: list[dict[str, Any]] = json.loads((out / source.name).read_text("utf-8"))["cells"]
    return cells


def shown(cells: list[dict[str, Any]], kind: str) -> list[str]:
    """What the cells show of one MIME type."""
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    return ["".join(output["data"][kind]) for output in outputs if kind in output.get("data", {})]


def pictures(cells: list[dict[str, Any]]) -> list[str]:
    """Charts whose marks say their numbers."""
    return [page for page in shown(cells, "text/html") if "quantlab-picture" in page and "<title>" in page]


@needs_lab
def test_05_chooses_without_measuring(tmp_path: Path) -> None:
    cells = execute("05", tmp_path / "runs", tmp_path)
    assert len(pictures(cells)) == 2
    pages = "".join(shown(cells, "text/html"))
    assert "ship fp8" in pages
    assert "To relax" in pages
    assert not (tmp_path / "runs" / "entries").exists(), "it measured nothing"


@needs_lab
def test_06_reads_what_is_there(tiny_model: Path, tmp_path: Path) -> None:
    for name, text in (("few.yaml", RECIPE), ("suite.yaml", SUITE)):
        (tmp_path / name).write_text(text)
    words: dict[str, Any] = {"suite": str(tmp_path / "suite.yaml"), "stages": ("calibrate", "accuracy")}
    ql.run(str(tiny_model), [str(tmp_path / "few.yaml")], root=tmp_path / "runs", **words)
    before = len(ql.ledger(tmp_path / "runs").entries())
    cells = execute("06", tmp_path / "runs", tmp_path)
    assert len(pictures(cells)) == 2
    assert any("ql_arithmetic" in page for page in shown(cells, "text/html"))
    assert len(ql.ledger(tmp_path / "runs").entries()) == before, "it ran nothing"


def test_lab_says_where_the_notebooks_are() -> None:
    said = CliRunner().invoke(cli, ["lab", "--where"])
    assert said.output.split() == ["notebooks:", str(ROOT / "notebooks")]


def test_lab_copies_the_notebooks_and_keeps_what_is_yours(tmp_path: Path) -> None:
    mine = tmp_path / "here" / NOTEBOOKS[0].name
    mine.parent.mkdir()
    mine.write_text("mine")
    assert notebooks(tmp_path / "here") == tmp_path / "here"
    assert mine.read_text() == "mine"
    assert {path.name for path in mine.parent.glob("*.ipynb")} == {path.name for path in NOTEBOOKS}
    assert (mine.parent / "calibration" / "fp8_small.yaml").is_file()
    blocked = tmp_path / "file"
    blocked.write_text("")
    said = CliRunner().invoke(cli, ["lab", "--where", "--to", str(blocked / "below")])
    assert said.exit_code != 0
    assert "cannot be copied" in str(said.exception)


def test_lab_hands_the_place_and_what_it_does_not_know_to_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "execve", lambda *words: called.append(words))
    monkeypatch.delenv("QUANTLAB_LEDGER", raising=False)
    assert CliRunner().invoke(cli, ["lab", "--no-browser", "--port", "9000"]).exit_code == 0
    [(program, words, environment)] = called
    assert (program, words[:3]) == (sys.executable, [sys.executable, "-m", "jupyterlab"])
    assert words[3:] == [str(ROOT / "notebooks"), "--no-browser", "--port", "9000"]
    assert environment["QUANTLAB_LEDGER"] == str(Path("runs").absolute()), "the same ledger as the command line's"


def test_lab_without_jupyterlab_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = CliRunner().invoke(cli, ["lab"])
    assert isinstance(said.exception, NoAccess)
    assert ".[lab]" in said.exception.cure
    assert said.exception.exit_code == 4
