"""What the CUDA attention will read and compute for the published kernel shapes, and the least time on an H200.

No GPU and no measurement: plans and work lists are made as for a card with 132 multiprocessors and counted. Rates are
assumptions: 4.07 TB/s from memory, 5.5 TB/s out of the second-level cache, 600 TFLOP/s of matrix instructions, 60 GB/s
that one multiprocessor can take in. Prints a table; with --write it goes to docs/kernels.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from bench.tables import ROOT, markdown, write_table
from bench.tree_rows import HEAD_DIM, HEADS, Rows, ideal_us, kernel_shapes, unique_bytes
from bench.work_list import make_work_list

MULTIPROCESSORS = 132
MEMORY, CACHE, MATRIX, ONE_MULTIPROCESSOR = 4.07e12, 5.5e12, 600e12, 60e9
ENTRY_BYTES = 2 * HEAD_DIM * 2  # key and value of one head, 16 bits


@dataclass
class Count:
    unique_bytes: int
    read_bytes: int  # of KV
    operations: float
    items: int  # per KV head
    widest: int  # packed rows of an item
    partial_bytes: int  # results of items of cut strands, written and read again
    free_partial_bytes: int  # the same without batch_invariant
    longest_bytes: float  # read by the multiprocessor with the most to do

    @property
    def microseconds(self) -> float:
        return 1e6 * max(
            self.unique_bytes / MEMORY,
            (self.read_bytes + self.partial_bytes) / CACHE,
            self.operations / MATRIX,
            self.longest_bytes / ONE_MULTIPROCESSOR,
        )


def count_work(rows: Rows, num_heads: int, num_kv_heads: int) -> Count:
    work = make_work_list(rows, num_heads, num_kv_heads, MULTIPROCESSORS)
    of_bin = [0] * max(work.num_bins, 1)
    group = num_heads // num_kv_heads
    strands = {item.first_packed: item.packed_rows for item in work.items}
    operations = sum(operations_of(rows, *strand, group) for strand in strands.items()) * num_kv_heads
    result_bytes = 2 * (HEAD_DIM + 2) * 4 * num_kv_heads
    merged = [item for item in work.items if item.is_merged]
    for item in work.items:
        of_bin[item.bin] += item.entries * ENTRY_BYTES
    load = [0] * MULTIPROCESSORS
    for block in range(len(of_bin) * num_kv_heads):
        load[block % MULTIPROCESSORS] += of_bin[block // num_kv_heads]
    return Count(
        unique_bytes(rows, num_heads, num_kv_heads),
        work.entries * ENTRY_BYTES * num_kv_heads,
        operations,
        len(work.items),
        max(strands.values()),
        work.results * result_bytes,
        sum(item.packed_rows for item in merged) * result_bytes,
        max(load),
    )


def operations_of(rows: Rows, first_packed: int, packed_rows: int, group: int) -> float:
    """Of a strand: strips of 16 packed rows leave out 16 entries that none of them sees."""
    total = 0
    for strip in range(first_packed, first_packed + packed_rows, 16):
        last = min(strip + 16, first_packed + packed_rows) - 1
        sixteens = {
            (stream, unit)
            for row in range(strip // group, last // group + 1)
            for stream, begin, end in rows[row]
            for unit in range(begin // 16, -(-end // 16))
        }
        total += len(sixteens) * 16 * 16 * HEAD_DIM * 4
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fill the table cuda-expected of docs/kernels.md")
    options = parser.parse_args()
    lines = []
    for shape in kernel_shapes():
        cells = [shape.name]
        for heads in HEADS:
            rows = shape.rows
            count = count_work(rows, *heads)
            cells.append(
                f"{count.unique_bytes / 1e6:.0f}, {count.read_bytes / count.unique_bytes:.2f}, {count.items}, "
                f"{count.widest}, {count.partial_bytes / 1e6:.0f} ({count.free_partial_bytes / 1e6:.0f}), "
                f"{count.microseconds:.1f}, {1.35 * ideal_us(rows, *heads) + 6:.1f}"
            )
        lines.append(cells)
        print(" | ".join(cells), flush=True)
    if options.write:
        header = ("shape", *(f"{q}/{kv}: MB, read x, items, widest, partial MB, least us, goal us" for q, kv in HEADS))
        write_table(ROOT / "docs" / "kernels.md", "cuda-expected", markdown(header, lines))


if __name__ == "__main__":
    main()
