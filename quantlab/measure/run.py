"""The measuring child: open the engine once, go through the stages in order, send each result as it is
finished.

Loading a checkpoint takes as long as measuring a small suite, so all stages share one session. A stage that is sent is
safe: the parent writes it into the ledger at once, and a kill loses only the stage at work: of the accuracy stage only
the block at work (journal.py), of throughput only the cell (durable.py). A broken checkpoint must not cost an
evaluation: when the canary fails or the distribution has collapsed, that record is sent and nothing else is started.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import msgspec

from quantlab.engines import Bencher, Engine, engine
from quantlab.errors import BadInput
from quantlab.measure import Bench, Measured, Reporter
from quantlab.measure.benched import is_benched, throughput
from quantlab.measure.durable import Durable, durable
from quantlab.measure.halving import Halving
from quantlab.measure.served import is_served, with_served
from quantlab.records import Artifact, Canary, Fidelity, MeasureJob, Throughput

STAGES: dict[str, str] = {
    "canary": "quantlab.measure.canary:canary",
    "reference": "quantlab.measure.fidelity:reference",
    "fidelity": "quantlab.measure.fidelity:fidelity",
    "accuracy": "quantlab.measure.accuracy:accuracy",
    "throughput": "quantlab.measure.throughput:throughput",
}
"""stage -> "module:function"; imported on first use."""


def run(spec: MeasureJob, reporter: Reporter) -> dict[str, list[str]]:
    """Measure `spec.stages` on one session; each record goes out through `reporter.result`.

    Returns:
        {"done": stages that were sent}; shorter than `spec.stages` when the checkpoint has collapsed.

    Raises:
        QuantlabError: of the stage that could not be measured; what was sent before it stands.
    """
    _quiet()
    with durable(spec, reporter) as cells:
        return {"done": _measured(spec, reporter, cells)}


def _measured(spec: MeasureJob, reporter: Reporter, cells: Durable) -> list[str]:
    tokenizer = tokenizer_of(spec.artifact)
    done: list[str] = []
    made = engine(spec.engine)
    apart = cast(Bencher, made) if is_benched(made, spec, reporter) else None
    before = cells.whole() if is_served(spec) and "throughput" in spec.stages else None
    stages = [each for each in spec.stages if each != "throughput" or (apart is None and before is None)]
    held = [] if before is None else [before]
    if stages and not _on_session(made, spec, stages, tokenizer, reporter, done, held, cells):
        return done
    if apart is not None and before is None:
        held.append(cast(Throughput, throughput(apart, spec, tokenizer, reporter, cells)[0]))
    for record in held:
        cells.keep_whole(record)
        whole = with_served(record, made, spec, reporter, cells) if is_served(spec) else record
        reporter.result("throughput", whole, {})
        done.append("throughput")
    return done


def _on_session(
    made: Engine,
    spec: MeasureJob,
    stages: Sequence[str],
    tokenizer: Any,
    reporter: Reporter,
    done: list[str],
    held: list[Throughput],
    cells: Durable,
) -> bool:
    """Measure `stages` on one session and add them to `done`; False when the canary failed.

    A throughput record whose served cells are still to come goes into `held`: the session must end first.
    """
    with made.open(spec.artifact, spec.config) as session:
        for stage in stages:
            patient = Halving(session, partial(reporter.note, stage))
            bench = Bench(spec, session if stage == "throughput" else patient, tokenizer, reporter, cells)
            record, files = _function(stage)(bench)
            record = _noted(record, patient.notes)
            if isinstance(record, Throughput) and is_served(spec):
                held.append(record)
                continue
            reporter.result(stage, record, files)
            done.append(stage)
            if why := _stop(record, spec.collapse):
                reporter.note(stage, f"Nothing more is measured: {why}")
                return False
    return True


def _noted(record: Any, notes: list[str]) -> Any:
    """The record with what had to be done for want of memory."""
    return msgspec.structs.replace(record, notes=(*record.notes, *notes)) if notes else record


def _stop(record: msgspec.Struct, collapse: tuple[float, float] | None) -> str:
    """Why nothing more is measured on what is no language model any more; empty while it is one."""
    if isinstance(record, Canary) and not record.passed:
        return record.reason
    if isinstance(record, Fidelity) and collapse is not None and record.collapsed(*collapse):
        return f"mean KL {record.kl.value:.2f} nats, the same next token in {record.top1.value:.0%} of positions."
    return ""


def _function(stage: str) -> Callable[[Bench], Measured]:
    module, name = STAGES[stage].split(":")
    function: Callable[[Bench], Measured] = getattr(import_module(module), name)
    return function


def tokenizer_of(artifact: Artifact) -> Any:
    """The tokenizer beside the weights: an engine built elsewhere may keep none of its own."""
    from transformers import AutoTokenizer

    for place in (artifact.path, artifact.checkpoint.path):
        if (Path(place) / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
    raise BadInput(
        "there is no tokenizer beside the weights.",
        place=artifact.path,
        cure="Copy tokenizer.json and tokenizer_config.json of the original model there.",
    )


def _quiet() -> None:
    """Keep the log readable and the network silent. Before the SDKs are imported: they read these once."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    for name in ("lm_eval", "lm-eval", "datasets", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
