"""Who wrote what: follows the rows and events of the forest and keeps tokens, costs and events for listeners."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from apar.branch_text import BranchText
from apar.events import Ended, Event, Finished, Forked, Started, Token
from apar.forest import CANCEL, END_REASONS
from apar.grammar import Grammar
from apar.output import Branch, Output, Stats, make_output, path_ids
from apar.sampling import Sampling, child_key

StoppingCriterion = Callable[[torch.Tensor, Any], Any]
"""As in transformers: (input_ids [1, L], None) -> [1] bool, True if the branch with this path ends here."""


class Request:
    """A prompt on its way. ``limit``: first position that none of its branches may use."""

    def __init__(self, index: int, prompt_ids: list[int], limit: int) -> None:
        self.index = index
        self.prompt_ids = prompt_ids
        self.limit = limit
        self.branches: list[Branch] = []
        self.unfinished = 0
        self.output: Output | None = None
        self.first_step = 0
        self.first_launch = 0
        self.queue_seconds = 0.0
        self.prefill_seconds = 0.0
        self.forward_seconds_before = 0.0
        self.overhead_seconds_before = 0.0


class Writer:
    """The branch that stands in a slot now; slots are reused, branches are not.

    ``is_over``: the host ended it, and the forest does not know yet; what it writes meanwhile is dropped.
    ``is_dropped``: it was opened by such a branch, so nobody gets to see it.
    """

    __slots__ = ("branch", "is_dropped", "is_over", "key", "request", "run_text", "text")

    def __init__(self, request: Request, branch: Branch, key: int, text: BranchText | None) -> None:
        self.request = request
        self.branch = branch
        self.key = key
        self.text = text
        self.is_over = self.is_dropped = False
        self.run_text = ""  # text since the last fork, where stop strings are looked for


class Recorder:
    """One per run: ``start`` a prompt, ``write`` the tokens of a step, ``follow`` what the forest made of them.

    ``max_answer_tokens``: of a prompt, all branches together; then each of its branches is cancelled at its next token.
    """

    def __init__(
        self,
        num_requests: int,
        max_slots: int,
        grammar: Grammar,
        tokenizer: Any = None,
        *,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        stopping_criteria: Sequence[StoppingCriterion] = (),
        listening: bool = False,
        max_answer_tokens: int | None = None,
    ) -> None:
        self.grammar = grammar
        self.tokenizer = tokenizer
        self.sampling = sampling or Sampling()
        self.stop = tuple(stop)
        self.stopping_criteria = tuple(stopping_criteria)
        self.listening = listening
        self.max_answer_tokens = max_answer_tokens
        self.started_at = time.perf_counter()
        self.step = 0
        self.launches = 0  # forward passes of steps
        self.running = 0  # requests taken up and not finished
        self.prefill_seconds = 0.0
        self.forward_seconds = 0.0
        self.overhead_seconds = 0.0
        self.overhead_of_steps: list[float] = []  # in seconds
        self.events: list[Event] = []
        self.writers: list[Writer | None] = [None] * max_slots
        self._writer_of_branch: dict[int, Writer] = {}
        self.request_of_slot = np.zeros(max_slots, dtype=np.int64)
        self.key_of_slot = np.zeros(max_slots, dtype=np.uint64)
        # Per request, so that counting a step is a few array operations for any number of rows.
        self.steps = np.zeros(num_requests, dtype=np.int64)
        self.tokens = np.zeros(num_requests, dtype=np.int64)
        self.peak_branches = np.zeros(num_requests, dtype=np.int64)
        self.peak_pages = np.zeros(num_requests, dtype=np.int64)
        self._hidden = grammar.control_ids | set(grammar.stop_ids)
        self._watches_text = tokenizer is not None and (listening or bool(stop))

    def start(self, request: Request, slot: int, branch_number: int) -> None:
        """A prompt was taken up; its trunk stands in ``slot`` and is branch ``branch_number`` to the forest."""
        request.first_step = self.step
        request.first_launch = self.launches
        request.queue_seconds = time.perf_counter() - self.started_at
        request.forward_seconds_before = self.forward_seconds
        request.overhead_seconds_before = self.overhead_seconds
        self.running += 1
        self._open(slot, branch_number, request, Branch((), None, []), self.sampling.trunk_key(request.index))
        if self.listening:
            self.events.append(Started(request.index, self.step, ()))

    def count(self, slots: np.ndarray, pages_of_slot: np.ndarray) -> None:
        """Count a step. slots: [R], the slot of each row; pages_of_slot: [S], pages held while it runs."""
        num_requests = len(self.steps)
        if num_requests == 1:
            rows, pages = len(slots), int(pages_of_slot.sum())
            self.steps += 1
            self.tokens += rows
            self.peak_branches[0] = max(self.peak_branches[0], rows)
            self.peak_pages[0] = max(self.peak_pages[0], pages)
            return
        rows = np.bincount(self.request_of_slot[slots], minlength=num_requests)
        pages = np.bincount(self.request_of_slot, weights=pages_of_slot, minlength=num_requests).astype(np.int64)
        self.steps += rows > 0
        self.tokens += rows
        np.maximum(self.peak_branches, rows, out=self.peak_branches)
        np.maximum(self.peak_pages, pages, out=self.peak_pages)

    def write(self, slots: list[int], tokens: list[int]) -> list[int]:
        """Note the token of each row. Returns them for the forest, with CANCEL where the host ends the branch."""
        for row, (slot, token) in enumerate(zip(slots, tokens, strict=True)):
            writer = self.writers[slot]
            if writer.is_over:
                continue
            branch = writer.branch
            branch.token_ids.append(token)
            branch.end_step = self.step - writer.request.first_step
            if branch.start_step < 0:
                branch.start_step = branch.end_step
            if (self._watches_text or self.listening) and self._read(writer, token):
                tokens[row] = CANCEL
            elif self.stopping_criteria and self._is_stopped(slot):
                branch.stopped = True
                tokens[row] = CANCEL
            elif self.max_answer_tokens is not None and self._is_spent(writer.request):
                tokens[row] = CANCEL
            writer.is_over = tokens[row] == CANCEL
        return tokens

    def follow(self, opened: list[list[int]], ended: list[list[int]]) -> None:
        """What the forest did: rows of its event tensors ``opened`` and ``ended``."""
        finished = []
        for _, branch_number, _, reason, _ in ended:
            writer = self._writer_of_branch.pop(branch_number)
            writer.branch.finish_reason = "stop" if writer.branch.stopped else END_REASONS[reason]
            writer.request.unfinished -= 1
            if self.listening and not writer.is_dropped:
                self._notify(Ended, writer, reason=writer.branch.finish_reason)
            if writer.request.unfinished == 0:
                finished.append(writer.request)
        for slot, branch_number, parent_number, _, _, child_index in opened:
            parent = self._writer_of_branch[parent_number]
            parent.run_text = ""
            branch_id = (*parent.branch.id, child_index)
            fork_index = len(parent.branch.token_ids) - 1
            branch = Branch(branch_id, parent.branch.id, [self.grammar.child_id], fork_index)
            writer = self._open(slot, branch_number, parent.request, branch, child_key(parent.key, child_index))
            writer.is_over = writer.is_dropped = parent.is_over
            if parent.is_over:
                parent.request.branches.pop()
            elif self.listening:
                self._notify(Forked, writer, parent=parent.branch.id)
        for request in finished:
            self._finish(request)

    @property
    def may_stop(self) -> bool:
        """Whether the host may end branches by what they write."""
        return bool(self.stop or self.stopping_criteria or self.max_answer_tokens is not None)

    def path_ids(self, slot: int) -> list[int]:
        """What a plain model would have seen for the branch in a slot: prompt, ancestors up to the fork, own tokens."""
        writer = self.writers[slot]
        by_id = {branch.id: branch for branch in writer.request.branches}
        return path_ids(writer.request.prompt_ids, by_id, writer.branch)

    def _open(self, slot: int, branch_number: int, request: Request, branch: Branch, key: int) -> Writer:
        request.branches.append(branch)
        request.unfinished += 1
        writer = Writer(request, branch, key, BranchText(self.tokenizer) if self._watches_text else None)
        self.writers[slot] = self._writer_of_branch[branch_number] = writer
        self.request_of_slot[slot] = request.index
        self.key_of_slot[slot] = key
        return writer

    def _read(self, writer: Writer, token: int) -> bool:
        """Follow the branch's text for listeners and stop strings. True if a stop string is complete."""
        text = "" if token in self._hidden or writer.text is None else writer.text.add(token)
        if self.listening:
            self._notify(Token, writer, token_id=token, text=text)
        if not self.stop or not text:
            return False
        searched_from = max(0, len(writer.run_text) - max(map(len, self.stop)))
        writer.run_text += text
        found = [stop for stop in self.stop if stop in writer.run_text[searched_from:]]
        if found:
            writer.branch.stopped = True
            writer.branch.stop_string = min(found, key=writer.run_text.index)
        return bool(found)

    def _is_stopped(self, slot: int) -> bool:
        path = torch.tensor([self.path_ids(slot)])
        return any(bool(torch.as_tensor(criterion(path, None)).all()) for criterion in self.stopping_criteria)

    def _is_spent(self, request: Request) -> bool:
        return self.tokens[request.index] >= self.max_answer_tokens

    def _finish(self, request: Request) -> None:
        self.running -= 1
        index = request.index
        stats = Stats(
            prompt_tokens=len(request.prompt_ids),
            steps=int(self.steps[index]),
            launches=self.launches - request.first_launch,
            tokens=int(self.tokens[index]),
            sequential_steps=int(self.tokens[index]),
            peak_branches=int(self.peak_branches[index]),
            peak_pages=int(self.peak_pages[index]),
            seconds=time.perf_counter() - self.started_at,
            queue_seconds=request.queue_seconds,
            prefill_seconds=request.prefill_seconds,
            forward_seconds=self.forward_seconds - request.forward_seconds_before,
            overhead_seconds=self.overhead_seconds - request.overhead_seconds_before,
        )
        request.output = make_output(request.prompt_ids, request.branches, stats, self.grammar, self.tokenizer)
        if self.listening:
            self.events.append(Finished(index, self.step, (), request.output))

    def _notify(self, kind: type[Event], writer: Writer, **details: Any) -> None:
        self.events.append(kind(writer.request.index, self.step, writer.branch.id, **details))
