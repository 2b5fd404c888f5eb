"""Random token trees, and records with text, for the tests of training."""

from __future__ import annotations

import random

from apar.train.packing import PackedTree, TokenTree, pack_tree

FORK, CHILD, END, FIRST_WORD, VOCABULARY = 3, 4, 2, 5, 97


def random_tree(numbers: random.Random, depth: int = 3, most_children: int = 3, longest: int = 6) -> TokenTree:
    """A branch that may fork, ``depth`` levels with itself. No text but the last one of a branch is empty."""
    children = numbers.randint(0, most_children) if depth > 1 else 0
    tree: TokenTree = []
    for _ in range(children):
        tree += [random_ids(numbers, 1, longest), random_tree(numbers, depth - 1, most_children, longest)]
    return [*tree, random_ids(numbers, 0 if children else 1, longest)]


def random_ids(numbers: random.Random, shortest: int, longest: int) -> list[int]:
    return [numbers.randrange(FIRST_WORD, VOCABULARY) for _ in range(numbers.randint(shortest, longest))]


def random_packed(seed: int, **options: int) -> PackedTree:
    numbers = random.Random(seed)
    return packed(random_ids(numbers, 1, 8), random_tree(numbers, **options))


def packed(prompt_ids: list[int], tree: TokenTree) -> PackedTree:
    return pack_tree(prompt_ids, tree, FORK, CHILD, END)
