"""An engine where it runs, as the pipeline sees it: can it be used, what does it refuse, what must be built.

An engine of this Python that builds nothing costs no process. Everything else is asked and built in a child under the
engine's own interpreter, and its host record carries that interpreter's versions: a score of vLLM depends on vLLM's
torch and not on ours.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from quantlab import catalog, child, launch, places, probe
from quantlab.engines import Engine, building, engine, sdks
from quantlab.errors import Refused
from quantlab.records import Artifact, Checkpoint, EngineConfig, Grid, Host
from quantlab.records.engines import Asked, AskJob, BuildJob

PRODUCTS = {"fp8": "fp8", "fp8_rowwise": "fp8", "int8_sq": "int8", "w4a8_awq": "fp8", "nvfp4": "nvfp4"}
"""Format -> the products that its linear layers are made of; all others widen their weights and multiply in 16 bit."""
CLIENT = "aiperf"
"""What loads a server."""


class Station:
    """One engine at its place."""

    def __init__(self, name: str, host: Host, needs: tuple[str, ...] = sdks.MEASURING) -> None:
        """Args:
        host: this machine, with the versions of this Python.
        needs: packages beside the SDK that its Python must have.

        Raises:
            BadInput: no such engine.
        """
        self.name = name
        self.engine: Engine = engine(name)
        self._main = host
        self._needs = needs

    @cached_property
    def place(self) -> places.Place:
        """Raises: BadInput: a wrong engines.toml."""
        return places.find(self.name)

    @property
    def command(self) -> tuple[str, ...]:
        """Prefix of the engine's children; empty for this Python."""
        return self.place.command

    @cached_property
    def host(self) -> Host:
        """The machine with the versions of the engine's Python.

        Raises:
            NoAccess, Refused, BadInput: the engine cannot be used, see `probe.require`.
        """
        found = probe.require(self.name, self.place, self._needs)
        if not self.command:
            return self._main
        return msgspec.structs.replace(self._main, python=".".join(map(str, found.python)), versions=found.versions)

    @property
    def version(self) -> str:
        """Package and version of the SDK; the engine's own word where it has none."""
        found = sdks.present(self.name, self.host.versions)
        return f"{found[0].package} {found[1]}" if found else self.engine.version()

    def refusals(self, checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
        """For each checkpoint why the engine does not take it; empty where it does."""
        job = AskJob(engine=self.name, checkpoints=tuple(checkpoints), host=self.host)
        if not self.command:
            return building.ask(job).refusals
        with tempfile.TemporaryDirectory(prefix="quantlab-ask-") as folder:
            asked: Asked = child.run("ask", job, workdir=Path(folder), command=self.command)
        return asked.refusals

    def shaped_by(self, checkpoint: Checkpoint, config: EngineConfig) -> dict[str, Any] | None:
        """What beside checkpoint, SDK and GPU shapes the artifact; None where it is made here and costs nothing."""
        own = self.engine.builds(checkpoint, config) if hasattr(self.engine, "builds") else msgspec.to_builtins(config)
        return own if own is not None or not self.command else msgspec.to_builtins(config)

    def bandwidth(self, config: EngineConfig) -> float | None:
        """Bytes a second that the GPUs of an artifact read; None on a CPU or an unknown GPU."""
        if config.device == "cpu" or not self._main.gpus:
            return None
        gpu = catalog.gpu(self._main.gpus[0].name)
        # Tensor parallel GPUs read their parts at the same time; those of a pipeline one after the other.
        return gpu.bandwidth * config.tensor_parallel if gpu else None

    def compute(self, config: EngineConfig, checkpoint: Checkpoint) -> tuple[float, float] | None:
        """Dense operations a second of all GPUs of an artifact: in the checkpoint's format, and in 16 bit.

        None on a CPU, an unknown GPU, or for a format that its data sheet has no figure for.
        """
        gpu = catalog.gpu(self._main.gpus[0].name) if config.device != "cpu" and self._main.gpus else None
        fast = PRODUCTS.get(checkpoint.format, "bf16")
        if gpu is None or not {fast, "bf16"} <= gpu.tflops.keys():
            return None
        return gpu.tflops[fast] * 1e12 * config.tensor_parallel, gpu.tflops["bf16"] * 1e12 * config.tensor_parallel

    def client(self, grid: Grid) -> tuple[str, ...]:
        """Python of the load generator, for a grid that is served.

        Raises:
            NoAccess, Refused, BadInput: it cannot be used, see `probe.require`.
        """
        if not grid.served:
            return ()
        if launch.in_container(self.command):
            why = "a container sees no load generator of this machine."
            raise Refused(why, place="served", cure="Take a grid without served: true.")
        place = places.find(CLIENT)
        probe.require(CLIENT, place)
        return place.command or (sys.executable,)

    def build_here(self, job: BuildJob) -> Artifact:
        """In this process, of an engine that builds nothing."""
        return building.build(job)
