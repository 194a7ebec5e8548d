"""(Session, job) -> measurements: canary, reference, fidelity, accuracy, throughput.

Everything here talks to one opened `Session` of quantlab/engines and to nothing else that computes, so the
thing scored is the thing timed, whichever SDK is behind it.

    run         opens the engine once and goes through the stages of a job
    canary      is it a language model at all?
    windows     held-out text -> token ids
    kept        the baseline's distributions as a file
    fidelity    how far did each next-token distribution move from the baseline's?
    stretches   the same by position in a long context
    tasks       a suite -> lm-eval tasks, their data found on this machine
    data        where a task's items lie
    part        a slice of a suite in its random order
    adapter     lm-eval's requests -> the session's, block by block
    seeing      the adapter for tasks about pictures
    pictures    pictures inside a data set -> files
    vqa         answers in responses, and the metrics that task files name
    controls    the same tasks with the wrong picture, or none
    sights      pictures for the canary
    blocks      how requests are cut into blocks
    journal     blocks that were answered, so that a kill costs one block
    durable     the same for throughput cells
    items       lm-eval's samples -> one row an item
    estimates   a mean with its uncertainty
    accuracy    a suite on one session -> scores and the item table
    throughput  a grid on one session: static batches
    inflight    and requests in flight, each that ends followed by the next (loop)
    doubts      when a cell is not to be believed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from quantlab.engines import Session
from quantlab.errors import BadInput
from quantlab.measure.durable import Durable
from quantlab.records import MeasureJob, Suite


class Reporter(Protocol):
    """What a stage may say while it works; `quantlab.worker.Reporter` is one."""

    def progress(self, stage: str, done: float, total: float, text: str = "") -> None: ...

    def note(self, stage: str, text: str) -> None: ...

    def result(self, stage: str, record: msgspec.Struct, files: dict[str, str] | None = None) -> None: ...


@dataclass(frozen=True)
class Bench:
    """What every stage works with."""

    spec: MeasureJob
    session: Session
    tokenizer: Any
    """A transformers tokenizer: the checkpoint's own."""
    reporter: Reporter
    cells: Durable = field(default_factory=Durable)
    """Throughput cells that an earlier attempt finished."""

    @property
    def folder(self) -> Path:
        """The job's working folder; made on first use."""
        folder = Path(self.spec.folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint, where the processor lies: an engine built elsewhere may keep none."""
        return Path(self.spec.artifact.checkpoint.path)

    @property
    def suite(self) -> Suite:
        """The suite, for the stages that need one.

        Raises:
            BadInput: the job has none.
        """
        if self.spec.suite is None:
            raise BadInput("this stage needs a suite.", place="measure", cure="Name one with --suite.")
        return self.spec.suite

    def beside_suite(self, path: str) -> Path:
        """A path of the suite's YAML, which is relative to that YAML."""
        return Path(self.spec.suite_folder or ".") / path


Measured = tuple[msgspec.Struct, dict[str, str]]
"""A stage's record and its files, name -> absolute path."""
