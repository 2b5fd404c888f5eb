"""Packed trees against rules written down once more, in the plainest way."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from apar.train.dataset import RowDataset, TreeStore, collate, make_row
from apar.train.packing import PackedTree, fill_rows, lay_out, one_row_per_branch, split_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.apar.train.trees import CHILD, END, FORK, packed, random_packed, random_tree

SEEDS = st.integers(0, 10**6)


def test_a_tree_by_hand() -> None:
    # "5 6 | 7 [Fork] ([Child] 8 [Fork] ([Child] 9 </s>) </s>) 10 </s>"
    tree = packed([5, 6], [[7], [[8], [[9]], []], [10]])
    assert tree.token_ids.tolist() == [5, 6, 7, FORK, CHILD, 8, FORK, CHILD, 9, END, END, 10, END]
    assert tree.branch.tolist() == [-1, -1, 0, 0, 1, 1, 1, 2, 2, 2, 1, 0, 0]
    layout = lay_out(tree.branch)
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 4, 5]
    assert layout.ends.tolist() == [13, 13, 13, 13, 11, 11, 11, 10, 10, 10, 11, 13, 13]
    assert layout.next.tolist() == [1, 2, 3, 11, 5, 6, 10, 8, 9, -1, -1, 12, -1]

    row = make_row([tree], 16)
    # Learned: 7, both forks, the parents' next tokens behind them, details and ends; no prompt and no child token.
    assert row.target_places.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 11]
    assert row.targets.tolist() == [7, FORK, 10, 8, FORK, END, 9, END, END]
    assert row.is_detail.tolist() == [False, False, False, True, True, True, True, True, False]
    assert row.ends[13:].tolist() == [14, 15, 16]
    by_branch = make_row([tree], 16, "branch", detail_weight=0.5).weights
    assert np.allclose(by_branch, [1 / 4, 1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4, 1 / 4])


@settings(deadline=None)
@given(SEEDS)
def test_layout_is_what_the_paths_say(seed: int) -> None:
    """Token by token: what a branch's row holds is what its tokens see, at the places they stand at."""
    tree = random_packed(seed)
    number = np.where(tree.branch < 0, ~tree.branch, tree.branch)
    layout = lay_out(tree.branch)
    places = np.arange(len(tree))
    for branch, row in enumerate(one_row_per_branch(tree)):
        own = places[number == branch]
        for rank, place in enumerate(own):
            seen = places[(places <= place) & (layout.ends > place)]
            length = len(row) - len(own) + rank + 1
            assert tree.token_ids[seen].tolist() == row.token_ids[:length].tolist()
            assert layout.positions[seen].tolist() == list(range(length))
            assert layout.next[place] == (own[rank + 1] if rank + 1 < len(own) else -1)


@settings(deadline=None)
@given(SEEDS)
def test_targets_are_those_of_one_row_per_branch(seed: int) -> None:
    tree = random_packed(seed)
    row = make_row([tree], len(tree))
    expected = sorted(
        int(branch_row.token_ids[place])
        for branch_row in one_row_per_branch(tree)
        for place in np.flatnonzero(branch_row.branch >= 0)
    )
    assert sorted(row.targets.tolist()) == expected
    assert CHILD not in row.targets
    assert (row.targets == FORK).sum() == (tree.token_ids == FORK).sum() == (tree.token_ids == CHILD).sum()


@settings(deadline=None)
@given(SEEDS, st.integers(4, 80))
def test_parts_of_a_split_tree_learn_every_branch_once(seed: int, length: int) -> None:
    tree = random_packed(seed, most_children=5)
    parts, left_out = split_tree(tree, length)
    assert all(len(part) <= max(length, 0) or part is tree for part in parts)
    learned = sorted(target for part in parts for target in make_row([part], len(part)).targets.tolist())
    everything = make_row([tree], len(tree)).targets.tolist()
    if left_out == 0:
        assert learned == sorted(everything)
    else:
        assert len(learned) < len(everything)
    for part in parts:  # what stands above a branch is there with it
        rows = {tuple(row.token_ids) for row in one_row_per_branch(tree)}
        assert all(tuple(row.token_ids) in rows for row in one_row_per_branch(part))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 90), SEEDS, st.integers(1, 20))
def test_every_tree_is_in_one_row(lengths: list[int], row_length: int, seed: int, window: int) -> None:
    sizes = np.array(lengths, np.int64)
    rows = fill_rows(sizes, row_length, np.random.default_rng(seed), window)
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
    assert all(0 < sizes[row].sum() <= row_length for row in rows)
    assert rows == fill_rows(sizes, row_length, np.random.default_rng(seed), window)


def test_rows_are_full() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 3000)
    rows = fill_rows(lengths, 1024, np.random.default_rng(1))
    assert lengths.sum() / (len(rows) * 1024) > 0.98
    with pytest.raises(ValueError, match="a tree has 1025 tokens, expected at most 1024"):
        fill_rows(np.array([1025]), 1024, np.random.default_rng(0))


def test_rows_of_a_run_do_not_depend_on_its_length() -> None:
    store = TreeStore((random_packed(seed) for seed in range(40)), 200)
    one_epoch = RowDataset(store, seed=3)
    longer = RowDataset(store, seed=3)
    longer.resize(2 * len(one_epoch) + 1)
    assert len(longer) == 2 * len(one_epoch) + 1
    for number in range(len(one_epoch)):
        assert np.array_equal(one_epoch[number].token_ids, longer[number].token_ids)
    second = [longer[number].token_ids.tolist() for number in range(len(one_epoch), 2 * len(one_epoch))]
    assert second != [longer[number].token_ids.tolist() for number in range(len(one_epoch))]


@pytest.mark.parametrize("too_long", ["split", "drop"])
def test_trees_that_are_too_long_are_counted(too_long: str) -> None:
    # 26 tokens, three details of 6 each; a detail that fills a row alone; such a prompt; a short one.
    tree = packed([5] * 3, [[6], [[7] * 4], [6], [[7] * 4], [6], [[7] * 4], []])
    long_detail = packed([5], [[6], [[7] * 30], [6], [[7]], []])
    trees = [tree, long_detail, packed([5] * 30, [[6]]), packed([5], [[6]])]
    store = TreeStore(trees, 22, too_long)
    split = too_long == "split"
    assert store.counts.split_trees == (2 if split else 0)
    assert store.counts.dropped_trees == (1 if split else 3)
    assert store.counts.dropped_branches == (1 if split else 0)
    assert len(store) == store.counts.parts == (4 if split else 1)
    # What is learned: of the trees that were split three details of three and one of two.
    counts = store.counts
    assert (counts.trees, counts.trees_with_forks, counts.forks) == ((3, 2, 4) if split else (1, 0, 0))
    assert counts.depth == (2 if split else 1)
    assert store.counts.tokens == store.lengths.sum()


def test_a_batch_is_one_sequence() -> None:
    trees = [random_packed(seed) for seed in range(6)]
    length = max(len(tree) for tree in trees)
    batch = collate([make_row([tree], length) for tree in trees])
    assert batch["input_ids"].shape == batch["position_ids"].shape == (1, 6 * length)
    assert batch["ends"].shape == (6, length)
    for number, tree in enumerate(trees):
        own = (batch["target_places"] // length) == number
        row = make_row([tree], length)
        assert (batch["target_places"][own] - number * length).tolist() == row.target_places.tolist()
        assert batch["targets"][own].tolist() == row.targets.tolist()


def test_long_chains_of_paragraphs_are_no_recursion() -> None:
    tree = packed([5], [part for _ in range(5000) for part in ([6], [[7]])] + [[]])
    assert len(tree) == 2 + 5000 * (1 + 1 + 3)
    assert lay_out(tree.branch).positions.max() == 10003
    with pytest.raises(ValueError, match="it has 40001 branches, expected at most 32767"):
        packed([5], [part for _ in range(40000) for part in ([6], [[7]])] + [[]])


def test_a_tree_without_forks_is_a_plain_row() -> None:
    tree = packed([5, 6], random_tree(random.Random(0), depth=1))
    assert isinstance(tree, PackedTree)
    assert lay_out(tree.branch).positions.tolist() == list(range(len(tree)))
    assert make_row([tree], len(tree)).targets.tolist() == tree.token_ids[2:].tolist()
