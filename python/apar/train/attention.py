"""Attention over packed rows of trees: one mask for a batch, the same for every layer that sees as much.

A model gets the batch as one sequence ``[1, B * L]``, so that it computes logits at the targets of all rows alone. The
structure travels as ``attention_mask``: what has four dimensions, transformers passes on to every layer untouched.

- ``"apar_tiles"``: for a CPU, see `tile_attention.py`; the mask carries the tiles;
- ``"flex_attention"``: transformers' own, for a GPU; the mask is a ``BlockMask``, blocks that nobody sees cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from apar.cache import UnsupportedModelError, attention_windows
from apar.train.tile_attention import Tile, make_tiles, tile_attention

TILE_ATTENTION = "apar_tiles"
FLEX_ATTENTION = "flex_attention"
FLEX_BLOCK = 128
DROPOUT_KEYS = ("attention_dropout", "attn_pdrop")
"""What configurations of transformers call the dropout of attention weights."""


def register() -> None:
    """Make ``attn_implementation="apar_tiles"`` known to transformers."""
    AttentionInterface.register(TILE_ATTENTION, packed_attention)
    AttentionMaskInterface.register(TILE_ATTENTION, _no_mask)


def implementation_for(device: torch.device, config: Any, asked: str = "auto") -> str:
    """The attention to train with on a device.

    config: the model's configuration.

    Raises ValueError: another one was asked for, or the model wants dropout, which neither of them has.
    """
    found = FLEX_ATTENTION if device.type == "cuda" else TILE_ATTENTION
    if asked not in ("auto", found):
        raise ValueError(f"attention: {asked} cannot be trained with on a {device.type} device, expected {found}")
    config = config.get_text_config(decoder=True)
    for name in DROPOUT_KEYS:
        if getattr(config, name, None):
            raise ValueError(_no_dropout(f"{config.model_type}, {name}", getattr(config, name)))
    return found


class TileMask(torch.Tensor):
    """The tiles of a batch in the form of a mask of four dimensions."""

    tiles: list[Tile]

    @staticmethod
    def of(tiles: list[Tile]) -> TileMask:
        mask = torch.empty(1, 1, 1, 1).as_subclass(TileMask)
        mask.tiles = tiles
        return mask


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: TileMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over packed rows on a CPU, in the form that transformers calls.

    Args:
        query: [1, Hq, T, D]. key, value: [1, Hkv, T, D].
        attention_mask: made by `training_masks`.
        scaling: factor of the scores; 1/sqrt(D) if None. softcap, s_aux: see ``tile_attention`` (``sinks`` there).

    Returns:
        ([1, T, Hq, D], None).

    Raises:
        ValueError: another mask, or dropout, which it cannot do.
    """
    if not isinstance(attention_mask, TileMask):
        raise ValueError(
            f"attention {TILE_ATTENTION!r}: expected a mask made by training_masks, got {attention_mask!r:.60}"
        )
    if dropout and module.training:
        raise ValueError(_no_dropout(type(module).__name__, dropout))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    # In mixed precision rotary positions give fp32 queries and keys beside bf16 values.
    dtype = attention_mask.tiles[0].mask.dtype if attention_mask.tiles else value.dtype
    query, key, value = (tensor[0].to(dtype) for tensor in (query, key, value))
    output = tile_attention(query, key, value, attention_mask.tiles, scale, softcap, s_aux)
    return output.transpose(0, 1).unsqueeze(0), None


def training_masks(
    config: Any, implementation: str, ends: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype
) -> Any:
    """What to pass to the model as ``attention_mask``: one mask, or one per type of layer.

    Args:
        config: the model's configuration, which says what layers see a window.
        ends: [B, L] int32 as in ``PackedRow``. positions: [1, B * L] int64.
        dtype: of the queries, for masks that are added to scores.
    """
    windows = set(attention_windows(config))
    rows_of_positions = positions.view(ends.shape)
    # A window as long as any path hides nothing.
    longest = int(rows_of_positions.max()) + 1 if windows != {None} else 0
    windows = {None if window is None or window >= longest else window for window in windows}
    masks: dict[int | None, Any] = {}
    for window in windows:
        if implementation == FLEX_ATTENTION:
            masks[window] = _block_mask(ends, rows_of_positions, window)
        else:
            masks[window] = TileMask.of(make_tiles(ends, rows_of_positions, window, dtype))
    if len(masks) == 1:
        return next(iter(masks.values()))
    if getattr(config.get_text_config(decoder=True), "layer_types", None) is None:
        raise UnsupportedModelError(f"{config.model_type}: some layers see a window, but the config does not name them")
    full = masks[None]
    [window] = set(masks) - {None}
    return {"full_attention": full, "sliding_attention": masks[window]}


def _block_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None) -> Any:
    """The same rule for FlexAttention. Which blocks are seen follows from the ends of each block of keys: the whole
    mask, which torch would build to find out, is never there.
    """
    from torch.nn.attention.flex_attention import BlockMask

    num_rows, length = ends.shape
    total = num_rows * length
    offsets = torch.arange(num_rows, dtype=ends.dtype, device=ends.device)[:, None] * length
    flat_ends, flat_positions = (ends + offsets).flatten(), positions.flatten()

    def sees(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        seen = (q >= k) & (q < flat_ends[k])
        if window is not None:
            seen = seen & (flat_positions[q] - flat_positions[k] < window)
        return seen

    num_blocks = -(-total // FLEX_BLOCK)
    rest = num_blocks * FLEX_BLOCK - total
    latest = torch.nn.functional.pad(flat_ends, (0, rest)).view(num_blocks, FLEX_BLOCK).amax(1)
    earliest = torch.nn.functional.pad(flat_ends, (0, rest), value=total).view(num_blocks, FLEX_BLOCK).amin(1)
    block = torch.arange(num_blocks, device=ends.device)
    first = (block * FLEX_BLOCK)[:, None]  # query of each block of queries
    before = block[:, None] > block[None, :]
    # Keys of an earlier block are seen if one of them is seen by the block's first query.
    some = (block[:, None] == block[None, :]) | (before & (latest > first))
    every = before & (earliest >= (first + FLEX_BLOCK).clamp(max=total)) & (window is None)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~every), *_ordered(every), BLOCK_SIZE=FLEX_BLOCK, mask_mod=sees, seq_lengths=(total, total)
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[Q, K] bool as FlexAttention wants it: per block of queries the number of blocks [1, 1, Q], and their numbers in
    front of all others [1, 1, Q, K], both int32.
    """
    order = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], order.int()[None, None]


def _no_dropout(where: str, dropout: float) -> str:
    return (
        f"{where}: the model's config asks for attention dropout {dropout:g}, expected 0: "
        "attention over packed trees has none"
    )


def _no_mask(*args: Any, **kwargs: Any) -> None:
    raise ValueError(f"attention {TILE_ATTENTION!r}: expected a mask made by training_masks, got none")
