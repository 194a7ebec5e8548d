# ruff: noqa: F811
"""A run whose engine lives under another interpreter; `--engine auto`; what is built is built once, in a child."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab import engines, pipeline, probe
from quantlab.engines import Ability, engine, vllm
from quantlab.errors import NoAccess, QuantlabError, Refused, StageFailed
from quantlab.ledgers import Ledger
from quantlab.pipeline import choice
from quantlab.pipeline.ask import resolve
from quantlab.pipeline.assemble import Walk
from quantlab.pipeline.walker import Walker
from quantlab.plans import Plan
from quantlab.records import Checkpoint, EngineConfig, Gpu, Host, Weights
from tests.test_child import until
from tests.test_pipeline import Bench, Seen, bench  # noqa: F401
from tests.test_places import alone, other, package  # noqa: F401

H100 = Gpu(name="NVIDIA H100", memory_bytes=80 << 30, compute_capability="9.0")


def host(*gpus: Gpu) -> Host:
    return Host(system="test", python="3.11", cpu="test", cores=2, memory_bytes=2**33, gpus=gpus)


BUILDER = """
import json, os, pathlib
import msgspec
from quantlab.engines.fake import FakeEngine

class Builder(FakeEngine):
    \"\"\"The little model, with something to build.\"\"\"
    name = "builder"
    def builds(self, checkpoint, config):
        return {"max_batch": config.max_batch}
    def build(self, checkpoint, into, config, host):
        into.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (into / name).write_bytes((pathlib.Path(checkpoint.path) / name).read_bytes())
        with open(os.environ["BUILDER_LOG"], "a") as log:
            print(os.getpid(), file=log)
        if os.environ.get("BUILDER_DIES"):
            os.kill(os.getpid(), 9)
        return msgspec.structs.replace(super().build(checkpoint, into, config, host), path=str(into), notes=("built.",))
"""


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine that builds, known here and in every child; returns the file that holds one line a build."""
    tmp_path.joinpath("builder_engine.py").write_text(BUILDER)
    tmp_path.joinpath("sitecustomize.py").write_text(
        "import quantlab.engines as e; e.ENGINES['builder'] = 'builder_engine:Builder'"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(engines.ENGINES, "builder", "builder_engine:Builder")
    monkeypatch.setenv("BUILDER_LOG", str(tmp_path / "builds"))
    return tmp_path / "builds"


def speed(bench: Bench, engine_name: str, **more: Any) -> pipeline.Ask:
    """Baseline only, canary and throughput only: seconds."""
    return dataclasses.replace(
        bench.ask(), recipes=("bf16",), engine=engine_name, stages=("calibrate", "canary", "throughput"), **more
    )


def test_an_engine_runs_under_its_own_interpreter_and_the_record_says_so(
    bench: Bench,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = next((other.parent.parent / "lib").glob("python*/site-packages"))
    package(site, "vllm", "0.24.0")
    monkeypatch.setenv("QUANTLAB_ENGINE_FAKE", str(other))
    ledger, seen = Ledger(tmp_path / "runs"), Seen()
    run = pipeline.run(speed(bench, "fake"), ledger, seen)
    assert run.candidates[0].throughput is not None
    measured = [entry for entry in ledger.entries() if entry.stage in ("build", "canary", "throughput")]
    assert len(measured) == 3
    assert {entry.host.versions.get("vllm") for entry in measured} == {"0.24.0"}
    assert {entry.host.versions.get("vllm") for entry in ledger.entries("calibrate")} == {None}
    assert any(str(other) in text for text in seen.said)
    for entry in ledger.entries():
        assert str(tmp_path) not in msgspec.json.encode([entry.spec, entry.host]).decode()
    again = Seen()
    pipeline.run(speed(bench, "fake"), ledger, again)
    assert all(cached for _, _, cached in again.stages)
    monkeypatch.delenv("QUANTLAB_ENGINE_FAKE")
    here = Seen()
    pipeline.run(speed(bench, "fake"), ledger, here)
    assert [stage for _, stage, cached in here.stages if not cached] == []
    assert "build" not in {stage for _, stage, _ in here.stages}, "here it builds nothing, and pays no child"


def built(bench: Bench, root: Path, config: EngineConfig | None = None, seen: Seen | None = None) -> tuple[Walk, Any]:
    """What a walker's `_artifact` gives for the little model, taken as a checkpoint of its own."""
    resolved = resolve(speed(bench, "builder", config=config or EngineConfig()))
    weights = Weights(path=str(bench.model), digest="0", architecture="LlamaForCausalLM", bytes=1)
    walker = Walker(resolved, weights, host(), Ledger(root), seen or Seen())
    found, recipe = resolved.recipes[0]
    walk = Walk(name=found.name, recipe=recipe)
    shape = {"digest": "1", "recipe": "bf16", "format": "bf16", "architecture": "LlamaForCausalLM"}
    checkpoint = Checkpoint(path=str(bench.model), **shape)
    return walk, walker.measuring.artifact(walk, checkpoint, resolved.ask.config)


def test_what_is_built_is_built_once_in_a_child_and_kept(bench: Bench, builder: Path, tmp_path: Path) -> None:
    root, seen = tmp_path / "runs", Seen()
    walk, artifact = built(bench, root, seen=seen)
    assert seen.stages == [("bf16", "build", False)]
    assert artifact.notes == ("built.",)
    assert Path(artifact.path, "config.json").is_file()
    (entry,) = Ledger(root).entries("build")
    assert entry.identity == walk.identities["build"]
    assert not Path(Ledger(root).result(entry).path).is_absolute(), "a ledger may be moved"
    assert built(bench, root)[1] == artifact
    pids = builder.read_text().split()
    assert len(pids) == 1
    assert pids != [str(os.getpid())], "not in this process"
    built(bench, root, EngineConfig(max_batch=4))
    assert len(builder.read_text().split()) == 2, "another shape is another artifact"
    root.rename(tmp_path / "elsewhere")
    assert built(bench, tmp_path / "elsewhere")[1].path.startswith(str(tmp_path / "elsewhere"))
    assert len(builder.read_text().split()) == 2
    shutil.rmtree(built(bench, tmp_path / "elsewhere")[1].path)
    built(bench, tmp_path / "elsewhere")
    assert len(builder.read_text().split()) == 3, "what was deleted is built again"


def test_a_build_that_is_killed_is_a_record(
    bench: Bench,
    builder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BUILDER_DIES", "1")
    with pytest.raises(StageFailed, match="SIGKILL"):
        built(bench, tmp_path / "runs")
    (entry,) = Ledger(tmp_path / "runs").entries("build")
    assert entry.status == "failed"
    monkeypatch.delenv("BUILDER_DIES")
    assert built(bench, tmp_path / "runs")[1].notes


BUILD = """
import sys
from pathlib import Path
from tests.test_pipeline import Bench
from tests.test_pipeline_engines import built
built(Bench(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]))
"""


def building(bench: Bench, root: Path, builder: Path) -> subprocess.Popen[bytes]:
    places_ = (str(Path(__file__).parents[1]), str(builder.parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places_)}
    command = [sys.executable, "-c", BUILD, str(bench.folder), str(bench.model), str(root)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


def test_two_at_once_build_once(bench: Bench, builder: Path, tmp_path: Path) -> None:
    both = [building(bench, tmp_path / "runs", builder) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(builder.read_text().split()) == 1


def test_ctrl_c_while_building_leaves_no_record(bench: Bench, builder: Path, tmp_path: Path) -> None:
    code = builder.parent / "builder_engine.py"
    code.write_text(
        code.read_text().replace("        with open", "        import time; time.sleep(60)\n        with open")
    )
    process = building(bench, tmp_path / "runs", builder)
    until(lambda: list((tmp_path / "runs" / "checkpoints").glob("*/config.json")))
    process.send_signal(signal.SIGINT)
    assert b"Interrupted" in process.communicate(timeout=30)[1]
    assert Ledger(tmp_path / "runs").entries("build") == []


@pytest.mark.parametrize(("state", "error"), [("absent", NoAccess), ("wrong version", Refused)])
def test_an_engine_that_cannot_be_used_is_refused_before_anything_is_calibrated(
    state: str,
    error: type[QuantlabError],
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if state != "absent":
        monkeypatch.setattr(probe.host, "versions", lambda names: {"vllm": "0.99"})
    with pytest.raises(error) as caught:
        pipeline.run(speed(bench, "vllm"), Ledger(tmp_path / "runs"))
    assert caught.value.place == "engine vllm"
    assert "quantlab engines setup vllm" in caught.value.cure
    assert not (tmp_path / "runs" / "entries").exists()


def test_calibrating_alone_asks_no_engine(bench: Bench, tmp_path: Path) -> None:
    ask = dataclasses.replace(speed(bench, "vllm"), stages=("calibrate",))
    assert pipeline.run(ask, Ledger(tmp_path / "runs")).candidates[0].calibrated is not None


# --- auto


class Takes:
    """An engine that refuses what it is told to."""

    abilities = Ability.GENERATE

    def __init__(self, *refused: str) -> None:
        self.refused = refused

    def supports(self, checkpoint: Checkpoint, host: Host) -> str | None:
        if not host.gpus:
            return "there is no GPU."
        return f"no kernels for {checkpoint.format}." if checkpoint.format in self.refused else None


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """All SDKs look installed here."""
    versions = {"tensorrt-llm": "1.2.1", "vllm": "0.24.0", "onnxruntime-genai": "0.18.0", "torch": "2.13.0"}
    everything = versions | dict.fromkeys(probe.sdks.MEASURING, "1.0")
    monkeypatch.setattr(probe.host, "versions", lambda names: {n: everything[n] for n in names if n in everything})


def chosen(monkeypatch: pytest.MonkeyPatch, engines_: dict[str, Takes], ask: pipeline.Ask, here: Host) -> Any:
    monkeypatch.setattr(choice, "ENGINES", dict.fromkeys((*engines_, "torch"), ""))
    for place in ("quantlab.engines.building.engine", "quantlab.pipeline.station.engine", "quantlab.engines.engine"):
        monkeypatch.setattr(place, lambda name: engines_.get(name) or engine(name))
    resolved = resolve(ask)
    plans = {found.name: Plan(recipe=found.name, group_size=None) for found, _ in resolved.recipes}
    return choice.settled(resolved, "LlamaForCausalLM", plans, here, Seen())


def test_auto_takes_the_first_that_takes_every_recipe(
    bench: Bench,
    ready: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = dataclasses.replace(bench.ask(), recipes=("fp8", "int4_awq"), engine="auto")
    found = chosen(monkeypatch, {"trtllm": Takes(), "vllm": Takes()}, ask, host(H100))
    assert (found.ask.engine, len(found.notes)) == ("trtllm", 1)
    found = chosen(monkeypatch, {"trtllm": Takes("int4_awq"), "vllm": Takes()}, ask, host(H100))
    assert found.ask.engine == "vllm"
    assert found.notes[0] == "Engine auto passed over trtllm: int4_awq: no kernels for int4_awq."
    found = chosen(monkeypatch, {"trtllm": Takes("int4_awq"), "vllm": Takes("fp8")}, ask, host(H100))
    assert found.ask.engine == "torch"
    assert len(found.notes) == 3
    cpu = dataclasses.replace(ask, config=EngineConfig(device="cpu"))
    assert chosen(monkeypatch, {"trtllm": Takes(), "vllm": Takes()}, cpu, host(H100)).ask.engine == "torch"


def test_on_a_gpu_without_fp8_auto_passes_over_what_needs_it(
    bench: Bench, ready: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engines' own words, on an A100 and on an H100."""
    monkeypatch.setattr(vllm, "installed", lambda: ("vllm", "0.24.0"))
    monkeypatch.setattr(choice, "ENGINES", {"vllm": "", "torch": ""})
    ask = dataclasses.replace(bench.ask(), recipes=("fp8",), engine="auto")
    resolved = resolve(ask)
    plans = {found.name: Plan(recipe=found.name, group_size=None) for found, _ in resolved.recipes}
    a100 = msgspec.structs.replace(H100, name="NVIDIA A100", compute_capability="8.0")
    old = choice.settled(resolved, "LlamaForCausalLM", plans, host(a100), Seen())
    assert old.ask.engine == "torch"
    assert "needs compute capability 8.9, and NVIDIA A100 has 8.0" in old.notes[0]
    assert choice.settled(resolved, "LlamaForCausalLM", plans, host(H100), Seen()).ask.engine == "vllm"


def test_a_recipe_that_the_plan_refuses_does_not_decide(
    bench: Bench,
    ready: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = dataclasses.replace(bench.ask(), recipes=("fp8", "int4_awq"), engine="auto")
    monkeypatch.setattr(choice, "ENGINES", {"vllm": "", "torch": ""})
    taken = Takes("int4_awq")
    for place in ("quantlab.engines.building.engine", "quantlab.pipeline.station.engine", "quantlab.engines.engine"):
        monkeypatch.setattr(place, lambda name: taken if name == "vllm" else engine(name))
    resolved = resolve(ask)
    plans = {found.name: Plan(recipe=found.name, group_size=None) for found, _ in resolved.recipes}
    plans["int4_awq"] = msgspec.structs.replace(plans["int4_awq"], refusals=("too big.",))
    assert choice.settled(resolved, "LlamaForCausalLM", plans, host(H100), Seen()).ask.engine == "vllm"


def test_auto_is_said_and_recorded(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "ORDER", ("trtllm", "vllm", "fake"))
    seen = Seen()
    ask = dataclasses.replace(speed(bench, "auto"), stages=("calibrate", "throughput"))
    run = pipeline.run(ask, Ledger(tmp_path / "runs"), seen)
    assert run.engine == "fake"
    assert "--engine fake" in run.command
    passed = [note for note in run.notes if "passed over" in note]
    assert [note.split()[4] for note in passed] == ["trtllm:", "vllm:"]
    assert any("Engine auto took fake" in note for note in run.notes)
    assert set(passed) <= set(seen.said)
