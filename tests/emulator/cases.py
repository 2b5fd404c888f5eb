"""Inputs of tree_attention for the emulated device, and what should come out, in float64."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch

from apar_ext import reference

Range = tuple[int, int, int]  # stream, begin, end

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}


@dataclass
class Case:
    inputs: dict[str, torch.Tensor]  # arguments of emulator.tree_attention
    rows: list[list[Range]]
    visible_entries: int  # that any row sees, each counted once

    def subset(self, rows: list[int]) -> Case:
        """The same rows' own queries and ranges, alone."""
        return Case(
            self.inputs | {"q": self.inputs["q"][rows].contiguous()} | _index([self.rows[row] for row in rows]),
            [self.rows[row] for row in rows],
            0,
        )


def _index(rows: list[list[Range]]) -> dict[str, torch.Tensor]:
    flat = [one for ranges in rows for one in ranges]
    counts = torch.tensor([0] + [len(ranges) for ranges in rows])
    columns = [[one[column] for one in flat] for column in range(3)]
    stream, begin, end = (torch.tensor(column, dtype=torch.int32) for column in columns)
    return dict(row_indptr=counts.cumsum(0).int(), range_stream=stream, range_begin=begin, range_end=end)


def make_case(
    rows: list[list[Range]],
    *,
    seed: int = 0,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
) -> Case:
    """Entries that no row sees are NaN, entries of the page table that no row needs are far out of range."""
    generator = torch.Generator().manual_seed(seed)
    lengths: dict[int, int] = {}
    for ranges in rows:
        for stream, begin, end in ranges:
            lengths[stream] = max(lengths.get(stream, 0), end if end > begin else 0)
    num_streams = max(lengths, default=0) + 1
    seen = {stream: torch.zeros(length, dtype=torch.bool) for stream, length in lengths.items()}
    for ranges in rows:
        for stream, begin, end in ranges:
            seen[stream][begin:end] = True

    pages_of = {stream: -(-length // page_size) for stream, length in lengths.items()}
    num_pages = sum(pages_of.values()) + 2
    free_pages = torch.randperm(num_pages, generator=generator).tolist()
    last = max((end for ranges in rows for _, _, end in ranges), default=0)  # of empty ranges, too
    page_table = torch.full((num_streams, -(-last // page_size) + 2), 1 << 30, dtype=torch.int32)
    kv_dtype = kv_dtype or dtype
    caches = torch.full((2, num_pages, num_kv_heads, page_size, head_dim), math.nan).to(kv_dtype)
    for stream, mask in seen.items():
        for page in range(pages_of[stream]):
            visible = mask[page * page_size : (page + 1) * page_size].nonzero().flatten()
            if len(visible) == 0:
                continue
            page_table[stream, page] = free_pages.pop()
            values = torch.randn(2, num_kv_heads, len(visible), head_dim, generator=generator)
            for cache, numbers in zip(caches, values.to(kv_dtype), strict=True):
                # torch writes 8-bit floats in fewer ways than others.
                as_bits = [t.view(torch.uint8) if t.element_size() == 1 else t for t in (cache, numbers)]
                as_bits[0][page_table[stream, page], :, visible] = as_bits[1]
    q = torch.randn(len(rows), num_heads, head_dim, generator=generator).to(dtype)
    inputs = dict(q=q, k_cache=caches[0].clone(), v_cache=caches[1].clone(), page_table=page_table) | _index(rows)
    return Case(inputs, rows, sum(int(mask.sum()) for mask in seen.values()))


def expected(
    case: Case, *, k_scale: torch.Tensor | None = None, v_scale: torch.Tensor | None = None, **options
) -> tuple[torch.Tensor, torch.Tensor]:
    """out, lse in float64."""
    wide = {name: t.double() if t.is_floating_point() else t for name, t in case.inputs.items()}
    for name, scale in (("k_cache", k_scale), ("v_cache", v_scale)):
        if scale is not None:
            wide[name] *= scale.double()[:, None, None]
    return reference.tree_attention(**wide, return_lse=True, **options)


def assert_right(case: Case, out: torch.Tensor, lse: torch.Tensor, **options) -> None:
    right_out, right_lse = expected(case, **options)
    assert not out.isnan().any()
    assert torch.equal(lse == -math.inf, right_lse == -math.inf)
    finite = right_lse.isfinite()
    if right_out.norm() > 0:
        assert (out.double() - right_out).norm() / right_out.norm() < TOLERANCE[out.dtype]
    else:
        assert out.abs().max() == 0 if out.numel() else True
    if finite.any():
        # Half of the error of a score is the rounding of weights, which the sum sees as well.
        assert (lse.double() - right_lse)[finite].abs().max() < 4 * TOLERANCE[out.dtype]


def tree(seed: int, *, streams: int = 6, longest: int = 60, trunk: int = 90) -> list[list[Range]]:
    """A random tree of branches in depth-first order, a row at the end of each."""
    rng = random.Random(seed)
    lengths = [rng.randint(trunk // 2, trunk)]
    contexts: list[list[Range]] = [[]]
    children: list[list[int]] = [[]]
    for stream in range(1, streams):
        parent = rng.randrange(stream)
        contexts.append([*contexts[parent], (parent, 0, rng.randint(1, lengths[parent]))])
        lengths.append(rng.randint(1, longest))
        children.append([])
        children[parent].append(stream)

    def depth_first(stream: int) -> list[int]:
        return [one for child in children[stream] for one in depth_first(child)] + [stream]

    return [[*contexts[stream], (stream, 0, lengths[stream])] for stream in depth_first(0)]


def anything(seed: int) -> list[list[Range]]:
    """Ranges without any plan: joins, windows, streams read twice, empty ranges, empty rows."""
    rng = random.Random(seed)
    lengths = [rng.choice([1, 7, 16, 64, 65, 130, 300]) for _ in range(rng.randint(1, 5))]
    rows: list[list[Range]] = []
    for _ in range(rng.randint(1, 7)):
        ranges = []
        for _ in range(rng.choice([0, 1, 1, 2, 3, 4])):
            stream = rng.randrange(len(lengths))
            begin = rng.randint(0, lengths[stream])
            ranges.append((stream, begin, rng.randint(begin, lengths[stream])))
        rows.append(ranges)
        if rng.random() < 0.3:
            rows.append(list(ranges))
    return rows


def prefill(length: int, rows: int) -> list[list[Range]]:
    """The last rows of a stream, each seeing one entry more."""
    return [[(0, 0, length - rows + 1 + row)] for row in range(rows)]
