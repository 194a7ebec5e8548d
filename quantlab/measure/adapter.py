"""lm-eval's requests -> a Session's, exactly as lm-eval's own `hf` model would have put them to transformers.

lm-eval owns tasks, prompts, filters and metrics; this file only answers "how likely is this continuation" and
"continue this". What it must get right, because it silently changes scores elsewhere:

* Where context ends. A tokenizer may merge across the seam, so context + continuation are encoded together
  and split at the length of the context alone, with trailing spaces moved to the continuation
  (`TemplateLM._encode_pair`).
* One BOS, not two, not none. Text that begins with BOS (a chat template wrote it) is encoded without special
  tokens; all other text as the tokenizer does by default (lm-evaluation-harness issue 1841: two BOS cost 2
  points on GSM8K).
* Nothing is cut. `hf` drops tokens on the left of a prompt that is too long, with a line in the log; here it
  is BadInput.
* Greedy only. A sampled answer is another experiment each time.
* The date. Llama 3.2's chat template writes today's date into the system prompt, so the baseline of Monday
  and the candidate of Tuesday would get different prompts; the template's own fallback date is passed
  instead.

Requests go out in blocks, the longest first (running out of memory shows at once), with what shares a
beginning side by side, so that a session can compute it once. Blocks are a function of the requests alone;
see journal.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from quantlab.engines import GenerateRequest, Image, ScoreRequest, Session
from quantlab.errors import BadInput
from quantlab.measure.blocks import Sent, generate_blocks, score_blocks, sent
from quantlab.measure.journal import Journal
from quantlab.records import digest

TEMPLATE_DATE = "26 Jul 2024"
"""What Llama 3.2's chat template says when it is not told the date and cannot ask the clock."""
GREEDY = {"do_sample", "temperature", "top_p", "top_k"}
"""Generation settings without effect on greedy decoding; any other one is refused."""
MAX_NEW_TOKENS = 256
"""lm-eval's default where a task names no length."""


class SessionLM(TemplateLM):  # type: ignore[misc]
    """An lm-eval model over a Session.

    `requests` counts what was asked; `sent` keeps for each lm-eval request what went to the session, by
    `key`; `decoding` says in words how the present task's answers were generated.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Any,
        journal: Journal,
        token_budget: int,
    ) -> None:
        """Args:
        session: an opened artifact.
        tokenizer: the transformers tokenizer of its checkpoint.
        journal: keeps finished blocks.
        token_budget: tokens of a forward pass; a block holds a few of them.
        """
        super().__init__()
        self.session = session
        self.tokenizer = tokenizer
        self.place = ""
        self.requests = 0
        self.sent: dict[str, Sent] = {}
        self.decoding = ""
        self._journal = journal
        self._token_budget = token_budget
        self._progress: Callable[[int, int], None] = lambda done, total: None

    def report(self, task: str, progress: Callable[[int, int], None]) -> None:
        """What comes next belongs to `task`; after each block `progress` gets (requests answered, requests
        asked)."""
        self.place = f"task {task}"
        self.sent.clear()
        self.decoding = ""
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Stands in for an empty context."""
        bos = self.tokenizer.bos_token_id
        return int(bos if bos is not None else self.tokenizer.eos_token_id)

    @property
    def max_length(self) -> int:
        """As `hf` counts: tokens fed to the model. The last token of a request is only predicted, never
        fed."""
        return self.session.max_length - 1

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """As `HFLM.tok_encode`: the tokenizer's own special tokens, none where the text brings its BOS
        along."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        flags = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return [int(token) for token in self.tokenizer.encode(string, **flags)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """As `HFLM.apply_chat_template`: a template without a system role gets the history without one."""
        try:
            return self._render(chat_history, add_generation_prompt)
        except TemplateError:
            return self._render([m for m in chat_history if m["role"] != "system"], add_generation_prompt)

    def _render(self, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                date_string=TEMPLATE_DATE,
            )
        )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As `TemplateLM.loglikelihood`, without its progress bar."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asks = [ScoreRequest(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        for (text, _, _), ask in zip(requests, asks, strict=True):
            self._note(text, ask.context, ask.continuation)
        return self._score(asks)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in `hf`'s disjoint windows: each token is predicted once."""
        windows = [self._windows(request.args[0]) for request in requests]
        for request, asks in zip(requests, windows, strict=True):
            self._note(request.args, (), tuple(t for ask in asks for t in ask.context + ask.continuation))
        answers = iter(self._score([ask for asks in windows for ask in asks]))
        return [sum(next(answers)[0] for _ in asks) for asks in windows]

    def _windows(self, text: str) -> list[ScoreRequest]:
        pairs = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [ScoreRequest(tuple(a), tuple(b)) for a, b in map(utils.make_disjoint_window, pairs)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations up to the task's stop strings, which are not part of the answer."""
        asks = []
        for request in requests:
            context, settings = request.args[:2]
            ask = self._generation(context, settings)
            self._note(request.args, ask.prompt, ())
            asks.append(ask)
        return self._generate(asks)

    def _generate(self, asks: list[GenerateRequest]) -> list[str]:
        self._require_fit([len(ask.prompt) + ask.max_tokens for ask in asks])
        self.requests += len(asks)
        kinds = {f"greedily, at most {ask.max_tokens} tokens, until {list(ask.stop)}" for ask in asks}
        self.decoding = "; ".join(sorted(kinds))
        return self._answer(asks, generate_blocks(asks, self._token_budget), "generate", self._continue)

    def _generation(self, context: str, settings: dict[str, Any], images: tuple[Image, ...] = ()) -> GenerateRequest:
        kwargs = dict(normalize_gen_kwargs(settings, MAX_NEW_TOKENS))
        eos = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        stop = handle_stop_sequences(kwargs.pop("until", None), eos=eos)
        longest = int(kwargs.pop("max_gen_toks"))
        odd = sorted(kwargs.keys() - GREEDY)
        if kwargs.get("do_sample") or float(kwargs.get("temperature") or 0) > 0 or odd:
            raise BadInput(
                f"the task does not decode greedily: {settings}.",
                place=self.place,
                cure="quantlab compares greedy answers only; choose a task without sampling.",
            )
        return GenerateRequest(tuple(self.tok_encode(context)), longest, tuple(s for s in stop if s), images=images)

    def _continue(self, asks: Sequence[GenerateRequest]) -> list[str]:
        return [self._text(ask, done.tokens) for ask, done in zip(asks, self.session.generate(asks), strict=True)]

    def _text(self, ask: GenerateRequest, tokens: tuple[int, ...]) -> str:
        """Cut at a stop string, also where it is a special token, which decoding leaves out of the text."""
        special = self.tokenizer.all_special_ids
        ends = {token for token in special if self.tokenizer.decode([token]) in ask.stop}
        cut = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        text = self.tokenizer.decode(list(tokens[:cut]), skip_special_tokens=True)
        return str(postprocess_generated_text(text, list(ask.stop), None))

    def _score(self, asks: list[ScoreRequest]) -> list[tuple[float, bool]]:
        if any(not ask.continuation for ask in asks):
            raise BadInput("an answer has no tokens.", place=self.place, cure="Look for empty choices in its data.")
        self._require_fit([len(ask.context) + len(ask.continuation) for ask in asks])
        self.requests += len(asks)
        answers = self._answer(asks, score_blocks(asks, self._token_budget), "score", self._logprobs)
        return [(float(total), bool(greedy)) for total, greedy in answers]

    def _logprobs(self, asks: Sequence[ScoreRequest]) -> list[list[Any]]:
        scores = self.session.logprobs(asks)
        return [[float(score.logprobs.sum(dtype="float64")), bool(score.greedy)] for score in scores]

    def _answer(
        self,
        asks: Sequence[Any],
        blocks: Iterator[list[Any]],
        kind: str,
        compute: Callable[[Sequence[Any]], list[Any]],
    ) -> list[Any]:
        """Answers in the order of `asks`. Equal requests are computed once."""
        known: dict[Any, Any] = {}
        total = len(set(asks))
        for block in blocks:
            name = digest(kind, block)
            answers = self._journal.get(name)
            if answers is None:
                answers = self._journal.put(name, compute(block))
            known.update(zip(block, answers, strict=True))
            self._progress(len(known), total)
        return [known[ask] for ask in asks]

    def _note(
        self,
        text: tuple[Any, ...],
        context: tuple[int, ...],
        continuation: tuple[int, ...],
        pixels: tuple[str, ...] = (),
    ) -> None:
        """Remember what goes out for one lm-eval request, and refuse a doubled BOS."""
        kept = sent(context, continuation, self.tokenizer.bos_token_id, pixels)
        if kept.bos > 1:
            raise BadInput(
                f"a prompt begins with {kept.bos} BOS tokens.",
                place=self.place,
                cure="The chat template or the task writes one, the tokenizer another: remove one of them.",
            )
        self.sent[key(text)] = kept

    def _require_fit(self, lengths: list[int]) -> None:
        limit = self.session.max_length
        if too_long := sum(length > limit for length in lengths):
            raise BadInput(
                f"{too_long} of {len(lengths)} prompts do not fit into {limit} tokens, "
                f"the longest needs {max(lengths)}.",
                place=self.place,
                cure="Take fewer shots, a larger max_length or another task; quantlab never cuts a prompt.",
            )


def key(arguments: Sequence[Any]) -> str:
    """Name of an lm-eval request: digest of its arguments."""
    return digest("request", *arguments)
