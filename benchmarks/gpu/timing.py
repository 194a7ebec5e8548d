"""Grids on one opened checkpoint through quantlab's own throughput stage, without a pipeline around it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlab.engines import engine
from quantlab.measure import Bench
from quantlab.measure.run import tokenizer_of
from quantlab.measure.throughput import throughput
from quantlab.records import Artifact, Checkpoint, EngineConfig, Event, Grid, MeasureJob, Throughput
from quantlab.worker import Reporter


def checkpoint(folder: Path, form: str, digest: str) -> Checkpoint:
    """A folder of a Llama in quantlab's words. `form`: bf16, fp8."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    architecture = "LlamaForCausalLM"
    return Checkpoint(path=str(folder), digest=digest, recipe=form, format=form, architecture=architecture, bytes=size)


@contextmanager
def opened(
    artifact: Artifact,
    config: EngineConfig,
    *,
    bandwidth: float | None = None,
    hear: Callable[[Event], None] = lambda event: None,
) -> Iterator[Callable[[Grid], tuple[MeasureJob, Throughput]]]:
    """Yields what times one grid on the artifact, opened once, and gives the job and its record."""
    with tempfile.TemporaryDirectory() as folder, engine(artifact.engine).open(artifact, config) as session:

        def timed(grid: Grid) -> tuple[MeasureJob, Throughput]:
            job = MeasureJob(
                engine=artifact.engine,
                artifact=artifact,
                config=config,
                stages=("throughput",),
                folder=folder,
                grid=grid,
                bandwidth=bandwidth,
            )
            record, _ = throughput(Bench(job, session, tokenizer_of(artifact), Reporter(hear)))
            assert isinstance(record, Throughput)
            return job, record

        yield timed
