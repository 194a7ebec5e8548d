"""One sequence while an engine of ours makes it token by token: when it ends, and why."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from quantlab.engines import GenerateRequest


@dataclass(slots=True)
class Row:
    """What has come of a request so far."""

    request: GenerateRequest
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    """"stop" or "length" when it is complete."""
    first: float = 0.0
    """Seconds to the first token."""
    seconds: float = 0.0
    """Seconds to the last token so far."""

    def add(self, token: int, seconds: float, ends: Container[int], decode: Callable[[list[int]], str]) -> None:
        """Take the next token.

        Args:
            token: its id.
            seconds: when it came, from the call on.
            ends: token ids that end a sequence.
            decode: token ids -> text; asked only where the request has stop strings.
        """
        self.seconds, self.first = seconds, self.first or seconds
        if token in ends and not self.request.ignore_eos:
            self.finish = "stop"
            return
        self.tokens.append(token)
        if self.request.stop and self._stopped(decode):
            self.finish = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            self.finish = "length"

    def _stopped(self, decode: Callable[[list[int]], str]) -> bool:
        """A stop string stands in the text. Only the end of the text can have changed."""
        reach = max(len(word.encode()) for word in self.request.stop) + 8
        tail = decode(self.tokens[-reach:])
        return any(word in tail for word in self.request.stop)
