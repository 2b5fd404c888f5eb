"""Attention over packed rows of trees: one mask for a batch, the same for every layer that sees as much.

A model gets the batch as one sequence ``[1, B * L]``, so that it computes logits at the targets of all rows alone. Its
attention looks at the rows one by one. What transformers passes on untouched, and what therefore carries the structure,
is a mask of four dimensions:

- ``"apar_rows"``: plain attention of torch, on any device; the mask is ``[B, 1, L, L]``, added to the scores;
- ``"flex_attention"``: transformers' own, for a GPU; the mask is a ``BlockMask`` over the whole sequence, and blocks
  that nobody sees cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from apar.cache import UnsupportedModelError, attention_windows

ROWS_ATTENTION = "apar_rows"
FLEX_ATTENTION = "flex_attention"


def register() -> None:
    """Make ``attn_implementation="apar_rows"`` known to transformers."""
    AttentionInterface.register(ROWS_ATTENTION, rows_attention)
    AttentionMaskInterface.register(ROWS_ATTENTION, _no_mask)


def implementation_for(device: torch.device) -> str:
    """The attention to train with on a device."""
    return FLEX_ATTENTION if device.type == "cuda" else ROWS_ATTENTION


def rows_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over B rows of L tokens that lie one behind the other.

    Args:
        query: [1, Hq, B * L, D]. key, value: [1, Hkv, B * L, D].
        attention_mask: [B, 1, L, L], added to the scores.
        dropout: probability, applied to the attention weights. scaling: factor of the scores; 1/sqrt(D) if None.

    Returns:
        ([1, B * L, Hq, D], None).
    """
    if softcap is not None or s_aux is not None:
        raise ValueError(f"{type(module).__name__}: soft caps and sinks need attention: flex_attention")
    num_rows, _, length, _ = attention_mask.shape
    query, key, value = (_rows(tensor, num_rows, length) for tensor in (query, key, value))
    output = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask.to(query.dtype),
        dropout_p=dropout if module.training else 0.0,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).reshape(1, num_rows * length, query.shape[1], value.shape[3]), None


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
    make = _block_mask if implementation == FLEX_ATTENTION else _added_mask
    rows_of_positions = positions.view(ends.shape)
    # A window as long as any path hides nothing.
    longest = int(rows_of_positions.max()) + 1 if windows != {None} else 0
    windows = {None if window is None or window >= longest else window for window in windows}
    masks = {window: make(ends, rows_of_positions, window, dtype) for window in windows}
    if len(masks) == 1:
        return next(iter(masks.values()))
    if getattr(config.get_text_config(decoder=True), "layer_types", None) is None:
        raise UnsupportedModelError(f"{config.model_type}: some layers see a window, but the config does not name them")
    full = masks[None]
    [window] = set(masks) - {None}
    return {"full_attention": full, "sliding_attention": masks[window]}


def visible(ends: torch.Tensor, positions: torch.Tensor, window: int | None) -> torch.Tensor:
    """[B, L, L] bool: may token q of a row see its token k?"""
    places = torch.arange(ends.shape[1], dtype=ends.dtype, device=ends.device)
    seen = (places[:, None] >= places[None, :]) & (places[:, None] < ends[:, None, :])
    if window is not None:
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return seen


def _added_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    seen = visible(ends, positions, window)
    return torch.zeros(seen.shape, dtype=dtype, device=ends.device).masked_fill_(~seen, -torch.inf).unsqueeze(1)


def _block_mask(ends: torch.Tensor, positions: torch.Tensor, window: int | None, dtype: torch.dtype) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    num_rows, length = ends.shape
    offsets = torch.arange(num_rows, dtype=ends.dtype, device=ends.device)[:, None] * length
    flat_ends, flat_positions = (ends + offsets).flatten(), positions.flatten()

    def sees(batch: Any, head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        seen = (q >= k) & (q < flat_ends[k])
        if window is not None:
            seen = seen & (flat_positions[q] - flat_positions[k] < window)
        return seen

    return create_block_mask(sees, None, None, num_rows * length, num_rows * length, device=ends.device)


def _rows(tensor: torch.Tensor, num_rows: int, length: int) -> torch.Tensor:
    """[1, H, B * L, D] -> [B, H, L, D]."""
    return tensor.view(tensor.shape[1], num_rows, length, tensor.shape[3]).transpose(0, 1)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    raise ValueError(f"attention {ROWS_ATTENTION!r}: expected a mask made by training_masks, got none")
