"""The state of all branches in one int32 tensor, and the functions that change it.

``docs/forest.md`` describes every tensor and every transition. ``apar.Forest`` wraps these functions; they are public
for those who bring their own wrapper. In all of them ``forest`` is the whole tensor ``data``: ``[total_size]`` int32,
contiguous, as :func:`forest_layout` cuts it and :func:`forest_reset` initialises it; on the CPU, and for
:func:`advance` also on a CUDA device. All of them raise ValueError before anything is written where an argument is not
as described.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from apar_ext import _C
from apar_ext._fake import check_same_device

__all__ = [
    "FOREST_MAX_STOP_TOKENS",
    "advance",
    "forest_admit",
    "forest_cancel",
    "forest_close_shared",
    "forest_header",
    "forest_join",
    "forest_layout",
    "forest_open_shared",
    "forest_reset",
    "forest_schedule",
    "step_plan_size",
    "window_begins",
    "write_step_plans",
]

FOREST_MAX_STOP_TOKENS: int = _C.FOREST_MAX_STOP_TOKENS


def forest_layout(config: Mapping[str, object]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Where the tensors of a forest lie: name -> (offset in int32 numbers, shape). ``"data"`` is the whole tensor.

    Args:
        config: the fields of ``apar.ForestConfig`` by name.

    Raises:
        ValueError: the configuration cannot be; the text names the field.
    """
    return _C.forest_layout(dict(config))


def forest_header() -> dict[str, int]:
    """Index of every number in the header of a forest by name: the configuration and the counters."""
    return _C.forest_header()


def forest_reset(forest: torch.Tensor) -> None:
    """Empties a forest, or makes one: only the configuration is read from its header, all else is written."""
    torch.ops.apar.forest_reset(forest)


def advance(
    forest: torch.Tensor,
    sampled: torch.Tensor,
    *,
    row_limit: int | None = None,
    header: torch.Tensor | None = None,
) -> None:
    """Makes the next step from the tokens sampled in the step just run.

    On a CUDA device this is one launch that waits for nothing and may be captured in a graph. What only the device can
    see then stops the launch with a message, which the next synchronisation reports: a token below -1, fewer tokens
    than rows, a configuration other than the header's.

    Args:
        forest: the forest. Written.
        sampled: ``[n]`` int32, n >= num_rows, contiguous, device of ``forest``: the token of each row; -1 ends its
            branch. Numbers behind num_rows are ignored.
        row_limit: most rows of the next step, at least 1; branches beyond it wait. None, or more than the forest's
            max_rows: max_rows.
        header: where ``forest`` is on a CUDA device: its first numbers, the header, on the CPU: ``[64]`` int32, of
            which the configuration is read.
    """
    torch.ops.apar.advance(forest, sampled, row_limit, header)


def forest_schedule(forest: torch.Tensor) -> None:
    """Makes the next step without sampled tokens, as is needed after admitting or cancelling requests.

    Rows that have not been sampled yet keep their places: they are in the new step again, with the same token.
    """
    torch.ops.apar.forest_schedule(forest)


def forest_admit(
    forest: torch.Tensor, request: int, prompt_length: int, limit: int, last_token: int, shared_slot: int = -1
) -> int:
    """Takes up a request: opens its trunk and takes the pages of its prompt.

    The caller writes the KV entries of the prompt but for its last token, which the request's first step feeds.

    Args:
        forest: the forest. Written.
        request: any number from 0 that no running request has.
        prompt_length: tokens of the whole prompt, those of the shared stream included.
        limit: first position that may not be used: prompt_length + the tokens that each path may have.
        last_token: the prompt's last token.
        shared_slot: a shared stream that the prompt starts with, or -1.

    Returns:
        The trunk's slot, or -1: there is no room now, but there will be when others end.

    Raises:
        ValueError: also where the request could never fit, or nothing is running that would make room.
    """
    return int(torch.ops.apar.forest_admit(forest, request, prompt_length, limit, last_token, shared_slot))


def forest_open_shared(forest: torch.Tensor, length: int) -> int:
    """Opens a stream of ``length`` entries that no branch owns. Returns its slot, or -1 where there is no room now.

    The caller writes its entries. It stays until :func:`forest_close_shared` is called and no branch reads it.
    """
    return int(torch.ops.apar.forest_open_shared(forest, length))


def forest_close_shared(forest: torch.Tensor, slot: int) -> None:
    """Lets a shared stream go as soon as no branch reads it."""
    torch.ops.apar.forest_close_shared(forest, slot)


def forest_join(forest: torch.Tensor, parent: int, children: Sequence[int]) -> None:
    """Lets an unfinished branch read its finished children from its next step on.

    Args:
        forest: the forest, with ``keep_finished``. Written.
        parent: slot of an unfinished branch.
        children: slots of finished children of it that are not joined yet, in the order in which they are to be read.
    """
    slots = torch.tensor(list(children), dtype=torch.int32, device=forest.device)
    torch.ops.apar.forest_join(forest, parent, slots)


def forest_cancel(forest: torch.Tensor, request: int) -> int:
    """Ends all branches of a request now and gives back what they hold. Returns how many there were.

    Rows of the present step that belong to it write and sample nothing any more; what is sampled for them is ignored.
    """
    return int(torch.ops.apar.forest_cancel(forest, request))


def step_plan_size(rows: int, max_ranges: int, num_kv_heads: int, group_size: int, multiprocessors: int = 0) -> int:
    """int32 numbers that :func:`write_step_plans` takes per plan, on a CUDA device or (multiprocessors 0) the CPU."""
    return _C.step_plan_size(rows, max_ranges, num_kv_heads, group_size, multiprocessors)


def write_step_plans(
    forest: torch.Tensor,
    begins: torch.Tensor,
    plans: torch.Tensor,
    windows: torch.Tensor,
    rows: int,
    *,
    header: torch.Tensor | None = None,
) -> None:
    """Plans the attention of the step at hand, padded to a number of rows: for layers that see all, and with windows.

    All addresses and sizes stay from step to step, so that a CUDA graph can hold the call and the attention that
    follows. There it is one launch (for up to 8 plans) that waits for nothing; more rows in the step than ``rows`` stop
    it with a message. ``apar.Forest.step_plans`` makes the tensors. N is rows * (max_ranges + 1).

    Args:
        forest: the forest.
        begins: ``[num_plans, N]`` int32, device of ``forest``. Written: ``range_begin`` as each plan sees it.
        plans: ``[num_plans, step_plan_size(...)]`` int32, device of ``forest``. Written: the schedule of each plan.
        windows: ``[num_plans]`` int32 on the CPU: positions that a row sees, its own included; 0: all.
        rows: rows of the plans: num_rows to max_rows. Rows behind num_rows read nothing.
        header: as in :func:`advance`.
    """
    torch.ops.apar.write_step_plans(forest, begins, plans, windows, rows, header)


def window_begins(
    row_indptr: torch.Tensor,
    row_position: torch.Tensor,
    range_stream: torch.Tensor,
    range_begin: torch.Tensor,
    range_end: torch.Tensor,
    first_position: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """Clips ranges to a sliding window: entries at positions larger than the row's position - window stay.

    All tensors are int32 and contiguous, on one device.

    Args:
        row_indptr: ``[R + 1]``, ranges of row r: ``row_indptr[r]`` to ``row_indptr[r + 1]``.
        row_position: ``[R]``, position of each row.
        range_stream: ``[N]``, stream of each range.
        range_begin: ``[N]``, its first entry.
        range_end: ``[N]``, behind its last entry.
        first_position: ``[S]``, position of each stream's entry 0.
        window: positions that a row sees, its own included; at least 1.

    Returns:
        ``[N]`` int32, the first entry that the row sees; the range's end where it sees none.
    """
    arguments = (row_indptr, row_position, range_stream, range_begin, range_end, first_position, window)
    return window_begins_in_torch(*arguments) if row_indptr.is_cuda else torch.ops.apar.window_begins(*arguments)


def window_begins_in_torch(
    row_indptr: torch.Tensor,
    row_position: torch.Tensor,
    range_stream: torch.Tensor,
    range_begin: torch.Tensor,
    range_end: torch.Tensor,
    first_position: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """:func:`window_begins` in torch's operators, which wait for nothing: for tensors on a device."""
    if row_position.shape[0] == 0:
        return range_begin.clone()
    ranges = torch.arange(range_stream.shape[0], dtype=torch.int32, device=row_indptr.device)
    row = torch.searchsorted(row_indptr[1:], ranges, right=True).clamp_(max=row_position.shape[0] - 1)
    # Behind the last range in use there may be anything.
    stream = range_stream.clamp(0, first_position.shape[0] - 1).long()
    seen = row_position[row] - window + 1 - first_position[stream]
    clipped = torch.minimum(torch.maximum(seen, range_begin), range_end)
    return torch.where(ranges < row_indptr[-1], clipped, range_begin)


@torch.library.register_fake("apar::forest_reset")
def _(forest: torch.Tensor) -> None:
    pass


@torch.library.register_fake("apar::advance")
def _(
    forest: torch.Tensor, sampled: torch.Tensor, row_limit: int | None = None, header: torch.Tensor | None = None
) -> None:
    check_same_device("advance", forest=forest, sampled=sampled)


@torch.library.register_fake("apar::write_step_plans")
def _(
    forest: torch.Tensor,
    begins: torch.Tensor,
    plans: torch.Tensor,
    windows: torch.Tensor,
    rows: int,
    header: torch.Tensor | None = None,
) -> None:
    check_same_device("write_step_plans", forest=forest, begins=begins, plans=plans)


@torch.library.register_fake("apar::forest_schedule")
def _(forest: torch.Tensor) -> None:
    pass


@torch.library.register_fake("apar::forest_admit")
def _(
    forest: torch.Tensor, request: int, prompt_length: int, limit: int, last_token: int, shared_slot: int = -1
) -> torch.Tensor:
    return forest.new_empty(())


@torch.library.register_fake("apar::forest_open_shared")
def _(forest: torch.Tensor, length: int) -> torch.Tensor:
    return forest.new_empty(())


@torch.library.register_fake("apar::forest_close_shared")
def _(forest: torch.Tensor, slot: int) -> None:
    pass


@torch.library.register_fake("apar::forest_join")
def _(forest: torch.Tensor, parent: int, children: torch.Tensor) -> None:
    check_same_device("forest_join", forest=forest, children=children)


@torch.library.register_fake("apar::forest_cancel")
def _(forest: torch.Tensor, request: int) -> torch.Tensor:
    return forest.new_empty(())


@torch.library.register_fake("apar::window_begins")
def _(
    row_indptr: torch.Tensor,
    row_position: torch.Tensor,
    range_stream: torch.Tensor,
    range_begin: torch.Tensor,
    range_end: torch.Tensor,
    first_position: torch.Tensor,
    window: int,
) -> torch.Tensor:
    return torch.empty_like(range_begin)
