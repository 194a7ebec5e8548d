"""The house rules: what a start loads, how files are called, how long they are, and what is never written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "quantlab").rglob("*.py"))
SDKS = {
    "torch",
    "transformers",
    "modelopt",
    "lm_eval",
    "datasets",
    "pandas",
    "numpy",
    "scipy",
    "pyarrow",
    "altair",
    "rich",
}


@pytest.mark.parametrize(
    "module",
    [
        "quantlab",
        "quantlab.cli",
        "quantlab.pipeline",
        "quantlab.catalog",
        "quantlab.ledgers",
        "quantlab.host",
        "quantlab.preflight",
    ],
)
def test_a_start_loads_no_sdk(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert SDKS.isdisjoint(done.stdout.split())


def test_the_pure_rooms_load_nothing_of_ours_but_numpy_and_scipy() -> None:
    code = "import sys, quantlab.predict; print(*sorted(name for name in sys.modules if name.startswith('quantlab')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {name for name in done.stdout.split() if not name.startswith("quantlab.predict")} == {"quantlab"}


def test_help_of_every_command_loads_no_sdk() -> None:
    from quantlab.cli import COMMANDS

    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom quantlab.cli import cli, COMMANDS\n"
        "for name in COMMANDS:\n"
        "    out = CliRunner().invoke(cli, [name, '--help'])\n"
        "    assert out.exit_code == 0, out.output\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert SDKS.isdisjoint(done.stdout.split())
    assert len(COMMANDS) >= 10


def test_no_module_is_a_drawer_for_anything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [path for path in PACKAGE if path.stem in drawers] == []


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_explained(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is for"
    assert text.count("\n") <= 300
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 45
    ]
    assert long == []


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unsafe_is_called(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"trust_remote_code\s*=\s*True", text)
    assert not re.search(r"\byaml\.(load|unsafe_load|full_load)\(", text)
    assert not re.search(r"\btorch\.load\(|\bpickle\.loads?\(", text)
    assert not re.search(r"except[^\n]*:\s*\n\s*pass\b", text), "an error is never swallowed"


def test_the_vocabulary_folders_hold_data_only() -> None:
    assert list((ROOT / "calibration").rglob("*.py")) == []
    assert list((ROOT / "evals").rglob("*.py")) == []


def test_no_place_of_a_machine_and_no_registry_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    texts = [
        ROOT / name
        for name in listed
        if name and not name.endswith((".safetensors", ".png", ".parquet", ".jsonl", ".txt"))
    ]
    # The patterns are put together here so that this file does not match itself.
    place = re.compile("/" + r"(?:work|root|home/\w+|farm)/[\w.]")
    registry = re.compile("index" + "-url|find" + "-links|files\\.python" + "hosted")
    bad = [
        f"{path.name}: {found.group()}"
        for path in texts
        if path.is_file()
        for found in [place.search(_read(path)) or registry.search(_read(path))]
        if found
    ]
    assert bad == []


def _read(path: Path) -> str:
    return path.read_text(errors="replace")
