"""What the numeric suite (test_numeric.py) runs on: the CPU's operators, the CUDA kernels on the emulated device, the
CUDA kernels on a GPU. Tensors come and go on the CPU.
"""

from __future__ import annotations

from typing import Protocol

import pytest
import torch

import apar_ext
from tests.emulator import emulator
from tests.emulator.cases import Case

HAS_CUDA_KERNELS = torch.cuda.is_available() and bool(apar_ext.build_info()["cuda_built"])


class DeviceUnderTest(Protocol):
    name: str
    head_dims: tuple[int, ...]

    def tree_attention(self, case: Case, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        """out, lse; the options are those of apar_ext.tree_attention."""

    def append_kv(self, k, v, k_cache, v_cache, slots, **scales: torch.Tensor) -> None: ...

    def mask_logits_(self, logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> None: ...


class Cpu:
    name = "cpu"
    head_dims = (32, 64, 80, 96, 128, 256)

    def tree_attention(self, case: Case, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        names = ("q", "k_cache", "v_cache", "page_table", "row_indptr", "range_stream", "range_begin", "range_end")
        q, k_cache, v_cache, *ranges = (self._place(case.inputs[name]) for name in names)
        plan = apar_ext.make_plan(
            *ranges,
            num_kv_heads=k_cache.shape[1],
            group_size=q.shape[1] // k_cache.shape[1],
            page_size=k_cache.shape[2],
        )
        options = {name: self._place(option) if torch.is_tensor(option) else option for name, option in options.items()}
        out, lse = apar_ext.tree_attention(q, k_cache, v_cache, plan, return_lse=True, **options)
        return out.cpu(), lse.cpu()

    def append_kv(self, k, v, k_cache, v_cache, slots, **scales: torch.Tensor) -> None:
        caches = self._place(k_cache), self._place(v_cache)
        scales = {name: self._place(scale) for name, scale in scales.items()}
        apar_ext.append_kv(self._place(k), self._place(v), *caches, self._place(slots), **scales)
        for given, written in zip((k_cache, v_cache), caches, strict=True):
            given.copy_(written)
        self._raise_errors()

    def mask_logits_(self, logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> None:
        placed = self._place(logits)
        apar_ext.mask_logits_(placed, self._place(may_fork), fork_token, child_token)
        logits.copy_(placed)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def _raise_errors(self) -> None:
        pass


class Gpu(Cpu):
    name = "gpu"
    head_dims = (64, 80, 96, 128, 256)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        # Strides are kept: they are part of what is tested.
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() == 0 or tensor.is_contiguous():
            return tensor.cuda()
        storage = tensor.as_strided((extent,), (1,)).cuda()
        return storage.as_strided(tensor.shape, tensor.stride())

    def _raise_errors(self) -> None:
        torch.cuda.synchronize()
        apar_ext.raise_device_error()


class Emulated:
    """Plans as the operator would for a device with a few multiprocessors: long items are cut and merged."""

    name = "emulator"
    head_dims = Gpu.head_dims

    def __init__(self) -> None:
        self.launches = 0

    def tree_attention(self, case: Case, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        rows, num_heads, _ = case.inputs["q"].shape
        num_kv_heads = case.inputs["k_cache"].shape[1]
        if options.get("sinks") is not None:
            options["sinks"] = options["sinks"].float()  # as the operator does
        device = self._device()
        work = emulator.work_input_for(device, rows, num_kv_heads, num_heads // num_kv_heads)
        result = emulator.tree_attention(device, **case.inputs, **work, **options)
        return result.out, result.lse

    def append_kv(self, k, v, k_cache, v_cache, slots, **scales: torch.Tensor) -> None:
        emulator.append_kv(self._device(), k, v, k_cache, v_cache, slots, **scales)

    def mask_logits_(self, logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> None:
        emulator.mask_logits_(self._device(), logits, may_fork, fork_token, child_token)

    def _device(self) -> emulator.Device:
        self.launches += 1  # another order of blocks each time
        return emulator.Device(seed=self.launches, multiprocessors=5)


DEVICES = [
    pytest.param(Cpu, id="cpu"),
    pytest.param(Emulated, id="emulator"),
    pytest.param(
        Gpu,
        id="gpu",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="no GPU, or no CUDA kernels in this build"),
        ],
    ),
]
