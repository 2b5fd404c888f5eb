"""How many bytes of KV do the CUDA kernels read for every byte that anyone sees, on the emulated device?

    python -m bench.cuda_bytes [--write]

The kernels that a card runs, built for the host (tests/emulator), which counts what they load. Real answers in the
middle of their decoding, trees of any form, flat rows; caches of few heads, since each head reads the same. With
--write the table goes to docs/kernels.md.
"""

from __future__ import annotations

import argparse

from bench.tables import ROOT, markdown, write_table
from bench.tree_rows import Rows, flat_rows, one_request_rows, vicuna_rows
from tests.emulator import cases, emulator

HEADER = ("rows", "heads", "rows of queries", "entries seen", "items", "KV bytes read / seen", "all bytes / seen")


def count(name: str, rows: Rows, heads: tuple[int, int], multiprocessors: int) -> list[object]:
    case = cases.make_case(rows, num_heads=heads[0], num_kv_heads=heads[1])
    device = emulator.Device(multiprocessors=multiprocessors)
    options = emulator.work_input_for(device, len(rows), heads[1], heads[0] // heads[1])
    result = emulator.tree_attention(device, **case.inputs, **options)
    cases.assert_right(case, result.out, result.lse)
    read = result.launch.bytes_read
    seen = 2 * case.visible_entries * heads[1] * 64 * 2
    kv = read["k_cache"] + read["v_cache"]
    everything = sum(read.values()) + sum(result.launch.bytes_written.values())
    return [
        name,
        f"{heads[0]}/{heads[1]}",
        len(rows),
        case.visible_entries,
        result.num_items,
        f"{kv / seen:.3f}",
        f"{everything / seen:.3f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="fill the table cuda-bytes of docs/kernels.md")
    options = parser.parse_args()
    vicuna = vicuna_rows(6)
    shapes = [
        ("6 requests of vicuna80", vicuna, (2, 2), 4),
        ("the same, cut for many blocks", vicuna, (2, 2), 24),
        ("the same, 4 query heads per KV head", vicuna, (8, 2), 4),
        ("the same, 16 query heads per KV head", vicuna, (16, 1), 4),
        ("8 branches, 1,000 shared + 40 each", one_request_rows(8, 1000, 40), (8, 2), 4),
        ("a random tree of 30 branches", cases.tree(7, streams=30, trunk=400), (4, 2), 4),
        ("8 requests of one branch", flat_rows(8, 300), (4, 2), 4),
    ]
    lines = []
    for shape in shapes:
        lines.append(count(*shape))
        print(" | ".join(map(str, lines[-1])), flush=True)
    if options.write:
        write_table(ROOT / "docs" / "kernels.md", "cuda-bytes", markdown(HEADER, lines))


if __name__ == "__main__":
    main()
