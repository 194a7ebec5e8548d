"""Items a second of quantlab against lm-eval's own `hf` model: the same items, one process, taking turns.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/scoring.py MODEL_FOLDER [--case WORD ...] [--repeats 2]

Both sides run lm-eval's `evaluate` on the same task objects, weights (float32), tokenizer and threads. `hf` gets the
best of a few batch sizes, tried on the same items first. quantlab's side is what `quantlab eval` runs: SessionLM over
the torch engine, with a fresh journal. Models are loaded before the clock starts. Then the two take turns, and what
is reported is the ratio of the medians, in wall and in CPU seconds: where others use the machine too, only the second
means anything.

The limit. A causal model needs each distinct prefix once. Tokens fed is what `hf` puts into the model (one-token
answers to one question are one pass there too; padding is not counted), tokens needed are the nodes of the prefix
tree of the same requests; generated tokens count in both. Their ratio is the speed-up that sharing alone can give. A
share above 1 comes from what else `hf` does: it pads, and it runs the output head and a softmax over the whole
vocabulary at every position.

Rolling likelihood shares nothing (limit 1), and its metric is no mean over items, so no suite asks for it: it goes to
the adapter directly.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scoring_cases import CASES, TEXT, Case

RESULTS = Path(__file__).resolve().parent / "results" / "scoring.json"


@dataclass
class Watched:
    """A session that remembers what it was asked, so that tokens can be counted."""

    session: Any
    scores: list[Any] = field(default_factory=list)
    prompts: list[tuple[int, ...]] = field(default_factory=list)
    generated: int = 0

    @property
    def max_length(self) -> int:
        return int(self.session.max_length)

    def logprobs(self, requests: Sequence[Any]) -> list[Any]:
        self.scores += requests
        return self.session.logprobs(requests)

    def generate(self, requests: Sequence[Any]) -> list[Any]:
        done: list[Any] = self.session.generate(requests)
        self.prompts += [request.prompt for request in requests]
        # The first token comes out of the prompt, and the last one is never fed back.
        self.generated += sum(max(0, len(one.tokens) - 1) for one in done)
        return done

    def tokens(self) -> tuple[int, int]:
        """(fed by `hf`, needed)."""
        from quantlab.engines.torch_packing import Paths

        sequences = [(*ask.context, *ask.continuation[:-1]) for ask in self.scores] + self.prompts
        paths = Paths(sequences)
        fed = sum(map(len, set(sequences))) + self.generated
        return fed, paths.unique(range(len(paths.tokens)), 0) + self.generated


@dataclass(frozen=True)
class Turn:
    """One run of one side."""

    wall: float
    cpu: float
    answers: list[list[Any]]
    """An item: (log-likelihood, greedy) of each choice, or its text."""
    decisions: list[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder with safetensors and tokenizer, e.g. of SmolLM2-135M-Instruct")
    parser.add_argument("--case", nargs="*", choices=[case.word for case in CASES], help="only these")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of items")
    parser.add_argument("--out", type=Path, default=RESULTS)
    words = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as scratch, sides(words.model, Path(scratch)) as (ours, theirs):
        found = []
        for case in CASES:
            if words.case and case.word not in words.case:
                continue
            if case.package and find_spec(case.package) is None:
                print(f"{case.word}: left out, the package {case.package} is not installed", flush=True)
                continue
            with redirect_stderr(io.StringIO()):  # lm-eval's progress bars
                found.append(measure(case, round(case.items * words.scale), words.repeats, ours, theirs, Path(scratch)))
            print(json.dumps(found[-1]), flush=True)
            words.out.write_text(json.dumps({**setting(words.model, words.repeats), "cases": found}, indent=1) + "\n")
    print(table(found))


def quiet() -> None:
    """No advice between the rows, and no network; before the SDKs are imported, which read it once."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("lm_eval", "lm-eval", "transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def sides(model: Path, scratch: Path) -> Any:
    """Context of (make quantlab's model, make `hf` of a batch size), both loaded."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quantlab.engines import engine
    from quantlab.measure.adapter import SessionLM
    from quantlab.measure.journal import Journal
    from quantlab.records import Artifact, Checkpoint, EngineConfig

    @contextmanager
    def opened() -> Iterator[tuple[Callable[[], Any], Callable[[int], Any]]]:
        checkpoint = Checkpoint(
            path=str(model), digest="0", recipe="bf16", format="bf16", architecture="LlamaForCausalLM"
        )
        config = EngineConfig(device="cpu", dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(model)
        whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        journals = iter(range(10**6))

        def ours() -> Any:
            journal = Journal(scratch / f"journal-{next(journals)}.jsonl", "benchmark")
            return SessionLM(Watched(session), tokenizer, journal, config.token_budget)

        with engine("torch").open(Artifact(engine="torch", path=str(model), checkpoint=checkpoint), config) as session:
            yield ours, lambda size: HFLM(pretrained=whole, tokenizer=tokenizer, batch_size=size)

    return opened()


def measure(case: Case, items: int, repeats: int, ours: Any, theirs: Any, scratch: Path) -> dict[str, Any]:
    """One row: trials of `hf`, then turns A B A B."""
    some = max(items // 2, min(items, max(case.batches)))
    trials = {size: round(run(case, some, theirs(size), scratch).cpu, 2) for size in case.batches}
    best = min(trials, key=lambda size: trials[size])
    run(case, min(items, 2), ours(), scratch)  # warm, as the trials made `hf`
    pairs, computed = [], 0
    for _ in range(repeats):
        lm = ours()
        before = lm.session.session.scorer.tokens_computed
        mine = run(case, items, lm, scratch)
        computed = lm.session.session.scorer.tokens_computed - before
        pairs.append((mine, run(case, items, theirs(best), scratch)))
    fed, needed = lm.session.tokens()
    return row(case, items, best, trials, pairs, fed, needed, computed)


def row(
    case: Case, items: int, best: int, trials: dict[int, float], pairs: list[tuple[Turn, Turn]], fed: int, needed: int,
    computed: int,
) -> dict[str, Any]:  # fmt: skip
    ratios = {}
    for unit in ("wall", "cpu"):
        ours, theirs = ([round(getattr(pair[side], unit), 3) for pair in pairs] for side in (0, 1))
        ratio = statistics.median(theirs) / statistics.median(ours)
        ratios |= {
            f"quantlab_{unit}_seconds": ours,
            f"hf_{unit}_seconds": theirs,
            f"ratio_{unit}": round(ratio, 2),
            f"share_of_limit_{unit}": round(ratio / (fed / needed), 2),
        }
    mine, hf = pairs[0]
    return {
        "case": case.word,
        "kind": case.kind,
        "task": case.task or TEXT.name,
        "items": items,
        "tokens_fed": fed,
        "tokens_needed": needed,
        "tokens_scored_with_padding": computed,
        "limit": round(fed / needed, 2),
        "hf_batch": best,
        "hf_trials_cpu_seconds": trials,
        **ratios,
        "items_per_cpu_second": round(items / statistics.median(ratios["quantlab_cpu_seconds"]), 2),
        "equal_decisions": sum(a == b for a, b in zip(mine.decisions, hf.decisions, strict=True)),
        "max_difference": difference(mine, hf),
        "bit_identical_repeats": all(pair[0].answers == mine.answers for pair in pairs),
    }


def difference(mine: Turn, hf: Turn) -> float | None:
    """Largest difference of two log-likelihoods, in nats; None where there are none."""
    gaps = [
        abs(a[0] - b[0])
        for left, right in zip(mine.answers, hf.answers, strict=True)
        for a, b in zip(left, right, strict=True)
        if not isinstance(a, str)
    ]
    return round(max(gaps), 6) if gaps else None


def run(case: Case, items: int, lm: Any, scratch: Path) -> Turn:
    if not case.task:
        return rolled(lm, items)
    from lm_eval.evaluator import evaluate

    from quantlab.measure.tasks import load
    from quantlab.records import Suite, SuiteTask

    ask = SuiteTask(task=case.task, shots=case.shots, limit=items, package=case.package)
    (one,) = load(Suite(summary="", tasks=(ask,)), scratch, case.folder, scratch)
    wall, cpu = time.perf_counter(), time.process_time()
    result = evaluate(lm, {"tasks": {one.name: one.task}}, limit=items, bootstrap_iters=0, log_samples=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    samples = sorted(result["samples"][one.name], key=lambda sample: sample["doc_id"])
    answers = [list(sample["filtered_resps"]) for sample in samples]
    return Turn(wall, cpu, answers, [decision(answer) for answer in answers])


def decision(answer: list[Any]) -> Any:
    """What an item says: its text, or (the likeliest choice, which choices are greedy)."""
    if isinstance(answer[0], str):
        return answer[0]
    return max(range(len(answer)), key=lambda n: answer[n][0]), [bool(greedy) for _, greedy in answer]


def rolled(lm: Any, items: int) -> Turn:
    """Texts of unequal length, each scored as a whole."""
    from lm_eval.api.instance import Instance

    text = TEXT.read_text(encoding="utf-8")
    requests = [
        Instance("loglikelihood_rolling", {}, (text[n * 4000 : n * 4000 + 1200 + 400 * (n % 3)],), n)
        for n in range(items)
    ]
    wall, cpu = time.perf_counter(), time.process_time()
    values = lm.loglikelihood_rolling(requests, disable_tqdm=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Turn(wall, cpu, [[(value, False)] for value in values], [round(value, 2) for value in values])


def setting(model: Path, repeats: int) -> dict[str, Any]:
    import torch

    from quantlab.host import describe

    return {
        "dated": time.strftime("%Y-%m-%d"),
        "model": json.loads((model / "config.json").read_text())["architectures"][0],
        "cpu": describe().cpu,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "repeats": repeats,
        "versions": {name: version(name) for name in ("torch", "transformers", "lm-eval", "quantlab")},
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown."""
    columns = ("kind", "task, items", "tokens fed / needed = limit", "hf batch", "CPU ratio, share of limit",
               "wall ratio, share", "equal decisions", "max difference")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in found:
        gap = "" if one["max_difference"] is None else f"{one['max_difference']:.0e}"
        lines.append(
            f"| {one['kind']} | {one['task']}, {one['items']} "
            f"| {one['tokens_fed']:,} / {one['tokens_needed']:,} = {one['limit']} | {one['hf_batch']} "
            f"| {one['ratio_cpu']}, {one['share_of_limit_cpu']} | {one['ratio_wall']}, {one['share_of_limit_wall']} "
            f"| {one['equal_decisions']} of {one['items']} | {gap} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
