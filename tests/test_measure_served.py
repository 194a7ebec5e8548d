"""A real server of two lines, a client of a few, and what AIPerf itself wrote (tests/contracts/aiperf_0_13.json)."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quantlab.engines.serving import Server
from quantlab.measure import server as servers
from quantlab.measure.aiperf import REPORT, SERVER, Load, Unbelieved, command, environment, read, tokenizer_cache
from quantlab.measure.served import with_served
from quantlab.records import Grid, MeasureJob, Throughput
from quantlab.worker import Reporter
from tests.measure_bench import job, tiny_folder

WROTE = json.loads((Path(__file__).parent / "contracts" / "aiperf_0_13.json").read_text())
LOAD = Load(isl=32, osl=8, concurrency=8, requests=48, seed=1)
HTTP = """
import http.server, json, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"" if self.path == "/health" else json.dumps({"data": [{"id": sys.argv[2]}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
if len(sys.argv) > 3:
    sys.exit("ValueError: the model does not fit")
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
CLIENT = """
import json, pathlib, sys
words = sys.argv[1:]
into, load = pathlib.Path(words[words.index("--artifact-dir") + 1]), int(words[words.index("--concurrency") + 1])
wrote = json.loads(pathlib.Path(WROTE).read_text())
wrote["report"]["effective_concurrency"].update(avg=load * 0.97, p50=load)
wrote["report"]["request_count"]["avg"] = int(words[words.index("--request-count") + 1])
into.mkdir(parents=True)
(into / "profile_export_aiperf.json").write_text(json.dumps(wrote["report"]))
(into / "server_metrics_export.json").write_text(json.dumps(wrote["server"]))
sys.exit(3 if load == 3 else 0)
"""


def written(folder: Path, report: Any, server: Any = None) -> Path:
    (folder / REPORT).write_text(json.dumps(report))
    if server is not None:
        (folder / SERVER).write_text(json.dumps(server))
    return folder


def test_what_aiperf_wrote_becomes_a_cell_with_the_queue_of_the_server(tmp_path: Path) -> None:
    cell = read(written(tmp_path, WROTE["report"], WROTE["server"]), LOAD)
    assert (cell.mode, cell.source, cell.requests, cell.valid) == ("served", "aiperf 0.13.0", 48, True)
    assert cell.tokens_per_second is not None
    assert cell.tokens_per_second.value == pytest.approx(20.06, abs=0.01)
    assert cell.ttft is not None
    assert cell.ttft.p50 == pytest.approx(1.7349, abs=1e-3)
    assert cell.waiting == pytest.approx(2.507 * 1.0578, rel=1e-3), "rate times time in the queue"
    assert cell.computed == pytest.approx(7.747 - 2.652, abs=0.01)
    assert cell.saturated, "that server held four"
    assert read(written(tmp_path, WROTE["report"], {"metrics": {}}), LOAD).waiting is None


@pytest.mark.parametrize(
    ("metric", "name", "value", "reason"),
    [
        ("request_count", "avg", 47, "47 of 48 requests"),
        ("request_error_rate", "avg", 2.0, "2 % failed"),
        ("output_sequence_length", "min", 7.0, "asked for 8 tokens, got 7 to 8"),
        ("input_sequence_length", "avg", 40.0, "40 tokens went in"),
        ("effective_concurrency", "p50", 5.0, "5.0 requests were in flight half of the time, 8 were asked"),
        ("output_token_throughput", "avg", 40.0, "requests and lengths give 20.1"),
        ("request_throughput", "avg", None, "no request_throughput.avg"),
        ("time_to_first_token", "p99", None, ""),
    ],
)
def test_a_report_is_asked_before_it_is_believed(
    tmp_path: Path, metric: str, name: str, value: Any, reason: str
) -> None:
    report = copy.deepcopy(WROTE["report"])
    report[metric][name] = value
    if not reason:
        assert read(written(tmp_path, report), LOAD).ttft is None, "what is not needed may be missing"
        return
    with pytest.raises(Unbelieved, match=reason):
        read(written(tmp_path, report), LOAD)


def test_no_report_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(Unbelieved, match="there is no"):
        read(tmp_path, LOAD)
    (tmp_path / REPORT).write_text("{")
    with pytest.raises(Unbelieved, match="no JSON"):
        read(tmp_path, LOAD)


def test_the_clients_words_and_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command(("python",), "http://127.0.0.1:1", "m", LOAD, tmp_path)
    assert words[:4] == ["python", "-m", "aiperf", "profile"]
    assert words[words.index("--warmup-request-count") + 1] == "8"
    monkeypatch.setenv("PYTHONPATH", "/ours")
    tokenizer_cache(tiny_folder(), tmp_path)
    tokenizer_cache(tiny_folder(), tmp_path)
    assert "PYTHONPATH" not in environment(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    from huggingface_hub import snapshot_download

    found = snapshot_download("quantlab/tokenizer", cache_dir=tmp_path, local_files_only=True)
    assert (Path(found) / "tokenizer.json").is_file()


class Standin:
    """An engine whose server is a few lines of http.server."""

    def __init__(self, *more: str, answers: str = "m") -> None:
        self.more, self.answers = more, answers

    def server(self, artifact: Any, config: Any, *, name: str, port: int, folder: Path) -> Server:
        words = (sys.executable, "-S", "-c", HTTP, str(port), self.answers, *self.more)
        return Server(words, {}, "m")


def spec(folder: Path, **fields: Any) -> MeasureJob:
    grid = Grid(summary="", isl=(32,), osl=(8,), concurrency=(1, 2, 3), served=True, waves=1, repeats=1)
    client = folder / "client.py"
    wrote = str(Path(__file__).parent / "contracts" / "aiperf_0_13.json")
    client.write_text(f"WROTE = {wrote!r}\n{CLIENT}")
    return job(folder, **{"grid": grid, "client": (sys.executable, str(client)), **fields})


def measured(made: Any, work: MeasureJob) -> Throughput:
    record = Throughput(grid="g", cells=(), numerics="native", device="cpu")
    return with_served(record, made, work, Reporter(lambda event: None))


def test_a_sweep_on_a_server_and_a_client_that_fails_once(tmp_path: Path) -> None:
    record = measured(Standin(), spec(tmp_path))
    assert [(cell.concurrency, cell.mode, cell.valid) for cell in record.load] == [
        (1, "served", True),
        (2, "served", True),
        (3, "served", False),
    ]
    assert "the client ended with exit code 3" in record.load[2].reason
    assert record.knees[0].mode == "served"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Standin("broken"), "ended with exit code 1: ValueError: the model does not fit"),
        (Standin(answers="a stranger"), "on our port answers a server of ['a stranger']"),
        (object(), "engine torch has no server"),
    ],
)
def test_a_server_that_does_not_serve_makes_every_cell_invalid(tmp_path: Path, made: Any, reason: str) -> None:
    record = measured(made, spec(tmp_path))
    assert len(record.load) == 3
    assert all(not cell.valid and reason in cell.reason for cell in record.load)
    assert record.knees == ()


def test_without_a_client_the_cells_say_what_to_do(tmp_path: Path) -> None:
    record = measured(Standin(), spec(tmp_path, client=()))
    assert {cell.reason for cell in record.load} == {"there is no load generator: `quantlab engines setup aiperf`"}


def test_a_server_that_is_not_ready_in_time(tmp_path: Path) -> None:
    sleeps = Server((sys.executable, "-S", "-c", "import time; time.sleep(60)"), {}, "m")
    with (
        pytest.raises(servers.NotServed, match="not ready after 1 s"),
        servers.serving(lambda port: sleeps, tmp_path / "log", seconds=1.0),
    ):
        pass


def test_vllms_server_gets_the_sessions_arguments_as_flags_of_its_parser(tmp_path: Path) -> None:
    from quantlab.engines.vllm_serve import server
    from tests.vllm_standin import contract

    work = job(tmp_path)
    config = msgspec.structs.replace(work.config, max_length=100, max_batch=4)
    made = server(work.artifact, config, name="m", port=7, folder=tmp_path, cpu=True)
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in made.command[3:])
    assert flags["max-model-len"] == "101"
    assert flags["max-num-seqs"] == "4"
    assert "no-enable-prefix-caching" in flags
    assert "enforce-eager" in flags
    known = contract()["fields"]["EngineArgs"]
    own = {"host", "port", "served-model-name"}
    assert {name.removeprefix("no-").replace("-", "_") for name in flags.keys() - own} <= set(known)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in made.environment


def test_trtllm_serve_is_the_command_that_the_contract_knows(tmp_path: Path) -> None:
    from quantlab.engines import trtllm_run

    work = job(tmp_path)
    config = msgspec.structs.replace(work.config, dtype="auto", max_length=64, max_batch=4)
    made = trtllm_run.server(work.artifact, config, "pytorch", 8123, tmp_path)
    known = json.loads((Path(__file__).parent / "contracts" / "trtllm_1_2_1.json").read_text())["serve_flags"]
    flags = {word for word in made.command if word.startswith("--")}
    assert flags <= {name for each in known for name in each.split("/")}
    assert made.command[made.command.index("--port") + 1] == "8123"
    assert made.model == Path(work.artifact.path).name
    assert json.loads((tmp_path / "serve.yaml").read_text())["kv_cache_config"]["enable_block_reuse"] is False
