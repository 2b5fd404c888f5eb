"""Single transitions of the forest, each small enough to follow by hand."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from apar.forest import CANCEL, END_REASONS, Forest, ForestConfig

import apar_ext
from tests.apar_ext.plans import Schedule

FORK, CHILD, STOP = 7, 8, 2


def make_forest(prompt_length: int = 9, new_tokens: int = 30, last_token: int = 5, **changes) -> Forest:
    config = dict(
        num_slots=8, num_pages=32, page_size=8, fork_token=FORK, child_token=CHILD, stop_tokens=(STOP,), max_ranges=6
    )
    forest = Forest(ForestConfig(**{**config, **changes}))
    assert forest.admit(0, prompt_length, prompt_length + new_tokens, last_token) == 0
    forest.schedule()
    return forest


def advance(forest: Forest, *sampled: int) -> None:
    assert len(sampled) == forest.num_rows
    forest.advance(torch.tensor(sampled, dtype=torch.int32))


def rows(forest: Forest, *names: str) -> list[list[int]]:
    return [getattr(forest, f"row_{name}")[: forest.num_rows].tolist() for name in names]


def ranges(forest: Forest, row: int) -> list[tuple[int, int, int]]:
    begin, end = forest.row_indptr[row : row + 2].tolist()
    columns = (forest.range_stream, forest.range_begin, forest.range_end)
    return list(zip(*(column[begin:end].tolist() for column in columns), strict=True))


def ended(forest: Forest) -> list[tuple[int, str, int]]:
    """(branch, reason, entries)"""
    return [(branch, END_REASONS[reason], entries) for _, branch, _, reason, entries in forest.ended.tolist()]


def test_a_prompt_is_prefilled_but_for_its_last_token():
    forest = make_forest(prompt_length=9)
    assert forest.length[0] == 9
    assert forest.num_pages[0] == 2  # eight entries were prefilled; the row took the second page
    assert rows(forest, "slot", "token", "position", "kv_slot") == [[0], [5], [8], [8]]
    assert ranges(forest, 0) == [(0, 0, 9)]


def test_fork_and_child_are_fed_in_one_step():
    forest = make_forest(prompt_length=9)
    advance(forest, FORK)
    assert forest.opened.tolist() == [[1, 1, 0, 0, 9, 0]]
    assert rows(forest, "slot", "token", "position") == [[1, 0], [CHILD, FORK], [10, 9]]
    assert rows(forest, "may_fork") == [[0, 0]]
    assert ranges(forest, 0) == [(0, 0, 10), (1, 0, 1)]
    assert ranges(forest, 1) == [(0, 0, 10)]
    assert rows(forest, "kv_slot") == [[16, 9]]
    advance(forest, 20, 21)
    assert rows(forest, "token", "position", "may_fork") == [[20, 21], [11, 10], [0, 1]]
    # A second child reads its parent's own tokens up to the new fork, but nothing of its sibling.
    advance(forest, 22, FORK)
    assert forest.opened.tolist() == [[2, 2, 0, 0, 11, 1]]
    assert rows(forest, "slot") == [[1, 2, 0]]
    assert ranges(forest, 1) == [(0, 0, 12), (2, 0, 1)]


def test_a_fork_is_not_lost_when_another_branch_ends_in_the_same_step():
    forest = make_forest()
    advance(forest, FORK)
    advance(forest, 20, 21)
    advance(forest, STOP, FORK)
    assert ended(forest) == [(1, "stop", 2)]
    assert forest.opened[:, 1:].tolist() == [[2, 0, 0, 11, 1]]
    assert rows(forest, "token") == [[CHILD, FORK]]


@pytest.mark.parametrize("new_tokens", [1, 2, 3, 9])
def test_the_limit_counts_every_token_of_the_path(new_tokens):
    forest = make_forest(prompt_length=9, new_tokens=new_tokens)
    for sampled in range(1, new_tokens + 1):
        assert forest.num_rows == 1
        advance(forest, 20)
        assert len(forest.ended) == (sampled == new_tokens)
    assert ended(forest) == [(0, "length", 8 + new_tokens)]
    assert forest.done.tolist() == [0]
    assert forest.num_rows == 0


def test_a_stop_token_at_the_limit_is_a_stop():
    forest = make_forest(new_tokens=1)
    advance(forest, STOP)
    assert ended(forest) == [(0, "stop", 9)]


def test_a_fork_needs_room_for_fork_child_and_one_token():
    forest = make_forest(new_tokens=3)
    assert rows(forest, "may_fork") == [[1]]
    advance(forest, FORK)
    assert rows(forest, "token", "may_fork") == [[CHILD, FORK], [0, 0]]
    advance(forest, 20, 21)  # the child's first token is the third of its path; the trunk has had two
    assert ended(forest) == [(1, "length", 1)]
    advance(forest, 22)
    assert ended(forest) == [(0, "length", 11)]
    assert rows(make_forest(new_tokens=2), "may_fork") == [[0]]


def test_static_rules_of_forking():
    forest = make_forest(max_children=1)
    assert rows(forest, "may_fork") == [[1]]
    advance(forest, FORK)
    advance(forest, 20, 21)
    assert rows(forest, "may_fork") == [[0, 0]]  # the child is too deep, the trunk has its one child
    deep = make_forest(max_depth=3)
    advance(deep, FORK)
    advance(deep, 20, 21)
    assert rows(deep, "may_fork") == [[1, 1]]
    assert rows(make_forest(last_token=FORK), "may_fork") == [[0]]
    assert rows(make_forest(fork_token=-1, child_token=-1), "may_fork") == [[0]]


def test_a_fork_token_out_of_place_is_an_ordinary_token():
    forest = make_forest(new_tokens=2)
    advance(forest, FORK)
    assert len(forest.opened) == 0
    assert rows(forest, "token") == [[FORK]]
    twice = make_forest()
    advance(twice, FORK)
    advance(twice, 20, FORK)
    assert len(twice.opened) == 0
    prompt_ends_in_fork = make_forest(last_token=FORK)
    assert prompt_ends_in_fork.num_rows == 1


def test_minus_one_ends_a_branch_and_its_children_go_on():
    forest = make_forest()
    advance(forest, FORK)
    advance(forest, 20, CANCEL)
    assert ended(forest) == [(0, "cancelled", 10)]
    assert forest.done.tolist() == []
    assert rows(forest, "token") == [[20]]
    assert ranges(forest, 0) == [(0, 0, 10), (1, 0, 2)]
    advance(forest, CANCEL)
    assert forest.done.tolist() == [0]
    assert forest.counter("num_free_pages") == 32
    assert forest.counter("num_free_slots") == 8


def test_a_finished_stream_is_trimmed_to_what_is_read():
    forest = make_forest(prompt_length=9, new_tokens=60)
    advance(forest, FORK)
    for _ in range(20):
        advance(forest, 20, 21)
    assert forest.num_pages[:2].tolist() == [3, 4] or forest.num_pages[:2].tolist() == [4, 3]
    before = forest.counter("num_free_pages")
    advance(forest, 20, STOP)
    assert forest.length[0] == 10
    assert forest.num_pages[0] == 2
    assert forest.page_table[0, 2:].eq(-1).all()
    assert forest.counter("num_free_pages") == before + 2
    assert ranges(forest, 0)[0] == (0, 0, 10)


def test_order_of_the_stacks():
    """Pages and slots are pushed in reading order and popped in the order of grants: a parent before its child."""
    forest = make_forest(prompt_length=17)
    assert forest.page_table[0, :3].tolist() == [0, 1, 2]
    advance(forest, FORK)
    assert (forest.page_table[1, 0], forest.page_table[0, 3]) == (3, -1)
    for _ in range(7):
        advance(forest, 20, 21)
    assert (forest.page_table[1, 0], forest.page_table[0, 3]) == (3, 4)
    advance(forest, 20, 21)
    assert forest.page_table[1, :2].tolist() == [3, 5]
    assert forest.admit(1, 10, 20, 5) == 2
    assert forest.page_table[2, :2].tolist() == [6, 7]
    forest.cancel(0)
    top = forest.counter("num_free_pages")
    assert forest.free_pages[top - 6 : top].tolist() == [3, 5, 0, 1, 2, 4]
    assert forest.free_slots[: forest.counter("num_free_slots")].tolist() == [7, 6, 5, 4, 3, 1, 0]


def test_schedule_keeps_the_rows_that_were_not_run():
    forest = make_forest(max_rows=2)
    advance(forest, FORK)
    before = rows(forest, "slot", "token", "position", "kv_slot")
    assert forest.admit(1, 5, 20, 6) == 2
    forest.schedule()
    forest.schedule()
    assert rows(forest, "slot", "token", "position", "kv_slot") == before  # no row is left for the new request
    advance(forest, 20, STOP)
    assert rows(forest, "slot", "token") == [[1, 2], [20, 6]]


def test_a_request_can_be_cancelled_while_its_step_runs():
    forest = make_forest()
    assert forest.admit(1, 5, 20, 6) == 1
    forest.schedule()
    assert forest.cancel(0) == 1
    assert ended(forest) == [(0, "cancelled", 9)]
    assert forest.done.tolist() == [0]
    assert forest.admit(2, 9, 30, 9) == 0  # takes the slot and the pages at once
    assert rows(forest, "slot", "kv_slot") == [[-1, 1], [-1, 20]]
    advance(forest, 77, 78)
    assert rows(forest, "slot", "token") == [[1, 0], [78, 9]]
    assert forest.cancel(5) == 0


def test_shared_streams():
    forest = Forest(ForestConfig(num_slots=6, num_pages=32, page_size=8, fork_token=FORK, child_token=CHILD))
    shared = forest.open_shared(11)
    first = forest.admit(0, 14, 40, 5, shared_slot=shared)
    second = forest.admit(1, 12, 40, 6, shared_slot=shared)
    assert forest.length[[first, second]].tolist() == [2, 0]
    assert forest.first_position[[first, second]].tolist() == [11, 11]
    forest.schedule()
    assert rows(forest, "token", "position") == [[5, 6], [13, 11]]
    assert ranges(forest, 0) == [(shared, 0, 11), (first, 0, 3)]
    assert ranges(forest, 1) == [(shared, 0, 11), (second, 0, 1)]
    advance(forest, FORK, 20)
    assert ranges(forest, 0) == [(shared, 0, 11), (first, 0, 4), (3, 0, 1)]
    forest.cancel(1)
    forest.close_shared(shared)
    assert forest.state[shared] == 3
    forest.cancel(0)
    assert forest.state[shared] == 0
    assert forest.counter("num_free_pages") == 32


def test_join():
    forest = make_forest(keep_finished=True, max_children=2, num_pages=64)
    advance(forest, FORK)
    advance(forest, 20, 23)
    advance(forest, STOP, 21)
    child = int(forest.ended[0, 0])
    assert forest.state[child] == 2  # kept, though nobody reads it yet
    assert rows(forest, "token") == [[21]]
    assert ranges(forest, 0) == [(0, 0, 12)]
    forest.join(0, [child])
    advance(forest, 22)
    assert ranges(forest, 0) == [(child, 0, 2), (0, 0, 13)]
    advance(forest, STOP)
    assert forest.counter("num_free_pages") == 64


def test_a_forest_without_forks_needs_no_spare_room():
    config = ForestConfig(num_slots=1, num_pages=2, page_size=8, max_depth=5)
    assert config.max_depth == 1
    forest = Forest(config)
    assert forest.admit(0, 9, 17, 5) == 0  # entries 0 to 15; the token at position 16 is not fed
    forest.schedule()
    for _ in range(8):
        advance(forest, 20)
    assert ended(forest) == [(0, "length", 16)]


def test_waiting_requests_get_their_turn_in_the_order_of_admission():
    forest = make_forest(max_rows=1, new_tokens=2)
    assert forest.admit(1, 3, 5, 6) == 1
    tokens = []
    forest.schedule()
    while forest.num_rows:
        tokens += rows(forest, "token")[0]
        advance(forest, 20)
    assert tokens == [5, 20, 6, 20]


# ---- plans and windows ---------------------------------------------------------------------------------------------


def grown_forest(seed: int, steps: int) -> Forest:
    draw = random.Random(seed)
    forest = Forest(
        ForestConfig(
            num_slots=40,
            num_pages=200,
            page_size=8,
            fork_token=FORK,
            child_token=CHILD,
            max_depth=3,
            num_kv_heads=2,
            group_size=2,
        )
    )
    for request in range(3):
        forest.admit(request, 5 + 7 * request, 90, 5)
    forest.schedule()
    for _ in range(steps):
        may_fork = rows(forest, "may_fork")[0]
        advance(forest, *(FORK if may and draw.random() < 0.3 else 20 for may in may_fork))
    return forest


@pytest.mark.parametrize("window", [None, 1, 5, 30, 1000])
def test_the_plan_is_that_of_make_plan(window):
    forest = grown_forest(seed=1, steps=14)
    count = forest.num_rows
    assert count > 8
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(count, 4, 32, generator=generator)
    k_cache, v_cache = torch.randn(2, 200, 2, 8, 32, generator=generator)
    written = torch.zeros(200, 8, dtype=torch.bool)
    for row in range(count):
        for stream, begin, end in ranges(forest, row):
            for entry in range(begin, end):
                written[forest.page_table[stream, entry // 8], entry % 8] = True
    for cache in (k_cache, v_cache):
        cache.masked_fill_(~written[:, None, :, None], float("nan"))
    begins = forest.range_begin[: forest.num_ranges].tolist()
    if window is not None:
        for row in range(count):
            for i in range(*forest.row_indptr[row : row + 2].tolist()):
                first = forest.row_position[row] - window + 1 - forest.first_position[forest.range_stream[i]]
                begins[i] = min(int(forest.range_end[i]), max(0, int(first)))
        assert forest.window_ranges(window).tolist() == begins
    expected = apar_ext.make_plan(
        forest.page_table,
        forest.row_indptr[: count + 1].clone(),
        forest.range_stream[: forest.num_ranges].clone(),
        torch.tensor(begins, dtype=torch.int32),
        forest.range_end[: forest.num_ranges].clone(),
        num_kv_heads=2,
        group_size=2,
        page_size=8,
    )
    plan = forest.plan() if window is None else forest.window_plan(window)
    out = apar_ext.tree_attention(q, k_cache, v_cache, plan)
    assert torch.equal(out, apar_ext.tree_attention(q, k_cache, v_cache, expected))
    assert out.isfinite().all()


def test_plans_follow_the_steps():
    """A plan object may be the same for two steps, but never what it says."""
    forest = grown_forest(seed=2, steps=5)
    seen = set()
    while forest.num_rows:
        plan = forest.plan()
        assert plan.num_rows == forest.num_rows
        assert len(plan.range_end) == forest.num_ranges
        seen.add(int(plan.range_end[-1]))
        advance(forest, *[20] * forest.num_rows)
    assert len(seen) > 20


def test_padding_rows_do_nothing():
    forest = make_forest(max_rows=5)
    advance(forest, FORK)
    advance(forest, STOP, 20)
    assert forest.num_rows == 1
    assert forest.row_slot[1:].eq(-1).all()
    assert forest.row_kv_slot[1:].eq(-1).all()
    assert forest.row_indptr[1:].eq(1).all()
    assert forest.row_token[1:].eq(0).all()


def test_a_copy_goes_its_own_way():
    forest = make_forest()
    copy = forest.to("cpu")
    assert copy.config is forest.config
    assert torch.equal(copy.data, forest.data)
    advance(forest, FORK)
    assert forest.num_rows == 2
    assert copy.num_rows == 1
    addresses = copy.data.data_ptr(), copy.row_token.data_ptr()
    copy.copy_(forest)
    assert (copy.data.data_ptr(), copy.row_token.data_ptr()) == addresses
    assert torch.equal(copy.data, forest.data)
    assert rows(copy, "token", "position") == rows(forest, "token", "position")
    with pytest.raises(ValueError, match=r"Forest\.copy_: source has .*max_rows=3.*, expected ForestConfig"):
        copy.copy_(make_forest(max_rows=3))


def test_a_forest_on_another_device_has_the_same_layout():
    forest = make_forest().to("meta")
    assert forest.data.device.type == forest.row_token.device.type == "meta"
    assert forest.page_table.shape == make_forest().page_table.shape


@pytest.mark.parametrize("rows", [3, 5, 8])
def test_step_plans_are_those_of_padded_rows(rows):
    forest = make_forest(max_rows=8)
    plans = forest.step_plans(rows, windows=(3, 100))
    address = plans.schedules.data_ptr()
    for token in (FORK, 10, 11):
        advance(forest, *[token] * forest.num_rows)
        forest.write_plans(plans)
        for window, plan in plans.plans.items():
            begins = forest.range_begin.clone()
            if window:
                begins[: forest.num_ranges] = forest.window_ranges(window)
            assert torch.equal(plan.range_begin, begins[: len(plan.range_begin)])
            sizes = dict(num_kv_heads=1, group_size=1, page_size=8)
            ranges = (plan.row_indptr, plan.range_stream, plan.range_begin, plan.range_end)
            expected = Schedule.parse(apar_ext.make_plan(forest.page_table, *ranges, **sizes).schedule)
            found = Schedule.parse(plan.schedule)
            found.header["max_page"] = expected.header["max_page"]
            assert found == expected
            assert found.header["num_rows"] == rows
    assert plans.schedules.data_ptr() == address
    with pytest.raises(ValueError, match="write_step_plans: rows is 1, expected at least num_rows = 2"):
        forest.write_plans(forest.step_plans(1))
    with pytest.raises(ValueError, match="rows is 9, expected 1 to max_rows = 8"):
        forest.write_plans(dataclasses.replace(plans, rows=9))
    with pytest.raises(ValueError, match="begins has shape"):
        forest.write_plans(dataclasses.replace(plans, rows=4))
