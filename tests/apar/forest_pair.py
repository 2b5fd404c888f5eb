"""A forest and its model driven together, with a fake KV cache that holds tokens; every step compares everything."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from apar.forest import CANCEL, END_REASONS, Forest, ForestConfig

from tests.apar.forest_model import FINISHED, LIVE, SHARED, ForestModel, Stream

POISON = -1_000_000
FORK, CHILD, STOP = 7, 8, 2
STATES = {1: LIVE, 2: FINISHED, 3: SHARED}


def writer(seed: int, fork_share: float = 0.2, stop_share: float = 0.1):
    """A language model: the next token is a function of what its branch has read and of nothing else."""

    def write(visible: list[int], may_fork: bool) -> int:
        draw = random.Random(hash((seed, *visible)))
        share = draw.random()
        if share < stop_share:
            return STOP
        if share < stop_share + fork_share and may_fork:
            return FORK
        return draw.randrange(10, 1000)

    return write


class Pair:
    def __init__(self, config: ForestConfig, write=None) -> None:
        self.config = config
        self.forest = Forest(config)
        self.model = ForestModel(config)
        self.cache = np.full(config.num_pages * config.page_size, POISON, dtype=np.int64)
        self.write = write or writer(0)
        self.texts: dict[tuple[int, tuple[int, ...]], list[int]] = {}  # (request, path) -> tokens of the branch
        self.peak_pages = 0
        self.steps = 0
        self.tokens = 0  # sampled
        self.seen: Counter[str] = Counter()  # situations that came up

    # ---- requests --------------------------------------------------------------------------------------------------

    def admit(self, request: int, prompt: list[int], new_tokens: int, shared: Stream | None = None) -> bool:
        """Whether the request runs now. What the model says must be what the forest does."""
        limit = len(prompt) + new_tokens
        shared_slot = -1 if shared is None else self.shared_slot(shared)
        expected = self.model.admit(request, list(prompt), limit, shared)
        before = self.forest.data.clone()
        if expected == "never":
            with pytest.raises(ValueError, match="request may need"):
                self.forest.admit(request, len(prompt), limit, prompt[-1], shared_slot)
            assert torch.equal(before, self.forest.data)
            return False
        slot = self.forest.admit(request, len(prompt), limit, prompt[-1], shared_slot)
        if slot < 0:
            assert expected == "wait"
            assert torch.equal(before, self.forest.data)
            return False
        assert isinstance(expected, Stream)
        assert self.forest.branch_id[slot] == expected.id
        self.fill(slot, expected.tokens)
        self.texts[request, ()] = expected.written
        self.check()
        return True

    def open_shared(self, tokens: list[int]) -> Stream | None:
        expected = self.model.open_shared(list(tokens))
        slot = self.forest.open_shared(len(tokens))
        assert (slot < 0) == (expected is None)
        if expected is None:
            return None
        self.fill(slot, tokens)
        expected.id = -2 - slot
        self.check()
        return expected

    @staticmethod
    def shared_slot(shared: Stream) -> int:
        return -2 - shared.id

    def close_shared(self, shared: Stream) -> None:
        self.model.close_shared(shared)
        self.forest.close_shared(self.shared_slot(shared))
        self.check()

    def join(self, parent: Stream, children: list[Stream]) -> None:
        slots = self.slots()
        self.model.join(parent, children)
        self.forest.join(slots[parent.id], [slots[child.id] for child in children])
        self.check()

    def cancel(self, request: int) -> None:
        self.model.cancel(request)
        assert self.forest.cancel(request) == len(self.model.ended)
        self.check_events()
        self.check()

    def fill(self, slot: int, tokens: list[int]) -> None:
        """Prefill."""
        size = self.config.page_size
        for entry, token in enumerate(tokens):
            self.cache[int(self.forest.page_table[slot, entry // size]) * size + entry % size] = token

    # ---- steps -----------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        self.model.schedule()
        self.forest.schedule()
        self.check_step()

    def step(self, end_row: int = -1, row_limit: int | None = None) -> None:
        """Runs the step at hand: write, read, sample, advance.

        Args:
            end_row: the row whose branch is ended, if any.
            row_limit: most rows of the next step.
        """
        self.steps += 1
        rows = self.forest.num_rows
        sampled = [CANCEL] * rows
        expected = {row.branch.id: row.visible for row in self.model.rows}
        by_row = [int(slot) for slot in self.forest.row_slot[:rows]]
        kv_slots = self.forest.row_kv_slot[:rows].tolist()
        for kv_slot, token in zip(kv_slots, self.forest.row_token[:rows].tolist(), strict=True):
            if kv_slot >= 0:
                self.cache[kv_slot] = token
        visible = self.read_rows()
        model_tokens = []
        for row, slot in enumerate(by_row):
            if slot < 0:
                sampled[row] = 12345
                continue
            branch = int(self.forest.branch_id[slot])
            assert visible[row] == expected[branch], "a branch reads something else than its own path"
            if row != end_row:
                sampled[row] = self.write(visible[row], bool(self.forest.row_may_fork[row]))
            model_tokens.append(sampled[row])
            self.tokens += 1
        padding = [STOP] * (rows % 3)  # what stands behind the rows must not matter
        self.model.advance(model_tokens, row_limit)
        self.forest.advance(torch.tensor(sampled + padding, dtype=torch.int32), row_limit=row_limit)
        self.check_step()

    def read_rows(self) -> list[list[int]]:
        """The tokens that every row reads from the cache, through its ranges and the page tables."""
        forest, size = self.forest, self.config.page_size
        table = forest.page_table.numpy()
        indptr, stream = forest.row_indptr.tolist(), forest.range_stream.tolist()
        begin, end = forest.range_begin.tolist(), forest.range_end.tolist()
        return [
            [
                int(self.cache[table[stream[i], entry // size] * size + entry % size])
                for i in range(indptr[row], indptr[row + 1])
                for entry in range(begin[i], end[i])
            ]
            for row in range(forest.num_rows)
        ]

    def run_to_the_end(self, most_steps: int = 100_000) -> None:
        while self.model.live():
            self.step()
            assert self.steps <= most_steps

    # ---- comparison ------------------------------------------------------------------------------------------------

    def slots(self) -> dict[int, int]:
        """Branch id -> slot of all branches that have one."""
        used = [slot for slot, state in enumerate(self.forest.state.tolist()) if state in (1, 2)]
        return {int(self.forest.branch_id[slot]): slot for slot in used}

    def count_situations(self) -> None:
        config, live = self.config, self.model.live()
        for branch in live:
            rank = [other for other in live if other.request == branch.request].index(branch)
            if branch.has_row:
                self.seen["fed"] += 1
            elif rank >= config.max_live_branches:
                self.seen["waits behind others of its request"] += 1
            elif len(self.model.rows) == self.model.row_limit:
                self.seen["waits for a row"] += 1
                self.seen["waits by row_limit"] += self.model.row_limit < config.max_rows
            elif branch.fork_pending:
                self.seen["waits with its fork"] += 1
            elif not branch.tokens:
                self.seen["child waits for its first page"] += 1
            else:
                self.seen["waits for a page"] += 1
        finished = [stream for stream in self.model.order if stream.state == FINISHED]
        self.seen["finished stream is read"] += len(finished)
        self.seen["fork"] += len(self.model.opened)
        self.seen["joined child is read"] += sum(
            stream.parent is branch for branch in live for stream, _ in branch.context if stream.state == FINISHED
        )
        self.seen["shared stream is read"] += sum(stream.state == SHARED for b in live for stream, _ in b.context)

    def check_step(self) -> None:
        self.check_events()
        self.count_situations()
        for branch in self.model.live():
            self.texts[branch.request, branch.path] = branch.written
        self.check()
        forest, model = self.forest, self.model
        rows = forest.num_rows
        assert rows == len(model.rows)
        assert rows > 0 or not model.live(), "deadlock"
        size = self.config.page_size
        slots = self.slots()
        assert forest.row_slot[:rows].tolist() == [slots[row.branch.id] for row in model.rows]
        assert forest.row_token[:rows].tolist() == [row.token for row in model.rows]
        assert forest.row_position[:rows].tolist() == [row.position for row in model.rows]
        assert forest.row_may_fork[:rows].tolist() == [int(row.may_fork) for row in model.rows]
        for row, slot in enumerate(forest.row_slot[:rows].tolist()):
            entry = int(forest.length[slot]) - 1
            expected = int(forest.page_table[slot, entry // size]) * size + entry % size
            assert int(forest.row_kv_slot[row]) == expected
        assert len(set(forest.row_kv_slot[:rows].tolist())) == rows
        assert forest.row_slot[rows:].eq(-1).all()
        assert forest.row_kv_slot[rows:].eq(-1).all()
        for padding in (forest.row_token, forest.row_position, forest.row_may_fork):
            assert padding[rows:].eq(0).all()
        ranges = forest.num_ranges
        assert forest.row_indptr[rows:].eq(ranges).all()
        for padding in (forest.range_stream, forest.range_begin, forest.range_end):
            assert padding[ranges:].eq(0).all()

    def check_events(self) -> None:
        forest, model = self.forest, self.model
        assert [tuple(event[1:]) for event in forest.opened.tolist()] == model.opened
        ended = [(branch, request, END_REASONS[reason], n) for _, branch, request, reason, n in forest.ended.tolist()]
        assert ended == model.ended
        assert forest.done.tolist() == model.done
        for slot, branch, *_ in forest.opened.tolist():
            assert int(forest.branch_id[slot]) == branch

    def check(self) -> None:
        """State against the model, pages and slots against themselves."""
        forest, model, config = self.forest, self.model, self.config
        assert model.is_safe()
        slots = self.slots()
        order = forest.order[: forest.counter("num_order")].tolist()
        assert order == [slots[stream.id] for stream in model.order]
        assert len(slots) == len(order)
        self.check_reading_order()
        states = forest.state.tolist()
        streams = [(slots[stream.id], stream) for stream in model.order]
        streams += [(self.shared_slot(stream), stream) for stream in model.shared]
        used_pages: list[int] = []
        for slot, stream in streams:
            assert STATES[states[slot]] == stream.state
            assert int(forest.length[slot]) == len(stream.tokens)
            pages = int(forest.num_pages[slot])
            assert pages == model.held_pages(stream)  # at most one page is partly filled
            table = forest.page_table[slot].tolist()
            assert all(page == -1 for page in table[pages:])
            used_pages += table[:pages]
            if stream.state == LIVE:  # what a finished branch has read may be gone
                context = forest.context_stream[slot, : int(forest.num_context[slot])].tolist()
                read = [slots.get(other.id, self.shared_slot(other)) for other, _ in stream.context]
                assert context == read
        free_pages = forest.free_pages[: forest.counter("num_free_pages")].tolist()
        assert sorted(used_pages + free_pages) == list(range(config.num_pages)), "a page is lost or owned twice"
        free_slots = forest.free_slots[: forest.counter("num_free_slots")].tolist()
        used_slots = [slot for slot, _ in streams]
        assert sorted(used_slots + free_slots) == list(range(config.num_slots)), "a slot is lost or owned twice"
        assert all(states[slot] == 0 for slot in free_slots)
        assert forest.counter("num_live") == len(model.live())
        if not config.keep_finished:
            assert len(used_pages) == self.pages_read(), "pages are held that nobody reads"
        for page in free_pages:
            self.cache[page * config.page_size : (page + 1) * config.page_size] = POISON
        self.peak_pages = max(self.peak_pages, len(used_pages))

    def pages_read(self) -> int:
        """Pages of what unfinished branches read, by their range lists alone, and of open shared streams."""
        forest = self.forest
        entries: Counter[int] = Counter()
        for slot, state in enumerate(forest.state.tolist()):
            if state == 1 or (state == 3 and forest.pinned[slot]):
                entries[slot] = max(entries[slot], int(forest.length[slot]))
            if state == 1:
                for i in range(int(forest.num_context[slot])):
                    stream = int(forest.context_stream[slot, i])
                    entries[stream] = max(entries[stream], int(forest.context_end[slot, i]))
        return sum(-(-count // self.config.page_size) for count in entries.values())

    def check_reading_order(self) -> None:
        requests = [stream.request for stream in self.model.order]
        assert requests == sorted(requests, key=requests.index), "branches of a request are neighbours"
        for request in set(requests):
            paths = [stream.path for stream in self.model.order if stream.request == request]
            # A child stands before its parent, an earlier child before a later one.
            assert paths == sorted(paths, key=lambda path: (*path, float("inf")))
