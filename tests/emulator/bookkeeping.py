"""advance and make_plan on the emulated device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass

import torch

import apar_ext

from .emulator import Device, DeviceError, Launch, PlanInput, WorkInput


def _int64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def advance(
    device: Device,
    forest: torch.Tensor,
    sampled: torch.Tensor,
    *,
    row_limit: int = 2**31 - 1,
    threads: int = 0,
    config_of: torch.Tensor | None = None,
) -> Launch:
    """As apar_ext.advance on ``forest``.

    Args:
        threads: of the block; 0: as many as the operator takes.
        config_of: the forest whose configuration the host takes; default: ``forest``.
    """
    data = ctypes.c_void_p((forest if config_of is None else config_of).data_ptr())
    scratch = torch.full((device.library.advance_scratch_ints(data),), -77, dtype=torch.int32)
    return device.run(
        "emulate_advance",
        ctypes.c_void_p(device.tensor("forest", forest, writable=True)),
        data,
        ctypes.c_void_p(device.tensor("sampled", sampled)),
        len(sampled),
        row_limit,
        ctypes.c_void_p(device.tensor("scratch", scratch, writable=True) if len(scratch) else None),
        threads,
    )


@dataclass
class Lists:
    """A schedule and a work list."""

    schedule: torch.Tensor
    work: torch.Tensor
    begins: torch.Tensor  # of the ranges


@dataclass
class Plans:
    on_device: list[Lists]
    on_host: list[Lists]
    launch: Launch | None


def make_plan(
    device: Device,
    row_indptr: torch.Tensor,
    range_stream: torch.Tensor,
    range_begin: torch.Tensor,
    range_end: torch.Tensor,
    *,
    num_streams: int,
    max_pages: int = 1 << 20,
    num_kv_heads: int,
    group_size: int,
    page_size: int = 16,
    work_input: WorkInput,
    windows: Iterable[int] = (0,),
    row_position: torch.Tensor | None = None,
    first_position: torch.Tensor | None = None,
    check: bool = False,
    threads: int = 0,
) -> Plans:
    """Plans and work lists as the kernel writes them, one per window (0: none), and as the host does."""
    windows = list(windows)
    tensors = dict(row_indptr=row_indptr, range_stream=range_stream, range_begin=range_begin, range_end=range_end)
    rows, ranges = len(row_indptr) - 1, len(range_stream)
    sizes = (_int64(rows), _int64(ranges))
    byref = ctypes.byref

    def plan_input(addresses: dict[str, int | None]) -> PlanInput:
        return PlanInput(
            num_rows=rows,
            num_ranges=ranges,
            num_streams=num_streams,
            max_pages=max_pages,
            max_page=5,
            num_kv_heads=num_kv_heads,
            group_size=group_size,
            page_size=page_size,
            **addresses,
        )

    def make_lists() -> Lists:
        work_ints = device.library.work_ints(*sizes, _int64(num_kv_heads), _int64(group_size), byref(work_input))
        work = torch.full((work_ints + 4,), -77, dtype=torch.int32)
        work = work[(-work.data_ptr() // 4) % 4 :][:work_ints]
        schedule = torch.full((device.library.plan_ints(*sizes),), -77, dtype=torch.int32)
        return Lists(schedule, work, range_begin.clone())

    on_host, on_device = [[make_lists() for _ in windows] for _ in range(2)]
    for lists, window in zip(on_host, windows, strict=True):
        if window > 0:
            arguments = (row_indptr, row_position, range_stream, range_begin, range_end, first_position, window)
            lists.begins = apar_ext.window_begins(*arguments)
        host = {name: tensor.data_ptr() for name, tensor in (tensors | {"range_begin": lists.begins}).items()}
        if not check:
            pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (lists.schedule, lists.work)]
            device.library.make_plan_and_work(byref(plan_input(host)), byref(work_input), *pointers)
    known = plan_input({name: device.tensor(name, tensor) for name, tensor in tensors.items()})
    scratch_ints = device.library.make_plan_scratch_ints(byref(known), byref(work_input)) * len(windows)
    scratch = torch.full((scratch_ints,), -77, dtype=torch.int32)
    addresses = {
        name: (ctypes.c_uint64 * len(windows))(
            *(device.tensor(f"{name}_{i}", getattr(lists, name), writable=True) for i, lists in enumerate(on_device))
        )
        for name in ("begins", "schedule", "work")
    }
    try:
        launch = device.run(
            "emulate_make_plan",
            byref(known),
            ctypes.c_void_p(device.tensor("row_position", row_position)),
            ctypes.c_void_p(device.tensor("first_position", first_position)),
            byref(work_input),
            len(windows),
            (ctypes.c_int32 * len(windows))(*windows),
            addresses["begins"],
            addresses["schedule"],
            addresses["work"],
            ctypes.c_void_p(device.tensor("scratch", scratch, writable=True) if scratch_ints else None),
            int(check),
            threads,
        )
    except DeviceError as error:
        error.plans = Plans(on_device, on_host, None)
        raise
    return Plans(on_device, on_host, launch)
