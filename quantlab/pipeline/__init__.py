"""The one place where stages are composed: a model word and recipe words in, a `Run` out.

    fetch -> plan -> calibrate -> verify -> canary -> reference | fidelity -> accuracy -> throughput -> judge

The baseline is a recipe and walks first, because the others are compared with it. A recipe that fails stops where
it failed, keeps its failure as a record, and the run goes on with the next; only a baseline that fails ends the run,
because nothing could be said without it.
"""

from __future__ import annotations

from quantlab.pipeline.ask import Ask, Resolved, resolve
from quantlab.pipeline.repair import repair
from quantlab.pipeline.repair_ask import RepairAsk
from quantlab.pipeline.repair_dry import foretold
from quantlab.pipeline.run import Planned, plan_run, run
from quantlab.pipeline.stage import Silent, Watcher

__all__ = [
    "Ask",
    "Planned",
    "RepairAsk",
    "Resolved",
    "Silent",
    "Watcher",
    "foretold",
    "plan_run",
    "repair",
    "resolve",
    "run",
]
