"""Limits of what a user feels: the time to the first token (TTFT) and the time of each further one (TPOT)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Seconds; None: no limit."""

    ttft: float | None = None
    tpot: float | None = None

    def breaks(self, ttft: float | None, tpot: float | None, *, unknown: bool = False) -> str:
        """Which limit these seconds break, and by how much; empty: none.

        Args:
            ttft: to the first token; None where it is not known.
            tpot: per further token; None where it is not known.
            unknown: a time that is not known breaks its limit.
        """
        for word, limit, value in (("ttft", self.ttft, ttft), ("tpot", self.tpot, tpot)):
            if limit is None:
                continue
            if value is None and unknown:
                return f"its {word} is not known"
            if value is not None and value > limit:
                return f"{word} {value * 1e3:.3g} ms is above {limit * 1e3:.3g} ms"
        return ""
