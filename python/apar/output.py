"""What a decoding run returns: branches, the tree of paragraphs, the ids in reading order, the costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from apar.grammar import Grammar
from apar.tree import BranchId, ParagraphTree, Segment, branch_name, build_tree, split_text


@dataclasses.dataclass
class Branch:
    """One branch. Two branches are equal when they say the same; when they were decoded is not compared.

    ``id``: () for the trunk, (2,) for the third branch it forked, (2, 0) for the first one of that; the same whatever
    the load. ``token_ids``: its own stream, the forced child token and the token that ended it included.
    ``fork_index``: index of its fork token in the parent's ``token_ids`` (-1 for the trunk). ``finish_reason``:
    ``"stop"`` (end token or stop string), ``"length"``, ``"cancelled"``; None while it runs. ``start_step``,
    ``end_step``: first and last decode step (of this prompt, from 0) that fed a token of the branch. ``stopped``: a
    stop string or stopping criterion ended it; ``stop_string``: which string.
    """

    id: BranchId
    parent: BranchId | None
    token_ids: list[int]
    fork_index: int = -1
    finish_reason: str | None = None
    start_step: int = dataclasses.field(default=-1, compare=False)
    end_step: int = dataclasses.field(default=-1, compare=False)
    stopped: bool = dataclasses.field(default=False, compare=False, repr=False)
    stop_string: str | None = dataclasses.field(default=None, compare=False)

    @property
    def name(self) -> str:
        return branch_name(self.id)


@dataclasses.dataclass
class Stats:
    """What one prompt cost. Times in seconds; steps of a batch are shared, so times of its prompts overlap.

    ``steps``: forward passes that decoded for this prompt. ``launches``: forward passes of steps from its first to its
    last token, idle ones included: a GPU is a step ahead of the host, which learns late that a branch ended.
    ``tokens``: tokens sampled, control and end tokens included. ``sequential_steps``: steps of the same text without
    parallel branches, one per sampled token.
    ``peak_branches``: most branches fed in one step. ``peak_pages``: most KV pages held. ``seconds``: from the call to
    the last token, ``queue_seconds`` of it before the prompt was taken up. ``forward_seconds``, ``overhead_seconds``:
    the model's forward, and everything else, of the steps above.
    """

    prompt_tokens: int = 0
    steps: int = 0
    launches: int = 0
    tokens: int = 0
    sequential_steps: int = 0
    peak_branches: int = 0
    peak_pages: int = 0
    seconds: float = 0.0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    forward_seconds: float = 0.0
    overhead_seconds: float = 0.0

    @property
    def step_ratio(self) -> float:
        """Steps saved: sequential steps per step."""
        return self.sequential_steps / max(1, self.steps)

    @property
    def overhead_us_per_step(self) -> float:
        """Mean over the steps."""
        return 1e6 * self.overhead_seconds / max(1, self.steps)

    def to_dict(self) -> dict[str, Any]:
        return {
            **dataclasses.asdict(self),
            "step_ratio": self.step_ratio,
            "overhead_us_per_step": self.overhead_us_per_step,
        }


@dataclasses.dataclass
class Output:
    """The answer to one prompt.

    ``text`` and ``token_ids`` are in reading order: a branch stands where it was forked. ``token_ids`` keeps control
    and end tokens, ``visible_ids`` leaves them out. ``finish_reason`` is the trunk's. ``branches``: trunk first, depth
    first.
    """

    prompt_ids: list[int]
    text: str
    tree: ParagraphTree
    token_ids: list[int]
    visible_ids: list[int]
    branches: list[Branch]
    finish_reason: str | None
    stats: Stats = dataclasses.field(compare=False)

    def branch(self, branch_id: BranchId) -> Branch:
        """The branch of this id. Raises KeyError, which names the branches there are."""
        for branch in self.branches:
            if branch.id == branch_id:
                return branch
        raise KeyError(f"branch_id: no branch {branch_id!r}, expected one of {[branch.id for branch in self.branches]}")

    def path_ids(self, branch_id: BranchId) -> list[int]:
        """What a plain model would see for this branch: prompt, ancestors' tokens up to the fork, own tokens.

        Raises KeyError, which names the branches there are.
        """
        return path_ids(self.prompt_ids, {branch.id: branch for branch in self.branches}, self.branch(branch_id))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; ids of branches are names: "trunk", "2", "2.0"."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "tree": self.tree.to_dict(),
            "token_ids": self.token_ids,
            "branches": [
                {
                    "id": branch.name,
                    "parent": None if branch.parent is None else branch_name(branch.parent),
                    "token_ids": branch.token_ids,
                    "finish_reason": branch.finish_reason,
                    "start_step": branch.start_step,
                    "end_step": branch.end_step,
                }
                for branch in self.branches
            ],
            "stats": self.stats.to_dict(),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)


def path_ids(prompt_ids: list[int], branches: dict[BranchId, Branch], branch: Branch) -> list[int]:
    """Prompt, the tokens of the ancestors up to the fork, the branch's own tokens."""
    path = branch.token_ids
    while branch.parent is not None:
        parent = branches[branch.parent]
        path = parent.token_ids[: branch.fork_index + 1] + path
        branch = parent
    return prompt_ids + path


def make_output(
    prompt_ids: list[int], branches: list[Branch], stats: Stats, grammar: Grammar, tokenizer: Any
) -> Output:
    """Put the streams of all branches together. Without a tokenizer the texts are empty."""
    branches = sorted(branches, key=lambda branch: branch.id)
    segments = reading_order(branches, grammar)
    visible = [segment.token_ids for segment in segments]
    texts = split_text(tokenizer, visible) if tokenizer is not None else [""] * len(segments)
    _cut_at_stop_strings(branches, segments, texts)
    tree = build_tree(segments, texts, grammar.newlines)
    return Output(
        prompt_ids=prompt_ids,
        text=tree.text,
        tree=tree,
        token_ids=_all_ids(branches),
        visible_ids=[token for ids in visible for token in ids],
        branches=branches,
        finish_reason=branches[0].finish_reason,
        stats=stats,
    )


def reading_order(branches: list[Branch], grammar: Grammar) -> list[Segment]:
    """Runs of visible tokens in the order they are read: a branch up to its fork, the child, the rest of the branch."""
    return [
        Segment(branch.id, _visible(branch.token_ids[begin:end], grammar)) for branch, begin, end in _runs(branches)
    ]


def _all_ids(branches: list[Branch]) -> list[int]:
    """All ids in reading order, control and end tokens included."""
    ids: list[int] = []
    for branch, begin, end in _runs(branches):
        ids.extend(branch.token_ids[begin:end])
        if end < len(branch.token_ids):
            ids.append(branch.token_ids[end])  # the fork token between two runs
    return ids


def _runs(branches: list[Branch]) -> Iterator[tuple[Branch, int, int]]:
    """(branch, begin, end) of the token runs between forks, in reading order; fork tokens belong to no run."""
    children: dict[BranchId, list[Branch]] = {branch.id: [] for branch in branches}
    for branch in branches:
        if branch.parent is not None:
            children[branch.parent].append(branch)
    pending: list[tuple[Branch, int]] = [(branches[0], 0)]
    while pending:
        branch, run = pending.pop()
        forked = children[branch.id]
        begin = forked[run - 1].fork_index + 1 if run else 0
        if run == len(forked):
            yield branch, begin, len(branch.token_ids)
        else:
            yield branch, begin, forked[run].fork_index
            pending.append((branch, run + 1))
            pending.append((forked[run], 0))


def _visible(token_ids: list[int], grammar: Grammar) -> list[int]:
    hidden = grammar.control_ids | set(grammar.stop_ids)
    return [token for token in token_ids if token not in hidden]


def _cut_at_stop_strings(branches: list[Branch], segments: list[Segment], texts: list[str]) -> None:
    """A branch that a stop string ended keeps the text in front of it."""
    last_segment = {segment.branch: number for number, segment in enumerate(segments)}
    for branch in branches:
        if branch.stop_string is not None:
            number = last_segment[branch.id]
            found = texts[number].find(branch.stop_string)
            texts[number] = texts[number][:found] if found >= 0 else texts[number]
