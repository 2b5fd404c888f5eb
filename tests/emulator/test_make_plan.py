"""make_plan's CUDA kernel on the emulated device: schedules and work lists with the numbers that the host writes."""

from __future__ import annotations

import random
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apar.test_forest import random_script, smallest
from tests.apar_ext.plans import Schedule, index_tensors, prefill_rows, row_lists, tree_rows

from .bookkeeping import Lists, Plans, make_plan
from .emulator import Device, DeviceError, EmulatorFault, WorkInput

HEADER, ITEM, MAX_PARTS = 8, 12, 4


def parts_of(work: torch.Tensor, rows: int, readers: int, work_input: WorkInput, num_kv_heads: int) -> dict[str, list]:
    """The used parts of a work list, as csrc/core/work.h lays it out."""
    items = int(work[1])
    row_begin = HEADER + work_input.target_items + 1
    arrivals = row_begin + rows + 1
    first_item = arrivals + work_input.target_items * num_kv_heads * MAX_PARTS
    return {
        "header": work[:7].tolist(),
        "bin_begin": work[HEADER:row_begin].tolist(),
        "row_begin": work[row_begin:arrivals].tolist(),
        "arrivals": work[arrivals:first_item].unique().tolist(),
        "items": work[first_item : first_item + ITEM * items].view(items, ITEM).tolist(),
        "ranges": readers,
    }


def ranges_of(work: torch.Tensor, ranges: int, readers: int) -> list:
    return work[len(work) - 4 * ranges :].view(ranges, 4)[:readers].tolist()


def expect_equal(plans: Plans, rows: int, ranges: int, work_input: WorkInput, num_kv_heads: int) -> None:
    def compare(found: Lists, expected: Lists) -> None:
        assert torch.equal(found.begins, expected.begins)
        schedule = Schedule.parse(expected.schedule)
        assert Schedule.parse(found.schedule) == schedule
        readers = schedule.header["num_readers"]
        arguments = (rows, readers, work_input, num_kv_heads)
        assert parts_of(found.work, *arguments) == parts_of(expected.work, *arguments)
        assert ranges_of(found.work, ranges, readers) == ranges_of(expected.work, ranges, readers)

    for found, expected in zip(plans.on_device, plans.on_host, strict=True):
        compare(found, expected)


def plan_and_compare(
    rows: list,
    *,
    group_size: int = 4,
    num_kv_heads: int = 2,
    work: dict | None = None,
    device: dict | None = None,
    **more,
) -> Plans:
    packed = len(rows) * group_size
    defaults = dict(packed_rows=32 if packed <= 32 else 64 if packed <= 64 else 128)
    defaults |= dict(target_items=12, max_partials=64, batch_invariant=1)
    work_input = WorkInput(**(defaults | (work or {})))
    numbers = index_tensors(rows)
    plans = make_plan(
        Device(**(device or {})),
        *numbers,
        num_streams=1000,
        num_kv_heads=num_kv_heads,
        group_size=group_size,
        work_input=work_input,
        **more,
    )
    expect_equal(plans, len(rows), len(numbers[1]), work_input, num_kv_heads)
    return plans


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=row_lists(max_rows=70, entries=3000),
    group_size=st.sampled_from([1, 4, 7, 32, 71, 130, 512]),
    target_items=st.integers(1, 20),
    max_partials=st.sampled_from([0, 5, 64, 1000]),
    batch_invariant=st.integers(0, 1),
    threads=st.sampled_from([32, 64]),
    shared_bytes=st.sampled_from([227 * 1024, 6 * 1024]),
    seed=st.integers(0, 1000),
)
def test_any_rows(rows, group_size, target_items, max_partials, batch_invariant, threads, shared_bytes, seed):
    work = dict(target_items=target_items, max_partials=max_partials, batch_invariant=batch_invariant)
    device = dict(seed=seed, shared_bytes=shared_bytes)
    plan_and_compare(rows, group_size=group_size, work=work, threads=threads, device=device)


@pytest.mark.parametrize(
    ("rows", "group_size"),
    [
        ([], 4),
        ([[]], 4),
        ([[]] * 200, 1),
        (tree_rows(40_000, 150, 700, parent=900), 1),
        (tree_rows(5_000, 130, 90), 4),
        (prefill_rows(300, before=9_000), 8),
        (tree_rows(3_000, 3, 50), 300),
    ],
)
def test_large_rows(rows, group_size):
    plans = plan_and_compare(rows, group_size=group_size, work=dict(target_items=66, max_partials=4000), threads=64)
    if len(rows) > 2 and group_size < 300 and rows[0]:
        assert plans.on_host[0].work[2] > 0, "nothing is cut"


def forest_rows(seed: int):
    """The ranges of steps of a forest with joins and shared streams."""
    from tests.apar.forest_pair import Pair, writer

    draw = random.Random(seed)
    changes = dict(keep_finished=True, num_slots=30, num_pages=200, max_ranges=9, max_children=3, max_rows=20)
    config = smallest(3, 60, **changes)
    pair = Pair(config, writer(seed, fork_share=0.4, stop_share=0.02))
    steps = []
    forest, advance = pair.forest, pair.forest.advance

    def record(sampled: torch.Tensor, **options) -> None:
        advance(sampled, **options)
        names = ("row_indptr", "range_stream", "range_begin", "range_end", "row_position", "first_position")
        steps.append({name: getattr(forest, name).clone() for name in names})

    pair.forest.advance = record
    random_script(pair, 60, draw, actions=40)
    return steps


def test_steps_of_a_forest_with_windows():
    """The plans of a step that is padded to max_rows: everything, and two windows."""
    num_kv_heads, group_size = 2, 4
    for step, tensors in enumerate(forest_rows(3)[::3]):
        rows, ranges = len(tensors["row_indptr"]) - 1, len(tensors["range_stream"])
        work_input = WorkInput(packed_rows=128, target_items=7, max_partials=40, batch_invariant=1)
        plans = make_plan(
            Device(seed=step),
            **tensors,
            num_streams=30,
            num_kv_heads=num_kv_heads,
            group_size=group_size,
            work_input=work_input,
            windows=(0, 3, 17),
            threads=32,
        )
        expect_equal(plans, rows, ranges, work_input, num_kv_heads)


BAD = [
    ("range_stream", 1, 1000, "range 1 of stream 1000 is no part of a stream, expected one of 0 to S - 1 = 999"),
    ("range_stream", 1, -1, "range 1 of stream -1"),
    ("range_begin", 1, 6, "range 1 of stream 1"),
    ("range_begin", 1, -1, "range 1 of stream 1"),
    ("range_end", 1, 1 << 30, "range 1 of stream 1"),
    ("row_indptr", 2, 3, "row_indptr[2] is 3, expected numbers that ascend from 0 to at most N = 2"),
    ("row_indptr", 1, 7, "row_indptr["),
    ("row_indptr", 0, 1, "row_indptr[0] is 1"),
    ("row_indptr", 1, -1, "row_indptr["),
]


@pytest.mark.parametrize(("name", "index", "value", "report"), BAD)
def test_bad_ranges_are_left_out_and_reported(name, index, value, report):
    names = ("row_indptr", "range_stream", "range_begin", "range_end")
    tensors = dict(zip(names, index_tensors([[(0, 0, 5)], [(1, 0, 5)]]), strict=True))
    tensors[name][index] = value
    work_input = WorkInput(packed_rows=32, target_items=4, max_partials=8, batch_invariant=1)
    device = Device()
    sizes = dict(num_streams=1000, num_kv_heads=1, group_size=1, work_input=work_input)
    with pytest.raises(DeviceError, match=re.escape(report)) as raised:
        make_plan(device, **tensors, **sizes, max_pages=100, check=True)
    schedule = Schedule.parse(raised.value.plans.on_device[0].schedule)
    assert schedule.walk_readers == ([] if name == "row_indptr" else [[(0, 0, 5)]])


def test_every_barrier_is_needed():
    cases = [
        dict(rows=tree_rows(9000, 70, 300, parent=400), group_size=2),
        dict(rows=tree_rows(9000, 70, 300, parent=400), group_size=128),
        dict(rows=tree_rows(400, 20, 3) + tree_rows(100, 3, 30), group_size=300),
    ]
    unnoticed, met = set(), set()
    for case in cases:
        work = dict(target_items=20, max_partials=1000)
        right = plan_and_compare(**case, work=work, threads=64)
        for site in set(right.launch.sites) - (met - unnoticed):
            try:
                plan_and_compare(**case, work=work, threads=64, device=dict(drop=[site]))
            except (EmulatorFault, AssertionError):
                unnoticed.discard(site)
            else:
                unnoticed.add(site)
            met.add(site)
    assert len(met) >= 15
    assert not unnoticed, f"taking these away changed nothing: {unnoticed}"
