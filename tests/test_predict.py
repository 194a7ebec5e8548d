"""Prediction: the tiers in order, intervals from held-out errors, refusals, crossovers; published and made-up cells."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab import catalog
from quantlab.decide.evidence import Evidence, gather
from quantlab.errors import BadInput
from quantlab.ledgers import Ledger
from quantlab.predict import Cell, Kernels, Point, Prediction, Wanted, Work, bands, crossover, differ, fit, predict
from quantlab.predict.bands import Band, corrected
from quantlab.predict.crossover import SIGMAS, draw
from quantlab.predict.fit import Coefficients, half_width
from quantlab.predict.links import link
from quantlab.predict.tiers import SHARED, UNCALIBRATED_GAP

WORK = Work(6.4e9, 114_688, 6.4e9, 3.35e12, 989e12, 28)
TRUE = Coefficients(40e-6, 0.0, 1.3, 1.8, 0.01, 1.6)


def made(
    batch: int, isl: int = 128, osl: int = 128, *, work: Work = WORK, true: Coefficients = TRUE, **changes: object
) -> Cell:
    """A cell that obeys the model exactly."""
    point = Point(isl, osl, batch)
    first, step = true.first_seconds(work, point), true.step_seconds(work, point)
    seconds = first + (osl - 1) * step
    cell = Cell(
        point, work, "vllm", "fp8", "3b on 1 x h100", seconds, seconds, seconds, first, step, "measured", "made up"
    )
    return replace(cell, **changes)  # type: ignore[arg-type]


def wanted(batch: int, isl: int = 128, osl: int = 128, **changes: object) -> Wanted:
    return replace(Wanted(Point(isl, osl, batch), WORK, "vllm", "fp8", "3b on 1 x h100"), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return gather(catalog.model("3b"), [Ledger(tmp_path_factory.mktemp("none"))], catalog.published())


def answer(found: Prediction | str) -> Prediction:
    assert isinstance(found, Prediction), found
    return found


# --- the model -------------------------------------------------------------------------------------------


def test_a_step_by_hand() -> None:
    """28 x 40 us + 1.3 x 6.4e9 / 3.35e12 + 4 x 1.8 x (6.4e9 / 989e12 + 192 x 114,688 / 3.35e12)."""
    step = 28 * 40e-6 + 1.3 * 6.4e9 / 3.35e12 + 4 * 1.8 * (6.4e9 / 989e12 + 192 * 114_688 / 3.35e12)
    assert TRUE.step_seconds(WORK, Point(128, 128, 4)) == pytest.approx(step)
    assert TRUE.first_seconds(WORK, Point(128, 128, 4)) == pytest.approx(0.01 + 1.6 * 4 * 128 * 6.4e9 / 989e12)


def test_a_fit_recovers_what_obeys_it_and_nothing_is_narrower_than_two_leases() -> None:
    found = fit([made(batch) for batch in (1, 4, 16, 64, 256)])
    assert not isinstance(found, str)
    assert found.coefficients.sequence == pytest.approx(1.8, rel=1e-6)
    assert found.coefficients.prefill == pytest.approx(1.6, rel=1e-6)
    assert max(map(abs, found.errors)) < 1e-9
    assert found.half_width == 0.05


@settings(max_examples=30, deadline=None)
@given(
    st.floats(1.0, 4.0),
    st.floats(1.0, 10.0),
    st.floats(0.0, 0.05),
    st.floats(1.0, 5.0),
    st.sampled_from([2, 8, 32, 128]),
)
def test_whatever_the_efficiencies_a_batch_between_is_predicted(
    weights: float, sequence: float, first: float, prefill: float, batch: int
) -> None:
    true = Coefficients(40e-6, 0.0, weights, sequence, first, prefill)
    cells = [made(each, true=true) for each in (1, 4, 16, 64, 256)]
    found = answer(predict(wanted(batch), cells))
    assert found.tier in ("fit", "interpolated")
    assert found.low <= made(batch, true=true).tokens_per_second <= found.high


def test_two_models_tell_a_sequence_from_its_weights() -> None:
    """What a sequence costs whatever the model is found from two models, and carried to a third between them."""
    true = Coefficients(45e-6, 15e-6, 1.2, 0.8, 0.01, 1.6)
    small = Work(2.5e9, 32_768, 2.5e9, 3.35e12, 989e12, 16)
    between = Work(4.0e9, 65_536, 4.0e9, 3.35e12, 989e12, 22)
    batches = (1, 4, 16, 64, 256)
    cells = [made(batch, true=true) for batch in batches]
    cells += [made(batch, work=small, true=true, group="1b on 1 x h100") for batch in batches]
    found = fit(cells)
    assert not isinstance(found, str)
    assert found.coefficients.each == pytest.approx(15e-6, rel=0.01)
    assert found.coefficients.layer == pytest.approx(45e-6, rel=0.01)
    third = answer(predict(wanted(32, work=between, group="2b on 1 x h100"), cells))
    assert third.tier == "transfer"
    expected = made(32, work=between, true=true).tokens_per_second
    assert third.tokens_per_second == pytest.approx(expected, rel=0.01)


def test_nvidias_rtx4090_table_is_explained_within_a_tenth(published: Evidence) -> None:
    """The facts page's finding, from the cells as they lie in evals/: two efficiencies, six cells."""
    six = [cell for cell in published.cells if cell.engine == "ortgenai-directml"]
    found = fit(six)
    assert not isinstance(found, str)
    assert len(six) == 6
    assert max(map(abs, found.errors)) < 0.1
    own = [found.coefficients.seconds(cell.work, cell.point) / cell.seconds for cell in six]
    assert all(0.9 < ratio < 1.1 for ratio in own)


def test_order_statistics() -> None:
    assert half_width([0.1, -0.2, 0.3, 0.05]) == 0.3
    assert half_width([0.01 * each for each in range(1, 20)]) == pytest.approx(0.16)


# --- tiers -----------------------------------------------------------------------------------------------


def test_the_tiers_in_order() -> None:
    batches = (1, 4, 16, 64, 256)
    cells = [made(batch) for batch in batches]
    assert answer(predict(wanted(16), cells)).provenance == "measured"
    assert answer(predict(wanted(8), cells)).tier == "interpolated"
    assert answer(predict(wanted(8, isl=200), cells)).tier == "fit"
    other = answer(predict(wanted(8, group="3b on 1 x h200"), cells))
    assert (other.tier, other.provenance) == ("transfer", "predicted")
    assert other.spread == pytest.approx(bands.shipped()["one-group"].width), "one model on one GPU"
    rough = answer(predict(wanted(8, engine="trtllm"), cells))
    assert rough.tier == "roofline"
    assert rough.spread > answer(predict(wanted(8, isl=200), cells)).spread


def test_a_repeated_cell_spans_its_repeats() -> None:
    first = made(4)
    second = replace(first, seconds=first.seconds * 1.2, low=first.seconds * 1.1, high=first.seconds * 1.3)
    found = answer(predict(wanted(4), [first, second]))
    assert found.low <= second.point.batch * 128 / (first.seconds * 1.3)
    assert found.high >= first.tokens_per_second


def test_beyond_twice_what_was_measured_the_fit_says_nothing() -> None:
    cells = [made(batch) for batch in (1, 4, 16, 64)]
    found = fit(cells)
    assert not isinstance(found, str)
    assert found.outside(Point(128, 128, 128), WORK) == ""
    assert "batch 129" in found.outside(Point(128, 128, 129), WORK)
    assert "context" in found.outside(Point(8000, 128, 4), WORK)
    assert "1.3 GB of weights" in found.outside(Point(128, 128, 4), replace(WORK, weight_bytes=1.3e9))
    assert found.outside(Point(128, 128, 4), replace(WORK, weight_bytes=1.7e9)) == ""
    without = replace(WORK, flops=None)
    refused = predict(wanted(512, work=without), cells)
    assert isinstance(refused, str)
    assert "batch 512 is outside what was measured (1 to 64" in refused
    assert "no roofline" in refused


def test_int4_is_never_ranked_by_a_roofline() -> None:
    four = answer(predict(wanted(8, format="int4_awq"), []))
    eight = answer(predict(wanted(8), []))
    assert not four.rankable
    assert not differ(four, eight)
    assert crossover("int4_awq", {1: four, 8: four}, "fp8", {1: eight, 8: eight}) is None


def test_cells_that_are_no_numbers_are_not_used() -> None:
    cells = [made(batch) for batch in (1, 4, 16, 64)]
    bad = [replace(cells[1], seconds=math.nan), replace(cells[1], step_seconds=-1.0), replace(cells[2], low=math.inf)]
    assert not any(each.sound for each in bad)
    assert predict(wanted(8), [*cells, *bad]) == predict(wanted(8), cells)
    assert isinstance(fit(cells[:3]), str)
    assert isinstance(fit([cells[0]] * 6), str), "one batch cannot tell weights from sequences"


def test_a_tie_is_a_gap_within_the_errors() -> None:
    cells = [made(batch) for batch in (1, 4, 16, 64)]
    one = answer(predict(wanted(4), cells))
    assert differ(one, replace(one, tokens_per_second=one.tokens_per_second * 1.2))
    assert not differ(one, replace(one, tokens_per_second=one.tokens_per_second * 1.04))
    rough = answer(predict(wanted(4, engine="trtllm"), []))
    assert differ(rough, replace(rough, tokens_per_second=rough.tokens_per_second * 1.3)), (
        "the roofline's error is shared"
    )
    assert not differ(rough, replace(rough, tokens_per_second=rough.tokens_per_second * 1.2))


# --- crossover -------------------------------------------------------------------------------------------


def speeds(values: dict[int, float], spread: float = 0.05) -> dict[int, Prediction]:
    return {
        batch: Prediction(value, value * math.exp(-spread), value * math.exp(spread), "measured", "measured", "")
        for batch, value in values.items()
    }


def test_a_crossover_lies_where_the_lines_cross() -> None:
    found = crossover("a", speeds({1: 120, 4: 440, 16: 1200}), "b", speeds({1: 100, 4: 400, 16: 1500}))
    assert found is not None
    assert (found.ahead_below, found.ahead_above) == ("a", "b")
    share = math.log(1.1) / (math.log(1.1) + math.log(1.25))
    assert found.batch == pytest.approx(4 * 4**share)
    assert found.low < found.batch < found.high
    assert found.share > 0.99
    swapped = crossover("b", speeds({1: 100, 4: 400, 16: 1500}), "a", speeds({1: 120, 4: 440, 16: 1200}))
    assert swapped is not None
    assert (swapped.ahead_below, swapped.batch) == ("a", pytest.approx(found.batch))


def test_no_crossover_is_said_as_such_and_a_doubtful_one_is_doubtful() -> None:
    none = crossover("a", speeds({1: 200, 16: 2000}), "b", speeds({1: 100, 16: 1000}))
    assert none is not None
    assert not none.crosses
    assert none.share == 0
    doubtful = crossover("a", speeds({1: 101, 16: 1000}, 0.3), "b", speeds({1: 100, 16: 1010}, 0.3))
    assert doubtful is not None
    assert doubtful.share < 0.9
    assert crossover("a", speeds({1: 1}), "b", speeds({1: 1})) is None


def normal(sigmas: float) -> float:
    return 0.5 * (1 + math.erf(sigmas / math.sqrt(2)))


def test_only_draws_that_change_hands_in_the_same_direction_are_counted() -> None:
    """a is 10 % ahead at batch 1, b at 16; each gap has 1.2 of that in errors, so 0.8^2 of the draws say so again."""
    found = crossover("a", speeds({1: 110, 16: 1000}, 0.15), "b", speeds({1: 100, 16: 1100}, 0.15))
    swapped = crossover("a", speeds({1: 100, 16: 1100}, 0.15), "b", speeds({1: 110, 16: 1000}, 0.15))
    deviation = math.sqrt(2) * 0.15 / SIGMAS
    for each, ahead in ((found, "a"), (swapped, "b")):
        assert each is not None
        assert (each.ahead_below, each.batch) == (ahead, pytest.approx(4))
        assert each.share == pytest.approx(normal(math.log(1.1) / deviation) ** 2, abs=0.03)


def test_the_interval_of_a_crossover_is_the_middle_80_percent() -> None:
    """Lines that cross steeply: the batch moves with the gaps alone."""
    found = crossover("a", speeds({1: 200, 16: 1000}), "b", speeds({1: 100, 16: 2000}))
    assert found is not None
    random, width = np.random.default_rng(7), math.sqrt(2) * 0.05 / SIGMAS
    left, right = (math.log(2) + sign * width * random.standard_normal(200_000) for sign in (1, -1))
    batches = 16 ** (left / (left + right))
    assert [found.low, found.high] == pytest.approx(np.quantile(batches, [0.1, 0.9]).tolist(), rel=0.02)


@pytest.mark.parametrize("tier", ["transfer", "kernels", "roofline", "fit"])
def test_what_a_gpu_makes_of_predictions_is_common_to_all_precisions(tier: Any) -> None:
    """The shared error falls out of a difference; what is left of it is the gap that two precisions may have."""
    low, high = 100 * math.exp(-0.4), 100 * math.exp(0.4)
    one = {batch: Prediction(100, low, high, tier, "predicted", "") for batch in (1, 8)}
    random = np.random.default_rng(3)
    common = random.standard_normal((40_000, 1))
    first, second = (draw(one, [1, 8], random, common) - math.log(100) for _ in range(2))
    own, width = UNCALIBRATED_GAP / math.sqrt(2) / SIGMAS, 0.4 / SIGMAS
    alone = math.hypot(width, own) if tier in SHARED else width
    between = math.sqrt(2) * (own if tier in SHARED else width)
    assert first.std(axis=0) == pytest.approx([alone, alone], rel=0.02)
    assert (first - second).std(axis=0) == pytest.approx([between, between], rel=0.02)
    assert np.allclose(first[:, 0], first[:, 1]), "of one precision all batches move together"
    assert first.mean() == pytest.approx(0, abs=0.01)
    assert np.corrcoef(first[:, 0], common[:, 0])[0, 1] > 0.8 or tier == "fit"


# --- published cells -------------------------------------------------------------------------------------


def test_the_published_tables_are_cells_with_a_source(published: Evidence) -> None:
    assert len(published.cells) == 45
    assert {cell.provenance for cell in published.cells} == {"published"}
    assert all(cell.sound for cell in published.cells)
    tables = {table.name: table for table in catalog.published().tables}
    assert [cell.tokens_per_second for cell in tables["h200-90b"].cells] == [12800, 10400, 8600]
    assert not tables["h200-90b"].usable
    assert published.accuracy["int4_awq"].drop == pytest.approx(60.8 - 57.71)


def test_transfers_between_gpus_and_models_hold_on_nvidias_old_tables(published: Evidence) -> None:
    """Eight H100 cells and four of an L40S, each predicted without itself: most inside, the four-GPU one worst."""
    cells = [cell for cell in published.cells if cell.engine == "trtllm-0.6" and cell.format == "fp8"]
    inside, ratio = {}, {}
    for cell in cells:
        rest = [each for each in cells if each is not cell]
        found = answer(predict(Wanted(cell.point, cell.work, cell.engine, cell.format, cell.group), rest))
        assert found.tier == "transfer"
        inside[cell.group, cell.point] = found.low <= cell.tokens_per_second <= found.high
        ratio[cell.group, cell.point] = found.tokens_per_second / cell.tokens_per_second
    assert len(inside) == 12
    assert sum(inside.values()) >= 10
    worst = max(ratio, key=lambda key: ratio[key])
    assert worst[0] == "llama-2-70b on 4 x h100", "what four GPUs say to each other is not in the model"
    assert ratio[worst] > 1.5


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("tokens_per_second: .nan", "not a speed"),
        ("tokens_per_second: -1.0", "not a speed"),
        ("tokens_per_second: fast", "number"),
        ("tokens_per_second: 1.0, batch: 0", "too small"),
        ("tokens_per_second: 1.0, tokens: 3", "no field 'tokens'"),
    ],
)
def test_a_faulty_table_is_refused_with_its_line(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    head = "tables:\n  - {name: x, source: 'https://x', engine: vllm, version: '1', gpu: h100, cells: ["
    path.write_text(head + "{model: 3b, recipe: fp8, isl: 1, osl: 1, " + text + "}]}\n")
    with pytest.raises(BadInput, match=match) as caught:
        catalog.published(path)
    assert "mine.yaml, line 2" in caught.value.place
    path.write_text(head.replace("h100", "h101") + "]}\n")
    with pytest.raises(BadInput, match="h101"):
        catalog.published(path)


def test_weights_are_never_read_faster_than_the_data_sheet() -> None:
    """Cells in which launches hide the reading; a GPU with a quarter of the bandwidth reads no faster than it can."""
    cells = [made(batch, true=replace(TRUE, weights=0.0, layer=1e-4)) for batch in (1, 4, 16, 64)]
    slow = replace(WORK, bandwidth=WORK.bandwidth / 4)
    found = answer(predict(wanted(4, group="3b on 1 x slow", work=slow), cells))
    assert found.tier == "transfer"
    assert (found.step_seconds or 0) >= slow.weights_seconds


# --- four bits, links, images, kernels, bands ----------------------------------------------------------------


def test_unpacking_is_found_where_it_is_and_nothing_where_it_is_not() -> None:
    batches, plain = (1, 4, 8, 16, 64), replace(TRUE, unpack=0.0)
    for true in (replace(TRUE, unpack=4.0), plain):
        found = fit([made(batch, isl=isl, true=true, format="int4_awq") for batch in batches for isl in (128, 512)])
        assert not isinstance(found, str)
        assert found.coefficients.unpack == pytest.approx(true.unpack, abs=1e-6)
    eight_bit = fit([made(batch, true=replace(TRUE, unpack=4.0)) for batch in batches])
    assert not isinstance(eight_bit, str)
    assert eight_bit.coefficients.unpack == 0, "eight bits are not unpacked"


def test_between_two_batches_four_bits_bend_as_another_model_does(published: Evidence) -> None:
    """NVIDIA's INT4 at batch 8, from 1 and 64 and the other model: 41 and 49 % too fast on a straight line."""
    for group in ("llama-3.1-8b on 1 x h200", "llama-3.1-70b on 1 x h200"):
        held = [c for c in published.cells if (c.group, c.format, c.point.batch) == (group, "int4_awq", 8)]
        rest = [cell for cell in published.cells if cell not in held]
        found = answer(predict(Wanted(held[0].point, held[0].work, "trtllm", "int4_awq", group), rest))
        assert found.tier == "interpolated"
        assert "bent by" in found.basis
        assert found.tokens_per_second == pytest.approx(held[0].tokens_per_second, rel=0.15)
        assert found.low < held[0].tokens_per_second < found.high


def test_an_all_reduce_by_hand() -> None:
    """5 us and 1.6 x 2 x 7/8 x 16 KiB / 450 GB/s; one GPU says nothing."""
    eight = link("nvlink", 450e9, 8)
    assert eight is not None
    assert eight.seconds(16384) == pytest.approx(5e-6 + 1.6 * 2 * 7 / 8 * 16384 / 450e9)
    assert link("nvlink", 450e9, 1) is None
    four = link("pcie", 32e9, 4)
    assert four is not None
    assert four.seconds(1e9) > 20 * eight.seconds(1e9)


def test_what_gpus_say_costs_time_and_width() -> None:
    alone = replace(WORK, flops=989e12)
    talking = replace(alone, exchanges=57, token_message=6144.0, link=link("pcie", 32e9, 4))
    quiet, loud = (answer(predict(wanted(64, work=work), [])) for work in (alone, talking))
    assert quiet.tier == loud.tier == "roofline"
    assert loud.tokens_per_second < quiet.tokens_per_second
    assert loud.spread > quiet.spread
    assert talking.talk_seconds(64) == pytest.approx(57 * (4 * 3.2e-6 + 1.5 * 64 * 6144 * 4.0 / 32e9))


def test_a_fit_of_text_says_nothing_of_images() -> None:
    cells = [made(batch) for batch in (1, 4, 16, 64)]
    seeing = replace(WORK, image_bytes=1e8, image_flops=2e13, image_rate=989e12)
    asked = replace(wanted(16, work=seeing), point=Point(128, 128, 16, images=1))
    found = answer(predict(asked, cells))
    assert found.tier == "roofline"
    assert found.tokens_per_second < answer(predict(wanted(16, group="other"), [])).tokens_per_second
    assert (found.first_seconds or 0) > 16 * 2e13 / 989e12


def test_a_sum_of_kernels_is_taken_where_it_is_the_narrower_one_and_measured_cells_stand_above() -> None:
    kernels = Kernels(0.01, 4e-3, "tables")
    alone = answer(predict(wanted(8, kernels=kernels), []))
    assert alone.tier == "kernels"
    assert alone.provenance == "predicted"
    seconds = 0.01 + 127 * 4e-3
    assert alone.low < 8 * 128 / seconds < alone.high
    near = [made(batch) for batch in (1, 4, 16, 64)]
    assert answer(predict(wanted(8, kernels=kernels), near)).tier in ("fit", "interpolated")
    small = answer(predict(wanted(8, kernels=replace(kernels, step_seconds=1e-3)), []))
    assert small.spread > alone.spread, "a small step is mostly host, which the tables do not have"


def test_bands_move_with_held_out_errors_and_only_many_models_narrow_one() -> None:
    old = {"a": Band(0.5, 2.0, 0.5, 2.0, "a guess")}
    assert corrected(old, []) == old
    few = corrected(old, [("a", "one", 0.0), ("a", "two", 0.01)] * 20)["a"]
    assert (few.low, few.high, few.groups) == (0.5, 2.0, 2)
    worse = corrected(old, [("a", "one", -1.0), ("a", "one", 1.0)])["a"]
    assert worse.low < 0.5 < 2.0 < worse.high
    many = corrected(old, [("a", str(group), error) for group in range(20) for error in (-0.1, 0.1)])["a"]
    assert (many.low, many.high) == (pytest.approx(math.exp(-0.1), abs=1e-3), pytest.approx(math.exp(0.1), abs=1e-3))
    assert corrected(old, [("b", "one", 3.0)]) == old, "an error of another band"
