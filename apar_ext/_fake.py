"""Helpers of fake implementations, which stand in for operators under torch.compile and on the meta device."""

from __future__ import annotations

import torch


def check_same_device(op: str, **tensors: torch.Tensor | None) -> None:
    """Raises ValueError unless all tensors that are given are on the device of the first one.

    The operators check this themselves; a call that mixes the meta device with a real one reaches only the fake.
    """
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise ValueError(f"{op}: {name} is on device {tensor.device}, expected {first.device} as {first_name} is")
