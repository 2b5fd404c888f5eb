"""Who chooses the next token of each row of a step: a sampler, or a script that is followed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from apar.device_choosers import DeviceChooser, GreedyChooser, SamplingChooser, ScriptedChooser
from apar.forest import Forest
from apar.grammar import Grammar
from apar.record import Recorder
from apar.sampling import Sampling, choose, choose_greedy, random_numbers
from apar.tree import BranchId
from apar_ext import mask_logits_

LogitsProcessor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""As in transformers: (input_ids [1, L], scores [1, V]) -> scores [1, V]. ``input_ids`` is the branch's own path."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a step.

    ``slots``: [R] slot of each row's branch; ``positions``: [R] where the new tokens will stand; both int32, on the
    host. ``may_fork``: [R] int32, 0 where the grammar allows no fork token. ``recorder``: knows branches and grammar.
    """

    slots: np.ndarray
    positions: np.ndarray
    may_fork: torch.Tensor
    recorder: Recorder

    @property
    def masks(self) -> tuple[torch.Tensor, int, int]:
        """What ``apar_ext.mask_logits_`` wants besides the logits."""
        return self.may_fork, self.recorder.grammar.fork_id, self.recorder.grammar.child_id


class Chooser(Protocol):
    """(logits [R, V], rows) -> the next token of each row, by the grammar's masks. May write to the logits."""

    def __call__(self, logits: torch.Tensor, rows: Rows) -> list[int]: ...

    def on_device(self, forest: Forest, grammar: Grammar) -> DeviceChooser | None:
        """The same choice on the device of a forest, without the host; None where it needs the host."""


class TokenChooser:
    """Samples, or takes the most likely token.

    Logits processors are called row by row, so that what they see does not depend on who else is in the step, and the
    masks are applied again behind them: no processor can allow what the grammar forbids.
    """

    def __init__(self, sampling: Sampling, processors: Sequence[LogitsProcessor] = ()) -> None:
        self.sampling = sampling
        self.processors = tuple(processors)

    def __call__(self, logits: torch.Tensor, rows: Rows) -> list[int]:
        if self.processors:
            logits = self._process(mask_logits_(logits, *rows.masks), rows)
        if self.sampling.greedy:
            return choose_greedy(logits, *rows.masks).tolist()
        numbers = random_numbers(rows.recorder.key_of_slot[rows.slots], rows.positions)
        return choose(logits, self.sampling, numbers, *rows.masks).tolist()

    def on_device(self, forest: Forest, grammar: Grammar) -> DeviceChooser | None:
        if self.processors:
            return None
        if self.sampling.greedy:
            return GreedyChooser(forest, grammar)
        return SamplingChooser(forest, grammar, self.sampling)

    def _process(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        forbidden = logits == -torch.inf
        processed = []
        for slot, scores in zip(rows.slots.tolist(), logits.split(1), strict=True):
            path = torch.tensor([rows.recorder.path_ids(slot)], device=logits.device)
            for processor in self.processors:
                given, scores = scores, processor(path, scores)
                if not isinstance(scores, torch.Tensor) or scores.shape != given.shape:
                    came = list(scores.shape) if isinstance(scores, torch.Tensor) else repr(scores)
                    raise ValueError(
                        f"logits_processor: {processor!r} returned {came}, expected scores {list(given.shape)}"
                    )
            processed.append(scores)
        return torch.cat(processed).masked_fill(forbidden, -torch.inf)


class ScriptChooser:
    """Follows a script: per prompt, for each branch the tokens that it is to write, behind its forced child token."""

    def __init__(self, scripts: Sequence[dict[BranchId, Sequence[int]]]) -> None:
        self.scripts = scripts

    def __call__(self, logits: torch.Tensor, rows: Rows) -> list[int]:
        choose_greedy(logits, *rows.masks)  # what a real run does here is part of what a replay costs
        tokens = []
        for slot in rows.slots.tolist():
            writer = rows.recorder.writers[slot]
            branch = writer.branch
            written = len(branch.token_ids) - (branch.parent is not None)
            tokens.append(self.scripts[writer.request.index][branch.id][written])
        return tokens

    def on_device(self, forest: Forest, grammar: Grammar) -> DeviceChooser:
        return ScriptedChooser(forest, grammar, self.scripts)
