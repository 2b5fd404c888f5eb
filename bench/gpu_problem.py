"""Attention over given rows on a device: random queries, paged caches of several layers, the plan, a check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import apar_ext
from bench.tree_rows import Rows, unique_bytes

PAGE_SIZE = 16
ACCURACY = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}

Layer = tuple[torch.Tensor, torch.Tensor]  # k_cache, v_cache


@dataclass
class Problem:
    rows: Rows
    q: torch.Tensor  # [R, Hq, D]
    layers: list[Layer]
    page_table: torch.Tensor
    plan: apar_ext.Plan

    @property
    def heads(self) -> tuple[int, int]:
        return self.q.shape[1], self.layers[0][0].shape[1]

    @property
    def bytes(self) -> int:
        """Of one layer: KV that any row reads, queries, outputs."""
        k_cache = self.layers[0][0]
        return unique_bytes(self.rows, *self.heads, kv_bytes=k_cache.element_size(), head_dim=k_cache.shape[3])

    def call(self, layer: int = 0) -> torch.Tensor:
        return apar_ext.tree_attention(self.q, *self.layers[layer], self.plan)

    def calls(self) -> list[Callable[[], torch.Tensor]]:
        return [lambda layer=layer: self.call(layer) for layer in range(len(self.layers))]

    def gather(self, row: int, layer: int = 0) -> Layer:
        """Keys and values of a row in its order, [Hkv, T, D]."""
        pages, offsets = entry_places(self.page_table, self.rows[row])
        k_cache, v_cache = self.layers[layer]
        return k_cache[pages, :, offsets].transpose(0, 1), v_cache[pages, :, offsets].transpose(0, 1)

    def check(self, outputs: torch.Tensor | None = None, *, name: str = "tree_attention") -> float:
        """Relative error of some rows against softmax in float32; raises where it is too large.

        outputs: [R, Hq, D] of the first layer; by default this package's.
        """
        out = self.call() if outputs is None else outputs
        checked = sorted({0, len(self.rows) // 3, len(self.rows) - 1})
        expected = []
        for row in checked:
            k, v = (x.float() for x in self.gather(row))
            q = self.q[row].float().view(k.shape[0], -1, k.shape[2])
            weights = torch.softmax(q @ k.transpose(1, 2) * k.shape[2] ** -0.5, dim=-1)
            expected.append((weights @ v).flatten(0, 1))
        right = torch.stack(expected)
        error = ((out[checked].float() - right).norm() / right.norm()).item()
        if not error < ACCURACY[self.q.dtype]:
            raise WrongResult(f"{name} is wrong: relative error {error:.1e}")
        return error


class WrongResult(RuntimeError):
    """A candidate computes something else."""


def make_problem(
    rows: Rows,
    heads: tuple[int, int],
    device: torch.device,
    *,
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
    min_bytes: int = 0,
) -> Problem:
    """Streams have pages of their own, scattered over the cache.

    min_bytes: as many layers as it takes for their caches to have that many bytes together, 64 at most.
    """
    lengths: dict[int, int] = {}
    for row in rows:
        for stream, _, end in row:
            lengths[stream] = max(lengths.get(stream, 0), end)
    pages = [-(-lengths.get(stream, 0) // PAGE_SIZE) for stream in range(max(lengths) + 1)]
    page_table = torch.full((len(pages), max(pages)), 1 << 30, dtype=torch.int32)
    order = torch.randperm(sum(pages), generator=torch.Generator().manual_seed(0)).int()
    for stream, part in enumerate(order.split(pages)):
        page_table[stream, : len(part)] = part
    shape = (sum(pages), heads[1], PAGE_SIZE, head_dim)
    kv_dtype = kv_dtype or dtype
    layer_bytes = 2 * shape[0] * shape[1] * shape[2] * shape[3] * kv_dtype.itemsize
    num_layers = min(64, max(1, -(-min_bytes // layer_bytes)))
    layers = [
        tuple(torch.randn(shape, dtype=dtype, device=device).to(kv_dtype) for _ in range(2)) for _ in range(num_layers)
    ]
    q = torch.randn(len(rows), heads[0], head_dim, dtype=dtype, device=device)
    bounds = torch.tensor([0] + [len(row) for row in rows]).cumsum(0).int()
    flat = torch.tensor([one for row in rows for one in row], dtype=torch.int32).view(-1, 3)
    page_table = page_table.to(device)
    plan = apar_ext.make_plan(
        page_table,
        bounds.to(device),
        *(flat[:, column].contiguous().to(device) for column in range(3)),
        num_kv_heads=heads[1],
        group_size=heads[0] // heads[1],
        page_size=PAGE_SIZE,
    )
    return Problem(rows, q, layers, page_table, plan)


def entry_places(page_table: torch.Tensor, ranges: Sequence[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Page and offset of each entry of some ranges, one after the other."""
    device = page_table.device
    pages, offsets = [], []
    for stream, begin, end in ranges:
        index = torch.arange(begin, end, device=device)
        pages.append(page_table[stream, index // PAGE_SIZE].long())
        offsets.append(index % PAGE_SIZE)
    return torch.cat(pages), torch.cat(offsets)
