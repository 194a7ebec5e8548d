"""What is known of one precision's items: slices of an early run, or a whole suite, put in the suite's order.

The rows of a slice lie in its Parquet file in the suite's order, so its places in the suite are those that the draw
gives to the slice, ascending. Nothing else has to be kept to put slices together, and two precisions that are put
together wrongly would show other prompts for the same place: the comparability gate refuses that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from quantlab.errors import LedgerProblem
from quantlab.ledgers import Ledger
from quantlab.pipeline.assemble import Table
from quantlab.records import Accuracy, Number, TaskScore, digest

if TYPE_CHECKING:
    import numpy as np

    from quantlab.score.draw import Draw


class Known:
    """All items that are known of one precision."""

    def __init__(self, ledger: Ledger, parts: Sequence[Accuracy], draw: Draw) -> None:
        """Args:
        ledger: where the Parquet files lie.
        parts: slices in order of arrival without a gap, or one whole suite.
        draw: the suite's order.
        """
        self._ledger, self.parts, self._draw = ledger, parts, draw

    @property
    def count(self) -> int:
        """Items known; they are the first that arrive."""
        last = self.parts[-1].part if self.parts else (0, 0)
        return self._draw.total if last is None else last[1]

    def places(self, count: int) -> np.ndarray:
        """Places in the suite of the first `count` items that arrive, ascending."""
        return self._draw.places(0, count)

    def tables(self, count: int) -> dict[str, Table]:
        """The first `count` items that arrive, by task, in the suite's order; tasks without any are left out."""
        import numpy as np

        places, columns = self._rows
        wanted = set(self.places(count).tolist())
        rows = [row for row in np.argsort(places).tolist() if int(places[row]) in wanted]
        by_task: dict[str, list[int]] = {}
        for row in rows:
            by_task.setdefault(columns["task"][row], []).append(row)
        return {
            task: Table({name: [values[row] for row in mine] for name, values in columns.items()})
            for task, mine in by_task.items()
        }

    def accuracy(self, tables: dict[str, Table]) -> Accuracy:
        """The scores of `tables` as one record."""
        first = self.parts[0]
        if first.part is None and sum(len(each.columns["id"]) for each in tables.values()) == self._draw.total:
            return first
        files = [part.items for part in self.parts]
        return msgspec.structs.replace(
            first,
            tasks=tuple(self._score(task, table) for task, table in tables.items()),
            items=files[0],
            more=tuple(files[1:]),
            seconds=round(sum(part.seconds for part in self.parts), 3),
            requests=sum(part.requests for part in self.parts),
            part=(0, sum(len(each.columns["id"]) for each in tables.values())),
            sizes=self._draw.sizes,
            words=self._draw.words,
        )

    def _score(self, task: str, table: Table) -> TaskScore:
        parts = [score for part in self.parts for score in part.tasks if score.task == task]
        columns = table.columns
        chances = [(score.chance, score.n) for score in parts if score.chance is not None]
        whole = sum(n for _, n in chances)
        return msgspec.structs.replace(
            parts[0],
            n=len(columns["id"]),
            score=_mean(columns["correct"], columns["cluster"]),
            chance=sum(chance * n for chance, n in chances) / whole if whole and len(chances) == len(parts) else None,
            broken=sum(not answered for answered in columns["answered"]),
            prompts_digest=digest([list(pair) for pair in zip(columns["id"], columns["prompt_digest"], strict=True)]),
            seconds=round(sum(score.seconds for score in parts), 3),
        )

    @cached_property
    def _rows(self) -> tuple[np.ndarray, dict[str, list[Any]]]:
        """Place of each row, and the columns of all parts one after the other."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        read = [pq.read_table(self._ledger.path(part.items)) for part in self.parts]
        places = [self._draw.places(*(part.part or (0, self._draw.total))) for part in self.parts]
        for part, table, its in zip(self.parts, read, places, strict=True):
            same = not part.sizes or (part.sizes, part.words) == (self._draw.sizes, self._draw.words)
            if table.num_rows != len(its) or not same:
                raise LedgerProblem(
                    f"it holds {table.num_rows} items, its slice of the suite {len(its)}.",
                    place=part.items,
                    cure="Delete its entry: the slice is then scored again.",
                )
        return np.concatenate(places), pa.concat_tables(read, promote_options="default").to_pydict()


def _mean(correct: list[float], clusters: list[str]) -> Number:
    """The mean with its clustered standard error, where there are clusters enough for one."""
    from quantlab.score.paired import mean_with_error

    if len(set(clusters)) < 2:
        return Number(value=sum(correct) / len(correct), unit="share", n=len(correct))
    mean, error = mean_with_error(correct, clusters)
    return Number(value=mean, unit="share", n=len(correct), standard_error=error)
