"""Taking up prompts: who is next, where its entries go, and that nobody who is decoding waits long for it."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from apar.cache import PagedCache
from apar.forest import Forest
from apar.prefill import PromptStream, prefill
from apar.record import Recorder, Request
from apar.room import Room


@dataclasses.dataclass
class LongPrompt:
    """A prompt of more than one chunk, on its way to a shared stream that its trunk will read."""

    request: Request
    stream: int
    length: int  # of the stream: whole pages, so that it wastes none
    written: int = 0
    seconds: float = 0.0


class Intake:
    """Takes up requests in their order, as far as the forest has room. ``turn`` is called before every step and writes
    at most about ``room.prefill_tokens`` prompt tokens.

    Short prompts go straight to the streams of their trunks, several in one pass. A long one is written chunk by chunk
    to a stream of its own while others decode, and its trunk is admitted when that is done. Which way a prompt goes
    depends on its length alone, never on the load.

    ``tables``: gives the forest's page table and first positions as they are now, where the model is.
    """

    def __init__(
        self,
        model: Any,
        cache: PagedCache,
        forest: Forest,
        recorder: Recorder,
        room: Room,
        requests: Iterable[Request],
        tables: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        self.model = model
        self.cache = cache
        self.forest = forest
        self.recorder = recorder
        self.room = room
        self.tables = tables
        self.waiting = deque(requests)
        self.long: LongPrompt | None = None

    @property
    def is_done(self) -> bool:
        return not self.waiting and self.long is None

    def turn(self) -> bool:
        """Take up what there is room for now, and make the forest schedule it.

        Returns whether anything came of it; if not, nothing will before a branch has ended.
        """
        if self.is_done:
            return False
        started_at = time.perf_counter()
        before = (len(self.waiting), self.long and self.long.written)
        admitted = self._continue_long() if self.long is not None else self._take_short()
        if self.long is None and not admitted and self.waiting and self._is_long(self.waiting[0]):
            self._open_long()
        seconds = time.perf_counter() - started_at
        self.recorder.prefill_seconds += seconds
        for request in admitted:
            request.prefill_seconds += seconds
        if admitted:
            forest = self.forest
            forest.schedule()
            # A branch may have waited for a slot to fork.
            self.recorder.follow(forest.opened.tolist(), forest.ended.tolist())
        return bool(admitted) or before != (len(self.waiting), self.long and self.long.written)

    def would_take_up(self, forest: Forest) -> bool:
        """Whether a turn would come to anything with a forest in this state, which is changed by the question."""
        if self.is_done or self.long is not None:
            return not self.is_done
        request = self.waiting[0]
        if self._is_long(request):
            return forest.open_shared(self._shared_length(request)) >= 0
        prompt = request.prompt_ids
        has_row = forest.num_rows < self.room.max_rows
        return has_row and forest.admit(request.index, len(prompt), request.limit, prompt[-1]) >= 0

    def _is_long(self, request: Request) -> bool:
        return len(request.prompt_ids) - 1 > max(self.room.prefill_tokens, self.room.page_size)

    def _shared_length(self, request: Request) -> int:
        return (len(request.prompt_ids) - 1) // self.room.page_size * self.room.page_size

    def _take_short(self) -> list[Request]:
        streams, admitted = [], []
        tokens = 0
        while self.waiting and not self._is_long(self.waiting[0]) and tokens < self.room.prefill_tokens:
            if self.forest.num_rows + len(admitted) >= self.room.max_rows:
                break
            prompt = self.waiting[0].prompt_ids
            slot = self._admit(self.waiting[0])
            if slot < 0:
                break
            admitted.append(self.waiting.popleft())
            streams.append(PromptStream(slot, prompt[:-1]))
            tokens += len(prompt) - 1
        self._write(streams)
        return admitted

    def _open_long(self) -> None:
        request = self.waiting[0]
        length = self._shared_length(request)
        stream = self.forest.open_shared(length)
        if stream >= 0:
            self.waiting.popleft()
            self.long = LongPrompt(request, stream, length)
            self.recorder.request_of_slot[stream] = request.index

    def _continue_long(self) -> list[Request]:
        """Write the next chunk; behind the last one admit the trunk, as soon as there is room for it."""
        long = self.long
        started_at = time.perf_counter()
        prompt = long.request.prompt_ids
        if long.written < long.length:
            end = min(long.length, long.written + self.room.prefill_tokens)
            self._write([PromptStream(long.stream, prompt[long.written : end], start=long.written)])
            long.written = end
        admitted = []
        if long.written == long.length and (slot := self._admit(long.request, long.stream)) >= 0:
            self._write([PromptStream(slot, prompt[long.length : -1], context=[(long.stream, 0, long.length)])])
            self.forest.close_shared(long.stream)
            long.request.prefill_seconds = long.seconds
            self.long = None
            admitted.append(long.request)
        long.seconds += time.perf_counter() - started_at
        return admitted

    def _admit(self, request: Request, shared: int = -1) -> int:
        prompt = request.prompt_ids
        slot = self.forest.admit(request.index, len(prompt), request.limit, prompt[-1], shared)
        if slot >= 0:
            self.recorder.start(request, slot, int(self.forest.branch_id[slot]))
        return slot

    def _write(self, streams: list[PromptStream]) -> None:
        prefill(self.model, self.cache, streams, *self.tables(), chunk_size=self.room.prefill_tokens)
