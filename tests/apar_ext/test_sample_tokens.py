"""sample_tokens and draw_numbers: the plain-torch twin, the filters, hashes, what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from apar.sampling import child_key, random_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

import apar_ext
from apar_ext import reference

FILTERS = [(0, 1.0), (5, 1.0), (0, 0.7), (7, 0.6), (1, 0.5), (0, 1e-9), (50, 0.95), (0, 1 - 1e-12), (10**9, 0.999)]


def ones(rows: int) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.int32)


def random_bits(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(9, 1), (9, 7), (9, 1000), (1, 32002)])
@pytest.mark.parametrize(("top_k", "top_p"), FILTERS)
def test_agrees_with_the_plain_twin(rows, columns, dtype, top_k, top_p):
    logits = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * 4).to(dtype)
    for temperature in (0.05, 0.8, 3.0):
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        tokens = apar_ext.sample_tokens(logits, ones(rows), random_bits(rows), **options)
        assert tokens.dtype == torch.int32
        assert tokens.tolist() == reference.sample_tokens(logits, ones(rows), random_bits(rows), **options).tolist()


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 2.0, 2.5]), min_size=1, max_size=60),
    st.sampled_from(FILTERS),
    st.data(),
)
def test_agrees_with_the_plain_twin_on_ties_and_masks(values, filters, data):
    logits = torch.tensor([values] * 6)
    fork, child = (data.draw(st.integers(-1, len(values) - 1)) for _ in range(2))
    may_fork = torch.tensor([0, 1] * 3, dtype=torch.int32)
    numbers = torch.tensor([0, -1, data.draw(st.integers(-(2**63), 2**63 - 1))]).repeat_interleave(2)
    options = dict(temperature=data.draw(st.sampled_from([1e-30, 0.7, 1e30])), top_k=filters[0], top_p=filters[1])
    tokens = apar_ext.sample_tokens(logits, may_fork, numbers, fork, child, **options)
    assert tokens.tolist() == reference.sample_tokens(logits, may_fork, numbers, fork, child, **options).tolist()
    masked = apar_ext.mask_logits_(logits, may_fork, fork, child)
    for token, row in zip(tokens.tolist(), masked.tolist(), strict=True):
        assert (token == -1) == (max(row) == -math.inf)
        assert token == -1 or row[token] > -math.inf


def test_weights_are_those_of_the_softmax():
    logits = torch.linspace(-60, 20, 100_001)
    for temperature in (0.5, 1.0, 2.0):
        weights = reference.token_weights(logits, temperature).double()
        exact = ((logits.double() - 20) / temperature).exp() * 2**40
        # Truncated to an integer, and float32 in between.
        assert ((weights - exact).abs() <= 4e-6 * exact + 1).all()
        assert weights[-1] == 2**40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_give_no_token(dtype):
    for bad in (math.nan, math.inf):
        logits = torch.zeros(3, 2050, dtype=dtype)
        logits[1, 1500] = bad
        assert apar_ext.sample_tokens(logits, ones(3), random_bits(3)).tolist()[1] == -1
    assert apar_ext.sample_tokens(torch.zeros(2, 0), ones(2), random_bits(2)).tolist() == [-1, -1]


def test_half_precision_numbers_of_every_kind():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16)
    numbers = values[values.isfinite()]
    # Each in turn beside a number that is smaller than all others.
    for row in numbers[::61].split(64):
        logits = torch.stack([torch.full_like(row, torch.finfo(torch.float16).min), row], dim=1)
        assert torch.equal(
            apar_ext.greedy_tokens(logits, ones(len(row))),
            apar_ext.greedy_tokens(logits.float(), ones(len(row))),
        )


def test_draws_the_numbers_of_the_decoder():
    """Keys of branches that were just opened come from those of their parents; slot 3 was opened, 4 only looks so."""
    keys = random_bits(6, seed=1)
    before = keys.numpy().view(np.uint64).copy()
    opened = torch.full((6, 6), 10**6, dtype=torch.int32)
    opened[0] = torch.tensor([3, 77, 5, 0, 12, 2])
    opened[1] = torch.tensor([0, 78, 6, 0, 12, 0])
    opened[2] = torch.tensor([4, 79, 6, 0, 12, 0])
    parent = torch.tensor([1, -1, -1, 5, 5, -1], dtype=torch.int32)
    row_slot = torch.tensor([3, 5, 0, -1], dtype=torch.int32)
    row_position = torch.tensor([30, 29, 7, 0], dtype=torch.int32)
    count = torch.tensor([2], dtype=torch.int32)
    numbers = apar_ext.draw_numbers(keys, opened, count, parent, row_slot, row_position)
    expected_keys = before.copy()
    expected_keys[3] = child_key(int(before[5]), 2)
    expected_keys[0] = child_key(int(before[1]), 0)
    assert (keys.numpy().view(np.uint64) == expected_keys).all()
    expected = random_numbers(expected_keys[[3, 5, 0]], np.array([31, 30, 8]))
    assert (numbers.numpy().view(np.uint64)[:3] == expected).all()
    assert numbers[3] == 0


BAD_INPUT = {
    "dtype": ({"logits": torch.zeros(2, 3, dtype=torch.float64)}, "logits has dtype float64, expected one of float32"),
    "numbers": ({"numbers": ones(2)}, "numbers has dtype int32, expected int64"),
    "shape": ({"numbers": random_bits(3)}, r"numbers has shape \[3\], expected \[R=2\]"),
    "temperature": ({"temperature": 0.0}, "temperature is 0, expected a finite number over 0"),
    "temperature nan": ({"temperature": math.nan}, "temperature is nan"),
    "top_k": ({"top_k": -1}, "top_k is -1, expected at least 0"),
    "top_p": ({"top_p": 0.0}, "top_p is 0, expected a number over 0 and up to 1"),
    "fork_token": ({"fork_token": 3}, r"fork_token is 3, expected -1 \(none\) or 0 to V - 1 = 2"),
    "columns": ({"logits": torch.empty(2, 2**23 + 1, dtype=torch.bfloat16)}, "logits has 8388609 columns"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(change, message):
    given_ = {"logits": torch.zeros(2, 3), "may_fork": ones(2), "numbers": random_bits(2), **change}
    with pytest.raises(ValueError, match=f"sample_tokens: .*({message})"):
        apar_ext.sample_tokens(**given_)


def test_draw_numbers_refuses_slots_out_of_range():
    given_ = dict(
        keys=random_bits(2), opened=torch.zeros(2, 6, dtype=torch.int32), num_opened=ones(1), parent=ones(2),
        row_slot=ones(1), row_position=ones(1),
    )  # fmt: skip
    apar_ext.draw_numbers(**given_)
    for change, message in (
        ({"row_slot": ones(1) * 2}, r"row_slot\[0\] is 2, expected -1 to S - 1 = 1"),
        ({"parent": ones(2) * -1}, r"parent\[0\] is -1, expected 0"),
        ({"num_opened": ones(1) * 3}, "num_opened is 3, expected 0 to S = 2"),
        ({"keys": ones(2)}, "keys has dtype int32, expected int64"),
        ({"opened": ones(2)}, r"opened has shape \[2\], expected \[S=2, 6=6\]"),
    ):
        with pytest.raises(ValueError, match=f"draw_numbers: {message}"):
            apar_ext.draw_numbers(**{**given_, **change})


def test_torch_machinery():
    logits = torch.randn(3, 50)
    arguments = (logits, ones(3), random_bits(3), 2, 4, 0.7, 5, 0.9)
    torch.library.opcheck(torch.ops.apar.sample_tokens.default, arguments)
    opened = torch.zeros(2, 6, dtype=torch.int32)
    arguments = (random_bits(2), opened, ones(1), ones(2), ones(1), ones(1))
    torch.library.opcheck(torch.ops.apar.draw_numbers.default, arguments)
