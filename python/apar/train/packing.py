"""A tree of branches as one row of tokens, and many trees in rows of one length.

The tokens of a tree stand depth first, as it is read: a branch up to and with its fork token, the child, the rest of
the branch. Everything that training needs follows from the tokens and the branch that each belongs to:

- a token sees what stands before it in its own branch and in the branches above it, never a detail;
- positions go on along the path, so a child starts where its parent goes on;
- the target of a token is the next token of its *branch*, which is not always the next token of the row.

Since a branch always ends with a token of its own, behind all its children, its subtree is the run of tokens up to
that one. So the whole mask is one number per token: key ``k`` is visible to query ``q`` where ``k <= q < ends[k]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

MAX_BRANCHES = np.iinfo(np.int16).max
"""Branches of a tree with its trunk."""
TokenTree = list["list[int] | TokenTree"]
"""A branch as tokens: ``[ids, child, ids, child, ..., ids]``, the ids between its forks and its children in turn.
Control and end tokens are not part of it."""


@dataclasses.dataclass(frozen=True)
class PackedTree:
    """A prompt and the tree of its answer as one run of tokens.

    token_ids: [n] int32, depth first, control and end tokens included.
    branch: [n] int16, the branch of each token: b for a token to be learned, ~b (negative) for one that is only read.
        Branches are numbered as they start, the trunk is 0. The prompt is read as part of the trunk.
    shared: that many tokens at its beginning are those of the last tree before it with ``shared`` 0: in a row with
        that tree it reads them there (see sharing.py).
    """

    token_ids: np.ndarray
    branch: np.ndarray
    shared: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What follows from the branches of a row of n tokens.

    positions: [n] int32, along the path of each token.
    ends: [n] int32, the place behind the subtree of each token's branch, in this row.
    next: [n] int32, the place of the next token of the same branch, -1 at its end.
    """

    positions: np.ndarray
    ends: np.ndarray
    next: np.ndarray


def pack_tree(prompt_ids: Sequence[int], tree: TokenTree, fork_id: int, child_id: int, end_id: int) -> PackedTree:
    """Put a prompt and a token tree into one run of tokens, to be learned from the first token of the answer on."""
    token_ids: list[int] = list(prompt_ids)
    branch: list[int] = [-1] * len(token_ids)
    num_branches = 1
    pending: list[tuple[TokenTree, int, int]] = [(tree, 0, 0)]  # tree, its branch, the place in it
    while pending:
        node, number, place = pending.pop()
        own = node[place]
        token_ids += own
        branch += [number] * len(own)
        if place + 1 == len(node):
            token_ids.append(end_id)
            branch.append(number)
            continue
        token_ids += (fork_id, child_id)
        branch += (number, num_branches)
        pending.append((node, number, place + 2))
        pending.append((node[place + 1], num_branches, 0))
        num_branches += 1
    if num_branches > MAX_BRANCHES:
        raise ValueError(f"tree: it has {num_branches} branches, expected at most {MAX_BRANCHES}")
    return PackedTree(np.array(token_ids, np.int32), np.array(branch, np.int16))


def lay_out(branch: np.ndarray) -> Layout:
    """Positions, ends and next tokens of one packed tree (see the module's text for why they follow)."""
    number = np.where(branch < 0, ~branch, branch)
    count = len(number)
    order = np.argsort(number, kind="stable")
    sorted_number = number[order]
    starts = np.flatnonzero(np.r_[True, sorted_number[1:] != sorted_number[:-1]])
    lengths = np.diff(np.r_[starts, count])
    first, last = order[starts], order[starts + lengths - 1]

    after = np.full(count, -1, np.int32)
    same = sorted_number[1:] == sorted_number[:-1]
    after[order[:-1][same]] = order[1:][same]

    positions = np.empty(count, np.int32)
    rank = np.arange(count) - np.repeat(starts, lengths)
    for branch_start, length, place in sorted(zip(starts, lengths, first, strict=True), key=lambda item: item[2]):
        # The token in front of a child token is the fork token of its parent, which is laid out already.
        begin = 0 if place == 0 else positions[place - 1] + 1
        members = slice(branch_start, branch_start + length)
        positions[order[members]] = begin + rank[members]

    ends = np.empty(count, np.int32)
    ends[order] = np.repeat(last + 1, lengths)
    return Layout(positions, ends, after)


def learned_levels(branch: np.ndarray) -> list[int]:
    """The levels of the branches below the trunk that a packed tree learns, each once; that of the trunk is 1."""
    number = np.where(branch < 0, ~branch, branch)
    branches, first = np.unique(number, return_index=True)
    learned = set(branch[branch > 0].tolist())
    levels = {0: 1}
    for own, place in zip(branches[1:].tolist(), first[1:].tolist(), strict=True):
        levels[own] = levels[int(number[place - 1])] + 1  # in front of a child stands the fork token of its parent
    return [levels[own] for own in sorted(learned)]


def split_tree(tree: PackedTree, length: int) -> tuple[list[PackedTree], int]:
    """Trees of at most ``length`` tokens that together learn what ``tree`` does, and the number of branches left out.

    Every part holds some of the branches and all the branches above them. A branch is learned in the first part that
    holds it and only read in the others. Left out are branches that do not fit together with what is above them.
    """
    if len(tree) <= length:
        return [tree], 0
    number = np.where(tree.branch < 0, ~tree.branch, tree.branch)
    sizes = np.bincount(number)
    first = np.array([np.argmax(number == branch) for branch in range(len(sizes))])
    parents = [-1 if place == 0 else int(number[place - 1]) for place in first]
    parts: list[set[int]] = []
    room = 0
    left_out: set[int] = set()
    for branch in range(len(sizes)):
        path = [branch]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        if left_out & set(path) or sum(int(sizes[member]) for member in path) > length:
            left_out.add(branch)
            continue
        needed = sum(int(sizes[member]) for member in path if not parts or member not in parts[-1])
        if not parts or needed > room:
            parts.append(set())
            room, needed = length, sum(int(sizes[member]) for member in path)
        parts[-1].update(path)
        room -= needed
    learned: set[int] = set()
    packed = []
    for members in parts:
        kept = np.isin(number, list(members))
        read_only = np.isin(number, list(members & learned))
        branch = np.where(read_only & (tree.branch >= 0), ~tree.branch, tree.branch)[kept]
        packed.append(PackedTree(tree.token_ids[kept], branch.astype(np.int16)))
        learned |= members
    return packed, len(left_out)


def one_row_per_branch(tree: PackedTree) -> Iterator[PackedTree]:
    """The rows that training without packing needs: per branch its whole path, of which it learns its own tokens."""
    number = np.where(tree.branch < 0, ~tree.branch, tree.branch)
    layout = lay_out(tree.branch)
    places = np.arange(len(tree))
    for branch in np.unique(number):
        own = np.flatnonzero(number == branch)
        # What the branch's first token sees, and then its own tokens.
        path = np.r_[np.flatnonzero((places < own[0]) & (layout.ends > own[0])), own]
        is_own = number[path] == branch
        learned = is_own & (tree.branch[path] >= 0)
        if branch > 0:
            learned[np.argmax(is_own)] = False  # the child token, here preceded by the parent's fork token
        yield PackedTree(tree.token_ids[path], np.where(learned, 0, -1).astype(np.int16))


def fill_rows(
    lengths: np.ndarray, row_length: int, generator: np.random.Generator, window: int = 2048
) -> list[list[int]]:
    """Which trees share a row of ``row_length`` tokens: every tree once, in an order drawn from ``generator``.

    Trees are drawn at random; within a ``window`` of them the longest are placed first, each into the fullest row that
    has room for it. Raises ValueError for a tree longer than a row.
    """
    if len(lengths) and lengths.max() > row_length:
        raise ValueError(f"lengths: a tree has {lengths.max()} tokens, expected at most {row_length}, the row's length")
    drawn = generator.permutation(len(lengths))
    rows: list[list[int]] = []
    for begin in range(0, len(drawn), window):
        rows += _best_fit(drawn[begin : begin + window], lengths, row_length)
    return [rows[place] for place in generator.permutation(len(rows))]


def _best_fit(trees: np.ndarray, lengths: np.ndarray, row_length: int) -> list[list[int]]:
    """Best fit, the longest first. Rows are kept by the room that is left in them."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    fullest = np.zeros(row_length + 1, bool)  # whether a row with this much room exists
    for tree in trees[np.argsort(-lengths[trees], kind="stable")]:
        need = int(lengths[tree])
        room = need + int(np.argmax(fullest[need:]))
        if fullest[room]:
            row = by_room[room].pop()
            fullest[room] = bool(by_room[room])
        else:
            row, room = len(rows), row_length
            rows.append([])
        rows[row].append(int(tree))
        by_room[room - need].append(row)
        fullest[room - need] = True
    return rows
