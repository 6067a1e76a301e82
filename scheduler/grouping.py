"""The order of an offline batch: prompts that share a beginning run together.

After BatchLLM (arXiv 2412.03594, sections 4.1 and 4.2): the tree of all prompts is cut into groups
that share one beginning each, so that as many prompt tokens as possible are computed once; groups
with much output for their prompt go first, so that later prompts are computed beside decodes.
Knows symbols and lengths; no request, no cache.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from triptych.core.ids import ContentHash
from triptych.core.request import Prompt


class Group(msgspec.Struct, frozen=True):
    """Prompts that run one behind the other."""

    members: tuple[int, ...]
    """Their numbers, neighbours sharing the most."""
    shared: int
    """Leading symbols (tokens) that all members have in common."""


class Symbols:
    """Prompts as comparable tuples: a token is its id, the first token of a picture its content."""

    def __init__(self) -> None:
        self._numbers: dict[ContentHash, int] = {}

    def of(self, prompt: Prompt) -> tuple[int, ...]:
        """As many symbols as the prompt has tokens."""
        symbols = list(prompt.token_ids)
        for item in prompt.items:
            symbols[item.offset] = -1 - self._numbers.setdefault(item.key, len(self._numbers))
        return tuple(symbols)


class _Node:
    """Prompts ``[first, last]`` in sorted order that share ``depth`` symbols. Some of them share
    more with each other: those of each child."""

    __slots__ = ("children", "depth", "first", "last")

    def __init__(self, depth: int, first: int) -> None:
        self.depth, self.first, self.last = depth, first, first
        self.children: list[_Node] = []


def group(sequences: Sequence[tuple[int, ...]]) -> list[Group]:
    """Groups that together hold every sequence once, in order of their first member's place.

    From the leaves of the prefix tree up, prompts join the group that saves most: the sum of
    ``(members - 1) * shared`` is what need not be computed again. It is seldom below the best sum
    of all partitions, and a whole search for that would be exponential.
    """
    order = sorted(range(len(sequences)), key=lambda index: (sequences[index], index))
    found = _cut(_tree(sequences, order)).groups if order else ()
    groups = [Group(tuple(order[place] for place in places), shared) for places, shared in found]
    alone = set(order).difference(*(one.members for one in groups))
    groups += [Group((index,), len(sequences[index])) for index in alone]
    return sorted(groups, key=lambda each: min(each.members))


def by_output(groups: Sequence[Group], prompt: Sequence[int], output: Sequence[int]) -> list[Group]:
    """Groups with most expected output per prompt token to compute first.

    ``prompt`` and ``output`` are lengths by number of the sequence.
    """

    def ratio(one: Group) -> float:
        computed = sum(prompt[index] - one.shared for index in one.members) + one.shared
        return sum(output[index] for index in one.members) / max(1, computed)

    return sorted(groups, key=lambda one: (-ratio(one), min(one.members)))


def num_saved(groups: Sequence[Group]) -> int:
    """Tokens that are computed once instead of once per member."""
    return sum((len(one.members) - 1) * one.shared for one in groups)


def _tree(sequences: Sequence[tuple[int, ...]], order: Sequence[int]) -> _Node:
    """The root of the prefix tree of the sorted sequences, built from what neighbours have in
    common (intervals of the LCP array, Abouelhoda et al. 2004, algorithm 4.4)."""
    stack = [_Node(0, 0)]
    for place, (one, other) in enumerate(pairwise(order), 1):
        depth = _common(sequences[one], sequences[other])
        first, below = place - 1, None
        while stack[-1].depth > depth:
            below = stack.pop()
            below.last, first = place - 1, below.first
            if stack[-1].depth >= depth:
                stack[-1].children.append(below)
                below = None
        if stack[-1].depth < depth:
            stack.append(_Node(depth, first))
            if below is not None:
                stack[-1].children.append(below)
    while True:
        done = stack.pop()
        done.last = max(len(order) - 1, 0)
        if not stack:
            return done
        stack[-1].children.append(done)


class _Cut(msgspec.Struct, frozen=True):
    """The best groups of the prompts below a node: tokens saved, and ``(places, shared)``."""

    saved: int
    groups: tuple[tuple[tuple[int, ...], int], ...]


def _cut(root: _Node) -> _Cut:
    """Bottom up, because prompts may share in as many steps as they have tokens."""
    best: dict[int, _Cut] = {}
    stack = [(root, False)]
    while stack:
        node, is_seen = stack.pop()
        if is_seen:
            best[id(node)] = _cut_one(node, [best.pop(id(child)) for child in node.children])
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in node.children)
    return best[id(root)]


def _cut_one(node: _Node, below: Sequence[_Cut]) -> _Cut:
    """Each child joins the group of this node or keeps its own groups, whichever saves more. One
    member of every group pays for what the group shares."""
    sizes = [child.last - child.first + 1 for child in node.children]
    joins = [n * node.depth >= cut.saved for n, cut in zip(sizes, below, strict=True)]
    joined = _joined(node, below, joins)
    apart = _joined(node, below, [False] * len(below))
    return joined if joined.saved >= apart.saved else apart


def _joined(node: _Node, below: Sequence[_Cut], joins: Sequence[bool]) -> _Cut:
    kept = [cut for cut, does_join in zip(below, joins, strict=True) if not does_join]
    elsewhere = {
        place
        for child, does_join in zip(node.children, joins, strict=True)
        if not does_join
        for place in range(child.first, child.last + 1)
    }
    members = tuple(p for p in range(node.first, node.last + 1) if p not in elsewhere)
    groups = tuple(each for cut in kept for each in cut.groups)
    if not members or not node.depth:
        return _Cut(sum(cut.saved for cut in kept), groups)
    saved = sum(cut.saved for cut in kept) + (len(members) - 1) * node.depth
    return _Cut(saved, (*groups, (members, node.depth)))


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Leading symbols in common; halving, because comparing tuples is quick and indexing is not."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
