"""The state of all branches: which are there, what each reads, what the next step feeds.

A branch owns a *stream* of KV entries and reads a *context*: a list of ranges of other streams. All lie in one int32
tensor, ``Forest.data``; the attributes of a :class:`Forest` are views into it. ``docs/forest.md`` describes every
tensor and every transition.

    forest = Forest(ForestConfig(num_slots=64, num_pages=512, fork_token=7, child_token=8, stop_tokens=(2,)))
    slot = forest.admit(request=0, prompt_length=12, limit=12 + 100, last_token=5)
    ...                                   # write the KV entries 0 to 10 of the prompt through forest.page_table[slot]
    forest.schedule()
    while forest.num_rows:
        rows = forest.num_rows            # feed row_token[:rows] at row_position[:rows], write KV to row_kv_slot[:rows]
        forest.advance(sampled)           # [rows] int32
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

import apar_ext

if TYPE_CHECKING:
    from apar_ext import Plan

__all__ = ["CANCEL", "END_REASONS", "Forest", "ForestConfig", "StepPlans"]

CANCEL = -1
"""As a sampled token: end this branch now."""

END_REASONS = ("stop", "length", "cancelled")
"""Names of the reasons in ``Forest.ended``, by number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForestConfig:
    """What is fixed when a forest is made. Raises ValueError, which names the field, where it cannot be.

    Attributes:
        num_slots: branches that there can be at once, with waiting ones, finished ones still read, and shared streams.
        num_pages: pages of the KV cache.
        page_size: entries of a page; a power of two from 8 to 128.
        max_pages: pages of the longest stream; None: num_pages.
        max_ranges: ranges of the longest context; None: enough for a shared prompt stream and max_depth without joins.
        max_rows: rows of a step; None: num_slots.
        num_kv_heads: KV heads of the attention plan.
        group_size: query heads per KV head of the attention plan.
        fork_token: id of the token that opens a child; -1: none, every request is one branch.
        child_token: id of the token that every child starts with; -1 where fork_token is.
        stop_tokens: ids of tokens that end a branch, at most 8.
        max_depth: 1: no branch forks; 2: the trunk forks; 3: its children do too ...
        max_children: children of one branch.
        max_live_branches: branches of one request that are fed in one step; None: max_rows. 1: a child is written
            to its end before its parent goes on.
        keep_finished: whether the stream of a finished child stays until its parent ends, so that it can be joined.
    """

    num_slots: int
    num_pages: int
    page_size: int = 16
    max_pages: int | None = None
    max_ranges: int | None = None
    max_rows: int | None = None
    num_kv_heads: int = 1
    group_size: int = 1
    fork_token: int = -1
    child_token: int = -1
    stop_tokens: tuple[int, ...] = ()
    max_depth: int = 2
    max_children: int = 64
    max_live_branches: int | None = None
    keep_finished: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if field.default is None and value is None:
                continue
            if not all(isinstance(number, int) and -(2**31) <= number < 2**31 for number in numbers):
                raise ValueError(f"ForestConfig: {field.name} is {value!r}, expected int32 numbers")
        if len(self.stop_tokens) > apar_ext.FOREST_MAX_STOP_TOKENS:
            raise ValueError(
                f"ForestConfig: stop_tokens has {len(self.stop_tokens)} tokens, "
                f"expected at most {apar_ext.FOREST_MAX_STOP_TOKENS}"
            )
        # Depth means nothing without a fork token, and would only hold back room for children.
        defaults = {
            "max_depth": 1 if self.fork_token < 0 else self.max_depth,
            "max_pages": self.num_pages if self.max_pages is None else self.max_pages,
            "max_rows": self.num_slots if self.max_rows is None else self.max_rows,
        }
        defaults["max_ranges"] = defaults["max_depth"] if self.max_ranges is None else self.max_ranges
        defaults["max_live_branches"] = (
            defaults["max_rows"] if self.max_live_branches is None else self.max_live_branches
        )
        for name, value in defaults.items():
            object.__setattr__(self, name, value)
        apar_ext.forest_layout(self.fields())

    def fields(self) -> dict[str, Any]:
        """The configuration as the header of a forest holds it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"num_stop_tokens": len(self.stop_tokens), "keep_finished": int(self.keep_finished)}


@dataclasses.dataclass(frozen=True, eq=False)
class StepPlans:
    """The attention plans of a forest's steps, at addresses that stay; :meth:`Forest.step_plans` makes them."""

    rows: int
    plans: dict[int, Plan]
    """By window; 0: layers that see all."""
    begins: torch.Tensor
    schedules: torch.Tensor
    windows: torch.Tensor


class Forest:
    """All branches of all requests. ``data`` is the state; the tensors below are views into it, to be read only.

    S: num_slots; C: max_ranges; R: max_rows, of which the first ``num_rows`` are the step's and the rest is padding; N:
    R * (C + 1), of which the first ``num_ranges`` are in use.
    """

    data: torch.Tensor
    """Everything: ``[total_size]`` int32."""

    state: torch.Tensor
    """``[S]`` 0: free, 1: unfinished branch, 2: finished branch that is still read, 3: shared stream."""
    parent: torch.Tensor
    """``[S]`` slot of the parent, -1: none."""
    branch_id: torch.Tensor
    """``[S]`` number of the branch, never used twice."""
    request: torch.Tensor
    """``[S]`` request of the branch."""
    depth: torch.Tensor
    """``[S]`` 0: trunk."""
    num_children: torch.Tensor
    """``[S]`` children opened so far."""
    length: torch.Tensor
    """``[S]`` entries of the stream, that of the row at hand included."""
    first_position: torch.Tensor
    """``[S]`` position of entry 0."""
    limit: torch.Tensor
    """``[S]`` first position that the branch may not use."""
    last_token: torch.Tensor
    """``[S]`` token sampled last; it is fed next, or by the row at hand."""
    num_pages: torch.Tensor
    """``[S]`` pages held."""
    num_context: torch.Tensor
    """``[S]`` ranges in the context."""
    context_stream: torch.Tensor
    """``[S, C]`` stream of each range of the context."""
    context_begin: torch.Tensor
    """``[S, C]`` its first entry."""
    context_end: torch.Tensor
    """``[S, C]`` behind its last entry."""
    page_table: torch.Tensor
    """``[S, max_pages]`` pages of each stream; -1 behind num_pages."""
    order: torch.Tensor
    """``[S]`` slots of branches in reading order; the first num_order are used."""

    row_slot: torch.Tensor
    """``[R]`` branch of the row; -1: padding, or cancelled."""
    row_token: torch.Tensor
    """``[R]`` token to feed."""
    row_position: torch.Tensor
    """``[R]`` its position."""
    row_kv_slot: torch.Tensor
    """``[R]`` page * page_size + offset of its entry; -1: none."""
    row_may_fork: torch.Tensor
    """``[R]`` 1: the token sampled next may be the fork token."""
    row_indptr: torch.Tensor
    """``[R + 1]`` ranges of row r: ``row_indptr[r]`` to ``row_indptr[r + 1]``."""
    range_stream: torch.Tensor
    """``[N]`` stream of each range."""
    range_begin: torch.Tensor
    """``[N]`` its first entry."""
    range_end: torch.Tensor
    """``[N]`` behind its last entry."""

    def __init__(self, config: ForestConfig, *, pin_memory: bool = False) -> None:
        """An empty forest on the CPU. pin_memory: in page-locked memory, from which a device copies by itself."""
        size = apar_ext.forest_layout(config.fields())["data"][1]
        self._bind(config, torch.zeros(size, dtype=torch.int32, pin_memory=pin_memory))
        for name, value in config.fields().items():
            if name != "stop_tokens":
                self.data[self._header[name]] = value
        first = self._header["stop_tokens"]
        self.data[first : first + len(config.stop_tokens)] = torch.tensor(config.stop_tokens, dtype=torch.int32)
        self.reset()

    def _bind(self, config: ForestConfig, data: torch.Tensor) -> None:
        self.config = config
        self.data = data
        # The same memory; single numbers are read five times faster.
        self._numbers = data.numpy() if data.device.type == "cpu" else data
        self._header = apar_ext.forest_header()
        layout = apar_ext.forest_layout(config.fields())
        del layout["data"]
        self._host_header = data[: min(offset for offset, _ in layout.values())]
        for name, (offset, shape) in layout.items():
            size = shape[0] * (shape[1] if len(shape) > 1 else 1)
            view = self.data[offset : offset + size].view(shape)
            setattr(self, f"_{name}" if name in _EVENTS else name, view)
        self._num_rows_index, self._num_ranges_index = self._header["num_rows"], self._header["num_ranges"]
        self._plan_size = (-1, -1)

    def to(self, device: torch.device | str) -> Forest:
        """A copy on ``device``. There :meth:`advance` works, and reading a number waits for the device.

        Everything that a host does between steps (admit, cancel, join, shared streams, schedule) works on the CPU
        alone: do it to a copy there and bring the result over with :meth:`copy_`.
        """
        copy = Forest.__new__(Forest)
        copy._bind(self.config, self.data.to(device, copy=True))
        copy._host_header = self._host_header.clone()
        return copy

    def copy_(self, source: Forest, *, non_blocking: bool = False) -> None:
        """Takes over the state of a forest of the same configuration, on whatever device. All addresses stay.

        Args:
            source: the forest to copy.
            non_blocking: as ``torch.Tensor.copy_``: between page-locked memory and a device, do not wait.

        Raises:
            ValueError: the configurations differ.
        """
        if source.config != self.config:
            raise ValueError(f"Forest.copy_: source has {source.config}, expected {self.config}")
        self.data.copy_(source.data, non_blocking=non_blocking)

    def reset(self) -> None:
        """Forgets all branches and shared streams."""
        apar_ext.forest_reset(self.data)

    # ---- requests --------------------------------------------------------------------------------------------------

    def admit(self, request: int, prompt_length: int, limit: int, last_token: int, shared_slot: int = -1) -> int:
        """Takes up a request and returns its trunk's slot; -1: no room now. See :func:`apar_ext.forest_admit`."""
        return apar_ext.forest_admit(self.data, request, prompt_length, limit, last_token, shared_slot)

    def cancel(self, request: int) -> int:
        """Ends a request now; returns the number of branches ended, which are in ``ended``."""
        return apar_ext.forest_cancel(self.data, request)

    def open_shared(self, length: int) -> int:
        """Opens a prompt stream that no branch owns; returns its slot, or -1: no room now."""
        return apar_ext.forest_open_shared(self.data, length)

    def close_shared(self, slot: int) -> None:
        """Lets a shared stream go as soon as no branch reads it."""
        apar_ext.forest_close_shared(self.data, slot)

    def join(self, parent: int, children: Sequence[int]) -> None:
        """Lets a branch read finished children from its next step on (``keep_finished``)."""
        apar_ext.forest_join(self.data, parent, children)

    # ---- steps -----------------------------------------------------------------------------------------------------

    def advance(self, sampled: torch.Tensor, *, row_limit: int | None = None) -> None:
        """Makes the next step from the token of each row: ``[>= num_rows]`` int32; ``CANCEL`` ends a branch.

        row_limit: most rows of the next step, at least 1; branches beyond it wait. None: max_rows.
        """
        apar_ext.advance(self.data, sampled, row_limit=row_limit, header=self._host_header)

    def schedule(self) -> None:
        """Makes the next step after admitting or cancelling; rows that are not sampled yet stay in it."""
        apar_ext.forest_schedule(self.data)

    @property
    def num_rows(self) -> int:
        """Rows of the step at hand; 0: nothing is running."""
        return int(self._numbers[self._num_rows_index])

    @property
    def num_ranges(self) -> int:
        """Ranges of the step at hand."""
        return int(self._numbers[self._num_ranges_index])

    def plan(self) -> Plan:
        """The attention plan of the step at hand, valid until the next step is made.

        On a device this waits for the number of rows; a captured step uses :meth:`step_plans`.
        """
        if self.data.is_cuda:
            return self._device_plan(0)
        rows, ranges = self.num_rows, self.num_ranges
        # All tensors of it are views, so steps of the same size share one.
        if self._plan_size != (rows, ranges):
            self._plan_size = (rows, ranges)
            self._plan = apar_ext.Plan(
                self.page_table,
                self.row_indptr[: rows + 1],
                self.range_stream[:ranges],
                self.range_begin[:ranges],
                self.range_end[:ranges],
                self.plan_schedule,
                self.config.num_kv_heads,
                self.config.group_size,
                self.config.page_size,
            )
        return self._plan

    def step_plans(self, rows: int, windows: Sequence[int] = ()) -> StepPlans:
        """Room for the plans of steps of at most ``rows`` rows, at addresses that stay: for a captured graph.

        Args:
            rows: rows of the plans, at most max_rows; a step with fewer is padded with rows that read nothing.
            windows: the sliding windows of the model's layers, besides layers that see all.
        """
        config = self.config
        multiprocessors = 0
        if self.data.is_cuda:
            multiprocessors = torch.cuda.get_device_properties(self.data.device).multi_processor_count
        sizes = (config.max_ranges, config.num_kv_heads, config.group_size)
        size = apar_ext.step_plan_size(rows, *sizes, multiprocessors)
        ranges, all_windows = rows * (config.max_ranges + 1), (0, *dict.fromkeys(windows))
        begins = self.data.new_zeros(len(all_windows), ranges)
        schedules = self.data.new_zeros(len(all_windows), size)
        plans = {
            window: apar_ext.Plan(
                self.page_table,
                self.row_indptr[: rows + 1],
                self.range_stream[:ranges],
                begins[i],
                self.range_end[:ranges],
                schedules[i],
                num_kv_heads=config.num_kv_heads,
                group_size=config.group_size,
                page_size=config.page_size,
                max_page=config.num_pages - 1,
            )
            for i, window in enumerate(all_windows)
        }
        return StepPlans(rows, plans, begins, schedules, torch.tensor(all_windows, dtype=torch.int32))

    def write_plans(self, plans: StepPlans) -> None:
        """Writes the plans of the step at hand, which has at most ``plans.rows`` rows; waits for nothing."""
        tensors = (plans.begins, plans.schedules, plans.windows)
        apar_ext.write_step_plans(self.data, *tensors, plans.rows, header=self._host_header)

    def _device_plan(self, window: int) -> Plan:
        plans = self.step_plans(max(1, self.num_rows), (window,) if window else ())
        self.write_plans(plans)
        return plans.plans[window]

    def window_ranges(self, window: int) -> torch.Tensor:
        """``range_begin`` of the step at hand, ``[num_ranges]``, for layers that see ``window`` positions."""
        plan = self.plan()
        return apar_ext.window_begins(
            plan.row_indptr,
            self.row_position[: self.num_rows],
            plan.range_stream,
            plan.range_begin,
            plan.range_end,
            self.first_position,
            window,
        )

    def window_plan(self, window: int) -> Plan:
        """The attention plan of the step at hand for layers that see ``window`` positions."""
        if self.data.is_cuda:
            return self._device_plan(window)
        plan = self.plan()
        return apar_ext.make_plan(
            self.page_table,
            plan.row_indptr,
            plan.range_stream,
            self.window_ranges(window),
            plan.range_end,
            num_kv_heads=plan.num_kv_heads,
            group_size=plan.group_size,
            page_size=plan.page_size,
        )

    # ---- what the last call of advance, schedule or cancel did -------------------------------------------------------

    @property
    def opened(self) -> torch.Tensor:
        """``[n, 6]`` branches opened: slot, branch_id, parent's branch_id, request, position of the fork, child index.

        A slot may be in ``ended`` and ``opened``: it ended first.
        """
        return self._opened[: self.counter("num_opened")]

    @property
    def ended(self) -> torch.Tensor:
        """``[n, 5]`` branches ended: slot, branch_id, request, reason (``END_REASONS``), entries of its stream."""
        return self._ended[: self.counter("num_ended")]

    @property
    def done(self) -> torch.Tensor:
        """``[n]`` requests whose last branch ended."""
        return self._done[: self.counter("num_done")]

    # ---- for work on a device, which cannot wait for numbers --------------------------------------------------------

    def number(self, name: str) -> torch.Tensor:
        """A number of the header as a view: ``[1]``."""
        index = self._header[name]
        return self.data[index : index + 1]

    @property
    def opened_places(self) -> torch.Tensor:
        """``[S, 6]``: the first ``num_opened`` of it are ``opened``."""
        return self._opened

    def counter(self, name: str) -> int:
        """A number of the header: num_live (unfinished branches), num_free_pages, num_free_slots, num_order ..."""
        return int(self._numbers[self._header[name]])


_EVENTS = ("opened", "ended", "done")
