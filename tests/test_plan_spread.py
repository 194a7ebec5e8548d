"""The plan on a machine with several GPUs: who holds which blocks, how full each gets, and what cannot be dealt out."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from quantlab import catalog, cli, weights
from quantlab.calibrate import devices
from quantlab.errors import BadInput, Refused
from quantlab.ledgers import Ledger
from quantlab.pipeline.ask import Ask, EngineConfig, resolve
from quantlab.pipeline.assemble import command
from quantlab.pipeline.run import plans_of
from quantlab.pipeline.walker import Walker
from quantlab.plans import Plan, plan
from quantlab.records import Gpu, Host, Weights
from quantlab.spread import Parts, deal
from tests.test_calibrate_modelopt import job
from tests.test_pipeline import Seen
from tests.test_plan import H100, PLENTY, recipe


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that may fetch gated models."""
    monkeypatch.setenv("HF_TOKEN", "not-a-real-one")


def machine(*gigabytes: float) -> Host:
    gpus = tuple(Gpu(name="GPU", memory_bytes=int(each * 10**9), compute_capability="9.0") for each in gigabytes)
    return msgspec.structs.replace(H100, gpus=gpus)


def made(word: str, name: str, host: Host, gpus: int = 0, device: str = "auto") -> Plan:
    return plan(catalog.model(word), None, name, recipe(name), host, None, None, PLENTY, gpus=gpus, device=device)


def test_one_gpu_where_it_fits_and_several_where_it_must_be() -> None:
    assert (made("3b", "fp8", machine(80, 80)).gpus, made("3b", "fp8", machine(80, 80)).gpu_peak_bytes) == (1, ())
    small = made("3b", "fp8", machine(5, 5, 5))
    assert (small.gpus, small.layerwise, small.refusals) == (2, False, ())
    assert len(small.gpu_peak_bytes) == 2
    assert max(small.gpu_peak_bytes) <= 5 * 10**9
    assert any("GPU 1 blocks" in line and "predicted" in line for line in small.arithmetic)
    # Both hold CUDA's own; together at least the weights.
    assert sum(small.gpu_peak_bytes) > 2 * 3_212_749_824


def test_asked_for_several_gpus_are_taken_where_one_would_do() -> None:
    two = made("3b", "int4_awq", machine(80, 80, 80), gpus=2)
    one = made("3b", "int4_awq", machine(80, 80, 80), gpus=1)
    assert (two.gpus, len(two.gpu_peak_bytes), two.refusals) == (2, 2, ())
    assert (one.gpus, one.gpu_peak_bytes) == (1, ())
    assert one.calibration_peak_bytes is not None
    assert max(two.gpu_peak_bytes) < one.calibration_peak_bytes
    assert made("3b", "bf16", machine(80, 80), gpus=2).gpus == 1  # nothing is calibrated


@pytest.mark.parametrize("host", [machine(), machine(80)])
def test_more_gpus_than_there_are_is_refused(host: Host) -> None:
    [refusal] = made("1b", "fp8", host, gpus=2).refusals
    assert refusal == f"--gpus 2: there are {len(host.gpus)} GPUs to calibrate on."
    assert made("1b", "fp8", machine(80, 80), gpus=2, device="cpu").refusals


def test_gpus_that_are_too_small_together_name_the_other_way() -> None:
    asked = made("3b", "fp8", machine(3, 3), gpus=2)
    assert any("--gpus 2" in refusal and "--layerwise" in refusal for refusal in asked.refusals)
    assert made("3b", "fp8", machine(3, 3)).layerwise  # nobody asked: one block at a time, on one


def test_blocks_without_a_name_cannot_be_dealt_out() -> None:
    strange = msgspec.structs.replace(catalog.model("3b"), architecture="OPTForCausalLM")
    found = plan(strange, None, "fp8", recipe("fp8"), machine(80, 80), None, None, PLENTY, gpus=2)
    assert any("OPTForCausalLM" in each and "--gpus 2" in each for each in found.refusals)


def test_dealing_fills_all_alike_in_order() -> None:
    assert deal(Parts(2, (1,) * 10), [100, 100]) == (4, 6)
    assert deal(Parts(0, (1,) * 9), [100, 200]) == (3, 6)
    assert deal(Parts(2, (1,) * 10), [5, 6]) is None
    assert deal(Parts(9, (1,)), [8, 100]) is None
    assert deal(Parts(5, (1, 1)), [5, 100]) == (0, 2)


# --- the child's own choice, by the memory that is free -----------------------------------------------------------


def test_every_module_gets_a_gpu_and_no_block_is_split(tiny_model: Path, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(job(tiny_model, tmp_path / "made", "fp8"), device="cuda", gpus=2)
    found = devices.chosen(spec, [10**10, 10**10, 10**10])
    assert found is not None
    named = devices._named(spec, found)
    assert {named[name] for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")} == {0}
    assert [named[f"model.layers.{index}"] for index in range(sum(found.counts))] == [0, 1]
    assert set(named.values()) == {0, 1}  # neither "cpu" nor "disk"


def test_the_child_refuses_what_does_not_fit_on_free_memory(tiny_model: Path, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(job(tiny_model, tmp_path / "made", "fp8"), device="cuda", gpus=2)
    with pytest.raises(BadInput, match="1 are visible"):
        devices.chosen(spec, [10**10])
    with pytest.raises(Refused, match="do not hold"):
        devices.chosen(spec, [10**6, 10**6])
    assert devices.chosen(msgspec.structs.replace(spec, gpus=1), [10**6, 10**6]) is None
    assert devices.chosen(msgspec.structs.replace(spec, gpus=0), [10**10, 10**10]) is None


# --- from the word to the job -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "host", "job_gpus"), [(0, (5, 5), 2), (2, (80, 80), 2), (1, (80, 80), 1), (0, (80, 80), 0)]
)
def test_the_job_gets_what_the_plan_chose(
    tiny_model: Path, tmp_path: Path, asked: int, host: tuple[int, ...], job_gpus: int
) -> None:
    """`5, 5` stands for a plan that needs two: the model of the plan is 3b, that of the job is the tiny one."""
    resolved = resolve(Ask(model=str(tiny_model), recipes=("fp8",), engine="fake", gpus=asked))
    known = Weights(path=str(tiny_model), digest="d", architecture=weights.architecture(tiny_model), bytes=1)
    walker = Walker(resolved, known, machine(*host), Ledger(tmp_path), Seen())
    planned = made("3b", "fp8", machine(*host), gpus=asked)
    found = next((found, recipe) for found, recipe in resolved.recipes if found.name == "fp8")
    assert walker.calibration(*found, planned)[1].gpus == job_gpus


def test_one_block_at_a_time_wins_over_several_gpus(tiny_model: Path, tmp_path: Path) -> None:
    resolved = resolve(Ask(model=str(tiny_model), recipes=("fp8",), engine="fake", layerwise=True))
    tight = machine(0.9, 0.9)
    assert dict(plans_of(resolved, None, tight, Ledger(tmp_path)))["fp8"].gpus == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"layerwise": True}, "--layerwise"), ({"config": EngineConfig(device="cuda:1")}, "cuda:1")],
)
def test_words_that_contradict_each_other(tiny_model: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said) as error:
        resolve(Ask(model=str(tiny_model), recipes=("fp8",), engine="fake", gpus=2, **changes))
    assert error.value.place == "--gpus 2"
    assert error.value.cure


def test_the_command_line_refuses_before_anything_is_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["quantlab", "run", "fp8", "--model", str(tiny_model), "--engine", "fake", "--ledger", str(tmp_path)]
    for words, said in ((["--gpus", "2", "--device", "cpu"], "--gpus 2"), (["--gpus", "-1"], "--gpus")):
        monkeypatch.setattr(sys, "argv", [*line, *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_record_says_how_many_were_asked_for(tiny_model: Path) -> None:
    assert "--gpus 2" in command(Ask(model=str(tiny_model), recipes=("fp8",), engine="fake", gpus=2))
    assert "--gpus" not in command(Ask(model=str(tiny_model), recipes=("fp8",), engine="fake"))
