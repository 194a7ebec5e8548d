"""All recipes of a run calibrated in one child, before each is walked by itself.

The SDKs are then imported once, and one pass over the calibration data serves every recipe that wants what it shows
(calibrate/shared.py). A finished recipe is written down at once: whoever kills the run loses the one at work, and the
next run takes up there. Whatever goes wrong here goes wrong again when the recipe walks alone, and is recorded there;
so this stage needs no failures of its own, and a child that dies of one recipe takes no other along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import msgspec

from quantlab import child
from quantlab.catalog import Found
from quantlab.errors import BadInput, StageFailed
from quantlab.pipeline.entry import Clock
from quantlab.pipeline.stage import Stages
from quantlab.pipeline.walker import Walker
from quantlab.plans import Plan
from quantlab.records import Calibrated, CalibrateJob, CalibrateJobs, Event, Recipe

Jobs = dict[str, CalibrateJob]
"""Identity -> job."""


def calibrate_together(walker: Walker, recipes: Sequence[tuple[Found, Recipe]], plans: Mapping[str, Plan]) -> None:
    """Calibrate what the ledger does not have yet, if that is more than one recipe."""
    jobs = _missing(walker.stages, _jobs(walker, recipes, plans))
    if len(jobs) < 2:
        return
    with ExitStack() as locks:
        for identity in sorted(jobs):  # one order for all runs, or two could wait for each other
            text = f"{jobs[identity].recipe_name}: another run is at calibrate; waiting for its result."
            locks.enter_context(walker.ledger.hold(identity, on_wait=partial(walker.watch.say, text)))
        if jobs := _missing(walker.stages, jobs):
            _calibrate(walker, jobs)


def _jobs(walker: Walker, recipes: Sequence[tuple[Found, Recipe]], plans: Mapping[str, Plan]) -> Jobs:
    """Of all recipes that can be calibrated. What has no calibration set says so when it walks."""
    jobs: Jobs = {}
    for found, recipe in recipes:
        planned = plans[found.name]
        if recipe.preset is None or planned.refusals or found.name in walker.adopted:
            continue
        try:
            identity, job = walker.calibration(found, recipe, planned)
        except BadInput:
            continue
        # These share no pass: hidden states are another way through the data, and kept layers are calibrated apart.
        if not job.layerwise and not recipe.keep:
            jobs.setdefault(identity, job)
    return jobs


def _missing(stages: Stages, jobs: Jobs) -> Jobs:
    return {identity: job for identity, job in jobs.items() if stages.calibrated(identity) is None}


def _calibrate(walker: Walker, jobs: Jobs) -> None:
    """In one child; each result becomes an entry as it comes."""
    stages, watch = walker.stages, walker.watch
    identities = {job.recipe_name: identity for identity, job in jobs.items()}
    now, clock = "", Clock()

    def hear(event: Event) -> None:
        nonlocal now
        if event.recipe and event.recipe != now:
            now = event.recipe
            watch.stage(now, "calibrate", cached=False)
        if event.kind == "result" and event.result is not None:
            made = msgspec.json.decode(event.result, type=Calibrated)
            identity = identities[event.recipe]
            stages.keep_calibrated(identity, event.recipe, jobs[identity], clock, made)
        else:
            watch.event(event.recipe, event)

    spec = CalibrateJobs(jobs=tuple(jobs.values()))
    folder = walker.ledger.scratch("together-" + min(jobs))
    try:
        child.run("calibrate_all", spec, workdir=folder, threads=walker.resolved.ask.threads, on_event=hear)
    except StageFailed as error:
        watch.say(f"calibrating {len(jobs)} recipes together failed; the rest goes on one by one. {error}")
