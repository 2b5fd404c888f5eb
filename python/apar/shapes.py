"""Shapes of answers: trees of token counts, files of them, and the tokens that a replay forces.

A tree is ``[t0, child, t1, child, ..., tn]``: the trunk writes t0 tokens, forks a child, goes on with t1 tokens, and so
on; a child is a tree again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from apar.grammar import Grammar
from apar.tree import BranchId

Tree = Sequence[Any]
"""Numbers of tokens and, between them, trees: ``[t0, child, t1, ..., tn]``."""

DEMO_TREE: Tree = [46, [47], 11, [36], 9, [48], 10, [30], 8, [35], 11, [31], 10, [41], 7, [22], 11, [33], 49]
"""The shape of a real answer: an introduction, a list of nine points with a detail each, an end."""


def read_shapes(path: str | os.PathLike[str], rule: str = "apar") -> Iterator[dict[str, Any]]:
    """Records of a file of trees, one JSON object a line: ``{"prompt_tokens", "response_tokens", "apar"?, "nested"?}``.

    Each gets a ``tree``: by ``rule`` ("apar": the paper's rule, "nested": hierarchies), or a trunk alone where the
    answer does not fork by it.
    """
    if rule not in ("apar", "nested"):
        raise ValueError(f"rule: expected 'apar' or 'nested', got {rule!r}")
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                yield {**record, "tree": record.get(rule) or [record["response_tokens"]]}
            except (json.JSONDecodeError, KeyError, AttributeError) as error:
                raise ValueError(f"trees: line {number} of {path} is no record of a tree ({error!r})") from error


def check_tree(tree: Any, name: str = "tree") -> Tree:
    """Raises ValueError unless ``tree`` is numbers of tokens with trees between them, the first one over 0."""
    if not isinstance(tree, Sequence) or isinstance(tree, str) or len(tree) % 2 == 0:
        raise ValueError(f"{name}: expected [t0, child, t1, ..., tn], numbers at even places, got {tree!r}")
    for place, part in enumerate(tree):
        if place % 2:
            check_tree(part, f"{name}[{place}]")
        elif isinstance(part, bool) or not isinstance(part, int) or part < 0 or (part == 0 and place < len(tree) - 1):
            raise ValueError(
                f"{name}[{place}]: expected a number of tokens, at least 1 in front of a fork, got {part!r}"
            )
    return tree


def tree_depth(tree: Tree) -> int:
    """Levels of branches: 1 for a trunk alone."""
    return 1 + max((tree_depth(child) for child in tree[1::2]), default=0)


def most_children(tree: Tree) -> int:
    """Forks of the branch that forks most."""
    return max([len(tree) // 2, *map(most_children, tree[1::2])])


def make_script(tree: Tree, grammar: Grammar, branch: BranchId = ()) -> dict[BranchId, list[int]]:
    """For every branch the tokens it is to write: fillers, a fork token where a child begins, an end token."""
    script: dict[BranchId, list[int]] = {branch: []}
    filler = 0
    for place, part in enumerate(tree):
        if place % 2:
            script[branch].append(grammar.fork_id)
            script.update(make_script(part, grammar, (*branch, place // 2)))
        else:
            script[branch].extend([filler] * part)
    script[branch].append(grammar.stop_ids[0])
    return script


def longest_path(script: dict[BranchId, list[int]], fork_id: int) -> int:
    """Tokens from the prompt to the end of the longest path, forced ones included."""
    longest = {}
    for branch in sorted(script):
        before = 0
        if branch:
            forks = [place for place, token in enumerate(script[branch[:-1]]) if token == fork_id]
            before = longest[branch[:-1]] + forks[branch[-1]] + 2  # up to the fork, the fork, the child token
        longest[branch] = before
    return max(longest[branch] + len(tokens) for branch, tokens in script.items())
