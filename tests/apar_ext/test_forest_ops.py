from __future__ import annotations

import pytest
import torch
from apar.forest import Forest, ForestConfig

import apar_ext
from apar_ext.forest import window_begins_in_torch

FORK, CHILD, STOP = 7, 8, 2


def make_forest(**changes) -> Forest:
    """A forest with one running request whose step at hand has one row."""
    config = dict(
        num_slots=8,
        num_pages=20,
        page_size=8,
        fork_token=FORK,
        child_token=CHILD,
        stop_tokens=(STOP,),
        max_depth=3,
        max_ranges=6,
        keep_finished=False,
        max_children=2,
    )
    forest = Forest(ForestConfig(**{**config, **changes}))
    assert forest.admit(0, prompt_length=9, limit=40, last_token=5) == 0
    forest.schedule()
    return forest


def tokens(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def window_arguments(forest: Forest) -> tuple:
    plan = forest.plan()
    return (
        plan.row_indptr,
        forest.row_position[: forest.num_rows],
        plan.range_stream,
        plan.range_begin,
        plan.range_end,
        forest.first_position,
        3,
    )


def step_plan_arguments(forest: Forest) -> tuple:
    plans = forest.step_plans(4, windows=(3,))
    return forest.data, plans.begins, plans.schedules, plans.windows, plans.rows


def operator_calls() -> list[tuple]:
    """(operator, arguments) of every operator, each with a forest of its own."""
    ops = torch.ops.apar
    shared = make_forest()
    shared_slot = shared.open_shared(10)
    joining = make_forest(keep_finished=True, num_pages=80)
    joining.advance(tokens(FORK))
    joining.advance(tokens(STOP, 10))
    child = int(joining.ended[0, 0])
    return [
        (ops.advance.default, (make_forest().data, tokens(FORK, 99))),
        (ops.advance.default, (make_forest().data, tokens(FORK), 1)),
        (ops.forest_reset.default, (make_forest().data,)),
        (ops.forest_schedule.default, (make_forest().data,)),
        (ops.forest_admit.default, (make_forest().data, 1, 9, 20, 5, -1)),
        (ops.forest_open_shared.default, (make_forest().data, 9)),
        (ops.forest_close_shared.default, (shared.data, shared_slot)),
        (ops.forest_join.default, (joining.data, 0, tokens(child))),
        (ops.forest_cancel.default, (make_forest().data, 0)),
        (ops.window_begins.default, window_arguments(make_forest())),
        (ops.write_step_plans.default, step_plan_arguments(make_forest())),
    ]


OPERATORS = [f"{operator}-{len(arguments)}" for operator, arguments in operator_calls()]


@pytest.mark.parametrize("index", range(len(OPERATORS)), ids=OPERATORS)
def test_opcheck(index):
    operator, arguments = operator_calls()[index]
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("index", range(len(OPERATORS)), ids=OPERATORS)
def test_compiles_without_a_graph_break(index):
    operator, arguments = operator_calls()[index]
    copies = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    torch._dynamo.reset()
    compiled = torch.compile(lambda *inputs: operator(*inputs), fullgraph=True, backend="aot_eager")
    expected = operator(*arguments)
    result = compiled(*copies)
    assert (result is None) == (expected is None)
    if expected is not None:
        assert torch.equal(result, expected)
    for copy, argument in zip(copies, arguments, strict=True):
        if isinstance(copy, torch.Tensor):
            assert torch.equal(copy, argument)


def test_layout_covers_the_tensor_once():
    config = ForestConfig(num_slots=5, num_pages=9, max_rows=3, max_pages=4, fork_token=FORK, child_token=CHILD)
    layout = apar_ext.forest_layout(config.fields())
    (size,) = layout.pop("data")[1]
    end = max(apar_ext.forest_header().values()) + 1
    for name, (offset, shape) in sorted(layout.items(), key=lambda item: item[1][0]):
        assert end <= offset, name
        assert offset % 16 == 0, "tensors start at multiples of 64 bytes"
        end = offset + torch.Size(shape).numel()
    assert end <= size < end + 16
    assert layout["page_table"][1] == (5, 4)
    assert layout["row_indptr"][1] == (4,)


# ---- bad input: an error that names the argument, and nothing is written -------------------------------------------


def expect_untouched(forest: Forest, call, match: str) -> None:
    before = forest.data.clone()
    with pytest.raises(ValueError, match=match):
        call()
    assert torch.equal(before, forest.data)


@pytest.mark.parametrize(
    ("sampled", "match"),
    [
        (tokens(), r"advance: sampled has 0 tokens, expected at least num_rows = 1"),
        (tokens(-2), r"advance: sampled\[0\] is -2, expected a token, or -1 to end the branch"),
        (torch.tensor([5]), "advance: sampled has dtype int64, expected int32"),
        (torch.tensor([5.0]), "advance: sampled has dtype float32, expected int32"),
        (tokens(5)[None], r"advance: sampled has shape \[1, 1\], expected \[R\]"),
        (tokens(5, 6, 7, 8)[::2], "advance: sampled is not contiguous"),
        (tokens(5).to("meta"), "advance: sampled is on device"),
    ],
)
def test_advance_rejects_sampled(sampled, match):
    forest = make_forest()
    expect_untouched(forest, lambda: forest.advance(sampled), match)


@pytest.mark.parametrize("limit", [0, -1, 2**31])
def test_advance_rejects_row_limit(limit):
    forest = make_forest()
    match = rf"advance: row_limit is {limit}, expected 1 to 2147483647"
    expect_untouched(forest, lambda: forest.advance(tokens(5), row_limit=limit), match)


def test_row_limit_beyond_max_rows_changes_nothing():
    forests = [make_forest(), make_forest()]
    for forest, limit in zip(forests, (None, 2**31 - 1), strict=True):
        forest.advance(tokens(FORK), row_limit=limit)
    assert torch.equal(forests[0].data, forests[1].data)
    assert forests[0].num_rows == 2


def test_row_limit_counts_the_rows_of_a_fork():
    forest = make_forest()
    forest.advance(tokens(FORK), row_limit=1)
    assert forest.num_rows == 1
    assert len(forest.opened) == 1, "the fork is fed, its child waits"
    forest.advance(tokens(10), row_limit=1)
    assert forest.row_token[0] == CHILD, "the child stands first"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data.long(), "advance: forest has dtype int64, expected int32"),
        (lambda data: data[None], r"advance: forest has shape"),
        (lambda data: data.repeat_interleave(2)[::2], "advance: forest is not contiguous"),
        (lambda data: data[:-16].clone(), "advance: forest has .* numbers, expected .* by its header"),
        (lambda data: torch.zeros_like(data), "advance: forest is no forest of this version"),
        (lambda data: data[:10].clone(), "advance: forest is no forest of this version"),
    ],
)
def test_operators_reject_what_is_no_forest(change, match):
    data = change(make_forest().data)
    before = data.clone()
    with pytest.raises(ValueError, match=match):
        apar_ext.advance(data, tokens(5))
    assert torch.equal(before, data)


def test_a_forest_of_another_configuration_is_rejected():
    forest, other = make_forest(), make_forest(max_rows=3)
    forest.data[: other._header["num_free_pages"]] = other.data[: other._header["num_free_pages"]]
    expect_untouched(forest, lambda: forest.schedule(), "forest has .* numbers, expected")
    forest._numbers[forest._header["total_size"]] = len(forest.data)
    expect_untouched(forest, lambda: forest.schedule(), "forest has .* numbers, expected")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(request=0), "forest_admit: request is 0, which is already running"),
        (dict(request=-1), "forest_admit: request is -1, expected 0 to 2147483647"),
        (dict(prompt_length=0), "forest_admit: prompt_length is 0, expected 1 to"),
        (dict(limit=9), "forest_admit: limit is 9, expected 10 to"),
        (dict(limit=2**31), "forest_admit: limit is 2147483648, expected 10 to 2147483647"),
        (dict(last_token=-1), "forest_admit: last_token is -1, expected 0 to"),
        (dict(last_token=2**31), "forest_admit: last_token is 2147483648, expected 0 to"),
        (dict(shared_slot=8), "forest_admit: shared_slot is 8, expected 0 to 7"),
        (dict(shared_slot=0), "forest_admit: shared_slot is slot 0, which is an unfinished branch, expected a shared"),
        (dict(shared_slot=3), "forest_admit: shared_slot is slot 3, which is free, expected a shared stream"),
        (dict(prompt_length=200, limit=240), "forest_admit: limit is 240, .* 239 entries, expected at most .* = 160"),
        (dict(prompt_length=150, limit=160), "forest_admit: the request may need 22 pages, .* num_pages = 20"),
    ],
)
def test_admit_rejects(arguments, match):
    forest = make_forest()
    good = dict(request=1, prompt_length=9, limit=20, last_token=5)
    expect_untouched(forest, lambda: forest.admit(**{**good, **arguments}), match)


def test_admit_rejects_a_shared_stream_that_does_not_fit():
    forest = make_forest()
    slot = forest.open_shared(9)
    expect_untouched(forest, lambda: forest.admit(1, 9, 20, 5, slot), "prompt_length is 9, expected more than .* 9")
    narrow = make_forest(max_ranges=2)
    slot = narrow.open_shared(9)
    expect_untouched(narrow, lambda: narrow.admit(1, 10, 20, 5, slot), "max_ranges is 2, expected at least 3")


def test_admit_says_when_waiting_is_in_vain():
    forest = make_forest()
    forest.cancel(0)
    slot = forest.open_shared(100)
    match = "the request may need 9 pages and 3 slots, but nothing is running and shared streams leave 7 pages"
    expect_untouched(forest, lambda: forest.admit(1, 9, 50, 5), match)
    forest.close_shared(slot)
    assert forest.admit(1, 9, 50, 5) >= 0


def test_shared_streams_are_checked():
    forest = make_forest()
    expect_untouched(forest, lambda: forest.open_shared(0), "forest_open_shared: length is 0, expected 1 to 160")
    expect_untouched(forest, lambda: forest.open_shared(161), "length is 161, expected 1 to 160")
    expect_untouched(forest, lambda: forest.close_shared(0), "slot is slot 0, which is an unfinished branch")
    expect_untouched(forest, lambda: forest.close_shared(-1), "forest_close_shared: slot is -1, expected 0 to 7")


def test_join_is_checked():
    forest = make_forest(keep_finished=True, num_pages=80)
    forest.advance(tokens(FORK))
    child, trunk = forest.row_slot[:2].tolist()
    expect_untouched(forest, lambda: forest.join(trunk, [child]), "which is an unfinished branch, expected a finished")
    forest.advance(tokens(STOP, 10))
    expect_untouched(forest, lambda: forest.join(trunk, [7]), "children is slot 7, which is free, expected a finished")
    expect_untouched(forest, lambda: forest.join(trunk, [8]), "children is 8, expected 0 to 7")
    expect_untouched(forest, lambda: forest.join(child, [child]), "parent is slot 1, which is a finished branch")
    expect_untouched(forest, lambda: forest.join(9, [child]), "forest_join: parent is 9, expected 0 to 7")
    expect_untouched(forest, lambda: forest.join(trunk, [child, child]), "which is joined already")
    other = forest.admit(1, 3, 20, 5)
    assert other >= 0
    expect_untouched(forest, lambda: forest.join(other, [child]), "whose parent is slot 0, expected 2")
    forest.join(trunk, [child])
    expect_untouched(forest, lambda: forest.join(trunk, [child]), "which is joined already")

    plain = make_forest()
    expect_untouched(plain, lambda: plain.join(0, []), "keep_finished is 0, expected a forest that keeps")
    narrow = make_forest(keep_finished=True, num_pages=80, max_ranges=2)
    narrow.advance(tokens(FORK))
    narrow.advance(tokens(STOP, 10))
    expect_untouched(narrow, lambda: narrow.join(0, [1]), "context would have 1 ranges .* 2 more, .* max_ranges = 2")


def test_cancel_is_checked():
    forest = make_forest()
    expect_untouched(forest, lambda: forest.cancel(-1), "forest_cancel: request is -1, expected 0 to")
    assert forest.cancel(17) == 0


@pytest.mark.parametrize(
    ("position", "value", "match"),
    [
        (0, tokens(1, 1), r"row_indptr\[0\] is 1, expected 0"),
        (0, tokens(0, 2), r"row_indptr\[1\] is 2, expected 0 to N = 1"),
        (0, tokens(0), r"row_indptr has shape \[1\], expected \[R \+ 1=2\]"),
        (1, torch.tensor([3]), "row_position has dtype int64"),
        (2, tokens(8), r"range_stream\[0\] is 8, expected 0 to S - 1 = 7"),
        (3, tokens(0, 0), r"range_begin has shape \[2\], expected \[N=1\]"),
        (6, 0, "window is 0, expected at least 1"),
    ],
)
def test_window_begins_rejects(position, value, match):
    arguments = list(window_arguments(make_forest()))
    arguments[position] = value
    with pytest.raises(ValueError, match=match):
        apar_ext.window_begins(*arguments)


@pytest.mark.parametrize("seed", range(30))
def test_window_begins_in_torch_agree(seed):
    generator = torch.Generator().manual_seed(seed)

    def numbers(low, high, size):
        return torch.randint(low, high, (size,), generator=generator, dtype=torch.int32)

    counts = numbers(0, 4, seed % 7)
    used, unused = int(counts.sum()), seed % 3
    row_indptr = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    begin, length = numbers(0, 50, used + unused), numbers(0, 60, used + unused)
    stream = numbers(0, 5, used + unused)
    stream[used:] = 10**6
    arguments = (row_indptr, numbers(0, 200, len(counts)), stream, begin, begin + length, numbers(0, 90, 5), 1 + seed)
    expected = apar_ext.window_begins(*arguments)
    assert torch.equal(window_begins_in_torch(*arguments), expected)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(num_slots=0), "num_slots is 0"),
        (dict(num_slots=2), "num_slots is 2, expected at least 3"),
        (dict(num_slots=2.5), "num_slots is 2.5, expected int32 numbers"),
        (dict(num_slots=2**40), "num_slots is 1099511627776, expected int32 numbers"),
        (dict(num_pages=0), "num_pages is 0"),
        (dict(num_pages=2**30), "num_pages is 1073741824, expected at most 268435455 pages of 8"),
        (dict(page_size=12), "page_size is 12, expected one of 8, 16, 32, 64, 128"),
        (dict(page_size=256), "page_size is 256, expected one of"),
        (dict(max_pages=0), "max_pages is 0"),
        (dict(max_ranges=1), "max_ranges is 1, expected 2 to"),
        (dict(max_rows=0), "max_rows is 0"),
        (dict(num_kv_heads=0), "num_kv_heads is 0"),
        (dict(num_kv_heads=64, group_size=32), "group_size is 32, expected 1 to 16"),
        (dict(child_token=-1), "child_token is -1, expected -1 exactly where fork_token is -1, which is 7"),
        (dict(child_token=FORK), "child_token is 7, expected another one than fork_token"),
        (dict(fork_token=-2), "fork_token is -2"),
        (dict(stop_tokens=range(20, 29)), "stop_tokens has 9 tokens, expected at most 8"),
        (dict(stop_tokens=(FORK,)), "stop_tokens holds 7, expected neither fork_token nor child_token"),
        (dict(stop_tokens=(-1,)), "stop_tokens is -1"),
        (dict(max_depth=0), "max_depth is 0"),
        (dict(max_children=0), "max_children is 0"),
        (dict(max_live_branches=0), "max_live_branches is 0"),
        (dict(keep_finished=True, max_children=9), "num_slots is 8, expected at least 19, .* max_children that stay"),
        (dict(num_slots=1 << 24, max_pages=1 << 20), "the forest would take"),
    ],
)
def test_configurations_are_checked(changes, match):
    with pytest.raises(ValueError, match=match):
        make_forest(**changes)
