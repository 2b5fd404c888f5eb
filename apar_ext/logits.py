"""The grammar's static rules, applied to logits."""

from __future__ import annotations

import torch

from apar_ext._fake import check_same_device

__all__ = ["mask_logits_"]


def mask_logits_(logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> torch.Tensor:
    """Sets the logits of tokens that a row must not sample to -inf, in place.

    The child token is forced, never sampled: its column is masked in every row. The fork token's column is masked in
    the rows that may not fork.

    Args:
        logits: ``[R, V]`` float64, float32, float16 or bfloat16, last dimension contiguous. Written.
        may_fork: ``[R]`` int32, contiguous, on the device of ``logits``: 0 where the row must not fork.
        fork_token: token id, or -1 for none.
        child_token: token id, or -1 for none.

    Returns:
        ``logits``.

    Raises:
        ValueError: a dtype, shape, stride or device is not as above, or a token id is out of range; nothing is written
            then.
    """
    torch.ops.apar.mask_logits_(logits, may_fork, fork_token, child_token)
    return logits


@torch.library.register_fake("apar::mask_logits_")
def _(logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> None:
    check_same_device("mask_logits_", logits=logits, may_fork=may_fork)
