"""Writing into the paged KV cache."""

from __future__ import annotations

import torch

from apar_ext._fake import check_same_device

__all__ = ["append_kv"]


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
    """Writes the keys and values of R new tokens into the cache, in place.

    A float8_e4m3fn cache takes keys and values of a wider type: it stores ``x / scale``, rounded to the nearest (of two
    to the even one), beyond 448 as 448, NaN as NaN. A stored number stands for itself times the scale of its head.

    Args:
        k: ``[R, Hkv, D]``, any dtype; the last dimension is contiguous, the others may have any stride.
        v: ``[R, Hkv, D]``, as ``k``.
        k_cache: ``[num_pages, Hkv, page_size, D]``, contiguous, device of ``k``, dtype of ``k`` or, for a float32,
            float16 or bfloat16 ``k``, float8_e4m3fn. Written.
        v_cache: as ``k_cache``. Written.
        slots: ``[R]`` int32, contiguous: ``page * page_size + offset`` of each row, or -1 for a row that is skipped
            (padding). Slots other than -1 must be distinct.
        k_scale: ``[Hkv]`` float32, contiguous, above 0, the scale of each head's keys where they become float8_e4m3fn;
            None: 1.
        v_scale: as ``k_scale``, of the values.

    Raises:
        ValueError: a dtype, shape, stride or device is not as above, or a slot or scale is out of range; nothing is
            written then. On a CUDA device the kernel skips a row whose slot is out of range and a later call raises
            (``raise_device_error``); scales are not checked there.
    """
    torch.ops.apar.append_kv(k, v, k_cache, v_cache, slots, k_scale, v_scale)


@torch.library.register_fake("apar::append_kv")
def _(
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    check_same_device(
        "append_kv", k=k, v=v, k_cache=k_cache, v_cache=v_cache, slots=slots, k_scale=k_scale, v_scale=v_scale
    )
