"""What a decode step does with logits: the grammar's static rules, and the choice of the most likely token."""

from __future__ import annotations

import torch

from apar_ext._fake import check_same_device

__all__ = ["greedy_tokens", "mask_logits_"]


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


def greedy_tokens(
    logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int = -1, child_token: int = -1
) -> torch.Tensor:
    """The most likely token of every row that ``mask_logits_`` would leave, the first of equals; on the CPU.

    Args:
        logits: ``[R, V]`` float32 or bfloat16, last dimension contiguous. Read once, not written.
        may_fork, fork_token, child_token: as in ``mask_logits_``.

    Returns:
        ``[R]`` int32 token ids; -1 for a row that holds NaN, or whose largest logit is not finite.

    Raises:
        ValueError: a dtype, shape, stride or device is not as above, or a token id is out of range.
    """
    return torch.ops.apar.greedy_tokens(logits, may_fork, fork_token, child_token)


@torch.library.register_fake("apar::mask_logits_")
def _(logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> None:
    check_same_device("mask_logits_", logits=logits, may_fork=may_fork)


@torch.library.register_fake("apar::greedy_tokens")
def _(logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> torch.Tensor:
    check_same_device("greedy_tokens", logits=logits, may_fork=may_fork)
    return logits.new_empty(logits.shape[0], dtype=torch.int32)
