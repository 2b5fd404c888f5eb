"""Trees whose prompts begin alike, packed with that beginning once.

Answers to one prompt, turns of one conversation, questions about one text: their prompts have a beginning in common.
In a row it stands once, in the first tree, and the trees behind it see it there:

    facts  request 1  answer 1  request 2  answer 2 ...

Every token has the position that it has in its tree alone and sees what it sees there, so losses and gradients are the
same. The mask is still one number per token: trees are ordered by how much they share, most first, so a token of the
beginning is seen up to the end of the last tree that shares it, and everything else to the end of its own branch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from apar.train.packing import PackedTree

SHORTEST_SHARED, LEAST_PART = 16, 4
"""A tree shares what saves it so many tokens and one in so many of its tokens. Less, such as a system message that all
records have, is not worth that trees of one group are always learned in one step.
"""
LONGEST_GROUP = 640
"""Tokens of trees that share: in a group every tile of attention covers all trees before it."""


def group_trees(trees: Iterable[PackedTree], longest: int) -> Iterator[list[PackedTree]]:
    """Put trees that follow each other and begin alike into groups of at most ``longest`` tokens, in their order.

    The first of a group is whole; the others know by ``shared`` what they read there, most of it first.
    """
    group: list[PackedTree] = []
    num_tokens = 0
    for tree in trees:
        shared = shared_beginning(group[0], tree) if group else 0
        worthwhile = shared >= SHORTEST_SHARED and shared * LEAST_PART >= len(tree)
        if not worthwhile or num_tokens + len(tree) - shared > longest:
            if group:
                yield _ordered(group)
            group, num_tokens, shared = [], 0, 0
        group.append(dataclasses.replace(tree, shared=shared))
        num_tokens += len(tree) - shared
    if group:
        yield _ordered(group)


def shared_beginning(first: PackedTree, other: PackedTree) -> int:
    """How many tokens of ``first`` the other tree can read there.

    They are tokens of both trunks that are only read. The last such token of the other tree predicts its own answer and
    stays its own.
    """
    longest = min(_read_beginning(first), _read_beginning(other) - 1)
    if longest <= 0:
        return 0
    differs = first.token_ids[:longest] != other.token_ids[:longest]
    return int(np.argmax(differs)) if differs.any() else longest


def _read_beginning(tree: PackedTree) -> int:
    learned = tree.branch != -1
    return int(np.argmax(learned)) if learned.any() else len(tree)


def _ordered(group: list[PackedTree]) -> list[PackedTree]:
    return [group[0], *sorted(group[1:], key=lambda tree: -tree.shared)]
