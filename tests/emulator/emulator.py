"""The emulated device from Python: builds it, hands it tensors, runs operators on it."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]

CONVERSIONS = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float8_e4m3fn: 3}


class EmulatorFault(Exception):
    """What a kernel did wrong, with file and line."""


class DeviceError(ValueError):
    """What a kernel found wrong in its input and told the host; it went on without."""


class _Struct(ctypes.Structure):
    def __init__(self, **values: object) -> None:
        missing = {name for name, _ in self._fields_} - set(values)
        if missing:
            raise TypeError(f"fields are missing: {missing}")
        super().__init__(**values)


def _fields(text: str) -> list[tuple[str, type]]:
    kinds = {"p": ctypes.c_void_p, "q": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float, "Q": ctypes.c_uint64}
    return [(name, kinds[kind]) for kind, name in (word.split(":") for word in text.split())]


class AppendKvParams(_Struct):
    _fields_ = _fields(
        "p:k p:v p:k_cache p:v_cache p:slots p:report p:k_scale p:v_scale q:rows q:num_kv_heads q:head_dim q:num_slots "
        "q:page_size q:head_bytes q:k_row_stride_bytes q:k_head_stride_bytes q:v_row_stride_bytes "
        "q:v_head_stride_bytes i:conversion"
    )


class MaskLogitsParams(_Struct):
    _fields_ = _fields(
        "p:logits p:may_fork q:rows q:row_stride q:element_bytes q:minus_infinity q:fork_token q:child_token"
    )


class LogitRows(_Struct):
    _fields_ = _fields("p:logits p:may_fork q:rows q:columns q:row_stride q:fork_token q:child_token i:type i:padding")


class GreedyTokensParams(_Struct):
    _fields_ = [("rows", LogitRows), *_fields("p:tokens")]


class SampleTokensParams(_Struct):
    _fields_ = [("rows", LogitRows), *_fields("p:numbers p:tokens f:factor q:top_k Q:top_p")]


class DrawNumbersParams(_Struct):
    _fields_ = _fields("p:keys p:opened p:num_opened p:parent p:row_slot p:row_position p:numbers q:slots q:rows")


class PlanInput(_Struct):
    _fields_ = _fields(
        "q:num_rows q:num_ranges p:row_indptr p:range_stream p:range_begin p:range_end i:num_streams i:max_pages "
        "i:max_page i:num_kv_heads i:group_size i:page_size"
    )


class WorkInput(_Struct):
    _fields_ = _fields("i:packed_rows i:target_items i:max_partials i:batch_invariant")


class TreeAttentionCall(_Struct):
    _fields_ = [
        *_fields(
            "p:q p:k_cache p:v_cache p:out p:lse p:sinks p:k_scale p:v_scale p:page_table p:work_header p:bin_begin "
            "p:row_ranges p:row_begin p:items p:arrivals p:partials p:segments_used p:report q:q_row_stride "
            "q:q_head_stride q:num_pages i:num_rows i:num_kv_heads i:group_size i:head_dim i:page_size i:max_pages "
            "f:scale f:softcap p:work"
        ),
        ("input", WorkInput),
        ("element", ctypes.c_int32),
        ("kv_element", ctypes.c_int32),
    ]


class Counters(ctypes.Structure):
    _fields_ = _fields(
        "q:matrix_instructions q:warpgroup_products q:block_barriers q:matrix_load_passes q:matrix_load_conflicts "
        "q:copies q:largest_shared_bytes"
    )


@cache
def library() -> ctypes.CDLL:
    """Builds the kernels for the host and loads them."""
    folder = ROOT / "build" / "emulator"
    beside = Path(sys.executable).parent
    cmake, ninja = (str(beside / name) if (beside / name).exists() else name for name in ("cmake", "ninja"))
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += ["-DAPAR_BUILD_EXTENSION=OFF", "-DAPAR_BUILD_EMULATOR=ON"]
    build = [ninja, "-C", str(folder), "-j", os.environ.get("MAX_JOBS", str(os.cpu_count() or 1)), "apar_emulator"]
    for command in (configure, build):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    loaded = ctypes.CDLL(str(folder / "apar_emulator.so"))
    texts = ["emulate_append_kv", "emulate_mask_logits", "emulate_tree_attention", "emulate_faulty", "emulator_sites"]
    texts += ["emulate_greedy_tokens", "emulate_sample_tokens", "emulate_draw_numbers"]
    texts += ["emulator_report", "emulate_advance", "emulate_make_plan"]
    for name in texts:
        getattr(loaded, name).restype = ctypes.c_char_p
    numbers = ["emulator_bytes_read", "emulator_bytes_written", "plan_ints", "work_ints", "work_items"]
    for name in [*numbers, "advance_scratch_ints", "make_plan_scratch_ints"]:
        getattr(loaded, name).restype = ctypes.c_int64
    loaded.emulator_tensor.restype = ctypes.c_uint64
    loaded.tree_attention_call_bytes.restype = ctypes.c_int64
    assert loaded.tree_attention_call_bytes() == ctypes.sizeof(TreeAttentionCall)
    return loaded


def _int64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


@dataclass
class Launch:
    """What one run on the emulated device did."""

    counters: Counters
    bytes_read: dict[str, int]
    bytes_written: dict[str, int]
    sites: list[str]  # barriers and waits that were met, "file:line"


class Device:
    """A device with a few multiprocessors; one launch per object.

    Args:
        compute_capability: 100: the kernels that run everywhere; 80: without their wide teams; 90: those for Hopper,
            where there are.
        seed: the order in which blocks of threads take turns.
        drop: barriers and waits, "file:line", that do nothing.
        shift: ``(tensor, by)``: what kernels load from an int32 tensor is off by this much.
    """

    def __init__(
        self,
        *,
        multiprocessors: int = 3,
        resident_blocks: int = 3,
        shared_bytes: int = 227 * 1024,
        compute_capability: int = 100,
        seed: int = 0,
        drop: Iterable[str] = (),
        shift: tuple[str, int] | None = None,
    ) -> None:
        self.library = library()
        self.library.emulator_reset()
        self.library.emulator_settings(
            multiprocessors, resident_blocks, shared_bytes, ctypes.c_uint64(seed), compute_capability
        )
        self.multiprocessors = multiprocessors
        for site in drop:
            self.library.emulator_drop(site.encode())
        if shift is not None:
            self.library.emulator_shift(shift[0].encode(), shift[1])
        self._tensors: dict[str, torch.Tensor] = {}

    def tensor(self, name: str, tensor: torch.Tensor | None, *, writable: bool = False) -> int | None:
        """The address by which kernels know the tensor; accesses beyond what it holds are faults."""
        if tensor is None:
            return None
        self._tensors[name] = tensor
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        size = extent * tensor.element_size() if tensor.numel() else 0
        address = ctypes.c_void_p(tensor.data_ptr())
        return self.library.emulator_tensor(name.encode(), address, _int64(size), int(writable))

    def run(self, function: str, *arguments: object) -> Launch:
        fault = getattr(self.library, function)(*arguments).decode()
        if fault:
            raise EmulatorFault(fault)
        if reported := self.library.emulator_report().decode():
            raise DeviceError(reported)
        counters = Counters()
        self.library.emulator_counters(ctypes.byref(counters))
        read, written = (
            {name: getattr(self.library, f"emulator_bytes_{what}")(name.encode()) for name in self._tensors}
            for what in ("read", "written")
        )
        return Launch(counters, read, written, self.library.emulator_sites().decode().split())


def append_kv(
    device: Device,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> Launch:
    size = k.element_size()
    return device.run(
        "emulate_append_kv",
        ctypes.byref(
            AppendKvParams(
                k=device.tensor("k", k),
                v=device.tensor("v", v),
                k_cache=device.tensor("k_cache", k_cache, writable=True),
                v_cache=device.tensor("v_cache", v_cache, writable=True),
                slots=device.tensor("slots", slots),
                report=None,
                k_scale=device.tensor("k_scale", k_scale),
                v_scale=device.tensor("v_scale", v_scale),
                rows=k.shape[0],
                num_kv_heads=k.shape[1],
                head_dim=k.shape[2],
                num_slots=k_cache.shape[0] * k_cache.shape[2],
                page_size=k_cache.shape[2],
                head_bytes=k.shape[2] * k_cache.element_size(),
                k_row_stride_bytes=k.stride(0) * size,
                k_head_stride_bytes=k.stride(1) * size,
                v_row_stride_bytes=v.stride(0) * size,
                v_head_stride_bytes=v.stride(1) * size,
                conversion=0 if k.dtype == k_cache.dtype else CONVERSIONS[k.dtype],
            )
        ),
    )


def mask_logits_(
    device: Device, logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int
) -> Launch:
    size = logits.element_size()
    minus_infinity = torch.tensor([float("-inf")], dtype=logits.dtype).view(torch.uint8).tolist()
    return device.run(
        "emulate_mask_logits",
        ctypes.byref(
            MaskLogitsParams(
                logits=device.tensor("logits", logits, writable=True),
                may_fork=device.tensor("may_fork", may_fork),
                rows=logits.shape[0],
                row_stride=logits.stride(0),
                element_bytes=size,
                minus_infinity=int.from_bytes(bytes(minus_infinity), "little"),
                fork_token=fork_token,
                child_token=child_token,
            )
        ),
    )


def _logit_rows(
    device: Device, logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int
) -> LogitRows:
    return LogitRows(
        logits=device.tensor("logits", logits),
        may_fork=device.tensor("may_fork", may_fork),
        rows=logits.shape[0],
        columns=logits.shape[1],
        row_stride=logits.stride(0),
        fork_token=fork_token,
        child_token=child_token,
        type=ELEMENTS[logits.dtype],
        padding=0,
    )


def greedy_tokens(
    device: Device, logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int = -1, child_token: int = -1
) -> torch.Tensor:
    tokens = torch.full((logits.shape[0],), -77, dtype=torch.int32)
    rows = _logit_rows(device, logits, may_fork, fork_token, child_token)
    address = device.tensor("tokens", tokens, writable=True)
    device.run("emulate_greedy_tokens", ctypes.byref(GreedyTokensParams(rows=rows, tokens=address)))
    return tokens


def sample_tokens(
    device: Device,
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
    tokens = torch.full((logits.shape[0],), -77, dtype=torch.int32)
    limits = torch.finfo(torch.float32)
    params = SampleTokensParams(
        rows=_logit_rows(device, logits, may_fork, fork_token, child_token),
        numbers=device.tensor("numbers", numbers),
        tokens=device.tensor("tokens", tokens, writable=True),
        factor=min(max(math.log2(math.e) / temperature, limits.tiny), limits.max),
        top_k=top_k,
        top_p=max(1, int(top_p * 2**64)) if top_p < 1 else 0,
    )
    device.run("emulate_sample_tokens", ctypes.byref(params))
    return tokens


def draw_numbers(
    device: Device,
    keys: torch.Tensor,
    opened: torch.Tensor,
    num_opened: torch.Tensor,
    parent: torch.Tensor,
    row_slot: torch.Tensor,
    row_position: torch.Tensor,
) -> torch.Tensor:
    numbers = torch.full(row_slot.shape, -77, dtype=torch.int64)
    params = DrawNumbersParams(
        keys=device.tensor("keys", keys, writable=True),
        opened=device.tensor("opened", opened),
        num_opened=device.tensor("num_opened", num_opened),
        parent=device.tensor("parent", parent),
        row_slot=device.tensor("row_slot", row_slot),
        row_position=device.tensor("row_position", row_position),
        numbers=device.tensor("numbers", numbers, writable=True),
        slots=keys.shape[0],
        rows=row_slot.shape[0],
    )
    device.run("emulate_draw_numbers", ctypes.byref(params))
    return numbers


def work_input_for(device: Device, num_rows: int, num_kv_heads: int, group_size: int) -> dict[str, int]:
    """The options of ``tree_attention`` that the operator would choose for this device."""
    work_input = WorkInput(packed_rows=0, target_items=0, max_partials=0, batch_invariant=1)
    sizes = (_int64(size) for size in (num_rows, num_kv_heads, group_size, device.multiprocessors))
    device.library.work_input_for(*sizes, ctypes.byref(work_input))
    return {name: getattr(work_input, name) for name in ("packed_rows", "target_items", "max_partials")}


@dataclass
class Attention:
    out: torch.Tensor
    lse: torch.Tensor
    launch: Launch
    num_items: int
    num_merges: int
    num_partials: int  # strips of 16 packed rows
    packed: list[int]  # packed rows of every item


def tree_attention(
    device: Device,
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
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    packed_rows: int | None = None,
    target_items: int = 1,
    max_partials: int = 0,
    batch_invariant: bool = True,
    launches: int = 1,
) -> Attention:
    """As apar_ext.reference.tree_attention; outputs and work space start as NaN.

    Args:
        packed_rows: 32, 64 or 128, the most of an item; default: what the operator would choose.
        target_items: bins that items are dealt out to: long ones are cut.
        max_partials: room for partial results, in strips of 16 packed rows.
        batch_invariant: without, items of a cut strand leave one result each.
        launches: how often to run; work space is left as the launch before left it.
    """
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads, page_size = k_cache.shape[1], k_cache.shape[2]
    group = num_heads // num_kv_heads
    if packed_rows is None:
        packed = num_rows * group
        packed_rows = 32 if packed <= 32 else 64 if packed <= 64 else 128
    work_input = WorkInput(
        packed_rows=packed_rows,
        target_items=target_items,
        max_partials=max_partials,
        batch_invariant=int(batch_invariant),
    )
    num_ranges = range_stream.numel()
    sizes = (_int64(num_rows), _int64(num_ranges))
    schedule = torch.full((device.library.plan_ints(*sizes),), -77, dtype=torch.int32)
    work_ints = device.library.work_ints(*sizes, _int64(num_kv_heads), _int64(group), ctypes.byref(work_input))
    work = torch.full((work_ints + 4,), -77, dtype=torch.int32)
    work = work[(-work.data_ptr() // 4) % 4 :][:work_ints]
    plan_input = PlanInput(
        num_rows=num_rows,
        num_ranges=num_ranges,
        row_indptr=row_indptr.data_ptr(),
        range_stream=range_stream.data_ptr(),
        range_begin=range_begin.data_ptr(),
        range_end=range_end.data_ptr(),
        num_streams=page_table.shape[0],
        max_pages=page_table.shape[1],
        max_page=0,
        num_kv_heads=num_kv_heads,
        group_size=group,
        page_size=page_size,
    )
    device.library.make_plan_and_work(
        ctypes.byref(plan_input),
        ctypes.byref(work_input),
        ctypes.c_void_p(schedule.data_ptr()),
        ctypes.c_void_p(work.data_ptr()),
    )
    num_items, num_merges, num_partials = work[1:4].tolist()
    items_at = 8 + target_items + 1 + num_rows + 1 + target_items * num_kv_heads * 4
    packed = work[items_at : items_at + 12 * num_items].view(-1, 12)[:, 1].tolist()
    planned = work.clone()

    out = torch.full((num_rows, num_heads, head_dim), float("nan"), dtype=q.dtype)
    lse = torch.full((num_rows, num_heads), float("nan"), dtype=torch.float32)
    max_items = device.library.work_items(_int64(num_rows), _int64(group), ctypes.byref(work_input))
    partials = torch.full((max_partials, num_kv_heads, 16 * (head_dim + 2)), float("nan"))
    segments_used = torch.full((max_items, 4, num_kv_heads), -(1 << 30), dtype=torch.int32)
    address = device.tensor
    call = TreeAttentionCall(
        q=address("q", q),
        k_cache=address("k_cache", k_cache),
        v_cache=address("v_cache", v_cache),
        out=address("out", out, writable=True),
        lse=address("lse", lse, writable=True),
        sinks=address("sinks", sinks),
        k_scale=address("k_scale", k_scale),
        v_scale=address("v_scale", v_scale),
        page_table=address("page_table", page_table),
        work_header=None,
        bin_begin=None,
        row_ranges=None,
        row_begin=None,
        items=None,
        arrivals=None,
        partials=address("partials", partials, writable=True),
        report=None,
        segments_used=address("segments_used", segments_used, writable=True),
        q_row_stride=q.stride(0),
        q_head_stride=q.stride(1),
        num_pages=k_cache.shape[0],
        num_rows=num_rows,
        num_kv_heads=num_kv_heads,
        group_size=group,
        head_dim=head_dim,
        page_size=page_size,
        max_pages=page_table.shape[1],
        scale=head_dim**-0.5 if scale is None else scale,
        softcap=softcap,
        work=address("work", work, writable=True),
        input=work_input,
        element=ELEMENTS[q.dtype],
        kv_element=ELEMENTS[k_cache.dtype],
    )
    for _ in range(launches):
        out.fill_(float("nan"))
        lse.fill_(float("nan"))
        launch = device.run("emulate_tree_attention", ctypes.byref(call))
    assert torch.equal(work, planned), "the counters of arrivals are not back at zero"
    return Attention(out, lse, launch, num_items, num_merges, num_partials, packed)


def run_faulty(name: str, seed: int = 0) -> torch.Tensor:
    """Output of one of the small kernels in faulty_kernels.cpp on the input 0, 1, ... 511."""
    device = Device(seed=seed)
    numbers, output = torch.arange(512, dtype=torch.int32), torch.full((512,), -1, dtype=torch.int32)
    counter = torch.zeros(1, dtype=torch.int32)
    addresses = [
        device.tensor("input", numbers),
        device.tensor("output", output, writable=True),
        device.tensor("counter", counter, writable=True),
    ]
    device.run("emulate_faulty", name.encode(), *(ctypes.c_void_p(address) for address in addresses))
    return output
