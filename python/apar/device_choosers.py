"""Who chooses the next tokens on the device of the model, without asking the host. Its other side is `choosers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from apar.forest import Forest
from apar.grammar import Grammar
from apar.record import Recorder
from apar.sampling import Sampling
from apar.tree import BranchId
from apar_ext import draw_numbers, greedy_tokens, sample_tokens


class DeviceChooser(Protocol):
    """Works on tensors of the forest's device at fixed addresses, so that it can be captured."""

    def load(self, recorder: Recorder) -> None:
        """Take over what the host knows of the branches in the slots; called whenever the forest is uploaded."""

    def __call__(self, logits: torch.Tensor, rows: int) -> torch.Tensor:
        """logits: [rows, V] -> [rows] int32 tokens; -1 where the logits are no numbers. Called once per step."""


class GreedyChooser:
    """The likeliest token that the grammar allows."""

    def __init__(self, forest: Forest, grammar: Grammar) -> None:
        self.forest = forest
        self.control_tokens = (grammar.fork_id, grammar.child_id)

    def load(self, recorder: Recorder) -> None:
        pass

    def __call__(self, logits: torch.Tensor, rows: int) -> torch.Tensor:
        return greedy_tokens(logits, self.forest.row_may_fork[:rows], *self.control_tokens)


class SamplingChooser:
    """Draws tokens with the numbers that the host would draw. Keys of new branches are derived on the device."""

    def __init__(self, forest: Forest, grammar: Grammar, sampling: Sampling) -> None:
        self.forest = forest
        self.control_tokens = (grammar.fork_id, grammar.child_id)
        self.filters = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        self.keys = torch.zeros(forest.config.num_slots, dtype=torch.int64, device=forest.data.device)

    def load(self, recorder: Recorder) -> None:
        self.keys.copy_(torch.from_numpy(recorder.key_of_slot.view(np.int64)))

    def __call__(self, logits: torch.Tensor, rows: int) -> torch.Tensor:
        forest = self.forest
        numbers = draw_numbers(
            self.keys,
            forest.opened_places,
            forest.number("num_opened"),
            forest.parent,
            forest.row_slot[:rows],
            forest.row_position[:rows],
        )
        return sample_tokens(logits, forest.row_may_fork[:rows], numbers, *self.control_tokens, **self.filters)


class ScriptedChooser:
    """Forces the tokens of scripts, and costs what greedy choice costs: see `choosers.ScriptChooser`.

    Scripts are numbered so that those of a branch's children follow each other; which one a new branch follows then
    comes from its parent's and its number among the children.
    """

    def __init__(self, forest: Forest, grammar: Grammar, scripts: Sequence[dict[BranchId, Sequence[int]]]) -> None:
        self.greedy = GreedyChooser(forest, grammar)
        self.forest = forest
        self._number: dict[tuple[int, BranchId], int] = {}
        tokens: list[int] = []
        start: list[int] = []
        first_child: list[int] = []
        for prompt, script in enumerate(scripts):
            in_order = sorted(script, key=lambda branch: (len(branch), branch))
            for branch in in_order:
                self._number[prompt, branch] = len(start)
                # By entry of the stream: entry i is followed by token i. A trunk's stream holds its prompt, too, and is
                # shifted by that when the trunk is taken up; a child's begins with the child token.
                start.append(len(tokens))
                tokens += script[branch]
            first_child += [self._number.get((prompt, (*branch, 0)), 0) for branch in in_order]
        device = forest.data.device
        self.tokens, self.start, self.first_child = (
            torch.tensor(numbers, device=device) for numbers in (tokens, start, first_child)
        )
        # One place more than there are slots: what is written for branches that were not opened goes there.
        slots = forest.config.num_slots
        self.script = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.first_written = torch.zeros(slots + 1, dtype=torch.int64, device=device)  # position of the first own token
        self._place = torch.arange(slots, device=device)

    def load(self, recorder: Recorder) -> None:
        numbers, positions = torch.zeros_like(self.script, device="cpu"), torch.zeros_like(self.script, device="cpu")
        for slot, writer in enumerate(recorder.writers):
            if writer is not None and writer.branch.finish_reason is None:
                numbers[slot] = self._number[writer.request.index, writer.branch.id]
                own = writer.branch.parent is not None
                path = recorder.path_ids(slot)
                positions[slot] = len(path) - len(writer.branch.token_ids) + own
        self.script.copy_(numbers)
        self.first_written.copy_(positions)

    def __call__(self, logits: torch.Tensor, rows: int) -> torch.Tensor:
        self.greedy(logits, rows)  # what a real run does here is part of what a replay costs
        forest = self.forest
        opened = forest.opened_places.long()
        slot = torch.where(self._place < forest.number("num_opened"), opened[:, 0], len(self._place))
        parent = forest.parent[opened[:, 0].clamp(0, len(self._place) - 1)].clamp(min=0).long()
        self.script[slot] = self.first_child[self.script[parent]] + opened[:, 5]
        self.first_written[slot] = opened[:, 4] + 2  # behind [Fork] comes [Child]
        row_slot = forest.row_slot[:rows].clamp(min=0).long()
        place = forest.row_position[:rows] + 1 - self.first_written[row_slot]
        index = self.start[self.script[row_slot]] + place
        return self.tokens[index.clamp(0, len(self.tokens) - 1)].int()
