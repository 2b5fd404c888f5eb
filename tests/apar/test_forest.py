from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter

import pytest
from apar.forest import ForestConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apar.forest_model import ForestModel
from tests.apar.forest_pair import CHILD, FORK, STOP, Pair, writer

quiet = dict(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def smallest(max_depth: int, longest: int, page_size: int = 8, **changes) -> ForestConfig:
    """The smallest legal pool for requests of `longest` tokens, prompt included."""
    sizes = dict(
        num_slots=max_depth,
        num_pages=-(-(longest - 1) // page_size) + max_depth - 1,
        page_size=page_size,
        fork_token=FORK,
        child_token=CHILD,
        stop_tokens=(STOP,),
        max_depth=max_depth,
    )
    return ForestConfig(**{**sizes, **changes})


@st.composite
def configs(draw) -> tuple[ForestConfig, int]:
    """(configuration, most tokens of a path): tiny pools with a little more than the least that is legal."""
    max_depth = draw(st.integers(1, 4))
    keep_finished = draw(st.booleans()) if max_depth <= 3 else False
    max_children = draw(st.integers(1, 3))
    longest = draw(st.integers(4, 60))
    own = -(-(longest - 1) // 8)
    levels = max_depth - 1
    kept = levels * max_children if keep_finished else 0
    config = ForestConfig(
        num_slots=1 + max(levels, kept) + draw(st.integers(0, 6)),
        num_pages=own + (kept * own if kept else levels) + draw(st.integers(0, 12)),
        page_size=8,
        max_pages=own + draw(st.integers(0, 2)),
        max_ranges=max_depth + (levels * max_children if keep_finished else 0),
        max_rows=draw(st.integers(1, 8)),
        fork_token=FORK,
        child_token=CHILD,
        stop_tokens=(STOP,),
        max_depth=max_depth,
        max_children=max_children,
        max_live_branches=draw(st.integers(1, 5)),
        keep_finished=keep_finished,
    )
    return config, longest


ACTIONS = ["admit", "join"] * 4 + ["step"] * 8 + ["end", "cancel", "share", "unshare", "schedule"]


def random_script(pair: Pair, longest: int, draw: random.Random, actions: int) -> None:
    """Requests come, fork, join, are cancelled; streams are shared. Then all run to the end and nothing is left."""
    next_request = 0
    shared = []
    pair.schedule()
    for _ in range(actions):
        action = draw.choice(ACTIONS)
        live = pair.model.live()
        if action == "admit":
            prompt = [draw.randrange(10, 1000) for _ in range(draw.randint(1, longest - 1))]
            stream = draw.choice([None, *shared]) if shared else None
            if stream is not None and len(stream.tokens) < len(prompt):
                prompt[: len(stream.tokens)] = stream.tokens
            else:
                stream = None
            next_request += pair.admit(next_request, prompt, draw.randint(1, longest - len(prompt)), stream)
            pair.schedule()
        elif action == "step" or action == "end":
            end_row = draw.randrange(8) if action == "end" else -1
            pair.step(end_row, row_limit=draw.choice([None, None, draw.randint(1, 10)]))
        elif action == "cancel" and live:
            pair.cancel(draw.choice(live).request)
            if draw.random() < 0.5:
                pair.schedule()
        elif action == "share":
            length = draw.randint(1, min(longest, pair.config.max_pages * 8, pair.config.num_pages * 8))
            stream = pair.open_shared([draw.randrange(10, 1000) for _ in range(length)])
            shared += [stream] if stream else []
        elif action == "unshare" and shared:
            pair.close_shared(shared.pop(draw.randrange(len(shared))))
        elif action == "schedule":
            pair.schedule()
        elif action == "join" and pair.config.keep_finished and live:
            parent = draw.choice(live)
            joined = [stream for stream, _ in parent.context]
            ready = [
                stream
                for stream in pair.model.order
                if stream.parent is parent and stream.state == "finished" and stream not in joined
            ]
            if ready:
                pair.join(parent, draw.sample(ready, draw.randint(1, len(ready))))
    while shared:
        pair.close_shared(shared.pop())
    pair.run_to_the_end()
    assert pair.forest.counter("num_free_pages") == pair.config.num_pages
    assert pair.forest.counter("num_free_slots") == pair.config.num_slots


@settings(max_examples=250, **quiet)
@given(configs(), st.integers(0, 2**32))
def test_random_scripts_follow_the_model(config_and_longest, seed):
    config, longest = config_and_longest
    draw = random.Random(seed)
    write = writer(seed, fork_share=draw.choice([0.1, 0.3, 0.6]), stop_share=draw.choice([0.0, 0.05, 0.2]))
    random_script(Pair(config, write), longest, draw, actions=60)


def test_random_scripts_meet_every_situation():
    """The scripts above are worth something only if they get into trouble."""
    seen = Counter()
    for seed in range(30):
        draw = random.Random(seed)
        keep = seed % 3 == 0
        config = smallest(
            max_depth=3,
            longest=40,
            num_slots=8 if keep else 5,
            num_pages=40 if keep else 9,
            max_children=3,
            keep_finished=keep,
            max_ranges=9,
            max_rows=draw.choice([2, 8]),
            max_live_branches=draw.choice([2, 8]),
        )
        pair = Pair(config, writer(seed, fork_share=0.4, stop_share=0.05))
        random_script(pair, 40, draw, actions=80)
        seen += pair.seen
    for situation in (
        "fed",
        "fork",
        "waits behind others of its request",
        "waits for a row",
        "waits by row_limit",
        "waits with its fork",
        "waits for a page",
        "child waits for its first page",
        "finished stream is read",
        "joined child is read",
        "shared stream is read",
    ):
        assert seen[situation] >= 10, seen


# ---- resources never change the text -------------------------------------------------------------------------------


def write_all(
    config: ForestConfig, prompts: list[list[int]], new_tokens: int, write, row_limits: random.Random | None = None
) -> Pair:
    """All prompts, taken up as there is room. row_limits: draws the most rows of each step."""
    pair = Pair(config, write)
    waiting = list(enumerate(prompts))
    while waiting or pair.model.live():
        before = len(waiting)
        while waiting and pair.admit(waiting[0][0], waiting[0][1], new_tokens):
            waiting.pop(0)
        assert pair.model.live(), "nothing runs and nothing is taken up"
        if row_limits is None or len(waiting) < before:
            pair.schedule()
        pair.step(row_limit=row_limits and row_limits.randint(1, config.max_rows))
    return pair


@settings(max_examples=60, **quiet)
@given(
    seed=st.integers(0, 2**32),
    max_depth=st.integers(1, 4),
    max_children=st.integers(1, 4),
    num_prompts=st.integers(1, 4),
    new_tokens=st.integers(1, 40),
    spare=st.tuples(st.integers(0, 3), st.integers(0, 6)),
    max_rows=st.integers(1, 6),
    max_live_branches=st.integers(1, 6),
    limited=st.booleans(),
)
def test_a_waiting_branch_ends_up_with_the_same_tokens(
    seed, max_depth, max_children, num_prompts, new_tokens, spare, max_rows, max_live_branches, limited
):
    draw = random.Random(seed)
    prompts = [[draw.randrange(10, 1000) for _ in range(draw.randint(1, 20))] for _ in range(num_prompts)]
    longest = max(map(len, prompts)) + new_tokens
    write = writer(seed, fork_share=0.4, stop_share=0.05)
    rich = smallest(max_depth, longest, num_slots=400, num_pages=3000, max_children=max_children)
    plenty = write_all(rich, prompts, new_tokens, write)
    assert plenty.seen.total() == plenty.seen["fed"] + sum(
        plenty.seen[name] for name in ("fork", "finished stream is read")
    ), "somebody waited though there was plenty"

    least = smallest(max_depth, longest)
    scarce = dataclasses.replace(
        least,
        num_slots=least.num_slots + spare[0],
        num_pages=least.num_pages + spare[1],
        max_pages=least.num_pages,
        max_children=max_children,
        max_rows=max_rows,
        max_live_branches=max_live_branches,
    )
    waiting = write_all(scarce, prompts, new_tokens, write, draw if limited else None)
    assert waiting.texts == plenty.texts
    assert waiting.tokens == plenty.tokens
    for _, path in plenty.texts:
        assert len(path) < max_depth
        assert all(child < max_children for child in path)


def test_the_smallest_pool_is_the_smallest():
    config = smallest(max_depth=3, longest=41)
    assert (config.num_slots, config.num_pages) == (3, 7)
    assert Pair(config).admit(0, [10] * 21, 20)
    assert not Pair(dataclasses.replace(config, num_pages=6)).admit(0, [10] * 21, 20)
    with pytest.raises(ValueError, match="num_slots is 2, expected at least 3"):
        dataclasses.replace(config, num_slots=2)


def test_one_live_branch_is_the_sequential_twin():
    """One row per step, and a child is written to its end before its parent goes on."""
    write = writer(5, fork_share=0.4, stop_share=0.02)
    prompt = list(range(10, 20))
    together = write_all(smallest(4, 44, num_slots=200, num_pages=500), [prompt], 34, write)
    pair = Pair(smallest(4, 44, max_live_branches=1), write)
    pair.admit(0, prompt, 34)
    pair.schedule()
    runs = []
    while pair.forest.num_rows:
        assert pair.forest.num_rows == 1
        path = pair.model.rows[0].branch.path
        if not runs or runs[-1] != path:
            runs.append(path)
        pair.step()
    assert pair.texts == together.texts
    assert pair.steps == pair.tokens == together.tokens > together.steps
    started = set()
    for before, now in itertools.pairwise(runs):
        started.add(before)
        if now in started:
            assert before[: len(now)] == now, "a branch goes on only when its descendants have ended"
        else:
            assert now[:-1] == before or now[:-1] == before[:-1], "a new branch is the child of the one before"
    assert len(started) > 10


# ---- the tests can fail --------------------------------------------------------------------------------------------


class GreedyModel(ForestModel):
    """Grants whatever is free."""

    def is_safe(self) -> bool:
        return self.free_pages() >= 0 and self.free_slots() >= 0


def test_without_the_bankers_rule_there_are_deadlocks():
    deadlocks = 0
    for seed in range(20):
        model = GreedyModel(smallest(3, 40, num_slots=5, num_pages=10))
        write = writer(seed, fork_share=0.4, stop_share=0.02)
        for request in range(2):
            model.admit(request, [10, 11, 12, request], 40)
        model.schedule()
        while model.rows:
            model.advance([write(row.visible, row.may_fork) for row in model.rows])
        deadlocks += bool(model.live())
    assert deadlocks > 3


def test_a_planted_fault_is_found():
    def running_pair() -> Pair:
        pair = Pair(smallest(3, 60, num_slots=20, num_pages=60), writer(3, fork_share=0.4, stop_share=0.0))
        pair.admit(0, list(range(10, 30)), 40)
        pair.schedule()
        for _ in range(12):
            pair.step()
        assert pair.forest.num_rows > 3
        return pair

    def lose_a_page(forest):
        forest.data[forest._header["num_free_pages"]] -= 1

    def own_a_page_twice(forest):
        forest.page_table[forest.row_slot[0], 0] = forest.page_table[forest.row_slot[1], 0]

    def skip_an_entry(forest):
        forest.range_begin[1] += 1

    def feed_another_token(forest):
        forest.row_token[0] += 1

    def write_elsewhere(forest):
        forest.row_kv_slot[0] += 1

    def forget_a_limit(forest):
        forest.limit[forest.row_slot[0]] += 1

    def swap_the_order(forest):
        forest.order[:2] = forest.order[:2].flip(0)

    running_pair().step()
    faults = [lose_a_page, own_a_page_twice, skip_an_entry, feed_another_token, write_elsewhere, forget_a_limit]
    for fault in [*faults, swap_the_order]:
        pair = running_pair()
        fault(pair.forest)
        with pytest.raises(AssertionError):
            pair.run_to_the_end()
