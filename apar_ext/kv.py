"""Writing into the paged KV cache."""

from __future__ import annotations

import torch

from apar_ext._fake import check_same_device

__all__ = ["append_kv"]


def append_kv(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> None:
    """Writes the keys and values of R new tokens into the cache, in place.

    Args:
        k: ``[R, Hkv, D]``, any dtype; the last dimension is contiguous, the others may have any stride.
        v: ``[R, Hkv, D]``, as ``k``.
        k_cache: ``[num_pages, Hkv, page_size, D]``, contiguous, dtype and device of ``k``. Written.
        v_cache: as ``k_cache``. Written.
        slots: ``[R]`` int32, contiguous: ``page * page_size + offset`` of each row, or -1 for a row that is skipped
            (padding). Slots other than -1 must be distinct.

    Raises:
        ValueError: a dtype, shape, stride or device is not as above, or a slot is out of range; nothing is written
            then. On a CUDA device slots are checked by the kernel, which traps.
    """
    torch.ops.apar.append_kv(k, v, k_cache, v_cache, slots)


@torch.library.register_fake("apar::append_kv")
def _(k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor) -> None:
    check_same_device("append_kv", k=k, v=v, k_cache=k_cache, v_cache=v_cache, slots=slots)
