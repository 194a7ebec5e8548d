"""Which tokens must be computed, each once: a plan over the prefix tree of all requests.

Every request is a path through one tree: the four choices of a question share the question, the questions of a task
share the shots. What a causal model computes for a token depends on the tokens before it and on nothing else, so a
node of the tree need be computed once, however many paths run through it.

    Tree    a piece of the prefix tree in one row: its nodes in depth-first order; a mask lets each see its ancestors
    row     several small trees side by side, blind to each other: no padding
    Trunk   a long shared prefix (few-shot examples): computed alone, its keys and values kept while its trees run

A dense mask costs attention work that grows with the row's length, so rows are short, and only what shares much stays
together. All sizes are in tokens. Nothing here touches torch: the plan is plain data that tests can count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np

ROW = 256
"""Small trees are packed into rows of this length. Shorter rows pad more, longer ones attend more; between 128 and 1024
the time on a CPU changes by 10 %."""
LARGEST_TREE = 2048
"""A piece that shares much may be this large in one row before its shared prefix becomes a trunk."""
TRUNK_GAIN = 128
"""A trunk costs a forward pass of its own; it must save at least this many tokens."""


@dataclass(slots=True)
class Tree:
    """A piece of the prefix tree below its trunk."""

    tokens: np.ndarray
    """int64 [nodes], depth first."""
    positions: np.ndarray
    """int64 [nodes]: distance from the very first token."""
    segments: list[tuple[int, int, np.ndarray]]
    """(first node, nodes, ancestors): a run of nodes, each seeing the ancestors and the run up to itself."""
    paths: list[tuple[int, np.ndarray]]
    """(sequence, its nodes in order)."""

    @property
    def chain(self) -> bool:
        """One path without branches: the ordinary causal mask is right."""
        return len(self.segments) == 1


@dataclass(slots=True)
class Trunk:
    """Tokens start..stop of sequence `sample`, shared by the sequences of `members`; and what hangs on it."""

    start: int
    stop: int
    sample: int
    members: range
    trees: list[Tree] = field(default_factory=list)
    children: list[Trunk] = field(default_factory=list)


class Paths:
    """Sorted, distinct token sequences, and how much each shares with the one before it."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        """`sequences` may repeat; `order[i]` is the sorted place of the i-th one."""
        # Big-endian bytes sort as the numbers do, and compare at the speed of memcmp.
        keys = [np.asarray(sequence, dtype=">u4").tobytes() for sequence in sequences]
        distinct = sorted(set(keys))
        place = {key: index for index, key in enumerate(distinct)}
        self.order = [place[key] for key in keys]
        self.tokens = [np.frombuffer(key, dtype=">u4").astype(np.int64) for key in distinct]
        self.lengths = np.array([len(tokens) for tokens in self.tokens], dtype=np.int64)
        pairs = zip(self.tokens, self.tokens[1:], strict=False)
        self.shared = np.array([0, *(_shared(a, b) for a, b in pairs)], dtype=np.int64)
        self._fresh = np.concatenate(([0], np.cumsum(self.lengths - self.shared)))

    def unique(self, members: range, depth: int) -> int:
        """Nodes of the tree of `members` below `depth`."""
        first = int(self.lengths[members.start]) - depth
        return first + int(self._fresh[members.stop] - self._fresh[members.start + 1])

    def common(self, members: range) -> int:
        """Length of the prefix that all members share."""
        if len(members) == 1:
            return int(self.lengths[members.start])
        return int(self.shared[members.start + 1 : members.stop].min())

    def tree(self, members: range, depth: int) -> Tree:
        nodes, count = np.empty(0, dtype=np.int64), 0
        tokens, positions, segments, paths = [], [], [], []
        for index in members:
            kept = int(self.shared[index]) - depth if index > members.start else 0
            fresh = self.tokens[index][depth + kept :]
            ancestors = nodes[:kept]
            nodes = np.concatenate((ancestors, np.arange(count, count + len(fresh))))
            tokens.append(fresh)
            positions.append(np.arange(depth + kept, depth + kept + len(fresh)))
            if len(fresh):
                segments.append((count, len(fresh), ancestors))
            paths.append((index, nodes))
            count += len(fresh)
        return Tree(np.concatenate(tokens), np.concatenate(positions), segments, paths)


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def plan(paths: Paths, budget: int, row: int = ROW) -> Trunk:
    """Cut the prefix tree of `paths` into trunks and trees; the root trunk is empty.

    Args:
        budget: most tokens in one forward pass.
        row: see ROW.
    """
    root = Trunk(0, 0, 0, range(len(paths.tokens)))
    row, largest = min(row, budget), min(LARGEST_TREE, budget)
    todo = [(root, root.members)] if paths.tokens else []
    while todo:
        trunk, members = todo.pop()
        depth, total = trunk.stop, paths.unique(members, trunk.stop)
        if total == 0:  # every member ends where the trunk ends
            continue
        if total <= row or (len(members) == 1 and total <= budget):
            trunk.trees.append(paths.tree(members, depth))
            continue
        parts, common = _parts(paths, members, depth, row), paths.common(members)
        repeated = (common - depth) * (len(parts) - 1)
        # Staying one tree is free while the tree is small enough; a trunk is not.
        tolerated = total // 32 if total <= largest else max(TRUNK_GAIN, total // 32)
        if len(members) > 1 and repeated <= tolerated:
            todo.extend((trunk, part) for part in reversed(parts))
        elif total <= largest:
            trunk.trees.append(paths.tree(members, depth))
        else:
            stop = min(common, depth + budget)
            trunk.children.append(Trunk(depth, stop, members.start, members))
            todo.append((trunk.children[-1], members))
    return root


def _parts(paths: Paths, members: range, depth: int, row: int) -> list[range]:
    """Members cut where they part after their common prefix; neighbours stay together while they fit a row."""
    common = paths.common(members)
    cuts = [index for index in members[1:] if paths.shared[index] == common]
    parts, start = [], members.start
    for cut, following in pairwise([*cuts, members.stop]):
        if paths.unique(range(start, following), depth) > row:
            parts.append(range(start, cut))
            start = cut
    return [*parts, range(start, members.stop)]


def rows(trees: list[Tree], row: int = ROW) -> list[list[Tree]]:
    """Trees side by side in as few rows of `row` tokens as they need, all about equally full."""
    total = sum(len(tree.tokens) for tree in trees)
    packed: list[list[Tree]] = [[] for _ in range(-(-total // row))]
    emptiest = [(0, index) for index in range(len(packed))]
    for tree in sorted(trees, key=lambda tree: -len(tree.tokens)):
        filled, index = heappop(emptiest)
        packed[index].append(tree)
        heappush(emptiest, (filled + len(tree.tokens), index))
    return [bin_ for bin_ in packed if bin_]


def batches(packed: list[list[Tree]], budget: int) -> Iterator[list[list[Tree]]]:
    """Rows of like length together (none under 3/4 of the longest); rows x longest row stays within the budget."""
    ordered = sorted(((sum(len(tree.tokens) for tree in bin_), bin_) for bin_ in packed), key=lambda pair: -pair[0])
    while ordered:
        width = ordered[0][0]
        alike = sum(length >= 3 * width // 4 for length, _ in ordered)
        many = min(alike, max(1, budget // width))
        yield [bin_ for _, bin_ in ordered[:many]]
        ordered = ordered[many:]


def mask(bins: list[list[Tree]], width: int, past: int) -> np.ndarray:
    """bool [rows, 1, width, past + width]: True where a node (row) may look at a node (column).

    Padding looks at itself only, so that no softmax is empty.
    """
    seen = np.zeros((len(bins), 1, width, past + width), dtype=bool)
    seen[:, :, :, :past] = True
    own = np.arange(width)
    seen[:, :, own, past + own] = True
    lower = np.tri(max(length for bin_ in bins for tree in bin_ for _, length, _ in tree.segments), dtype=bool)
    for index, bin_ in enumerate(bins):
        offset = 0
        for tree in bin_:
            for first, length, ancestors in tree.segments:
                here = slice(offset + first, offset + first + length)
                seen[index, 0, here, past + offset + ancestors] = True
                columns = slice(past + here.start, past + here.stop)
                seen[index, 0, here, columns] = lower[:length, :length]
            offset += len(tree.tokens)
    return seen
