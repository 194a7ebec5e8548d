"""Which kinds of items a precision hurts: the paired test within each category. Pure, like judge.

The worst of many categories looks bad by chance alone: of twenty harmless ones, one has a 95 % interval that misses
zero. So each interval is widened until all of them hold together with the policy's confidence (Bonferroni: each at
1 - (1 - confidence) / m for m categories). The list says where to look; the verdict is the suite's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantlab.judge import Items
from quantlab.records import Category, Comparison, Number, Policy


def categories(
    comparison: Comparison,
    left: Mapping[str, Items],
    right: Mapping[str, Items],
    kinds: Mapping[str, Sequence[str]],
    policy: Policy,
) -> tuple[Category, ...]:
    """Every kind of every comparable task, the largest loss first; empty where no task names more than one kind.

    Args:
        comparison: says which tasks are comparable.
        left: the baseline's items by task.
        right: the candidate's.
        kinds: by task, the kind of each of the baseline's items.
        policy: for the confidence of all intervals together.
    """
    comparable = [one.task for one in comparison.tasks if one.difference is not None]
    tasks = [task for task in comparable if list(left[task].ids) == list(right[task].ids)]
    groups = {
        (task, kind): [place for place, each in enumerate(kinds[task]) if each == kind]
        for task in tasks
        for kind in dict.fromkeys(kinds[task])
    }
    if len(groups) == len(tasks):
        return ()
    level = 1 - (1 - policy.confidence) / len(groups)
    found = [_category(task, kind, left[task], right[task], places, level) for (task, kind), places in groups.items()]
    return tuple(sorted(found, key=lambda one: one.difference.value))


def _category(task: str, kind: str, left: Items, right: Items, places: Sequence[int], level: float) -> Category:
    from quantlab.score.paired import paired

    found = paired(
        left.correct[list(places)],
        right.correct[list(places)],
        confidence=level,
        clusters=[left.clusters[place] for place in places],
        baseline_answers=[left.answers[place] for place in places],
        candidate_answers=[right.answers[place] for place in places],
    )
    ends = [None if end is None else 100 * end for end in (found.low, found.high)]
    return Category(
        task=task,
        kind=kind,
        n=found.n,
        difference=Number(
            value=100 * found.difference, unit="points", n=found.n, low=ends[0], high=ends[1], confidence=level
        ),
        regressed=found.regressed,
        improved=found.improved,
        churn=found.churn or 0,
    )
