"""Trees that begin alike share that beginning in a row, and learn what they learn alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from apar.train.dataset import RowDataset, TreeStore, make_row
from apar.train.packing import PackedTree
from apar.train.sharing import LONGEST_GROUP, SHORTEST_SHARED, group_trees, shared_beginning
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.apar.tiny_models import tiny_model
from tests.apar.train.test_equality import assert_equal_training, packed_loss, plain_loss
from tests.apar.train.trees import packed, random_ids, random_packed, random_tree


def family_of_trees(seed: int, count: int) -> list[PackedTree]:
    """Trees whose prompts have beginnings of several lengths in common."""
    numbers = random.Random(seed)
    beginning = random_ids(numbers, 40, 40)
    return [
        packed(
            [*beginning[: numbers.randint(25, 40)], *random_ids(numbers, 1, 4)], random_tree(numbers, most_children=2)
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("family", ["llama", "mistral"])  # mistral: a window
@pytest.mark.parametrize("weighting", ["token", "branch"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 5))
def test_loss_and_gradients_are_those_of_the_trees_alone(family: str, weighting: str, seed: int, count: int) -> None:
    model = tiny_model(family).double()
    trees = [*family_of_trees(seed, count), random_packed(seed), *family_of_trees(seed + 1, 2)]
    store = TreeStore(trees, 600)
    assert store.counts.shared_tokens >= SHORTEST_SHARED
    row = make_row([tree for group in range(len(store)) for tree in store[group]], 600, weighting)
    assert_equal_training(model, plain_loss(model, trees, weighting), packed_loss(model, [row]))


def test_the_beginning_stands_once() -> None:
    trees = family_of_trees(3, 4)
    store = TreeStore(trees, 400)
    assert store.counts.trees == store.counts.parts == 4
    assert len(store) == 1
    assert store.counts.tokens == sum(map(len, trees)) - store.counts.shared_tokens == store.lengths.sum()
    first, *others = store[0]
    assert first.shared == 0
    assert [tree.shared for tree in others] == sorted((tree.shared for tree in others), reverse=True)
    # All trees are there, whole, in whatever order.
    whole = {(tuple(tree.token_ids), tuple(tree.branch)) for tree in trees}
    assert {(tuple(tree.token_ids), tuple(tree.branch)) for tree in store[0]} == whole
    alone = TreeStore(trees, 400, share=False)
    assert (len(alone), alone.counts.shared_tokens) == (4, 0)
    assert [len(group) for group in alone] == [1] * 4


def test_what_predicts_an_answer_is_never_shared() -> None:
    prompt = list(range(5, 25))
    first, second = packed(prompt, [[30]]), packed(prompt, [[31]])
    assert shared_beginning(first, second) == len(prompt) - 1
    row = make_row(TreeStore([first, second], 60)[0], 60)
    assert row.targets.tolist() == [30, 2, 31, 2]
    # An answer that goes on in the next prompt, as in a conversation, is not shared: it is learned here.
    later = packed([*prompt, 30, 2, 40, 41], [[50]])
    assert shared_beginning(first, later) == len(prompt)


def test_groups_keep_to_their_length_and_to_their_order() -> None:
    prompt = list(range(5, 55))
    trees = [packed([*prompt, 60 + number], [[7] * 20]) for number in range(30)]
    groups = list(group_trees(trees, 200))
    assert all(sum(len(tree) - tree.shared for tree in group) <= 200 for group in groups)
    assert sum(map(len, groups)) == 30
    assert len(groups) == 5  # 72 tokens, then 22 more each: six in a group
    assert [int(tree.token_ids[50]) for group in groups for tree in group] == [60 + number for number in range(30)]
    assert list(group_trees([], 200)) == []
    assert LONGEST_GROUP >= 2 * SHORTEST_SHARED


@pytest.mark.parametrize(("beginning", "own"), [(SHORTEST_SHARED - 1, 1), (40, 4 * 40)])
def test_beginnings_that_save_little_are_not_shared(beginning: int, own: int) -> None:
    trees = [packed([*[5] * beginning, *[6 + number] * own], [[9]]) for number in range(3)]
    assert [len(group) for group in TreeStore(trees, 600)] == [1, 1, 1]


def test_rows_of_groups_hold_every_tree_once() -> None:
    trees = [tree for seed in range(20) for tree in family_of_trees(seed, 1 + seed % 4)]
    rows = RowDataset(TreeStore(trees, 300), seed=1)
    learned = sorted(target for row in rows for target in row.targets.tolist())
    assert learned == sorted(target for tree in trees for target in make_row([tree], len(tree)).targets.tolist())
    assert all(np.all(row.ends > np.arange(300)) for row in rows)
