"""The project's own files agree with each other: environment, constraints, README, wheel."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from quantlab.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["project"]


def wanted() -> dict[str, Requirement]:
    """All requirements of the project and its extras, by normal name."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return {normal(found.name): found for found in map(Requirement, lines)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_environment_yml_asks_for_what_pyproject_asks_for() -> None:
    text = ROOT.joinpath("environment.yml").read_text()
    conda = yaml.safe_load(text)["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    named = [Requirement(line) for line in pip if not line.startswith("-")]
    assert {normal(each.name) for each in named} >= {"nvidia-modelopt", "torch", "datasets", "lm-eval", "jupyterlab"}
    for each in named:
        assert each.specifier == wanted()[normal(each.name)].specifier, each
    assert "-e .[lab]" in pip
    assert "python=3.12" in conda
    assert "tensorrt-llm" in text, "the engine's own environment is explained where people look for it"


def test_constraints_fit_every_requirement() -> None:
    lines = [line for line in ROOT.joinpath("constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {normal(pin.name): str(pin.specifier).removeprefix("==") for pin in map(Requirement, lines)}
    for name, requirement in wanted().items():
        if name in pins:
            assert requirement.specifier.contains(pins[name], prereleases=True), (requirement, pins[name])
    missing = [
        name for name in map(normal, (Requirement(line).name for line in PROJECT["dependencies"])) if name not in pins
    ]
    assert missing == []


def test_the_readme_shows_a_result_and_every_command() -> None:
    text = ROOT.joinpath("README.md").read_text()
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", text), f"README does not mention {name}"
    assert "make demo" in text
    assert "make test" in text
    assert re.search(r"\| (int4_awq|INT4-AWQ)\b.*\|", text), "a real result, not a promise"


def test_the_file_tree_of_the_readme_exists() -> None:
    text = ROOT.joinpath("README.md").read_text()
    tree = text[text.index("calibration/     ") : text.index("environment.yml  ")]
    top = [line.split()[0] for line in tree.splitlines() if line and not line.startswith(" ")]
    assert {"calibration/", "evals/", "quantlab/", "benchmarks/", "docs/", "notebooks/"} <= set(top)
    assert [name for name in top if not ROOT.joinpath(name).exists()] == []


@pytest.mark.parametrize("folder", ["calibration", "evals", "environments"])
def test_the_vocabulary_travels_in_the_wheel(folder: str) -> None:
    build = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"][folder] == f"quantlab/_data/{folder}"
