"""A kernel that only loads, in Triton: the ceiling for whatever is bound by memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl


@triton.jit
def _read(data, sums, tiles_per_program, tile: tl.constexpr):
    program = tl.program_id(0)
    offsets = tl.arange(0, tile)
    total = tl.zeros([tile], dtype=tl.float32)
    first = program.to(tl.int64) * tiles_per_program * tile
    for number in range(tiles_per_program):
        total += tl.load(data + first + number * tile + offsets)
    tl.store(sums + program, tl.sum(total, axis=0))


def make_readers(data: torch.Tensor) -> list[Callable[[], object]]:
    """Calls that read all of ``data`` (float32, a multiple of 128 KB), each cut differently."""
    readers = []
    for tile, warps in ((4096, 8), (8192, 8), (8192, 16)):
        for tiles_per_program in (1, 4, 16):
            programs = data.numel() // (tile * tiles_per_program)
            if programs == 0 or programs * tile * tiles_per_program != data.numel():
                continue
            sums = torch.empty(programs, device=data.device)

            def read(sums=sums, programs=programs, count=tiles_per_program, tile=tile, warps=warps) -> None:
                _read[(programs,)](data, sums, count, tile, num_warps=warps)

            readers.append(read)
    return readers
