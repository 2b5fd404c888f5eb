"""make_plan: what a schedule must hold whatever the ranges, what is refused, and that torch's machinery accepts it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apar_ext
from tests.apar_ext.plans import Schedule, index_tensors, prefill_rows, row_lists, tree_rows

MOST_PACKED_ROWS = 128


def plan_of(rows, *, group_size=4, page_size=16, num_kv_heads=2, streams=None):
    num_streams = streams or 1 + max((stream for row in rows for stream, _, _ in row), default=0)
    entries = max((end for row in rows for _, _, end in row), default=0)
    page_table = torch.arange(num_streams * (entries // page_size + 1), dtype=torch.int32).view(num_streams, -1)
    return apar_ext.make_plan(
        page_table, *index_tensors(rows), num_kv_heads=num_kv_heads, group_size=group_size, page_size=page_size
    )


def without_empty(row):
    return [range_ for range_ in row if range_[1] < range_[2]]


@settings(max_examples=200, deadline=None)
@given(rows=row_lists(), group_size=st.sampled_from([1, 4, 7, 32, 71, 130]))
def test_every_row_finds_its_ranges_in_its_own_order(rows, group_size):
    schedule = Schedule.parse(plan_of(rows, group_size=group_size).schedule)
    assert schedule.tile_row[0] == 0
    assert schedule.tile_row[-1] == len(rows)
    found = [[] for _ in rows]
    largest = 0
    for tile in range(schedule.header["num_tiles"]):
        first, last = schedule.tile_row[tile], schedule.tile_row[tile + 1]
        assert first < last
        assert last - first == 1 or (last - first) * group_size <= MOST_PACKED_ROWS
        largest = max(largest, last - first)
        for walk in range(schedule.tile_walk[tile], schedule.tile_walk[tile + 1]):
            readers = schedule.walk_readers[walk]
            assert readers
            assert [row for row, _, _ in readers] == sorted({row for row, _, _ in readers})
            for row, begin, end in readers:
                assert first <= row < last
                found[row].append((schedule.walk_stream[walk], begin, end))
    assert found == [without_empty(row) for row in rows]
    assert schedule.header["max_tile_rows"] == largest


def plan_model(rows, group_size):
    """The rule of csrc/core/plan.h, in the plainest way: (tile_row, tile_walk, walk_stream, walk_readers)."""
    most_rows = max(1, MOST_PACKED_ROWS // group_size)
    tile_row, tile_walk, walk_stream, walk_readers = [0], [0], [], []
    before = None  # (row, ranges, their walk entries) of the last row that reads anything
    for number, row in enumerate(rows):
        ranges, partners, cursor = without_empty(row), [], 0
        for stream, _, _ in ranges:
            left = [i for i in range(cursor, len(before[1])) if before[1][i][0] == stream] if before else []
            if not left:
                break
            partners.append(left[0])
            cursor = left[0] + 1
        stranger = ranges and before and not partners
        if number > tile_row[-1] and (number - tile_row[-1] == most_rows or stranger):
            tile_row.append(number)
            tile_walk.append(len(walk_stream))
        if before and before[0] < tile_row[-1]:
            partners = []
        walks = [before[2][partner] for partner in partners]
        for index, (stream, begin, end) in enumerate(ranges):
            if index >= len(partners):
                walks.append(len(walk_stream))
                walk_stream.append(stream)
                walk_readers.append([])
            walk_readers[walks[index]].append((number, begin, end))
        if ranges:
            before = (number, ranges, walks)
    if rows:
        tile_row.append(len(rows))
        tile_walk.append(len(walk_stream))
    return tile_row, tile_walk, walk_stream, walk_readers


@settings(max_examples=200, deadline=None)
@given(rows=row_lists(max_rows=40), group_size=st.sampled_from([1, 7, 32, 71]))
def test_follows_the_model(rows, group_size):
    schedule = Schedule.parse(plan_of(rows, group_size=group_size).schedule)
    expected = plan_model(rows, group_size)
    assert (schedule.tile_row, schedule.tile_walk, schedule.walk_stream, schedule.walk_readers) == expected


@pytest.mark.parametrize(
    ("rows", "tiles"),
    [
        (tree_rows(100, 8, 20), [0, 8]),
        (tree_rows(100, 8, 20, parent=30), [0, 8]),
        (prefill_rows(32), [0, 32]),
        (prefill_rows(40), [0, 32, 40]),  # 32 rows x group 4 fill a tile
        # a child before its parent, as the forest orders them
        ([[(0, 0, 9), (1, 0, 5), (2, 0, 3)], [(0, 0, 9), (1, 0, 8)], [(0, 0, 9), (3, 0, 1)]], [0, 3]),
        # two requests that share nothing
        ([[(0, 0, 9)], [(0, 0, 9), (1, 0, 2)], [(2, 0, 4)], [(2, 0, 4), (3, 0, 1)]], [0, 2, 4]),
        # the second row reads the streams in the other order: stream 0 is walked twice
        ([[(0, 0, 9), (1, 0, 9)], [(1, 0, 9), (0, 0, 9)]], [0, 2]),
        # stream 1 would have to be walked before one the tile already has: it is walked twice
        ([[(0, 0, 9), (1, 0, 9)], [(0, 0, 9), (2, 0, 9), (1, 0, 9)]], [0, 2]),
        # the first stream is what counts
        ([[(0, 0, 9), (1, 0, 9)], [(2, 0, 9), (0, 0, 9)]], [0, 1, 2]),
        # the same stream twice: the tile walks it twice, the second row uses one of them
        ([[(0, 0, 9), (0, 3, 5)], [(0, 2, 4)]], [0, 2]),
        # rows that read nothing join any tile, and anyone joins theirs
        ([[], [(0, 5, 5)], [(0, 0, 9)], [], [(0, 0, 2)]], [0, 5]),
        ([], [0]),
    ],
)
def test_tiles(rows, tiles):
    assert Schedule.parse(plan_of(rows, streams=10).schedule).tile_row == tiles


def test_size_is_a_function_of_rows_and_ranges():
    for rows in ([], [[]], tree_rows(10, 3, 4), prefill_rows(70)):
        plan = plan_of(rows)
        assert plan.schedule.shape == (apar_ext.schedule_size(len(rows), sum(map(len, rows))),)
        assert plan.schedule.dtype == torch.int32
        assert plan.num_rows == len(rows)


def test_largest_page_counts_only_pages_in_ranges():
    page_table = torch.tensor([[3, 900, -5, 7], [-1, 11, 2**31 - 1, -1]], dtype=torch.int32)
    rows = [[(0, 0, 8), (0, 24, 32)], [(1, 9, 16), (0, 30, 32)]]
    plan = apar_ext.make_plan(page_table, *index_tensors(rows), num_kv_heads=1, group_size=1, page_size=8)
    assert Schedule.parse(plan.schedule).header["max_page"] == 11


def test_ranges_after_the_last_row_are_not_looked_at():
    page_table = torch.zeros(1, 1, dtype=torch.int32)
    numbers = [torch.tensor(x, dtype=torch.int32) for x in ([0, 1], [0, 99], [0, -7], [8, -9])]
    plan = apar_ext.make_plan(page_table, *numbers, num_kv_heads=1, group_size=1, page_size=8)
    assert Schedule.parse(plan.schedule).walk_readers == [[(0, 0, 8)]]


def test_plan_is_frozen():
    plan = plan_of(tree_rows(10, 2, 3))
    with pytest.raises(FrozenInstanceError):
        plan.page_size = 8


GOOD = {
    "page_table": torch.arange(8, dtype=torch.int32).view(2, 4),
    "row_indptr": torch.tensor([0, 1, 3], dtype=torch.int32),
    "range_stream": torch.tensor([0, 0, 1], dtype=torch.int32),
    "range_begin": torch.tensor([0, 3, 0], dtype=torch.int32),
    "range_end": torch.tensor([64, 9, 1], dtype=torch.int32),
    "num_kv_heads": 2,
    "group_size": 4,
    "page_size": 16,
}


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"page_table": GOOD["page_table"].long()}, "page_table has dtype int64, expected int32"),
        ({"page_table": ints(1, 2)}, r"page_table has shape \[2\], expected \[S, max_pages\]"),
        ({"page_table": GOOD["page_table"].t()}, "page_table is not contiguous"),
        ({"page_table": ints(0, 1, 2, 3, 4, 5, 6, 7).view(2, 4)[:, :2]}, "page_table is not contiguous"),
        ({"row_indptr": ints()}, r"row_indptr has shape \[0\]"),
        ({"row_indptr": ints(1, 1, 3)}, r"row_indptr\[0\] is 1, expected 0"),
        ({"row_indptr": ints(0, 2, 1)}, r"row_indptr\[2\] is 1, expected at least row_indptr\[1\] = 2"),
        ({"row_indptr": ints(0, 1, 4)}, r"row_indptr\[2\] is 4, expected at most the number of ranges 3"),
        ({"row_indptr": GOOD["row_indptr"].double()}, "row_indptr has dtype float64"),
        ({"range_stream": ints(0, 2, 1)}, r"range_stream\[1\] is 2, expected 0 to S - 1 = 1"),
        ({"range_stream": ints(0, -1, 1)}, r"range_stream\[1\] is -1"),
        ({"range_begin": ints(0, 3)}, r"range_begin has shape \[2\], expected \[N=3\]"),
        ({"range_begin": ints(0, -3, 0)}, r"range_begin\[1\] is -3, expected at least 0"),
        ({"range_end": ints(64, 2, 1)}, r"range_end\[1\] is 2, expected at least range_begin\[1\] = 3"),
        ({"range_end": ints(65, 9, 1)}, r"range_end\[0\] is 65, expected at most max_pages \* page_size = 64"),
        ({"range_end": ints(64, 9, 1).to("meta")}, "range_end is on device meta"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0, expected at least 1"),
        ({"group_size": 0}, "group_size is 0, expected at least 1"),
        ({"num_kv_heads": 205, "group_size": 5}, r"205 \* 5 query heads, expected at most 1024"),
        ({"num_kv_heads": 2**33, "group_size": 2**33}, "query heads, expected at most 1024"),
        ({"page_size": 24}, "page_size is 24, expected one of 8, 16, 32, 64, 128"),
        ({"page_size": 4}, "page_size is 4, expected one of"),
        (
            {"page_table": ints(0, -4, 2, 3, 4, 5, 6, 7).view(2, 4)},
            r"page_table\[0, 1\] is -4, expected a page id of at least 0",
        ),
        ({"page_table": torch.zeros(1, 2**28, dtype=torch.int32).expand(2, -1)}, "page_table is not contiguous"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=f"make_plan: .*{message}"):
        apar_ext.make_plan(**{**GOOD, **change})


def test_operator_is_accepted_by_torch():
    torch.library.opcheck(torch.ops.apar.make_plan, tuple(GOOD.values()))


def test_compiles():
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def schedule(row_indptr, range_stream, range_begin, range_end):
        return apar_ext.make_plan(
            GOOD["page_table"],
            row_indptr,
            range_stream,
            range_begin,
            range_end,
            num_kv_heads=2,
            group_size=4,
            page_size=16,
        ).schedule

    for rows in ([[(0, 0, 3)]], tree_rows(9, 1, 3)[:1] * 3):
        rows = [[(stream % 2, begin, end) for stream, begin, end in row] for row in rows]
        numbers = index_tensors(rows)
        plan = apar_ext.make_plan(GOOD["page_table"], *numbers, num_kv_heads=2, group_size=4, page_size=16)
        assert torch.equal(schedule(*numbers), plan.schedule)
