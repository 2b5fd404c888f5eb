"""Packed trees in memory, the rows of a whole run, and the batch that a step gets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from apar.train.packing import PackedTree, fill_rows, lay_out, learned_levels, split_tree
from apar.train.sharing import LONGEST_GROUP, group_trees

WEIGHTINGS = ("token", "branch")
TOO_LONG = ("split", "drop")


@dataclasses.dataclass
class LengthCounts:
    """What is learned, and what is not.

    trees, trees_with_forks, forks: those that found a place in the rows. depth: levels of branches of the deepest of
    them, 1 without a fork. parts: what lies in the rows, more than there are trees where some of them are split.
    tokens: what is in the rows. shared_tokens: what trees read in another one and need not have themselves.
    split_trees: longer than a row and cut into several. dropped_trees, dropped_branches: what found no place.
    """

    trees: int = 0
    trees_with_forks: int = 0
    forks: int = 0
    depth: int = 1
    parts: int = 0
    tokens: int = 0
    shared_tokens: int = 0
    split_trees: int = 0
    dropped_trees: int = 0
    dropped_branches: int = 0


class TreeStore:
    """Packed trees one behind the other, none longer than a row of ``row_length`` tokens.

    too_long: what happens to longer trees: ``"split"`` (see ``split_tree``) or ``"drop"``.
    share: whether trees that follow each other have the beginning of their prompts once (see sharing.py).

    Rows are made of groups, of trees that share or of one tree. lengths: [groups] int64, their tokens.
    """

    def __init__(
        self, trees: Iterable[PackedTree], row_length: int, too_long: str = "split", share: bool = True
    ) -> None:
        self.row_length = row_length
        self.counts = LengthCounts()
        token_ids: list[np.ndarray] = []
        branch: list[np.ndarray] = []
        shared: list[int] = []
        groups: list[int] = []
        parts = (part for tree in trees for part in self._fitting(tree, too_long))
        for group in group_trees(parts, min(LONGEST_GROUP, row_length)) if share else ([part] for part in parts):
            groups.append(len(shared))
            for tree in group:
                token_ids.append(tree.token_ids[tree.shared :])
                branch.append(tree.branch[tree.shared :])
                shared.append(tree.shared)
        own_lengths = np.array([len(ids) for ids in token_ids], np.int64)
        self._begin = np.r_[0, np.cumsum(own_lengths)]
        self._groups = np.array([*groups, len(shared)], np.int64)
        self.lengths = np.diff(self._begin[self._groups])
        self._shared = np.array(shared, np.int64)
        self._token_ids = np.concatenate([*token_ids, np.empty(0, np.int32)])
        self._branch = np.concatenate([*branch, np.empty(0, np.int16)])
        self.counts.parts, self.counts.tokens = len(shared), len(self._token_ids)
        self.counts.shared_tokens = int(self._shared.sum())

    def __len__(self) -> int:
        """The number of groups."""
        return len(self.lengths)

    def __getitem__(self, number: int) -> list[PackedTree]:
        """The trees of a group, each with all of its tokens."""
        group = range(self._groups[number], self._groups[number + 1])
        first = self._token_ids[self._begin[group[0]] : self._begin[group[0] + 1]]
        trees = []
        for tree in group:
            own, shared = slice(self._begin[tree], self._begin[tree + 1]), int(self._shared[tree])
            token_ids, branch = self._token_ids[own], self._branch[own]
            if shared:
                token_ids = np.concatenate([first[:shared], token_ids])
                branch = np.concatenate([np.full(shared, -1, branch.dtype), branch])
            trees.append(PackedTree(token_ids, branch, shared))
        return trees

    def digest(self) -> str:
        """Of all tokens and their branches: the same for the same trees in the same order."""
        found = hashlib.blake2b(digest_size=8)
        for numbers in (self.lengths, self._shared, self._token_ids, self._branch):
            found.update(numbers)
        return found.hexdigest()

    def _fitting(self, tree: PackedTree, too_long: str) -> list[PackedTree]:
        if len(tree) <= self.row_length:
            parts = [tree]
        else:
            parts, left_out = split_tree(tree, self.row_length) if too_long == "split" else ([], 0)
            self.counts.split_trees += bool(parts)
            self.counts.dropped_trees += not parts
            self.counts.dropped_branches += left_out if parts else 0
        self._count_learned(parts)
        return parts

    def _count_learned(self, parts: Sequence[PackedTree]) -> None:
        """Of one tree: a branch is learned in one of its parts and at most read in the others."""
        learned = [learned_levels(part.branch) for part in parts]
        forks = sum(map(len, learned))
        self.counts.trees += bool(parts)
        self.counts.trees_with_forks += forks > 0
        self.counts.forks += forks
        self.counts.depth = max([self.counts.depth, *(level for levels in learned for level in levels)])


@dataclasses.dataclass(frozen=True)
class PackedRow:
    """Trees one behind the other, filled up to a fixed length with tokens that see themselves alone.

    token_ids, positions, ends: [row_length] int32. target_places: [m] int32, tokens whose next token is learned;
    targets [m] int32; weights [m] float32; is_detail [m] bool, whether the target belongs to a branch below the trunk.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    target_places: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    is_detail: np.ndarray


def make_row(
    trees: Sequence[PackedTree], row_length: int, weighting: str = "token", detail_weight: float = 1.0
) -> PackedRow:
    """One row of these trees.

    weighting: ``"token"``, every target counts the same, or ``"branch"``, every branch counts the same, as the mean
    over rows of one branch each does. detail_weight: factor of the targets below the trunk.
    """
    token_ids, ends = np.zeros(row_length, np.int32), np.arange(1, row_length + 1, dtype=np.int32)
    positions = np.zeros(row_length, np.int32)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    begin = first_begin = 0
    for tree in trees:
        layout = lay_out(tree.branch)
        own, offset = (
            slice(tree.shared, None),
            begin - tree.shared,
        )  # offset: from places in the tree to those in the row
        place = slice(begin, begin + len(tree) - tree.shared)
        token_ids[place], positions[place] = tree.token_ids[own], layout.positions[own]
        ends[place] = layout.ends[own] + offset
        if tree.shared:
            ends[first_begin : first_begin + tree.shared] = place.stop
        else:
            first_begin = begin
        places = np.flatnonzero((layout.next >= 0) & (tree.branch[layout.next] >= 0))
        following = layout.next[places]
        branch = tree.branch[following]
        weights = np.ones(len(places), np.float32)
        if weighting == "branch":
            weights /= np.bincount(branch)[branch]
        weights[branch > 0] *= detail_weight
        parts.append((places + offset, tree.token_ids[following], weights, branch > 0))
        begin = place.stop
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 4
    return PackedRow(
        token_ids,
        positions,
        ends,
        columns[0].astype(np.int32),
        columns[1].astype(np.int32),
        columns[2].astype(np.float32),
        columns[3].astype(bool),
    )


class RowDataset(torch.utils.data.Dataset):
    """The rows of a run in the order in which they are learned, all epochs one behind the other.

    Every epoch draws its own order and its own rows from ``seed``, so the n-th row of a run is always the same, which
    is what makes a resumed run exact.
    """

    def __init__(
        self,
        store: TreeStore,
        *,
        seed: int = 0,
        weighting: str = "token",
        detail_weight: float = 1.0,
    ) -> None:
        self._store = store
        self._seed = seed
        self._weighting = weighting
        self._detail_weight = detail_weight
        self._rows: list[list[int]] = []
        self.rows_per_epoch: list[int] = []
        self._add_epoch()

    def resize(self, num_rows: int) -> None:
        """From the rows of an epoch to those of a run: more epochs, or a part of the first one."""
        while len(self._rows) < num_rows:
            self._add_epoch()
        del self._rows[num_rows:]

    def _add_epoch(self) -> None:
        generator = np.random.default_rng([self._seed, len(self.rows_per_epoch)])
        rows = fill_rows(self._store.lengths, self._store.row_length, generator)
        if not rows:
            raise ValueError("data: there is no tree to learn from")
        self.rows_per_epoch.append(len(rows))
        self._rows += rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> PackedRow:
        trees = [tree for group in self._rows[number] for tree in self._store[group]]
        return make_row(trees, self._store.row_length, self._weighting, self._detail_weight)


def collate(rows: Sequence[PackedRow]) -> dict[str, torch.Tensor]:
    """The batch of B rows of L tokens, one behind the other in one sequence.

    input_ids, position_ids: [1, B * L] int64. ends: [B, L] int32, places within the row. target_places, targets: [N]
    int64, places in the sequence. weights: [N] float32. is_detail: [N] bool.
    """
    length = len(rows[0].token_ids)
    places = np.concatenate([row.target_places + number * length for number, row in enumerate(rows)]).astype(np.int64)
    targets = np.concatenate([row.targets for row in rows]).astype(np.int64)
    batch = {
        "input_ids": np.concatenate([row.token_ids for row in rows]).astype(np.int64)[None],
        "position_ids": np.concatenate([row.positions for row in rows]).astype(np.int64)[None],
        "ends": np.stack([row.ends for row in rows]),
        "target_places": places,
        "targets": targets,
        "weights": np.concatenate([row.weights for row in rows]),
        "is_detail": np.concatenate([row.is_detail for row in rows]),
    }
    return {name: torch.from_numpy(values) for name, values in batch.items()}
