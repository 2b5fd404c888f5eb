"""A work list of the CUDA attention (csrc/core/work.h) taken apart: which entries each item reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import apar_ext  # noqa: F401  (registers the operators)

Range = tuple[int, int, int]  # stream, begin, end

HEADER_INTS, ITEM_INTS, RANGE_INTS, MAX_PARTS, END_OF_WALK = 8, 12, 4, 4, 0x7FFFFFFF


@dataclass
class Item:
    bin: int
    first_packed: int  # row * group + query head of the group
    packed_rows: int
    entries: int  # that any of its rows sees
    blocks: int  # of 64 entries, aligned to the stream, that any of its rows sees
    is_merged: bool
    results: int  # of one packed row each, that it leaves for a merge


@dataclass
class WorkList:
    """What one KV head has to do."""

    items: list[Item]
    num_bins: int
    unique_entries: int  # that any row sees, each counted once

    @property
    def entries(self) -> int:
        return sum(item.entries for item in self.items)

    @property
    def results(self) -> int:
        return sum(item.results for item in self.items)


def make_work_list(rows: list[list[Range]], num_heads: int, num_kv_heads: int, multiprocessors: int) -> WorkList:
    """As tree_attention would get it on a device with so many multiprocessors."""
    group = num_heads // num_kv_heads
    flat = [one for ranges in rows for one in ranges]
    bounds = torch.tensor([0] + [len(ranges) for ranges in rows]).cumsum(0).int()
    columns = [torch.tensor([one[column] for one in flat], dtype=torch.int32) for column in range(3)]
    longest = max((end for _, _, end in flat), default=1)
    page_table = torch.zeros(max((one[0] for one in flat), default=0) + 1, -(-longest // 16), dtype=torch.int32)
    schedule = torch.ops.apar.make_plan(page_table, bounds, *columns, num_kv_heads, group, 16)
    work = torch.ops.apar.make_work(schedule, multiprocessors).tolist()

    target = max(multiprocessors // num_kv_heads, 1)
    row_begin = HEADER_INTS + target + 1
    items_at = row_begin + len(rows) + 1 + target * num_kv_heads * MAX_PARTS
    ranges_at = len(work) - RANGE_INTS * len(flat)
    bins = work[HEADER_INTS : HEADER_INTS + target + 1]
    items = []
    for number in range(work[1]):
        place = items_at + ITEM_INTS * number
        first, packed, *span, merge, merge_begin = work[place : place + 8]
        seen = _seen(work, ranges_at, row_begin, range(first // group, (first + packed - 1) // group + 1), span)
        items.append(
            Item(
                bin=max(b for b in range(target) if bins[b] <= number),
                first_packed=first,
                packed_rows=packed,
                entries=sum(_covered(runs) for runs in seen.values()),
                blocks=sum(_covered([(b // 64, -(-e // 64)) for b, e in runs]) for runs in seen.values()),
                is_merged=merge >= 0,
                results=0
                if merge < 0
                else packed
                if number == merge_begin
                else sum(_segments(*run) for runs in seen.values() for run in runs) * min(group, packed),
            )
        )
    by_stream: dict[int, list[tuple[int, int]]] = {}
    for stream, begin, end in flat:
        by_stream.setdefault(stream, []).append((begin, end))
    return WorkList(items, work[6], sum(_covered(runs) for runs in by_stream.values()))


def _seen(work: list[int], ranges_at: int, row_begin: int, rows: range, span: list[int]) -> dict[int, list]:
    """Per walk entry the runs of entries that these rows see of the segments from `span` to its end."""
    begin_walk, begin_entry, end_walk, end_entry = span
    seen: dict[int, list[tuple[int, int]]] = {}
    for row in rows:
        for index in range(work[row_begin + row], work[row_begin + row + 1]):
            walk, _, begin, end = work[ranges_at + RANGE_INTS * index : ranges_at + RANGE_INTS * (index + 1)]
            if walk == begin_walk:
                begin = max(begin, begin_entry)
            if walk == end_walk:
                end = min(end, end_entry)
            if begin_walk <= walk <= end_walk and begin < end:
                seen.setdefault(walk, []).append((begin, end))
    return seen


def _segments(begin: int, end: int) -> int:
    """Segments (csrc/core/work.h) that [begin, end) meets."""
    count = 0
    while begin < end:
        size = 256 if begin < 8192 else 1024 if begin < 32768 else 4096
        begin = begin // size * size + size
        count += 1
    return count


def _covered(runs: list[tuple[int, int]]) -> int:
    """Length of the union of [begin, end) intervals."""
    total, reached = 0, 0
    for begin, end in sorted(runs):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
