"""What a decode step does with logits: the grammar's static rules, and the choice of tokens, greedy or drawn."""

from __future__ import annotations

import torch

from apar_ext._fake import check_same_device

__all__ = ["draw_numbers", "greedy_tokens", "mask_logits_", "sample_tokens"]


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
    """The most likely token of every row that ``mask_logits_`` would leave, the first of equals.

    Args:
        logits: ``[R, V]`` float32, float16 or bfloat16, last dimension contiguous. Read once, not written.
        may_fork, fork_token, child_token: as in ``mask_logits_``.

    Returns:
        ``[R]`` int32 token ids; -1 for a row that holds NaN, or whose largest logit is not finite.

    Raises:
        ValueError: a dtype, shape, stride or device is not as above, or a token id is out of range.
    """
    return torch.ops.apar.greedy_tokens(logits, may_fork, fork_token, child_token)


def sample_tokens(
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
    """Draws the token of every row from what ``mask_logits_`` and the filters leave.

    The distribution is that of ``logits / temperature``. ``top_k`` keeps the tokens that are at least as likely as the
    top_k-th likeliest; then ``top_p`` keeps the likeliest ones up to that part of what is left: a token stays while
    those before it have less, of equally likely ones the smaller id comes first. The number picks one of those left in
    the order of their ids. Probabilities are integers (2^-40 of the likeliest token's), so the same numbers give the
    same tokens on every device and in any batch.

    Args:
        logits: ``[R, V]`` float32, float16 or bfloat16, last dimension contiguous. Not written.
        may_fork, fork_token, child_token: as in ``mask_logits_``.
        numbers: ``[R]`` int64, contiguous, on the device of ``logits``: 64 random bits per row, of which the upper 53
            are used, the sign bit being the first. :func:`draw_numbers` makes them.
        temperature: over 0.
        top_k: 0: off.
        top_p: over 0 and up to 1 (off).

    Returns:
        ``[R]`` int32 token ids; -1 for a row that holds NaN, or whose largest logit is not finite.

    Raises:
        ValueError: a dtype, shape, stride or device is not as above, or a number is out of range.
    """
    return torch.ops.apar.sample_tokens(logits, may_fork, numbers, fork_token, child_token, temperature, top_k, top_p)


def draw_numbers(
    keys: torch.Tensor,
    opened: torch.Tensor,
    num_opened: torch.Tensor,
    parent: torch.Tensor,
    row_slot: torch.Tensor,
    row_position: torch.Tensor,
) -> torch.Tensor:
    """Random numbers for the tokens that the rows of a step are to choose, from a hash of branch and position.

    First the keys of the branches that the last ``advance`` opened are derived from those of their parents; so it is to
    be called once after every ``advance``. All tensors contiguous, on one device, int32 but for ``keys``.

    Args:
        keys: ``[S]`` int64, the key of each slot's branch. Written.
        opened: ``[S, 6]``, the forest's list of branches just opened.
        num_opened: ``[1]``, how many there are in it.
        parent: ``[S]``, slot of each slot's parent.
        row_slot: ``[R]``, slot of each row; -1: padding.
        row_position: ``[R]``, position of the token that the row feeds; the number is for the one behind it.

    Returns:
        ``[R]`` int64: 64 random bits for each row; 0 for padding.

    Raises:
        ValueError: a dtype, shape or device is not as above; on the CPU also a slot out of range.
    """
    return torch.ops.apar.draw_numbers(keys, opened, num_opened, parent, row_slot, row_position)


@torch.library.register_fake("apar::mask_logits_")
def _(logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> None:
    check_same_device("mask_logits_", logits=logits, may_fork=may_fork)


@torch.library.register_fake("apar::greedy_tokens")
def _(logits: torch.Tensor, may_fork: torch.Tensor, fork_token: int, child_token: int) -> torch.Tensor:
    check_same_device("greedy_tokens", logits=logits, may_fork=may_fork)
    return logits.new_empty(logits.shape[0], dtype=torch.int32)


@torch.library.register_fake("apar::sample_tokens")
def _(
    logits: torch.Tensor,
    may_fork: torch.Tensor,
    numbers: torch.Tensor,
    fork_token: int,
    child_token: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> torch.Tensor:
    check_same_device("sample_tokens", logits=logits, may_fork=may_fork, numbers=numbers)
    return logits.new_empty(logits.shape[0], dtype=torch.int32)


@torch.library.register_fake("apar::draw_numbers")
def _(
    keys: torch.Tensor,
    opened: torch.Tensor,
    num_opened: torch.Tensor,
    parent: torch.Tensor,
    row_slot: torch.Tensor,
    row_position: torch.Tensor,
) -> torch.Tensor:
    check_same_device(
        "draw_numbers",
        keys=keys,
        opened=opened,
        num_opened=num_opened,
        parent=parent,
        row_slot=row_slot,
        row_position=row_position,
    )
    return keys.new_empty(row_slot.shape[0])
