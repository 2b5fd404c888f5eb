"""What CUDA kernels find wrong in numbers that only the device sees."""

from __future__ import annotations

from apar_ext import _C

__all__ = ["raise_device_error"]


def raise_device_error() -> None:
    """Raises ValueError where a CUDA kernel has found wrong numbers in its input since the last such error.

    Slots and page ids on a GPU cannot be checked before a launch without waiting for the device. A kernel goes on
    without what is wrong and tells the host; every later operator raises that. This function does so at once, for what
    has run so far: ``torch.cuda.synchronize()`` before it makes sure.
    """
    text = _C.take_device_report()
    if text:
        raise ValueError(text)
