"""Attention for transformers models under the name "apar".

One function with two doors. A layer whose cache is a ``PagedCache`` goes to the tree kernels, which take the
structure from the cache's step and want no mask. Every other call (``model.generate``, training, evaluation) is plain
attention, which equals transformers' own ``sdpa`` and ``eager``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import apar_ext
from apar.cache import ATTENTION_NAME, PAGED_LENGTH, PagedLayer


def register() -> None:
    """Make ``attn_implementation="apar"`` known to transformers, for attention and masks.

    Both are needed: a name that is registered for attention alone gets no mask, and padding is then ignored
    without a word.
    """
    AttentionInterface.register(ATTENTION_NAME, apar_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, apar_mask)


def apar_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | PagedLayer,
    value: torch.Tensor | PagedLayer,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, in the form that transformers calls.

    Head counts come from the tensors, so that a tensor-parallel layer works on its local heads.

    Args:
        module: the attention layer; ``module.is_causal`` decides about causality where there is no mask.
        query: [B, Hq, L, D].
        key, value: [B, Hkv, Lk, D], or the layer of a ``PagedCache``, as its ``update`` returned it.
        attention_mask: [B or 1, Hq or 1, L, Lk] bool (True = visible) or float (added), or None. Always None with a
            ``PagedCache``.
        dropout: probability, applied to the attention weights.
        scaling: factor of the scores; 1/sqrt(D) if None.
        softcap: scores become ``softcap * tanh(score / softcap)``.
        s_aux: [Hq] sinks, one extra logit per head in the softmax denominator.
        is_causal: overrides ``module.is_causal``.

    Returns:
        ([B, L, Hq, D], None). Like ``sdpa``, it gives no attention weights.

    Raises:
        ValueError: with a ``PagedCache``, on a mask, on a gradient, or on an argument the tree kernels do not know.
    """
    if isinstance(key, PagedLayer):
        return _paged_attention(module, query, key, attention_mask, dropout, scaling, softcap, s_aux, kwargs), None
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    if kwargs.get("position_bias") is not None:
        raise ValueError("apar attention: position_bias together with softcap or sinks is not supported, expected None")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    output = _dense_attention(
        query, key, value, attention_mask, dropout if module.training else 0.0, scaling, softcap, s_aux, is_causal
    )
    return output, None


def apar_mask(batch_size: int, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask of one layer type: None with a ``PagedCache``, else what ``sdpa`` gets.

    That is bool [B, 1, L, Lk], True = visible, or None where plain causality is enough.

    The cache is no argument of a mask function; a ``PagedCache`` makes itself known by the impossible length it
    reports. Without this, transformers would build a causal mask over row numbers, which is wrong for a tree and costs
    more than the attention.
    """
    if kwargs.get("kv_length") != PAGED_LENGTH:
        return sdpa_mask(batch_size, *args, **kwargs)
    _refuse_mask(kwargs.get("attention_mask"))
    if not kwargs.get("allow_is_causal_skip", True):
        raise ValueError(
            "this model adds its own pattern to the causal mask (bidirectional, image blocks or the like), "
            "expected plain causal or sliding-window attention with a PagedCache"
        )
    return None


def _refuse_mask(attention_mask: torch.Tensor | None) -> None:
    if attention_mask is not None:
        raise ValueError(
            f"attention_mask: came with shape {list(attention_mask.shape)}, expected None with a PagedCache, "
            "whose step says what every row may see"
        )


# Arguments that change what a layer computes and that the tree kernels do not know; None means absent.
_UNSUPPORTED_IN_PAGED_ATTENTION = ("position_bias", "indices", "block_indices", "sinks")


def _paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    layer: PagedLayer,
    attention_mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    others: dict[str, Any],
) -> torch.Tensor:
    _refuse_mask(attention_mask)
    if query.requires_grad and torch.is_grad_enabled():
        raise ValueError("PagedCache: the query requires a gradient, expected a call under torch.no_grad()")
    if dropout:
        raise ValueError(f"PagedCache: attention dropout is {dropout}, expected 0 (call model.eval())")
    for name in _UNSUPPORTED_IN_PAGED_ATTENTION:
        if others.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} passes {name}, which attention over a PagedCache does not support"
            )
    batch_size, num_heads, length, head_dim = query.shape
    output = apar_ext.tree_attention(
        query.transpose(1, 2).reshape(-1, num_heads, head_dim),
        layer.keys,
        layer.values,
        layer.plan,
        scale=scaling,
        softcap=softcap or 0.0,
        sinks=sinks,
        k_scale=layer.k_scale,
        v_scale=layer.v_scale,
    )
    return output.view(batch_size, length, num_heads, head_dim)


def _dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    """Attention with a soft cap or sinks, which SDPA cannot do."""
    batch_size, num_heads, length, head_dim = query.shape
    num_kv_heads = key.shape[1]
    if attention_mask is None and is_causal and length > 1:
        # No mask and more keys than queries: a static cache whose rest is still empty.
        key, value = key[:, :, :length], value[:, :, :length]
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
    if scaling is None:
        scaling = head_dim**-0.5

    packed_query = query.reshape(batch_size, num_kv_heads, -1, head_dim)
    scores = torch.matmul(packed_query, key.transpose(2, 3)) * scaling
    scores = scores.view(batch_size, num_heads, length, key.shape[2])
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            # Added as eager adds it, the lowest finite number and not -inf: rows of padding alone stay finite and have
            # the same gradients.
            lowest = scores.new_full((), torch.finfo(scores.dtype).min)
            attention_mask = torch.where(attention_mask, scores.new_zeros(()), lowest)
        scores = scores + attention_mask
    if sinks is not None:
        sink_scores = sinks.to(scores.dtype).view(1, num_heads, 1, 1).expand(batch_size, -1, length, 1)
        scores = torch.cat([scores, sink_scores], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)[..., : key.shape[2]].to(value.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout)
    output = torch.matmul(weights.reshape(batch_size, num_kv_heads, -1, key.shape[2]), value)
    return output.view(batch_size, num_heads, length, value.shape[-1]).transpose(1, 2).contiguous()
