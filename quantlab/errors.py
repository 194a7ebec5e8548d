"""The error tree: every way quantlab says no, each with its exit code.

    QuantlabError            1   anything of ours that is not one of these
    |- BadInput              2   a word, file, field or value the user can correct
    |- Refused               3   the plan says it cannot work here; nothing was started
    |- NoAccess              4   a gated model without a token, no network, a missing package
    |- Broken                5   a model or checkpoint that failed a check; the finding is in the text
    |- StageFailed           6   a child process died (killed, out of memory, SDK error)
    |- LedgerProblem         7   the run folder cannot be written or holds newer records
    `- Interrupted         130   Ctrl-C

Each carries `place` (what it is about: a file and line, a stage, a directory) and `cure` (what to do next),
so that one line on the screen is enough, and travels across process walls as plain data.
"""

from __future__ import annotations


class QuantlabError(Exception):
    """Root of the tree.

    Args:
        problem: one sentence that says what is wrong.
        place: where: "recipe fp8.yaml, line 4, field samples", "stage calibrate", a path.
        cure: what the user can do about it, as one sentence.
    """

    exit_code = 1

    def __init__(self, problem: str, *, place: str = "", cure: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = place
        self.cure = cure

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        then = f" {self.cure}" if self.cure else ""
        return f"{where}{self.problem}{then}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self).__name__, self.problem, self.place, self.cure))


class BadInput(QuantlabError):
    """A word, file, field or value that the user can correct."""

    exit_code = 2


class Refused(QuantlabError):
    """The plan says that it cannot work on this host; nothing was started."""

    exit_code = 3


class NoAccess(QuantlabError):
    """Something outside is missing: a token, the network, a package."""

    exit_code = 4


class Broken(QuantlabError):
    """A model, a checkpoint or a measurement failed a check."""

    exit_code = 5


class StageFailed(QuantlabError):
    """A child process died before it had a result."""

    exit_code = 6


class LedgerProblem(QuantlabError):
    """The ledger cannot be written or read."""

    exit_code = 7


class Interrupted(QuantlabError):
    """The user pressed Ctrl-C; what was finished is kept."""

    exit_code = 130


KINDS: dict[str, type[QuantlabError]] = {
    kind.__name__: kind
    for kind in (QuantlabError, BadInput, Refused, NoAccess, Broken, StageFailed, LedgerProblem, Interrupted)
}


def _rebuild(kind: str, problem: str, place: str, cure: str) -> QuantlabError:
    return KINDS.get(kind, QuantlabError)(problem, place=place, cure=cure)
