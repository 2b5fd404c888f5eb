"""Attention over ranges of paged streams: the plan of a step and the operator that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import torch

from apar_ext._fake import check_same_device

__all__ = ["Plan", "make_plan", "schedule_size", "tree_attention"]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which entries every row of a step reads, and in which order a kernel walks them. Made once, used by every layer.

    ``make_plan`` returns one. Whoever keeps the tensors elsewhere (the forest does) may build it from them; the
    schedule must then have been written for these very ranges, and the tensors must not change while it is in use.
    """

    page_table: torch.Tensor  #: [S, max_pages] int32: page of entries [i * page_size, (i + 1) * page_size) of a stream
    row_indptr: torch.Tensor  #: [R + 1] int32: row r reads ranges row_indptr[r] to row_indptr[r + 1] - 1
    range_stream: torch.Tensor  #: [N] int32
    range_begin: torch.Tensor  #: [N] int32, first entry
    range_end: torch.Tensor  #: [N] int32, the entry after the last
    schedule: torch.Tensor  #: int32: [schedule_size(R, N)], csrc/core/plan.h; on CUDA a work list, csrc/core/work.h
    num_kv_heads: int
    group_size: int  #: query heads per KV head
    page_size: int
    max_page: int | None = None  #: the largest page id that a range meets; None: not known

    @property
    def num_rows(self) -> int:
        return self.row_indptr.shape[0] - 1


def make_plan(
    page_table: torch.Tensor,
    row_indptr: torch.Tensor,
    range_stream: torch.Tensor,
    range_begin: torch.Tensor,
    range_end: torch.Tensor,
    *,
    num_kv_heads: int,
    group_size: int,
    page_size: int,
    batch_invariant: bool = True,
) -> Plan:
    """Plans the attention of R rows, each of which reads a list of ranges of streams.

    Any set of ranges is legal: trees, joins, windows (``begin > 0``), prefill (rows of one stream with growing
    ``end``), empty ranges, rows without any, the same stream twice in a row (entries in both ranges count twice). Rows
    that read the same streams should stand next to each other, as in a depth-first order of the branches: neighbours
    that do share one reading of the KV.

    Args:
        page_table: ``[S, max_pages]`` int32, contiguous. Entry i of stream s lies in page
            ``page_table[s, i // page_size]`` at offset ``i % page_size``. Table entries that no range reads may hold
            any number.
        row_indptr: ``[R + 1]`` int32, ascending from 0: row r reads ranges ``row_indptr[r]`` to
            ``row_indptr[r + 1] - 1``. Its last number may be less than N; the ranges after it are not looked at.
        range_stream: ``[N]`` int32, 0 to S - 1.
        range_begin: ``[N]`` int32, the first entry of each range.
        range_end: ``[N]`` int32, the entry after its last one, at most ``max_pages * page_size``.
        num_kv_heads: KV heads of the caches.
        group_size: query heads per KV head; ``num_kv_heads * group_size`` is at most 1024.
        page_size: entries per page: 8, 16, 32, 64 or 128.
        batch_invariant: a row's output has the same bits whatever other rows are planned with it. Without, a CUDA
            device writes fewer partial results where it shares out long reads, and the last bits of a row's output
            depend on how they were cut; the same plan still gives the same bits. Nothing changes on a CPU.

    On a CUDA device this is one launch that waits for nothing. Numbers in the tensors are then looked at on the device
    alone: ranges that are wrong are left out, and a later call raises what was wrong with them.

    Returns:
        The plan. Under the same arguments it is always the same.

    Raises:
        ValueError: a dtype, shape or device is not as above, or a number is out of range.
    """
    tensors = (page_table, row_indptr, range_stream, range_begin, range_end)
    schedule = torch.ops.apar.make_plan(*tensors, num_kv_heads, group_size, page_size, batch_invariant)
    return Plan(*tensors, schedule, num_kv_heads=num_kv_heads, group_size=group_size, page_size=page_size)


@overload
def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: Plan,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    return_lse: Literal[False] = False,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor: ...


@overload
def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: Plan,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    return_lse: Literal[True],
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]: ...


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: Plan,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    return_lse: bool = False,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Every row attends to the concatenation of its ranges.

    An output row depends on its own query and list of ranges alone: it has the same bits whatever other rows are in the
    call and however many threads run. KV that a row does not read may hold anything, NaN included.

    Args:
        q: ``[R, Hq, D]`` float32, float16 or bfloat16; the last dimension is contiguous, the others may have any
            stride. Query head h reads KV head ``h // (Hq // Hkv)``. D is 32, 64, 80, 96, 128 or 256.
        k_cache: ``[num_pages, Hkv, page_size, D]``, contiguous, device of ``q``, dtype of ``q`` or float8_e4m3fn.
        v_cache: as ``k_cache``.
        plan: made for R rows, Hkv KV heads, groups of ``Hq // Hkv`` and this page size.
        scale: factor on the scores, default ``D ** -0.5``.
        softcap: scores become ``softcap * tanh(scores / softcap)``; 0: off.
        sinks: ``[Hq]`` float32 or in q's dtype: one more score per head, which takes its share of the softmax and has
            no value.
        return_lse: also return the log of the softmax's denominator.
        k_scale: ``[Hkv]`` float32, contiguous, above 0, for float8_e4m3fn caches alone: what each head's stored keys
            are multiplied with; None: 1.
        v_scale: as ``k_scale``, of the values.

    Returns:
        ``[R, Hq, D]``, contiguous, in q's dtype; with ``return_lse`` also ``[R, Hq]`` float32: the natural logarithm,
        sink included. A row that reads nothing has output 0 and lse -inf (with sinks: the sink).

    Raises:
        ValueError: a dtype, shape, stride, device or number is not as above, the plan was made for other sizes or meets
            a page that the caches do not have, or a gradient would be needed: this operator has none.
    """
    if torch.is_grad_enabled() and (
        q.requires_grad or k_cache.requires_grad or v_cache.requires_grad or (sinks is not None and sinks.requires_grad)
    ):
        raise ValueError("tree_attention: an argument requires a gradient, expected a call under torch.no_grad()")
    if plan.schedule.is_cuda:
        check_plan_fits(q, k_cache, plan)
    out, lse = torch.ops.apar.tree_attention(
        q,
        k_cache,
        v_cache,
        plan.page_table,
        plan.schedule,
        q.shape[-1] ** -0.5 if scale is None else scale,
        softcap,
        sinks,
        return_lse,
        k_scale,
        v_scale,
    )
    return (out, lse) if return_lse else out


def check_plan_fits(q: torch.Tensor, k_cache: torch.Tensor, plan: Plan) -> None:
    """Raises ValueError unless the plan was made for these sizes and these pages, as far as the host knows them.

    On the CPU the operator reads them in the schedule itself; on a GPU that would wait for the device.
    """
    if q.dim() != 3 or k_cache.dim() != 4:
        return  # the operator says so
    num_pages, num_kv_heads, page_size, _ = k_cache.shape
    for what, planned, found, where in (
        ("rows R =", plan.num_rows, q.shape[0], "q"),
        ("num_kv_heads", plan.num_kv_heads, num_kv_heads, "k_cache"),
        ("page_size", plan.page_size, page_size, "k_cache"),
    ):
        if planned != found:
            raise ValueError(f"tree_attention: plan was made for {what} {planned}, expected {found} as {where} has")
    if plan.group_size * num_kv_heads != q.shape[1]:
        raise ValueError(
            f"tree_attention: plan was made for group_size {plan.group_size}, expected Hq / Hkv = "
            f"{q.shape[1]} / {num_kv_heads}"
        )
    if plan.max_page is not None and plan.max_page >= num_pages:
        raise ValueError(
            f"tree_attention: page_table has page id {plan.max_page} in a range, expected 0 to num_pages - 1 = "
            f"{num_pages - 1}"
        )


def schedule_size(num_rows: int, num_ranges: int) -> int:
    """Length of the schedule of a plan over at most ``num_rows`` rows and ``num_ranges`` ranges."""
    return 2 * num_rows + 6 * num_ranges + 19


@torch.library.register_fake("apar::make_plan")
def _(
    page_table: torch.Tensor,
    row_indptr: torch.Tensor,
    range_stream: torch.Tensor,
    range_begin: torch.Tensor,
    range_end: torch.Tensor,
    num_kv_heads: int,
    group_size: int,
    page_size: int,
    batch_invariant: bool = True,
) -> torch.Tensor:
    check_same_device(
        "make_plan",
        page_table=page_table,
        row_indptr=row_indptr,
        range_stream=range_stream,
        range_begin=range_begin,
        range_end=range_end,
    )
    return row_indptr.new_empty(schedule_size(row_indptr.shape[0] - 1, range_stream.shape[0]))


@torch.library.register_fake("apar::make_work")
def _(schedule: torch.Tensor, multiprocessors: int, batch_invariant: bool = True) -> torch.Tensor:
    # Its length follows from numbers in the schedule.
    return schedule.new_empty(torch.library.get_ctx().new_dynamic_size())


@torch.library.register_fake("apar::tree_attention")
def _(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    schedule: torch.Tensor,
    scale: float,
    softcap: float,
    sinks: torch.Tensor | None,
    return_lse: bool,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_same_device(
        "tree_attention",
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        page_table=page_table,
        schedule=schedule,
        sinks=sinks,
        k_scale=k_scale,
        v_scale=v_scale,
    )
    lse_shape = q.shape[:2] if return_lse else (0,)
    return q.new_empty(q.shape), q.new_empty(lse_shape, dtype=torch.float32)
