"""What the CUDA attention would read and compute for the published kernel shapes, and the least time on an H200.

No GPU and no measurement: plans and work lists are made as for a card with 132 multiprocessors and counted. Rates are
assumptions: 4.07 TB/s from memory, 5.5 TB/s out of the second-level cache, 600 TFLOP/s by mma.sync, 60 GB/s that one
multiprocessor can take in. Prints a table in Markdown.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

import apar_ext
from bench.common import tree_rows

SHAPES = Path(__file__).parent / "shapes" / "kernel_shapes.json"
HEADS = ((32, 32), (32, 8), (16, 1))
HEAD_DIM, PAGE_SIZE, MULTIPROCESSORS = 128, 16, 132
MEMORY, CACHE, MATRIX, ONE_MULTIPROCESSOR = 4.07e12, 5.5e12, 600e12, 60e9
BLOCK = 64


@dataclass
class Count:
    unique_bytes: int
    read_bytes: int
    operations: float
    items: int
    longest_bytes: float  # read by the multiprocessor with the most to do

    @property
    def microseconds(self) -> float:
        return 1e6 * max(
            self.unique_bytes / MEMORY,
            self.read_bytes / CACHE,
            self.operations / MATRIX,
            self.longest_bytes / ONE_MULTIPROCESSOR,
        )


def count_work(rows: list[list[tuple[int, int, int]]], num_heads: int, num_kv_heads: int) -> Count:
    """Reads the work list as the kernel does (csrc/core/work.h)."""
    group = num_heads // num_kv_heads
    flat = torch.tensor([one for ranges in rows for one in ranges], dtype=torch.int32)
    indptr = torch.tensor([0] + [len(ranges) for ranges in rows]).cumsum(0).int()
    lengths: dict[int, int] = {}
    for stream, _, end in flat.tolist():
        lengths[stream] = max(lengths.get(stream, 0), end)
    max_pages = -(-max(lengths.values()) // PAGE_SIZE)
    page_table = torch.zeros(max(lengths) + 1, max_pages, dtype=torch.int32)
    columns = (flat[:, column].contiguous() for column in range(3))
    schedule = torch.ops.apar.make_plan(page_table, indptr, *columns, num_kv_heads, group, PAGE_SIZE)
    work = torch.ops.apar.make_work(schedule, MULTIPROCESSORS).tolist()
    num_items, max_packed = work[1], work[4]
    num_ranges = len(flat)
    row_ranges = len(work) - 4 * num_ranges
    max_partials = min(max((1 << 18) // (num_kv_heads * max_packed), 32), 512)
    items_at = 8 + len(rows) + 1 + max_partials * num_kv_heads * 4
    entry_bytes = 2 * HEAD_DIM * 2
    blocks_of_threads = MULTIPROCESSORS * (2 if max_packed == 16 else 1)
    load = [0.0] * blocks_of_threads
    read_bytes, operations, unit = 0, 0.0, 0
    for i in range(num_items):
        first, packed, begin_walk, begin_entry, end_walk, end_entry = work[items_at + 12 * i : items_at + 12 * i + 6]
        seen: dict[int, tuple[int, int, int]] = {}
        for row in range(first // group, (first + packed - 1) // group + 1):
            for r in range(work[8 + row], work[8 + row + 1]):
                walk, stream, begin, end = work[row_ranges + 4 * r : row_ranges + 4 * r + 4]
                low = begin_entry if walk == begin_walk else 0
                high = end_entry if walk == end_walk else 1 << 30
                if walk < begin_walk or walk > end_walk or max(begin, low) >= min(end, high):
                    continue
                old = seen.get(walk, (stream, 1 << 30, 0))
                seen[walk] = (stream, min(old[1], max(begin, low)), max(old[2], min(end, high)))
        entries = sum(high - low for _, low, high in seen.values())
        blocks = sum(-(-high // BLOCK) - low // BLOCK for _, low, high in seen.values())
        strips = -(-packed // 16)
        for _ in range(num_kv_heads):
            load[unit % blocks_of_threads] += entries * entry_bytes
            unit += 1
        read_bytes += entries * entry_bytes * num_kv_heads
        operations += blocks * BLOCK * strips * 16 * HEAD_DIM * 4 * num_kv_heads
    longest = max(sum(load[m::MULTIPROCESSORS]) for m in range(MULTIPROCESSORS))
    unique = sum(lengths.values()) * entry_bytes * num_kv_heads + 2 * len(rows) * num_heads * HEAD_DIM * 2
    return Count(unique, read_bytes, operations, num_items, longest)


def main() -> None:
    print("| shape |", " | ".join(f"{q}/{kv}: MB, read x, items, least us" for q, kv in HEADS), "|")
    print("|---" * 4 + "|")
    for shape in json.loads(SHAPES.read_text())["shapes"]:
        rows = tree_rows(shape["nodes_per_level"], shape["tokens_per_node"])
        cells = []
        for heads in HEADS:
            count = count_work(rows, *heads)
            ratio = count.read_bytes / count.unique_bytes
            cells.append(f"{count.unique_bytes / 1e6:.0f}, {ratio:.2f}, {count.items}, {count.microseconds:.1f}")
        print(f"| {shape['name']} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    apar_ext.build_info()
    main()
