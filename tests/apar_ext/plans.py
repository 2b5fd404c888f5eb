"""Ranges, caches and schedules for the tests of make_plan and tree_attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

Range = tuple[int, int, int]  # stream, begin, end


@st.composite
def row_lists(draw, *, max_rows: int = 12, streams: int = 5, entries: int = 300) -> list[list[Range]]:
    """Rows of any kind: some share prefixes as trees do, some conflict, some repeat a stream, some read nothing."""
    bound = st.integers(0, entries)
    any_range = st.tuples(st.integers(0, streams - 1), bound, bound).map(lambda r: (r[0], min(r[1:]), max(r[1:])))
    rows: list[list[Range]] = []
    for _ in range(draw(st.integers(0, max_rows))):
        kind = draw(st.sampled_from(["new", "extend", "truncate", "reverse"]))
        row = list(draw(st.sampled_from(rows))) if rows and kind != "new" else []
        if kind == "truncate" and row:
            stream, begin, end = row.pop()
            row.append((stream, begin, draw(st.integers(begin, end))))
        elif kind == "reverse":
            row.reverse()
        if kind in ("new", "extend"):
            row += draw(st.lists(any_range, max_size=3))
        rows.append(row)
    return rows


def tree_rows(prompt: int, branches: int, branch: int, *, parent: int = 0) -> list[list[Range]]:
    """One prompt (stream 0), optionally a parent (stream 1), and `branches` branches of `branch` entries each."""
    context = [(0, 0, prompt)] + ([(1, 0, parent)] if parent else [])
    return [[*context, (2 + i, 0, branch)] for i in range(branches)]


def prefill_rows(rows: int, *, before: int = 0) -> list[list[Range]]:
    """Rows of stream 0 with growing ends."""
    return [[(0, 0, before + i + 1)] for i in range(rows)]


def index_tensors(rows: list[list[Range]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """row_indptr, range_stream, range_begin, range_end."""
    bounds = [0]
    for row in rows:
        bounds.append(bounds[-1] + len(row))
    flat = [range_ for row in rows for range_ in row]
    columns = [torch.tensor([range_[i] for range_ in flat], dtype=torch.int32) for i in range(3)]
    return (torch.tensor(bounds, dtype=torch.int32), *columns)


@dataclass
class Schedule:
    """A schedule taken apart, after the layout that csrc/core/plan.h states."""

    header: dict[str, int]
    tile_row: list[int]
    tile_walk: list[int]
    walk_stream: list[int]
    walk_readers: list[list[tuple[int, int, int]]]  # row, begin, end

    @classmethod
    def parse(cls, schedule: torch.Tensor) -> Schedule:
        numbers = schedule.tolist()
        names = "magic num_rows num_ranges num_streams max_pages max_page num_kv_heads group_size page_size num_tiles"
        names += " num_walk num_readers max_tile_rows"
        header = dict(zip(names.split(), numbers, strict=False))
        rows, ranges, walks = header["num_rows"], header["num_ranges"], header["num_walk"]
        tile_row = 16
        tile_walk = tile_row + rows + 1
        walk_stream = tile_walk + rows + 1
        walk_reader = walk_stream + ranges
        readers = walk_reader + ranges + 1
        tiles = header["num_tiles"] + 1
        bounds = numbers[walk_reader : walk_reader + walks + 1]
        triples = [tuple(numbers[readers + 3 * i : readers + 3 * i + 3]) for i in range(header["num_readers"])]
        return cls(
            header,
            numbers[tile_row : tile_row + tiles],
            numbers[tile_walk : tile_walk + tiles],
            numbers[walk_stream : walk_stream + walks],
            [triples[bounds[i] : bounds[i + 1]] for i in range(walks)],
        )


@dataclass
class Case:
    """Queries, caches and ranges. Whatever no row may read is poison: NaN in the caches, impossible page ids."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    page_table: torch.Tensor
    rows: list[list[Range]]
    group_size: int

    @property
    def page_size(self) -> int:
        return self.k_cache.shape[2]

    @property
    def num_kv_heads(self) -> int:
        return self.k_cache.shape[1]

    @property
    def ranges(self) -> tuple[torch.Tensor, ...]:
        """page_table, row_indptr, range_stream, range_begin, range_end."""
        return (self.page_table, *index_tensors(self.rows))

    @property
    def plan_sizes(self) -> dict[str, int]:
        return {"num_kv_heads": self.num_kv_heads, "group_size": self.group_size, "page_size": self.page_size}


def make_case(
    rows: list[list[Range]],
    *,
    seed: int = 0,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 32,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    poison: bool = True,
) -> Case:
    """kv_dtype: of the caches, by default that of the queries."""
    random = torch.Generator().manual_seed(seed)
    num_streams = 1 + max((stream for row in rows for stream, _, _ in row), default=0)
    entries = max((end for row in rows for _, _, end in row), default=0)
    max_pages = max(1, -(-entries // page_size))
    num_pages = num_streams * max_pages
    page_table = torch.randperm(num_pages, generator=random).int().view(num_streams, max_pages)
    shape = (num_pages, heads[1], page_size, head_dim)
    k_cache, v_cache = (torch.randn(shape, generator=random) for _ in range(2))
    q = torch.randn(len(rows), heads[0], head_dim, generator=random).to(dtype)

    if poison:
        seen = torch.zeros(num_streams, max_pages * page_size, dtype=torch.bool)
        for row in rows:
            for stream, begin, end in row:
                seen[stream, begin:end] = True
        seen = seen.view(num_streams, max_pages, page_size)
        by_page = torch.empty(num_pages, page_size, dtype=torch.bool)
        by_page[page_table.flatten().long()] = seen.flatten(0, 1)
        hidden = ~by_page[:, None, :, None]
        k_cache.masked_fill_(hidden, float("nan"))
        v_cache.masked_fill_(hidden, float("nan"))
        unused = ~seen.any(dim=2)
        impossible = torch.tensor([-1, -(2**31), 2**31 - 1, num_pages], dtype=torch.int32)
        choice = torch.randint(4, page_table.shape, generator=random)
        page_table = torch.where(unused, impossible[choice], page_table)
    k_cache, v_cache = k_cache.to(kv_dtype or dtype), v_cache.to(kv_dtype or dtype)
    return Case(q, k_cache, v_cache, page_table, rows, heads[0] // heads[1])
