"""The decoding loop over many prompts: admit, prefill, forward, choose, advance, record.

The forest holds the state of all branches, the cache their keys and values, the recorder the tokens that came out.
Nothing of a run outlives it: an interrupted run leaves the model and the process as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from apar.cache import PagedCache, Step
from apar.choosers import Chooser, Rows
from apar.events import Event
from apar.forest import Forest, ForestConfig
from apar.grammar import Grammar
from apar.intake import Intake
from apar.record import Recorder, Request
from apar.room import Room


class Decoder:
    """Decodes prompts on one model. ``run`` is the loop, ``turn`` one turn of it, ``step`` the decode step in it.

    ``observe`` is called with the decoder before every forward pass of a step (for measurements).
    """

    def __init__(
        self,
        model: Any,
        grammar: Grammar,
        room: Room,
        recorder: Recorder,
        choose: Chooser,
        observe: Callable[[Decoder], None] | None = None,
    ) -> None:
        self.model = model
        self.grammar = grammar
        self.room = room
        self.recorder = recorder
        self.choose = choose
        self.observe = observe
        self.cache = PagedCache.for_model(model, room.max_pages, room.page_size, kv_dtype=room.kv_dtype)
        self.forest = make_forest(self.cache, grammar, room)

    def run(self, requests: Iterable[Request], after_step: Callable[[], None] | None = None) -> Iterator[Event]:
        """Decode all requests, in their order as far as there is room. Yields events if the recorder listens."""
        recorder = self.recorder
        intake = Intake(self.model, self.cache, self.forest, recorder, self.room, requests, self.tables)
        while recorder.running or not intake.is_done:
            self.turn(intake)
            yield from recorder.events
            recorder.events.clear()
            if after_step is not None:
                after_step()

    @torch.inference_mode()
    def turn(self, intake: Intake) -> None:
        """Take up prompts, then let every branch that has a row write one token."""
        intake.turn()
        if self.forest.num_rows:
            if self.observe is not None:
                self.observe(self)
            self.step()

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Page table and first positions of the forest as they are now, on the device of the model."""
        return self.forest.page_table, self.forest.first_position

    def step(self) -> None:
        """One token for every row."""
        forest, recorder = self.forest, self.recorder
        started_at = time.perf_counter()
        num_rows = forest.num_rows
        slots = forest.row_slot[:num_rows].numpy()
        recorder.count(slots, forest.num_pages.numpy())
        inputs = self._inputs(num_rows)
        forward_at = time.perf_counter()
        logits = self.model(**inputs).logits[0]
        forward_seconds = time.perf_counter() - forward_at
        next_positions = forest.row_position[:num_rows].numpy() + 1
        chosen = self.choose(logits, Rows(slots, next_positions, forest.row_may_fork[:num_rows], recorder))
        tokens = recorder.write(slots.tolist(), chosen)
        forest.advance(torch.tensor(tokens, dtype=torch.int32))
        recorder.step += 1
        recorder.launches += 1
        recorder.forward_seconds += forward_seconds
        recorder.follow(forest.opened.tolist(), forest.ended.tolist())
        overhead_seconds = time.perf_counter() - started_at - forward_seconds
        recorder.overhead_seconds += overhead_seconds
        recorder.overhead_of_steps.append(overhead_seconds)

    def _inputs(self, num_rows: int) -> dict[str, Any]:
        """The rows of the step as the model wants them; the cache gets to know what they write and read."""
        forest = self.forest
        window_plans = {window: forest.window_plan(window) for window in self.cache.windows}
        self.cache.step = Step(forest.row_kv_slot[:num_rows], forest.plan(), window_plans)
        return {
            "input_ids": forest.row_token[:num_rows].long().unsqueeze(0),
            "position_ids": forest.row_position[:num_rows].long().unsqueeze(0),
            "past_key_values": self.cache,
            "use_cache": True,
        }


def make_forest(cache: PagedCache, grammar: Grammar, room: Room) -> Forest:
    """A forest with this grammar's rules and as much room as there is."""
    return Forest(
        ForestConfig(
            num_slots=room.max_slots,
            num_pages=room.max_pages,
            page_size=room.page_size,
            max_pages=room.stream_pages,
            max_rows=room.max_rows,
            num_kv_heads=cache.num_kv_heads,
            group_size=cache.group_size,
            fork_token=grammar.fork_id if grammar.can_fork else -1,
            child_token=grammar.child_id if grammar.can_fork else -1,
            stop_tokens=grammar.stop_ids,
            max_depth=grammar.max_depth,
            max_children=max(1, grammar.max_children),
            max_live_branches=room.max_live_branches,
        )
    )
