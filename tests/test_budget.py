"""Which groups are kept under a budget, on made-up costs; held against all subsets."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab import budget
from quantlab.records.repair import GroupCost


def group(name: str, weights: int, low: float, high: float = 0.0) -> GroupCost:
    return GroupCost(
        layers=(name,),
        weights=weights,
        bits={"int4": 4 * weights, "fp8": 8 * weights, "bf16": 16 * weights},
        kl={"int4": low, "fp8": high},
        errors={"int4": 0.0, "fp8": 0.0},
    )


GROUPS = [group("a", 100, 0.10), group("b", 100, 0.05), group("c", 200, 0.12), group("d", 100, 0.0, 0.001)]


def test_the_most_kl_for_a_bit_comes_first_and_sets_grow() -> None:
    kept = [set(budget.choose(GROUPS, "int4", ("fp8",), bits)) for bits in (4.0, 4.8, 6.4, 7.3)]
    assert kept == [set(), {("a",)}, {("a",), ("c",)}, {("a",), ("b",), ("c",)}]


def test_what_saves_nothing_is_never_kept() -> None:
    assert ("d",) not in budget.choose(GROUPS, "int4", ("fp8", "bf16"), 15.9)


def test_a_step_costs_bits_and_saves_something() -> None:
    """A format of no more bits is no step, though it would save; nor is one that saves exactly nothing."""
    own = group("a", 100, 0.5, 0.1)
    same = GroupCost(
        layers=("a",), weights=100, bits=own.bits | {"fp8": own.bits["int4"]}, kl=own.kl, errors=own.errors
    )
    assert budget.choose([same], "int4", ("fp8",), 16.0) == {}
    assert budget.choose([group("a", 100, 0.5, 0.5)], "int4", ("fp8",), 16.0) == {}
    assert budget.choose([own], "int4", ("fp8",), 8.0) == {("a",): "fp8"}, "a budget that is just enough is enough"
    assert budget.choose([own], "int4", ("fp8",), 7.99) == {}


def test_two_formats_are_climbed_one_after_the_other() -> None:
    groups = [group("a", 100, 0.5, 0.2), group("b", 100, 0.1, 0.0)]
    assert budget.choose(groups, "int4", ("fp8", "bf16"), 6.0) == {("a",): "fp8"}
    assert budget.choose(groups, "int4", ("fp8", "bf16"), 10.0) == {("a",): "bf16"}
    assert budget.choose(groups, "int4", ("fp8", "bf16"), 12.0) == {("a",): "bf16", ("b",): "fp8"}


def test_groups_near_the_margin_are_asked_again_and_what_is_surely_kept_stands() -> None:
    groups = [
        group("a", 100, 0.9),
        group("b", 100, 0.2),
        group("c", 100, 0.15),
        group("d", 100, 0.01),
        group("e", 1, 0),
    ]
    choice = budget.choose(groups, "int4", ("fp8",), 6.0)
    assert set(choice) == {("a",), ("b",)}
    point = budget.contested(groups, "int4", ("fp8",), choice)
    assert (point.kept, point.halfway) == ({"fp8": ("a",)}, ("b", "c"))
    assert budget.contested(groups, "int4", ("fp8",), {}).halfway == ()


def test_a_group_that_saves_less_than_thought_is_released() -> None:
    groups = [group("a", 100, 0.9), group("b", 100, 0.2), group("c", 100, 0.15)]
    again = budget.renewed(groups, [group("c", 100, 0.15), group("b", 100, 0.1)])
    assert [one.layers for one in again] == [one.layers for one in groups]
    assert set(budget.choose(again, "int4", ("fp8",), 7.0)) == {("a",), ("c",)}


def test_the_sums() -> None:
    choice = {("a",): "fp8"}
    assert budget.mean_bits(GROUPS, "int4", choice) == pytest.approx(4 + 4 * 100 / 500)
    assert budget.predicted(GROUPS, "int4", choice) == pytest.approx(0.17)
    assert budget.by_format({("a", "b"): "fp8", ("c",): "bf16", ("d",): "fp8"}) == {
        "fp8": ("a", "b", "d"),
        "bf16": ("c",),
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.001, 1)), min_size=1, max_size=7), st.floats(4.01, 7.99))
def test_it_stays_within_the_budget_and_one_group_of_the_best(costs: list[tuple[int, float]], bits: float) -> None:
    groups = [group(str(place), weights, kl) for place, (weights, kl) in enumerate(costs)]
    choice = budget.choose(groups, "int4", ("fp8",), bits)
    assert budget.mean_bits(groups, "int4", choice) <= bits + 1e-9
    saved = sum(one.kl["int4"] for one in groups if one.layers in choice)
    best = 0.0
    for count in range(len(groups) + 1):
        for some in combinations(groups, count):
            if budget.mean_bits(groups, "int4", {one.layers: "fp8" for one in some}) <= bits + 1e-9:
                best = max(best, sum(one.kl["int4"] for one in some))
    assert saved >= best - max(one.kl["int4"] for one in groups) - 1e-9


def three(name: str, low: float, middle: float) -> GroupCost:
    """Half a bit a weight buys `low - middle`, four bits all of it."""
    return GroupCost(
        layers=(name,),
        weights=100,
        bits={"int4_awq": 450, "int4_awq_g32": 500, "int8_wo": 805},
        kl={"int4_awq": low, "int4_awq_g32": middle, "int8_wo": 0.0},
        errors={"int4_awq": 0.0, "int4_awq_g32": 0.0, "int8_wo": 0.0},
    )


def test_smaller_groups_are_a_step_on_the_way_to_8_bits() -> None:
    groups, words = [three("a", 1.2, 0.9), three("b", 0.2, 0.1)], ("int4_awq_g32", "int8_wo")
    chosen = [budget.choose(groups, "int4_awq", words, bits) for bits in (4.75, 6.3, 6.6, 8.0)]
    assert chosen == [
        {("a",): "int4_awq_g32"},  # 0.3 nats for 50 bits, before 0.9 for another 305
        {("a",): "int8_wo"},
        {("a",): "int8_wo", ("b",): "int4_awq_g32"},
        {("a",): "int8_wo", ("b",): "int4_awq_g32"},
    ]


def test_a_format_costs_what_it_costs_where_all_layers_have_it() -> None:
    there = [three("a", 7.0, 0.5), three("b", 7.0, 0.15)]
    found = budget.at_its_own([three("a", 0.9, 0.6), three("b", 0.2, 0.1)], there, "int4_awq_g32")
    assert [group.kl["int4_awq_g32"] for group in found] == [0.5, 0.15]
    assert [group.kl["int4_awq"] for group in found] == [0.9, 0.2]
