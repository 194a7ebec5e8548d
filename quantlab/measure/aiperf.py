"""AIPerf, NVIDIA's load generator: what to type, and what its report says about one load.

It keeps `concurrency` requests in flight over streaming HTTP and measures from outside, as users would. Two habits are
worked around. With HF_HUB_OFFLINE it takes a tokenizer from the hub's cache only and refuses a folder, so a cache is
made that holds nothing but a link to ours; it never asks the hub. And lengths are counted by the server (its usage
field), because text that is split again need not have as many tokens.

A report is believed only after it was asked: are all requests there, all of them with the right length, was the load
kept, do its figures agree with each other. What is not needed may be missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlab import disk
from quantlab.records import LoadCell, Number, Percentiles

REPORT, SERVER = "profile_export_aiperf.json", "server_metrics_export.json"
TOKENIZER = "quantlab/tokenizer"
KEPT = 0.9
"""Share of the concurrency that must have been in flight at least half of the time. Not on average: the run's end,
where requests are not followed by others, weighs much in a run of few."""
QUEUES = ("vllm:request_queue_time_seconds", "trtllm_request_queue_time_seconds")
"""What servers call the time in their queue."""


@dataclass(frozen=True, slots=True)
class Load:
    """One cell of a sweep."""

    isl: int
    osl: int
    concurrency: int
    requests: int
    seed: int


class Unbelieved(Exception):
    """The report cannot be used; the text is the reason."""


def command(python: tuple[str, ...], url: str, model: str, load: Load, into: Path) -> list[str]:
    """One load, after as many requests that are not counted as are in flight."""
    return [
        *(*python, "-m", "aiperf", "profile", "-m", model, "--url", url),
        *("--endpoint-type", "completions", "--streaming", "--use-server-token-count", "--tokenizer", TOKENIZER),
        *("--isl", str(load.isl), "--isl-stddev", "0", "--osl", str(load.osl), "--osl-stddev", "0"),
        *("--extra-inputs", "ignore_eos:true", "--extra-inputs", f"min_tokens:{load.osl}"),
        *("--concurrency", str(load.concurrency), "--request-count", str(load.requests)),
        *("--warmup-request-count", str(load.concurrency), "--random-seed", str(load.seed)),
        *("--ui", "none", "--artifact-dir", str(into)),
    ]


def environment(cache: Path) -> dict[str, str]:
    """All variables of the client. PYTHONPATH is ours and not meant for its Python."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return own | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def tokenizer_cache(folder: Path, cache: Path) -> None:
    """A hub cache with one repository: the tokenizer in `folder`."""
    repository = cache / f"models--{TOKENIZER.replace('/', '--')}"
    (repository / "snapshots").mkdir(parents=True, exist_ok=True)
    disk.write(repository / "refs" / "main", b"local")
    link = repository / "snapshots" / "local"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.absolute(), target_is_directory=True)


def read(folder: Path, load: Load) -> LoadCell:
    """The cell that a run of AIPerf left in `folder`.

    Raises:
        Unbelieved: no report, a needed figure is missing, or a check failed.
    """
    found = _json(folder / REPORT)
    if found is None:
        raise Unbelieved(f"there is no {REPORT}")
    _require_whole(found, load)
    rate = _need(found, "request_throughput")
    queue = _queue(_json(folder / SERVER) or {})
    waiting = None if queue is None else rate * queue
    kept = _need(found, "effective_concurrency")
    return LoadCell(
        isl=load.isl,
        osl=load.osl,
        concurrency=load.concurrency,
        mode="served",
        source=f"aiperf {found.get('aiperf_version', '')}".strip(),
        requests=load.requests,
        computed=None if waiting is None else max(0.0, kept - waiting),
        waiting=waiting,
        tokens_per_second=Number(value=_need(found, "output_token_throughput"), unit="tokens/s"),
        requests_per_second=Number(value=rate, unit="requests/s"),
        ttft=_percentiles(found, "time_to_first_token"),
        tpot=_percentiles(found, "inter_token_latency"),
        itl=_percentiles(found, "inter_chunk_latency"),
        latency=_percentiles(found, "request_latency"),
    )


def _require_whole(found: Mapping[str, Any], load: Load) -> None:
    """All requests, all lengths, the load kept, and figures that agree."""
    count, errors = _need(found, "request_count"), _maybe(found, "request_error_rate", "avg") or 0.0
    if count != load.requests or errors or found.get("was_cancelled"):
        raise Unbelieved(f"{count:.0f} of {load.requests} requests were answered, {errors:g} % failed")
    made = [_need(found, "output_sequence_length", name) for name in ("min", "max")]
    if made != [load.osl, load.osl]:
        raise Unbelieved(f"asked for {load.osl} tokens, got {made[0]:g} to {made[1]:g}")
    given = _need(found, "input_sequence_length")
    if abs(given - load.isl) > max(1.0, 0.02 * load.isl):
        raise Unbelieved(f"{given:g} tokens went in where {load.isl} were asked")
    kept = _need(found, "effective_concurrency", "p50")
    if kept < KEPT * load.concurrency:
        raise Unbelieved(f"{kept:.1f} requests were in flight half of the time, {load.concurrency} were asked")
    spoken, meant = _need(found, "output_token_throughput"), _need(found, "request_throughput") * load.osl
    if not meant > 0 or abs(spoken / meant - 1) > 0.05:
        raise Unbelieved(f"{spoken:.1f} tokens/s, but requests and lengths give {meant:.1f}")


def _queue(found: Mapping[str, Any]) -> float | None:
    """Mean seconds in the server's queue, of the counted requests; None where the server does not say."""
    metrics = found.get("metrics")
    if not isinstance(metrics, dict):
        return None
    for name in QUEUES:
        series = metrics.get(name, {}).get("series") or []
        if series and isinstance(mean := series[0].get("stats", {}).get("avg"), int | float):
            return float(mean)
    return None


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise Unbelieved(f"{path.name} is no JSON ({error})") from None
    return found if isinstance(found, dict) else None


def _maybe(found: Mapping[str, Any], metric: str, name: str) -> float | None:
    part = found.get(metric)
    value = part.get(name) if isinstance(part, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _need(found: Mapping[str, Any], metric: str, name: str = "avg") -> float:
    value = _maybe(found, metric, name)
    if value is None:
        raise Unbelieved(f"the report has no {metric}.{name}")
    return value


def _percentiles(found: Mapping[str, Any], metric: str) -> Percentiles | None:
    """Milliseconds in the report, seconds here; None where one is missing."""
    values = [_maybe(found, metric, name) for name in ("p50", "p90", "p99")]
    if any(value is None for value in values):
        return None
    p50, p90, p99 = (value / 1000 for value in values if value is not None)
    return Percentiles(p50=p50, p90=p90, p99=p99)
