"""The shape of a paragraph tree: its tokens, and the steps they would take if every branch were written at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from apar.tree import ParagraphTree

_PIECE = re.compile(r"[\u2e80-\uffff]|[^\W\d_]{1,8}|\d|[^\w\s]|_|\n")


def estimate_tokens(text: str) -> int:
    """Tokens of a text, about: a piece for every eight letters of a word, every digit, sign and line break.

    On 3,579 English chat answers the sum is 1.4 % below that of a 32,000-piece SentencePiece tokenizer, the median
    error of an answer 4.3 %.
    """
    return sum(1 for _ in _PIECE.finditer(text))


@dataclasses.dataclass(frozen=True, slots=True)
class TreeShape:
    """Numbers of a tree. Control tokens are not counted, a child starts in the step in which its parent forks.

    tokens: all of them. steps: until the last branch ends. forks: details, at all levels. width: branches at once, at
    most. depth: levels of branches, 1 without a fork. details: tokens of every detail, with what is inside.
    """

    tokens: int
    steps: int
    forks: int
    width: int
    depth: int
    details: tuple[int, ...]

    @property
    def speedup(self) -> float:
        """Steps of one branch after the other over steps of all at once."""
        return self.tokens / self.steps if self.steps else 1.0


def tree_shape(tree: ParagraphTree, count_tokens: Callable[[str], int] = estimate_tokens) -> TreeShape:
    """The shape of a tree. count_tokens: tokens of a text; every piece is counted on its own."""
    begins: list[int] = []
    ends: list[int] = []
    parents: list[int] = []
    pending: list[tuple[ParagraphTree, int, int]] = [(tree, 0, -1)]
    while pending:
        first, begin, parent = pending.pop()
        now = begin
        found = []
        for node in _branch(first):
            now += count_tokens(node.own) if node.own else 0
            if node.detail is not None:
                found.append((node.detail, now, len(begins)))
        pending += reversed(found)  # the first one is next: reading order
        begins.append(begin)
        ends.append(now)
        parents.append(parent)
    sizes = [end - begin for begin, end in zip(begins, ends, strict=True)]
    whole = list(sizes)  # with the details inside: those stand behind the branch that they belong to
    for branch in range(len(whole) - 1, 0, -1):
        whole[parents[branch]] += whole[branch]
    moments = [(begin, 1) for begin, end in zip(begins, ends, strict=True) if end > begin]
    moments += [(end, -1) for begin, end in zip(begins, ends, strict=True) if end > begin]
    width = live = 0
    for _, change in sorted(moments):  # of one moment the ends come first
        live += change
        width = max(width, live)
    return TreeShape(
        tokens=whole[0],
        steps=max(ends),
        forks=len(sizes) - 1,
        width=width,
        depth=tree.depth,
        details=tuple(whole[1:]),
    )


def _branch(first: ParagraphTree) -> Iterator[ParagraphTree]:
    node: ParagraphTree | None = first
    while node is not None:
        yield node
        node = node.next
