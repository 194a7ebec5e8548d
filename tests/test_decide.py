"""Recommendations: from the H100 results in benchmarks/, from published tables, from runs, and from nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

import quantlab as ql
from quantlab import catalog
from quantlab.cli import cli
from quantlab.decide import Recommendation, explain
from quantlab.decide.evidence import gather, ledgers_in
from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.records import Run
from tests.report_runs import demo

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu" / "2026-11-24-h100-llama32-3b"


def asked(model: str, gpu: str, folders: Sequence[Path], **words: object) -> Recommendation:
    return ql.recommend(model, gpu=gpu, folders=folders, **words).record


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def losing(model: str, drops: dict[str, tuple[float, float, float]]) -> Run:
    """The demo run's fp8 and int4_awq as those of another model, with these losses (drop, low, high) in points."""
    base = demo()
    kept = []
    for each in base.candidates:
        comparison = each.comparison
        if each.recipe_name in drops and comparison and comparison.suite.difference:
            drop, low, high = drops[each.recipe_name]
            number = msgspec.structs.replace(comparison.suite.difference, value=-drop, low=-high, high=-low)
            suite = msgspec.structs.replace(comparison.suite, difference=number)
            kept.append(msgspec.structs.replace(each, comparison=msgspec.structs.replace(comparison, suite=suite)))
    model_record = msgspec.structs.replace(catalog.model(model), word=model)
    return msgspec.structs.replace(base, model=model_record, candidates=(base.candidates[0], *kept))


# --- from measurements -----------------------------------------------------------------------------------


def test_the_h100_results_say_what_their_readme_says(empty: Path) -> None:
    """fp8 ahead of both at every batch; int4_awq ahead of bf16 up to a batch between 16 and 64."""
    Ledger(empty).save_run(losing("3b", {"fp8": (0.1, -0.3, 0.5), "int4_awq": (0.6, 0.2, 0.9)}))
    found = asked("3b", "h100", [RESULTS, empty])
    assert (found.choice, found.engine) == ("fp8", "vllm")
    assert {each.recipe for each in found.by_batch} == {"fp8"}
    pairs = {frozenset((each.ahead_below, each.ahead_above)): each for each in found.crossovers}
    cross = pairs[frozenset(("int4_awq", "bf16"))]
    assert (cross.ahead_below, cross.ahead_above) == ("int4_awq", "bf16")
    assert cross.batch is not None
    assert 16 < cross.batch < 64
    assert pairs[frozenset(("fp8", "bf16"))].batch is None
    rows = {row.recipe: row for row in found.rows}
    assert rows["fp8"].at is not None
    assert (rows["fp8"].at.batch, rows["fp8"].at.provenance) == (64, "measured")
    assert rows["fp8"].at.tokens_per_second == pytest.approx(17214.4, abs=0.1)
    assert rows["fp8"].dollars_per_million == pytest.approx(3.35 / 3600 / 17214.4 * 1e6, rel=1e-4)
    assert rows["fp8"].joules_per_million == pytest.approx(700 / 17214.4 * 1e6, rel=1e-4)
    assert found.runner_up == "int4_awq", "within 5 % of bf16 at batch 64, and a third of its memory"
    assert found.stability is not None
    assert found.stability > 0.9


def test_adding_a_folder_of_results_is_enough(tmp_path: Path) -> None:
    folders = ledgers_in(RESULTS.parent)
    assert len(folders) >= 2
    found = gather(catalog.model("3b"), folders, catalog.published())
    own = [cell for cell in found.cells if cell.group == "3b on 1 x h100"]
    assert len(own) >= 20
    assert {"bf16", "fp8", "int4_awq"} <= {cell.format for cell in own}, "random-3b is known by its size as a 3b"
    assert ledgers_in(tmp_path / "nothing")[0].root == tmp_path / "nothing"


def test_accuracy_comes_first(empty: Path) -> None:
    """The fastest precision does not ship on speed: unshown, doubtful and bad accuracy are three reasons."""
    without = asked("3b", "h100", [RESULTS])
    rows = {row.recipe: row for row in without.rows}
    assert without.choice == "bf16"
    assert "not shown" in rows["fp8"].why
    assert "published" in rows["int4_awq"].why
    assert any("quantlab eval fp8" in step for step in without.next_steps)
    assert asked("3b", "h100", [RESULTS], unproven=True).choice == "fp8"
    Ledger(empty).save_run(losing("3b", {"fp8": (0.8, 0.2, 1.4), "int4_awq": (3.0, 2.0, 4.0)}))
    doubtful = asked("3b", "h100", [RESULTS, empty])
    rows = {row.recipe: row for row in doubtful.rows}
    assert doubtful.choice == "bf16"
    assert "may lose 0.80 [0.20, 1.40]" in rows["fp8"].why
    assert "loses 3.00 [2.00, 4.00]" in rows["int4_awq"].why
    assert asked("3b", "h100", [RESULTS, empty], max_drop=1.5).choice == "fp8"


def test_a_newer_run_replaces_an_older_one(empty: Path) -> None:
    ledger = Ledger(empty)
    ledger.save_run(losing("3b", {"fp8": (5.0, 4.0, 6.0)}))
    ledger.save_run(losing("3b", {"fp8": (0.1, -0.3, 0.5)}))
    assert gather(catalog.model("3b"), [ledger], catalog.published()).accuracy["fp8"].drop == pytest.approx(0.1)


# --- from published tables -------------------------------------------------------------------------------


def test_the_crossover_of_modelopts_h200_table(empty: Path) -> None:
    """INT4-AWQ is ahead of FP8 only below a batch between 1 and 8 (70B), and of bf16 likewise (8B)."""
    large = asked("llama-3.1-70b", "h200", [empty], max_drop=2, context=2176)
    cross = next(each for each in large.crossovers if {each.ahead_below, each.ahead_above} == {"int4_awq", "fp8"})
    assert (cross.ahead_below, cross.ahead_above) == ("int4_awq", "fp8")
    assert cross.batch is not None
    assert cross.high is not None
    assert 1 <= cross.batch <= cross.high <= 8
    winners = {each.batch: each for each in large.by_batch}
    assert "int4_awq" in (winners[1].recipe, *winners[1].ties), "1.5 % at batch 1 is a tie"
    assert (winners[8].recipe, winners[8].ties) == ("fp8", ())
    assert large.choice == "fp8"
    small = asked("llama-3.1-8b", "h200", [empty], max_drop=6, context=2176)
    cross = next(each for each in small.crossovers if {each.ahead_below, each.ahead_above} == {"int4_awq", "bf16"})
    assert (cross.ahead_below, cross.ahead_above) == ("int4_awq", "bf16")
    assert 1 < (cross.batch or 0) < 8
    assert small.choice == "fp8"


def test_the_rtx4090_table_is_answered_with_its_own_cells(empty: Path) -> None:
    found = asked("3b", "rtx4090", [empty], max_drop=4, batch="1..4")
    assert (found.choice, found.engine) == ("int4_awq", "ortgenai-directml")
    row = next(row for row in found.rows if row.recipe == "int4_awq")
    assert row.at is not None
    assert (row.at.provenance, row.at.tokens_per_second) == ("published", pytest.approx(615.0))
    assert "does not compute fp8" in next(row.why for row in found.rows if row.recipe == "fp8")


# --- objectives and limits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "choice", "batch"),
    [
        ("throughput", "fp8", 64),
        ("latency", "fp8", 1),
        ("memory", "int4_awq", 1),
        ("energy", "fp8", 64),
        ("cost", "fp8", 64),
    ],
)
def test_objectives(objective: str, choice: str, batch: int, empty: Path) -> None:
    Ledger(empty).save_run(losing("3b", {"fp8": (0.1, -0.3, 0.5), "int4_awq": (0.6, 0.2, 0.9)}))
    found = asked("3b", "h100", [RESULTS, empty], objective=objective)
    chosen = next(row for row in found.rows if row.status == "chosen")
    assert chosen.at is not None
    assert (chosen.recipe, chosen.at.batch) == (choice, batch)
    assert found.choice == choice


def test_measured_energy_is_ranked_by_and_an_invalid_one_is_not(tmp_path: Path) -> None:
    """The same cells with a draw: int4_awq uses the fewest joules a token although it is not the fastest."""
    joules = {"bf16": 0.09, "fp8": 0.06, "int4_awq": 0.04}
    for valid in (True, False):
        ledger = tmp_path / str(valid)
        for path in sorted(RESULTS.rglob("throughput/*.json")):
            entry = json.loads(path.read_text())
            for cell in entry["result"]["cells"]:
                number = {"value": joules[entry["recipe"]] + 1 / cell["batch"], "unit": "joules"}
                cell["power"] = {"joules_per_token": number, "watts": 500.0, "valid": valid}
            place = ledger / "entries" / "throughput" / f"{path.parts[-4]}-{path.name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(entry))
        (ledger / "ledger.json").write_text('{"schema": 1}')
    found = asked("3b", "h100", [tmp_path / "True"], objective="energy", unproven=True, max_drop=5)
    row = next(row for row in found.rows if row.status == "chosen")
    assert (row.recipe, row.energy_measured) == ("int4_awq", True)
    assert row.joules_per_million == pytest.approx((0.04 + 1 / 64) * 1e6)
    assert row.at is not None
    assert row.at.tokens_per_second == pytest.approx(12385.4, abs=0.1), "the speed stays a speed"
    assert "tokens a joule" in next(each.why for each in found.rows if each.recipe == "bf16")
    found = asked("3b", "h100", [tmp_path / "False"], objective="energy", unproven=True, max_drop=5)
    row = next(row for row in found.rows if row.status == "chosen")
    assert (row.recipe, row.energy_measured) == ("fp8", False)


def test_limits_cut_batches_away(empty: Path) -> None:
    found = asked("3b", "h100", [RESULTS], unproven=True, tpot="3ms", ttft="50ms")
    chosen = next(row for row in found.rows if row.status == "chosen")
    assert chosen.at is not None
    assert (chosen.recipe, chosen.at.batch) == ("fp8", 32)
    over = {speed.batch: speed.over for speed in chosen.speeds}
    assert "59.7 ms is above 50 ms" in over[64]
    assert over[16] == ""


def test_what_excludes_everything_says_what_to_relax_and_by_how_much(empty: Path) -> None:
    slow = asked("3b", "h100", [RESULTS], tpot="1ms", max_drop=0.5)
    assert slow.choice is None
    assert any("--tpot: at least 2.44 ms (fp8 at batch 1) instead of 1 ms" in line for line in slow.relax)
    assert any("--max-drop: 3.09 instead of 0.5 lets int4_awq in" in line for line in slow.relax)
    big = asked("90b", "agx-orin", [empty], max_drop=50, unproven=True)
    assert big.choice is None
    (line,) = [line for line in big.relax if line.startswith("--context")]
    tokens = int(line.split(" with ")[1].split(" tokens")[0].replace(",", ""))
    assert ql.plan_gpu("90b", ["int4_awq"], gpu="agx-orin", context=tokens)[0].fits
    assert not ql.plan_gpu("90b", ["int4_awq"], gpu="agx-orin", context=tokens + 1)[0].fits


def test_an_empty_ledger_gives_a_labelled_guess(empty: Path) -> None:
    found = asked("3b", "l40s", [empty], unproven=True)
    assert list(empty.iterdir()) == [], "asking writes nothing"
    assert any("all are predictions" in line for line in found.missing)
    speeds = [speed for row in found.rows for speed in row.speeds]
    assert speeds
    assert {speed.provenance for speed in speeds} == {"predicted"}
    assert all(speed.low < speed.tokens_per_second < speed.high for speed in speeds)
    assert any("quantlab bench" in step for step in found.next_steps)
    assert any("$1.33 an hour, assumed" in line for line in found.assumptions)


def test_a_gpu_without_operations_is_refused_in_words(empty: Path) -> None:
    found = asked("3b", "dgx-spark", [empty], unproven=True, max_drop=5)
    assert found.choice is None
    assert found.engine == "vllm", "TensorRT-LLM does not list compute capability 12.1"
    assert all("no roofline" in row.why for row in found.rows)


def test_wrong_words(empty: Path) -> None:
    for words, match in (
        ({"objective": "speed"}, "Objectives"),
        ({"objective": "latencyy"}, "Did you mean 'latency'"),
        ({"max_drop": -1.0}, "between 0 and 100"),
        ({"max_drop": float("nan")}, "between 0 and 100"),
        ({"tpot": "fast"}, "not a duration"),
        ({"batch": "0"}, "not a batch"),
        ({"price": 0.0}, "no price"),
        ({"isl": 128}, "--osl"),
        ({"engine": "vlm"}, "Did you mean 'vllm'"),
        ({"recipes": ["fp9"]}, "Did you mean 'fp8'"),
    ):
        with pytest.raises(BadInput, match=match):
            asked("3b", "h100", [empty], **words)
    with pytest.raises(BadInput, match="dimensions of this model"):
        asked("someone/unknown", "h100", [empty])
    with pytest.raises(BadInput, match="Did you mean 'h200'"):
        asked("3b", "h20", [empty])


def test_what_cannot_be_served_gets_no_speed_and_no_next_step(empty: Path) -> None:
    found = asked("3b", "rtx4090", [empty], tpot="0.1ms", max_drop=0.0)
    rows = {row.recipe: row for row in found.rows}
    assert "does not compute fp8" in rows["fp8"].why
    assert rows["fp8"].speeds == ()
    assert all("fp8" not in pair.sentence for pair in found.crossovers)
    assert not any("quantlab bench" in line for line in found.next_steps), "that engine is none of ours"


def test_speeds_for_short_sequences_are_not_passed_off_for_long_ones(empty: Path) -> None:
    short = asked("3b", "rtx4090", [empty], context="128k", unproven=True)
    assert any("Speeds are for sequences of 200 tokens, memory for 131,072" in line for line in short.missing)
    told = asked("3b", "h100", [empty], context="8k", isl=2048, osl=128, unproven=True)
    assert not any("Speeds are for sequences" in line for line in told.missing)


def test_one_candidate_is_no_proof_of_stability(empty: Path) -> None:
    found = asked("1b", "l4", [empty])
    assert (found.choice, found.runner_up, found.stability) == ("bf16", None, None)
    assert any("Nothing but bf16 could be chosen" in line for line in explain(found))


def test_an_image_costs_time_and_is_labelled(empty: Path) -> None:
    text, seen = (asked("90b", "h200", [empty], tp=8, unproven=True, images=count, batch=16) for count in (0, 1))
    served = [pair for pair in zip(text.rows, seen.rows, strict=True) if "does not serve it" not in pair[0].why]
    assert [one.recipe for one, _ in served] == ["bf16", "fp8"]
    for one, other in served:
        assert one.at is not None
        assert other.at is not None
        assert {speed.tier for speed in other.speeds} == {"roofline"}, "no cell with images is known"
        assert (other.at.first_seconds or 0) > (one.at.first_seconds or 0)
    assert seen.choice == "fp8", "a speed that cannot be ranked wins no tie"
    assert any("--images 1 counts" in line for line in text.missing)
    assert any("with images was not measured here" in line for line in seen.missing)
    assert any("nvlink of 450 GB/s" in line for line in seen.assumptions)
    for words, match in (
        ({"model": "3b", "images": 1}, "takes no images"),
        ({"model": "90b", "images": 17}, "17 images"),
    ):
        with pytest.raises(BadInput, match=match):
            asked(gpu="h200", folders=[empty], **words)  # type: ignore[arg-type]


def test_a_gpu_without_a_known_link_says_so(empty: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "mine.yaml"
    sheet.write_text(
        "word: mine\nmemory_bytes: 80000000000\nbandwidth: 2.0e+12\ncompute_capability: '9.0'\nsource: me\n"
        "tflops: {bf16: 500.0, fp8: 1000.0}\n"
    )
    found = asked("90b", str(sheet), [empty], tp=4, unproven=True)
    assert any("link between 4" in line for line in found.missing)
    sheet.write_text(sheet.read_text() + "link: infiniband\nlink_bandwidth: 5.0e+10\n")
    with pytest.raises(BadInput, match="nvlink"):
        asked("90b", str(sheet), [empty], tp=4)


def test_without_a_folder_the_runs_that_travel_along_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTLAB_LEDGER", str(tmp_path / "none"))
    found = asked("3b", "h100", [], unproven=True)
    assert {speed.provenance for row in found.rows for speed in row.speeds} >= {"measured"}
    with pytest.raises(BadInput, match="no such folder"):
        asked("3b", "h100", [tmp_path / "gone"])


# --- command and notebook --------------------------------------------------------------------------------


def test_the_command_in_text_and_json(empty: Path) -> None:
    words = ["recommend", "--model", "3b", "--gpu", "h100", "--ledger", str(RESULTS), "--unproven", "--batch", "1..64"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("For 3b on 1 x h100, ship fp8 (throughput) if its accuracy holds.")
    for part in (
        "bf16: runner-up: 0.76 times the speed of fp8",
        "Next: Accuracy",
        "Missing:",
        "the choice is the same in",
    ):
        assert part in done.output
    done = CliRunner().invoke(cli, [*words, "--json"])
    record = msgspec.json.decode(done.output, type=Recommendation)
    assert json.loads(done.output)["choice"] == "fp8"
    assert "\n".join(explain(record)) in CliRunner().invoke(cli, words).output


def test_the_face_shows_itself_escaped(empty: Path) -> None:
    found = ql.recommend("3b", gpu="h100", folders=[RESULTS], unproven=True)
    assert found.choice == "fp8"
    assert "<table" in found._repr_html_()
    assert "<script" not in found._repr_html_()


def test_a_choice_whose_accuracy_nobody_has_shown_is_not_called_certain() -> None:
    """The draws know errors of speeds and of shown losses; of a loss that was never measured they know nothing."""
    words = ["recommend", "--model", "3b", "--gpu", "h100", "--ledger", "benchmarks/results/gpu", "--unproven"]
    unproven = CliRunner().invoke(cli, words)
    assert unproven.exit_code == 0, unproven.output
    line = next(one for one in unproven.output.splitlines() if one.startswith("Drawn again"))
    assert "if the accuracy of fp8, which nobody has shown, holds" in line
