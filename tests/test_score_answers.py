"""VQA metrics on cases worked by hand, the quirks of the official code included."""

from __future__ import annotations

import pytest

from quantlab.score.answers import anls, edit_distance, normalised, relaxed, right_nll, vqa_accuracy
from quantlab.score.nats import change


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("A red Bus.", "red bus"),
        ("the two dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),  # one apostrophe may be missing, not both
        ("lets", "lets"),  # not in the official table
        ("somebody'd", "somebodyd"),  # in it the wrong way round
        ("yes, it is", "yes it is"),  # the comma touches a space, so it goes without leaving one
        ("black-white", "black white"),  # this one touches none: it becomes a space
        ("1,000", "1000"),  # a comma between digits
        ("1.5", "1.5"),  # a period before a digit stays
        ("u.s.a.", "usa"),
        ("what's\nthat", "what's that"),
        ("  Tennis \t", "tennis"),
        ("3.", "3"),
    ],
)
def test_answers_are_compared_as_vqa_does(answer: str, compared: str) -> None:
    assert normalised(answer) == compared


def test_at_most_32_periods_are_taken_out_as_in_the_official_code() -> None:
    assert normalised("a." * 40).count(".") == 8


@pytest.mark.parametrize(("same", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_of_ten_people(same: int, score: float) -> None:
    # With n of 10 equal: those n see n - 1 others, the rest see n; min(1, x / 3) each, then the mean.
    people = ["red"] * same + [f"other {place}" for place in range(10 - same)]
    assert vqa_accuracy("The Red", people) == pytest.approx(score)


def test_vqa_accuracy_of_one_person_is_undefined() -> None:
    for people in ([], ["red"]):
        with pytest.raises(ValueError, match="several people"):
            vqa_accuracy("red", people)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("hallo", ["hello"], 0.8),
        ("Hello  World", ["hello world"], 1.0),
        ("abcd", ["abxy"], 0.5),  # exactly at the threshold counts
        ("abc", ["axy"], 0.0),  # a third is below it
        ("", ["x"], 0.0),
        ("", [""], 1.0),
        ("14", ["15", "14 may", "14"], 1.0),
    ],
)
def test_anls(answer: str, references: list[str], score: float) -> None:
    assert anls(answer, references) == pytest.approx(score)


def test_anls_without_a_reference_is_undefined() -> None:
    with pytest.raises(ValueError, match="at least one"):
        anls("x", [])


@pytest.mark.parametrize(
    ("a", "b", "steps"), [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
)
def test_edit_distance(a: str, b: str, steps: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == steps


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("95", "100", True),
        ("94.9", "100", False),
        ("105", "100", True),
        ("5%", "0.05", True),
        ("2019", "2020", True),
        ("-95", "-100", True),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("0", "0", True),
        ("0.01", "0", False),
        ("nan", "100", False),
        ("inf", "100", False),
        ("", "100", False),
    ],
)
def test_relaxed(answer: str, target: str, right: bool) -> None:
    assert relaxed(answer, target) is right


def test_relaxed_agrees_with_lm_evals_copy_where_both_are_defined() -> None:
    from lm_eval.tasks.chartqa.utils import RelaxedCorrectness

    theirs = RelaxedCorrectness()
    for answer, target in [
        ("95", "100"),
        ("94.9", "100"),
        ("5%", "0.05"),
        ("Yes", "yes"),
        ("2019", "2020"),
        ("a", "b"),
    ]:
        assert relaxed(answer, target) == bool(theirs.score(answer, target)), (answer, target)


def test_what_the_right_answer_costs() -> None:
    assert right_nll([-0.5, -2.0], "1") == 2.0
    assert right_nll([-0.5, -2.0, -1.0], "[1, 2]") == 1.0
    assert right_nll([], "3") is None
    assert right_nll([-0.5, float("-inf")], "1") is None
    assert right_nll([-0.5], "4") is None
    assert right_nll([-0.5], "red") is None


def test_change_in_nats_counts_clusters_and_not_items() -> None:
    before, after = [0.1] * 8, [0.3, 0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1]
    alone, clustered = change(before, after), change(before, after, [0, 0, 0, 0, 1, 1, 1, 1])
    assert alone is not None
    assert clustered is not None
    assert alone.mean == clustered.mean == pytest.approx(0.1)
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert change(before, after, [0] * 8) is None
    assert change([0.1, float("nan")], [0.1, 0.2]) is None
    with pytest.raises(ValueError, match="values before"):
        change([1.0], [1.0, 2.0])
