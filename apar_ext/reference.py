"""The operators in plain torch, written to be read: the specification that kernels are tested against.

Any float dtype, float64 included; slow on purpose where speed would cost clarity.
"""

from __future__ import annotations

import math

import torch

__all__ = ["append_kv", "greedy_tokens", "mask_logits_", "sample_tokens", "tree_attention"]


def append_kv(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Row r of k and v, ``[R, Hkv, D]``, goes to page ``slots[r] // page_size``, offset ``slots[r] % page_size``.

    Into float8_e4m3fn caches as ``to_e4m3(x / scale)``; the scales are ``[Hkv]``, None: 1.
    """
    if k_cache.dtype == torch.float8_e4m3fn and k.dtype != k_cache.dtype:
        k, v = (to_e4m3(x.float() / (1 if s is None else s[:, None])) for x, s in ((k, k_scale), (v, v_scale)))
    page_size = k_cache.shape[2]
    for row, slot in enumerate(slots.tolist()):
        if slot == -1:
            continue
        page, offset = divmod(slot, page_size)
        k_cache[page, :, offset] = k[row]
        v_cache[page, :, offset] = v[row]


def to_e4m3(numbers: torch.Tensor) -> torch.Tensor:
    """float32 to the nearest float8_e4m3fn, of two the even one; beyond 448 to 448, any NaN to 0x7f."""
    bits = numbers.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return bits.masked_fill(numbers.isnan(), 0x7F).view(torch.float8_e4m3fn)


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    row_indptr: torch.Tensor,
    range_stream: torch.Tensor,
    range_begin: torch.Tensor,
    range_end: torch.Tensor,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    return_lse: bool = False,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Every row attends to the concatenation of its ranges.

    Args:
        q: ``[R, Hq, D]``; query head h reads KV head ``h // (Hq // Hkv)``.
        k_cache: ``[num_pages, Hkv, page_size, D]``.
        v_cache: as ``k_cache``.
        page_table: ``[S, max_pages]``: entry i of stream s lies in page ``page_table[s, i // page_size]`` at offset
            ``i % page_size``.
        row_indptr: ``[R + 1]``: row r reads ranges ``row_indptr[r]`` to ``row_indptr[r + 1] - 1``.
        range_stream: ``[N]``: the stream of each range.
        range_begin: ``[N]``: its first entry.
        range_end: ``[N]``: the entry after its last one.
        scale: factor on the scores, default ``D ** -0.5``.
        softcap: scores become ``softcap * tanh(scores / softcap)``; 0: off.
        sinks: ``[Hq]``, one more score per head that takes its share of the softmax and has no value; None: off.
        return_lse: also return the log of the softmax's denominator.
        k_scale: ``[Hkv]``, what each head's keys are multiplied with; None: 1.
        v_scale: as ``k_scale``, of the values.

    Returns:
        ``[R, Hq, D]`` in q's dtype; with ``return_lse`` also ``[R, Hq]`` in float32 (float64 for a float64 q): the
        natural logarithm. A row without entries has output 0 and lse -inf (with sinks: the sink).
    """
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[1]
    group = num_heads // num_kv_heads
    scale = head_dim**-0.5 if scale is None else scale
    compute_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

    out = torch.zeros(num_rows, num_heads, head_dim, dtype=compute_dtype, device=q.device)
    lse = torch.full((num_rows, num_heads), -math.inf, dtype=compute_dtype, device=q.device)
    ranges = list(zip(range_stream.tolist(), range_begin.tolist(), range_end.tolist(), strict=True))
    bounds = row_indptr.tolist()
    for row in range(num_rows):
        row_ranges = ranges[bounds[row] : bounds[row + 1]]
        k = gather_ranges(k_cache, page_table, row_ranges).to(compute_dtype)
        v = gather_ranges(v_cache, page_table, row_ranges).to(compute_dtype)
        k = k if k_scale is None else k * k_scale[:, None, None].to(compute_dtype)
        v = v if v_scale is None else v * v_scale[:, None, None].to(compute_dtype)

        # Query heads that share a KV head stand next to each other: [Hq, D] -> [Hkv, group, D].
        grouped_q = q[row].to(compute_dtype).view(num_kv_heads, group, head_dim)
        scores = grouped_q @ k.transpose(1, 2) * scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(compute_dtype).view(num_kv_heads, group, 1)], dim=2)
        if scores.shape[2] == 0:
            continue

        row_lse = torch.logsumexp(scores, dim=2)
        weights = torch.exp(scores - row_lse[:, :, None])[:, :, : k.shape[1]]
        out[row] = (weights @ v).flatten(0, 1)
        lse[row] = row_lse.flatten()
    out = out.to(q.dtype)
    return (out, lse) if return_lse else out


def gather_ranges(cache: torch.Tensor, page_table: torch.Tensor, ranges: list[tuple[int, int, int]]) -> torch.Tensor:
    """The entries of ``(stream, begin, end)`` ranges, one after the other: ``[Hkv, entries, D]``."""
    page_size = cache.shape[2]
    parts = [cache.new_zeros(cache.shape[1], 0, cache.shape[3])]
    for stream, begin, end in ranges:
        index = torch.arange(begin, end, device=cache.device)
        pages = page_table[stream, index // page_size]
        parts.append(cache[pages, :, index % page_size].transpose(0, 1))
    return torch.cat(parts, dim=1)


def mask_logits_(logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> torch.Tensor:
    """-inf in the child column of every row, and in the fork column of rows with ``may_fork == 0``; -1: no column."""
    if child_token >= 0:
        logits[:, child_token] = -math.inf
    if fork_token >= 0:
        logits[may_fork == 0, fork_token] = -math.inf
    return logits


def greedy_tokens(
    logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int = -1, child_token: int = -1
) -> torch.Tensor:
    """See ``apar_ext.greedy_tokens``; any float dtype."""
    masked = mask_logits_(logits.clone(), may_fork, fork_token, child_token)
    best = masked.amax(dim=-1, keepdim=True)  # NaN where there is one
    first = (masked == best).int().argmax(dim=-1).int()
    return torch.where(best.squeeze(-1).isfinite(), first, -1)


def token_weights(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """logits: [V] float32 -> [V] int64: how likely each token is, in units of 2^-40 of the likeliest one."""
    factor = min(max(math.log2(math.e) / temperature, torch.finfo(torch.float32).tiny), torch.finfo(torch.float32).max)
    power = (logits - logits.max()) * torch.tensor(factor, dtype=torch.float32)
    is_weighed = power > -41
    power = power.masked_fill(~is_weighed, 0)
    whole = (power - 0.5).int()
    rest = power - whole
    value = torch.zeros_like(rest)
    for coefficient in (math.log(2) ** k / math.factorial(k) for k in range(7, -1, -1)):
        value = value * rest + coefficient
    return torch.where(is_weighed, (value * 2**23).long() << 17 >> -whole.long(), 0)


def sample_tokens(
    logits: torch.Tensor,
    may_fork: torch.Tensor,
    numbers: torch.Tensor,
    fork_token: int = -1,
    child_token: int = -1,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """See ``apar_ext.sample_tokens``."""
    tokens = []
    for row, number in zip(
        mask_logits_(logits.float().clone(), may_fork, fork_token, child_token), numbers, strict=True
    ):
        if not row.max().isfinite():  # NaN, too
            tokens.append(-1)
            continue
        weights = token_weights(row, temperature)
        if 0 < top_k < len(row):
            weights[row < row.topk(top_k).values[-1]] = 0
        if top_p < 1:
            bound = -(-int(top_p * 2**64) * int(weights.sum()) // 2**64)
            _, order = row.sort(descending=True, stable=True)
            before = weights[order].cumsum(0) - weights[order]
            weights[order[before >= bound]] = 0
        place = (int(number) % 2**64 >> 11 << 11) * int(weights.sum()) >> 64
        tokens.append(int(torch.searchsorted(weights.cumsum(0), place, right=True)))
    return torch.tensor(tokens, dtype=torch.int32)
