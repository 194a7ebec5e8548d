"""Too large a batch is halved: with torch's own allocator under a real limit, and what must not be swallowed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from quantlab.engines import GenerateRequest, Score, ScoreRequest
from quantlab.engines.fake import FakeEngine, FakeSession
from quantlab.errors import Refused
from quantlab.measure.halving import Halving
from quantlab.measure.run import run
from quantlab.records import Accuracy, Artifact, Canary, Checkpoint, EngineConfig, Event, MeasureJob, Suite, SuiteTask
from quantlab.worker import Reporter

ROOT = Path(__file__).resolve().parent.parent
FAKE = Artifact(
    engine="fake",
    path="/nowhere",
    checkpoint=Checkpoint(path="/nowhere", digest="", recipe="bf16", format="bf16", architecture=""),
)


class Small(FakeSession):
    """Holds `room` requests at once."""

    room, error = 3, "CUDA out of memory. Tried to allocate 2.00 GiB."
    calls: list[int]

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        self.calls.append(len(requests))
        if len(requests) > self.room:
            raise Refused(self.error) if "small" in self.error else RuntimeError(self.error)
        return super().logprobs(requests)


def small(error: str = Small.error, room: int = 3) -> tuple[Small, Halving]:
    session = Small(FAKE, EngineConfig())
    session.calls, session.error, session.room = [], error, room
    return session, Halving(session, lambda text: None)


ASKED = [ScoreRequest((5, 6, n), (7,)) for n in range(10, 23)]


@pytest.mark.parametrize(
    "error", [Small.error, "DefaultCPUAllocator: can't allocate memory", "the GPU's memory is too small (2 GiB)."]
)
def test_answers_are_those_of_the_whole_batch_in_order(error: str) -> None:
    session, patient = small(error)
    plain = FakeSession(FAKE, EngineConfig()).logprobs(ASKED)
    assert [float(one.logprobs[0]) for one in patient.logprobs(ASKED)] == [float(one.logprobs[0]) for one in plain]
    assert session.calls == [13, 7, 4, 2, 2, 2, 2, 2, 2, 1]
    assert len(patient.notes) == 3
    session.calls.clear()
    patient.logprobs(ASKED[:5])
    assert session.calls == [2, 2, 1], "what did not fit is not tried again"
    assert patient.logprobs([]) == []


def test_one_request_that_does_not_fit_and_another_error_are_errors() -> None:
    session, patient = small(room=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        patient.logprobs(ASKED)
    assert session.calls[-1] == 1
    session, patient = small("a kernel died")
    with pytest.raises(RuntimeError, match="kernel"):
        patient.logprobs(ASKED)
    assert session.calls == [13]
    assert patient.notes == []


SCORE = """
import json, resource, sys
import quantlab.engines.torch_session as sessions
from quantlab.engines import ScoreRequest, engine
from quantlab.measure.halving import Halving
from quantlab.records import Artifact, Checkpoint, EngineConfig
folder = sys.argv[1]
made = Checkpoint(path=folder, digest="", recipe="bf16", format="bf16", architecture="LlamaForCausalLM")
artifact = Artifact(engine="torch", path=folder, checkpoint=made)
config = EngineConfig(device="cpu", dtype="float32", token_budget=1 << 16)
asked = [ScoreRequest(tuple((n * 7 + k * 13) % 500 + 2 for k in range(600)), (9,)) for n in range(16)]
with engine("torch").open(artifact, config) as session:
    whole = [float(one.logprobs[0]) for one in session.logprobs(asked)]
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (16 << 20), -1))
    patient = Halving(session, lambda text: None)
    found = [float(one.logprobs[0]) for one in patient.logprobs(asked)]
print(json.dumps([whole, found, patient.notes]))
"""


def test_torch_goes_on_in_half_the_batch_when_its_allocator_says_no(tiny_model: Path) -> None:
    """9,600 tokens at once through a real model, with 16 MB to do it in."""
    # Large blocks go back to the system at once, so that the limit counts them.
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(tiny_model)], env={**os.environ, **own}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    whole, halved, notes = json.loads(done.stdout.splitlines()[-1])
    assert "out of memory with 16 requests at once; went on with 8." in notes[0]
    assert halved == pytest.approx(whole, abs=1e-4)


def test_the_record_says_so(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Small(msgspec.structs.replace(FAKE, path=str(tiny_model)), EngineConfig())
    session.calls = []

    class Opened:
        def __enter__(self) -> Small:
            return session

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(FakeEngine, "open", lambda self, artifact, config: Opened())
    suite = Suite(
        summary="",
        tasks=(SuiteTask(task="ql_arithmetic", metric="acc", limit=24),),
        canary=("the cat sat on the mat and the cat sat on the mat and",),
    )
    job = MeasureJob(
        engine="fake",
        artifact=msgspec.structs.replace(FAKE, path=str(tiny_model)),
        config=EngineConfig(),
        stages=("canary", "accuracy"),
        folder=str(tmp_path),
        suite=suite,
        suite_name="few",
        tasks_folder=str(ROOT / "evals" / "tasks"),
    )
    events: list[Event] = []
    run(job, Reporter(events.append))
    results = {event.stage: event.result for event in events if event.kind == "result"}
    assert msgspec.json.decode(results["canary"] or b"", type=Canary).notes == ()
    notes = msgspec.json.decode(results["accuracy"] or b"", type=Accuracy).notes
    assert notes
    assert "out of memory" in notes[0]
    assert any("out of memory" in event.text for event in events if event.kind == "note")
    assert session.generate([GenerateRequest((5,), 1)])
