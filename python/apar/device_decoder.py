"""Decoding on a device that runs ahead of the host.

The forest lives on the device; a step is forward, choice and ``advance`` there, launched without waiting for anything.
The host follows one step behind: it reads the tokens of the step before, replays ``advance`` on a mirror of the forest,
bit for bit, and makes text, events and statistics of it. `docs/decoder.md` has the whole story.

"Device" may be the CPU: then the same steps run as plain calls, one after the other, in the same order.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import apar_ext
from apar.buckets import Buckets
from apar.cache import Step
from apar.captured import Graphs, Stopwatch, make_graphs
from apar.choosers import Chooser, Rows
from apar.decoder import Decoder
from apar.device_choosers import DeviceChooser
from apar.events import Event
from apar.forest import CANCEL, Forest, StepPlans
from apar.grammar import Grammar
from apar.intake import Intake
from apar.record import Recorder, Request
from apar.room import Room
from apar.sampling import refuse_row

STEPS_AHEAD = 1  # launched and not read while the host works


@dataclasses.dataclass
class Flight:
    """A step that was launched: ``rows`` of it, padding included, and at most ``row_limit`` of the step behind it."""

    rows: int
    row_limit: int
    tokens: torch.Tensor
    done: torch.cuda.Event | None
    forward: Stopwatch


class DeviceDecoder(Decoder):
    """As `Decoder`, for a model on a GPU.

    ``forest`` is the host's mirror. ``graphs``: runs the parts of a step; None: what suits the model. A chooser that
    needs the host (logits processors) makes every step wait for it.
    """

    def __init__(
        self,
        model: Any,
        grammar: Grammar,
        room: Room,
        recorder: Recorder,
        choose: Chooser,
        observe: Callable[[Decoder], None] | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        super().__init__(model, grammar, room, recorder, choose, observe)
        self.device = model.device
        self.graphs = graphs or make_graphs(model)
        self.buckets = Buckets(room.max_rows)
        self.flights: deque[Flight] = deque()
        self._probe = self.forest.to("cpu")
        with self.graphs.working():
            self.on_device: Forest = self.forest.to(self.device)
            self._plans: dict[int, StepPlans] = {}  # by number of rows
            self.sampled = torch.zeros(room.max_rows, dtype=torch.int32, device=self.device)
            # Per slot the number of a branch that the host ended: slots are used again, numbers are not.
            self.ended_by_host = torch.full((room.max_slots,), -1, dtype=torch.int32, device=self.device)
            self.chooser: DeviceChooser | None = choose.on_device(self.on_device, grammar)
        if self.chooser is None and self.device.type == "cuda":
            warnings.warn("apar: logits processors run on the host, so every step waits for it", stacklevel=2)
        self._ended_by_host = [-1] * room.max_slots
        is_cuda = self.device.type == "cuda"
        self._host_tokens = [
            torch.zeros(room.max_rows, dtype=torch.int32, pin_memory=is_cuda) for _ in range(STEPS_AHEAD + 1)
        ]
        self._next_rows = 0  # of the step to be launched, if others are under way
        self._intake_due = True
        self._turned_at = self._read_at = 0.0

    def run(self, requests: Iterable[Request], after_step: Callable[[], None] | None = None) -> Iterator[Event]:
        self._intake_due = True
        try:
            yield from super().run(requests, after_step)
        finally:
            self.graphs.wait()

    @torch.inference_mode()
    def turn(self, intake: Intake) -> None:
        """Take up prompts if there may be room, launch a step, read the one before it."""
        self._turned_at = time.perf_counter()
        with self.graphs.working():
            if self._intake_due and self._may_take_up(intake):
                self._take_up(intake)
            if self.chooser is None:
                if self.forest.num_rows:
                    self._step_with_host(self.choose)
                return
            if self.forest.counter("num_live"):
                self._launch()
            while len(self.flights) > (STEPS_AHEAD if self.forest.counter("num_live") else 0):
                self._read()

    # ---- what the host does to the forest: on the mirror, when nothing is under way ---------------------------------

    def _may_take_up(self, intake: Intake) -> bool:
        """Asked of the mirror as it is, a step behind: reading all that is under way costs an idle moment."""
        if not self.flights:
            return not intake.is_done
        self._probe.copy_(self.forest)
        self._intake_due = intake.would_take_up(self._probe)
        return self._intake_due

    def _take_up(self, intake: Intake) -> None:
        while self.flights:
            self._read()
        self._intake_due = intake.turn()
        if self._intake_due:
            self.on_device.copy_(self.forest)
            if self.chooser is not None:
                self.chooser.load(self.recorder)
        self._turned_at = time.perf_counter()

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.on_device.copy_(self.forest)
        return self.on_device.page_table, self.on_device.first_position

    # ---- a step -----------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        forest, room = self.forest, self.room
        rows = self._next_rows if self.flights else self.buckets.hold(forest.num_rows)
        most = min(room.max_rows, self.recorder.running * room.max_live_branches)
        wanted = min(forest.counter("num_live"), most)
        row_limit = self._next_rows = self.buckets.ahead(wanted, most)
        with Stopwatch(self.device) as forward:
            logits = self._forward(rows)
        self.graphs.run(("finish", rows, row_limit), lambda: self._finish(logits, rows, row_limit))
        tokens = self._host_tokens[self.recorder.launches % len(self._host_tokens)][:rows]
        tokens.copy_(self.sampled[:rows], non_blocking=True)
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()
        self.recorder.launches += 1
        self.flights.append(Flight(rows, row_limit, tokens, done, forward))

    def _forward(self, rows: int) -> torch.Tensor:
        """Logits [rows, V] of the step that the forest on the device holds."""
        return self.graphs.run(("forward", rows), lambda: self._call_model(rows))

    def _call_model(self, rows: int) -> torch.Tensor:
        forest = self.on_device
        if rows not in self._plans:
            self._plans[rows] = forest.step_plans(rows, self.cache.windows)
        forest.write_plans(self._plans[rows])
        plans = self._plans[rows].plans
        window_plans = {window: plans[window] for window in self.cache.windows}
        with self.cache.stepping(Step(forest.row_kv_slot[:rows], plans[0], window_plans)):
            return self.model(
                input_ids=forest.row_token[:rows].long().unsqueeze(0),
                position_ids=forest.row_position[:rows].long().unsqueeze(0),
                past_key_values=self.cache,
                use_cache=True,
            ).logits[0]

    def _finish(self, logits: torch.Tensor, rows: int, row_limit: int) -> None:
        forest = self.on_device
        tokens = self.chooser(logits, rows)
        if self.recorder.may_stop:
            slots = forest.row_slot[:rows].clamp(min=0).long()
            tokens = tokens.masked_fill(self.ended_by_host[slots] == forest.branch_id[slots], CANCEL)
        self.sampled[:rows].copy_(tokens)
        forest.advance(self.sampled, row_limit=row_limit)

    def _read(self) -> None:
        """Wait for the oldest step under way and replay it on the mirror."""
        flight = self.flights.popleft()
        if flight.done is not None:
            flight.done.synchronize()
            apar_ext.raise_device_error()  # a replayed graph has nobody else to ask
        forest, recorder = self.forest, self.recorder
        num_rows = forest.num_rows
        if num_rows == 0:  # launched before it was known that the last branch had ended
            forest.advance(flight.tokens, row_limit=flight.row_limit)
            return
        if self.observe is not None:
            self.observe(self)
        slots = forest.row_slot[:num_rows].numpy()
        writers = [recorder.writers[slot] for slot in slots]
        written = [slot for slot, writer in zip(slots, writers, strict=True) if not writer.is_over]
        recorder.count(
            slots if len(written) == num_rows else np.array(written, dtype=np.int64), forest.num_pages.numpy()
        )
        tokens = flight.tokens[:num_rows].tolist()
        for row, (token, writer) in enumerate(zip(tokens, writers, strict=True)):
            if token < 0 and not writer.is_over:
                refuse_row(row)
        recorder.write(slots.tolist(), tokens)
        over = [
            (slot, int(forest.branch_id[slot]))
            for slot, writer in zip(slots.tolist(), writers, strict=True)
            if writer.is_over
        ]
        forest.advance(flight.tokens, row_limit=flight.row_limit)
        recorder.step += 1
        opened, ended = forest.opened.tolist(), forest.ended.tolist()
        recorder.follow(opened, ended)
        over += [(slot, number) for slot, number, *_ in opened if recorder.writers[slot].is_over]
        self._end(over)
        self._intake_due |= bool(ended)
        self._count_time(flight.forward.seconds())

    def _end(self, branches: Sequence[tuple[int, int]]) -> None:
        """Let the device end branches, (slot, number) each, when it next chooses tokens for them."""
        if any(self._ended_by_host[slot] != number for slot, number in branches):
            for slot, number in branches:
                self._ended_by_host[slot] = number
            self.ended_by_host.copy_(torch.tensor(self._ended_by_host, dtype=torch.int32))

    def _step_with_host(self, choose: Chooser) -> None:
        """One token for every row, chosen on the host."""
        forest, recorder = self.forest, self.recorder
        num_rows = forest.num_rows
        if self.observe is not None:
            self.observe(self)
        slots = forest.row_slot[:num_rows].numpy()
        recorder.count(slots, forest.num_pages.numpy())
        with Stopwatch(self.device) as forward:
            logits = self._forward(self.buckets.hold(num_rows))[:num_rows]
        next_positions = forest.row_position[:num_rows].numpy() + 1
        chosen = choose(logits, Rows(slots, next_positions, self.on_device.row_may_fork[:num_rows], recorder))
        tokens = torch.tensor(recorder.write(slots.tolist(), chosen), dtype=torch.int32)
        self.sampled[:num_rows].copy_(tokens)
        self.on_device.advance(self.sampled)
        forest.advance(tokens)
        recorder.step += 1
        recorder.launches += 1
        ended = forest.ended.tolist()
        recorder.follow(forest.opened.tolist(), ended)
        self._intake_due |= bool(ended)
        self._count_time(forward.seconds())

    def _count_time(self, forward_seconds: float) -> None:
        """Of a step: what has passed since the one before was read, without the time spent by those who listen."""
        now = time.perf_counter()
        overhead_seconds = max(0.0, now - max(self._turned_at, self._read_at) - forward_seconds)
        self._read_at = now
        self.recorder.forward_seconds += forward_seconds
        self.recorder.overhead_seconds += overhead_seconds
        self.recorder.overhead_of_steps.append(overhead_seconds)


def make_decoder(
    model: Any,
    grammar: Grammar,
    room: Room,
    recorder: Recorder,
    choose: Chooser,
    observe: Callable[[Decoder], None] | None = None,
) -> Decoder:
    """The decoder that suits the place where the model is."""
    kind = DeviceDecoder if model.device.type == "cuda" else Decoder
    return kind(model, grammar, room, recorder, choose, observe)
