"""Attention over packed trees on a CPU: only what a tree may see, by plain matrix products.

A tile is a run of queries of one tree; it sees keys from the start of the tree to its own end. Everything outside,
other trees and what comes later, is never computed; inside, a mask hides what is no ancestor.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch

QUERIES_PER_TILE = 192
# Attention weights up to this size are kept for the backward pass; above it they are computed again.
KEPT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Tile:
    """Queries [begin, end) of the sequence see keys [first_key, end), where ``mask`` [end - begin, end - first_key] is
    added to the scores.
    """

    first_key: int
    begin: int
    end: int
    mask: torch.Tensor


def make_tiles(ends: torch.Tensor, positions: torch.Tensor, window: int | None, dtype: torch.dtype) -> list[Tile]:
    """The tiles of a batch of packed rows.

    Args:
        ends: [B, L] int32 on the CPU: token k of a row is seen by its tokens k to ends[k] - 1, itself included.
        positions: [B, L] int64. window: positions that a token looks back at, its own counted; None: all.
        dtype: of the masks.
    """
    num_rows, length = ends.shape
    tiles: list[Tile] = []
    for row in range(num_rows):
        row_ends = ends[row].tolist()
        first = 0
        while first < length:
            last = row_ends[first]
            if last - first > 1:  # a token that nobody else sees is padding
                count = -(-(last - first) // QUERIES_PER_TILE)
                cuts = [first + (last - first) * cut // count for cut in range(count + 1)]
                for begin, end in itertools.pairwise(cuts):
                    keys = torch.arange(first, end, dtype=ends.dtype)
                    queries = keys[begin - first :, None]
                    seen = (queries >= keys) & (queries < ends[row, first:end])
                    if window is not None:
                        seen &= positions[row, begin:end, None] - positions[row, first:end] < window
                    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
                    offset = row * length
                    tiles.append(Tile(first + offset, begin + offset, end + offset, mask))
            first = last
    return tiles


def tile_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tiles: list[Tile],
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of all tiles; queries outside of them get zeros.

    Args:
        query: [Hq, T, D]. key: [Hkv, T, D]. value: [Hkv, T, Dv]. All of one dtype.
        softcap: scores become softcap * tanh(score / softcap).
        sinks: [Hq], a score per head that takes part in the softmax and has no value.

    Returns:
        [Hq, T, Dv].
    """
    return _TileAttention.apply(query, key, value, sinks, tiles, scale, softcap)


class _TileAttention(torch.autograd.Function):
    """With g = Hq / Hkv, a tile of n queries is [Hkv, g * n, D]: the heads that share keys are rows of one product."""

    @staticmethod
    def forward(
        ctx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        tiles: list[Tile],
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        num_heads, num_tokens, _ = query.shape
        query, key, value = (query * scale).contiguous(), key.contiguous(), value.contiguous()
        grouped = query.view(key.shape[0], -1, num_tokens, query.shape[2])
        output = query.new_zeros(key.shape[0], grouped.shape[1], num_tokens, value.shape[2])
        kept_bytes = query.element_size() * num_heads * sum(tile.mask.numel() for tile in tiles)
        kept: list[torch.Tensor] = []
        for tile in tiles:
            weights = _weights(grouped, key, sinks, tile, softcap)
            part = torch.bmm(_of_keys(weights, tile), value[:, tile.first_key : tile.end])
            output[:, :, tile.begin : tile.end] = part.view(*grouped.shape[:2], -1, part.shape[2])
            if kept_bytes <= KEPT_BYTES:
                kept.append(weights)
        ctx.save_for_backward(grouped, key, value, sinks, *kept)
        ctx.tiles, ctx.scale, ctx.softcap = tiles, scale, softcap
        return output.view(num_heads, num_tokens, -1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        grouped, key, value, sinks, *kept = ctx.saved_tensors
        gradient = gradient.view(*grouped.shape[:3], -1)
        query_gradient, key_gradient, value_gradient = (torch.zeros_like(tensor) for tensor in (grouped, key, value))
        sinks_gradient = None if sinks is None else torch.zeros_like(sinks)
        for number, tile in enumerate(ctx.tiles):
            weights = kept[number] if kept else _weights(grouped, key, sinks, tile, ctx.softcap)
            keys, queries = slice(tile.first_key, tile.end), slice(tile.begin, tile.end)
            tile_gradient = _rows(gradient, queries)
            value_gradient[:, keys].baddbmm_(_of_keys(weights, tile).transpose(1, 2), tile_gradient)
            scores = torch.bmm(tile_gradient, value[:, keys].transpose(1, 2))
            if sinks_gradient is not None:
                scores = torch.nn.functional.pad(scores, (0, 1))
            scores = torch._softmax_backward_data(scores, weights, -1, weights.dtype)
            if sinks_gradient is not None:
                sinks_gradient += scores[..., -1].reshape(len(sinks), -1).sum(1)
                scores = _of_keys(scores, tile)
            if ctx.softcap is not None:
                scores = scores * (1 - (_capped(grouped, key, tile, ctx.softcap) / ctx.softcap).square_())
            part = torch.bmm(scores, key[:, keys])
            query_gradient[:, :, queries] = part.view(*grouped.shape[:2], -1, part.shape[2])
            key_gradient[:, keys].baddbmm_(scores.transpose(1, 2), _rows(grouped, queries))
        query_gradient = (query_gradient * ctx.scale).flatten(0, 1)
        return query_gradient, key_gradient, value_gradient, sinks_gradient, None, None, None


def _weights(
    grouped: torch.Tensor, key: torch.Tensor, sinks: torch.Tensor | None, tile: Tile, softcap: float | None
) -> torch.Tensor:
    """Attention weights [Hkv, g * n, keys] of a tile, with sinks one more column for theirs."""
    scores = _capped(grouped, key, tile, softcap)
    scores.view(-1, *tile.mask.shape).add_(tile.mask)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(scores.shape[0], -1, 1).expand(-1, -1, tile.end - tile.begin)
        scores = torch.cat((scores, column.reshape(*scores.shape[:2], 1)), -1)
    return torch.softmax(scores, -1)


def _capped(grouped: torch.Tensor, key: torch.Tensor, tile: Tile, softcap: float | None) -> torch.Tensor:
    """Scores [Hkv, g * n, keys] of a tile before anything is hidden."""
    queries = _rows(grouped, slice(tile.begin, tile.end))
    scores = torch.bmm(queries, key[:, tile.first_key : tile.end].transpose(1, 2))
    return scores if softcap is None else scores.div_(softcap).tanh_().mul_(softcap)


def _of_keys(weights: torch.Tensor, tile: Tile) -> torch.Tensor:
    """Without the column of a sink."""
    return weights[..., : tile.end - tile.first_key]


def _rows(grouped: torch.Tensor, queries: slice) -> torch.Tensor:
    """[Hkv, g, T, D] -> [Hkv, g * n, D]."""
    return grouped[:, :, queries].reshape(grouped.shape[0], -1, grouped.shape[3])
