"""Choosing tokens: greedy, or from a filtered distribution with random numbers that do not depend on the load."""

from __future__ import annotations

import dataclasses
import math
from typing import NoReturn

import numpy as np
import torch

from apar_ext import greedy_tokens, mask_logits_, sample_tokens

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive counters land far apart


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to choose a token. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep all tokens.

    Every row draws one number from a hash of (seed, prompt, branch, position), so the same seed gives the same text
    whatever else is decoded beside it, in whatever order.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (
            isinstance(self.temperature, (int, float)) and math.isfinite(self.temperature) and self.temperature >= 0
        ):
            raise ValueError(f"temperature: expected a finite number, 0 or more, got {self.temperature!r}")
        if not (isinstance(self.top_p, (int, float)) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p: expected a number over 0 and up to 1, got {self.top_p!r}")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k: expected an integer, 0 (off) or more, got {self.top_k!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed: expected an integer or None, got {self.seed!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def trunk_key(self, prompt_index: int) -> int:
        """Key of the random numbers of a prompt's trunk."""
        return _mix(_mix(self.seed & _MASK) + prompt_index)


def make_sampling(temperature: float, top_p: float, top_k: int, seed: int | None) -> Sampling:
    """A checked Sampling. seed None: one is drawn from torch's global generator, if there is anything to draw."""
    if seed is None:
        seed = int(torch.randint(2**62, ())) if temperature else 0
    return Sampling(temperature, top_p, top_k, seed)


def child_key(parent_key: int, child_index: int) -> int:
    """Key of the random numbers of a branch, from its parent's key and its number among the parent's children."""
    return _mix(parent_key + (child_index + 1) * _STEP)


def random_numbers(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """64 random bits per row. keys: [R] uint64; positions: [R] integers, where the tokens are to stand."""
    with np.errstate(over="ignore"):
        return _mix_array(keys + positions.astype(np.uint64) * np.uint64(_STEP))


def choose_greedy(logits: torch.Tensor, may_fork: torch.Tensor, fork_id: int = -1, child_id: int = -1) -> torch.Tensor:
    """logits: [R, V], may_fork: [R] int32 -> [R] int32, the likeliest tokens that the masks leave.

    The masks are those of ``apar_ext.mask_logits_``. Raises FloatingPointError on NaN, or where a row has no token
    left.
    """
    known = _known_dtype(logits)
    tokens = greedy_tokens(known, may_fork, fork_id, child_id)
    _check_tokens(tokens, known, may_fork, fork_id, child_id)
    return tokens


def choose(
    logits: torch.Tensor,
    sampling: Sampling,
    numbers: np.ndarray,
    may_fork: torch.Tensor,
    fork_id: int = -1,
    child_id: int = -1,
) -> torch.Tensor:
    """logits: [R, V]; numbers: [R] uint64, 64 random bits; may_fork: [R] int32 -> [R] int32, tokens drawn by
    ``apar_ext.sample_tokens``. Raises FloatingPointError as ``choose_greedy`` does.
    """
    known = _known_dtype(logits)
    bits = torch.from_numpy(numbers.view(np.int64)).to(logits.device)
    filters = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    tokens = sample_tokens(known, may_fork, bits, fork_id, child_id, **filters)
    _check_tokens(tokens, known, may_fork, fork_id, child_id)
    return tokens


def refuse_row(row: int, what: str = "no finite number as the largest logit") -> NoReturn:
    """Raises FloatingPointError for what a model gave as the logits of a row."""
    raise FloatingPointError(f"logits: the model gave {what} in row {row} of the step; expected finite numbers")


def _known_dtype(logits: torch.Tensor) -> torch.Tensor:
    return logits.float() if logits.dtype == torch.float64 else logits


def _check_tokens(
    tokens: torch.Tensor, logits: torch.Tensor, may_fork: torch.Tensor, fork_id: int, child_id: int
) -> None:
    if int(tokens.min()) >= 0:
        return
    row = int(tokens.argmin())
    best = mask_logits_(logits[row : row + 1].clone(), may_fork[row : row + 1], fork_id, child_id).amax()
    refuse_row(row, "NaN" if best.isnan() else f"{best.item()} as the largest logit")


def _mix(value: int) -> int:
    """A bijection of 64-bit numbers that spreads every input bit over all output bits (the SplitMix64 finaliser)."""
    value = (value + _STEP) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _mix_array(values: np.ndarray) -> np.ndarray:
    values = values + np.uint64(_STEP)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
