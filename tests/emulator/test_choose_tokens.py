"""greedy_tokens, sample_tokens and draw_numbers on the emulated device: the tokens of the CPU, to the last one."""

from __future__ import annotations

import math

import pytest
import torch

import apar_ext

from . import emulator
from .emulator import Device

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def row_of(columns: int, dtype: torch.dtype, rows: int, shift: int, *, seed: int = 0, distinct: int = 0):
    """Logits whose rows start at any place within 16 bytes, in memory that ends with the last of them."""
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(rows * (columns + 1) + shift, generator=generator) * 4
    if distinct:
        memory = (memory * distinct / 8).round() * 8 / distinct
    return memory.to(dtype)[shift:].as_strided((rows, columns), (columns + 1, 1), storage_offset=shift)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("columns", "rows", "shift"), [(1, 2, 0), (7, 3, 1), (257, 2, 3), (3000, 2, 5), (0, 1, 0)])
def test_greedy_tokens_are_those_of_the_cpu(dtype, columns, rows, shift):
    for distinct in (0, 2):
        logits = row_of(columns, dtype, rows, shift, seed=columns, distinct=distinct)
        may_fork = torch.arange(rows, dtype=torch.int32) % 2
        masks = (columns - 1, columns // 2) if columns > 2 else (-1, -1)
        tokens = emulator.greedy_tokens(Device(), logits, may_fork, *masks)
        assert tokens.tolist() == apar_ext.greedy_tokens(logits, may_fork, *masks).tolist()


@pytest.mark.parametrize("place", [0, 77, 2049])
def test_nan_and_infinity_give_no_token(place):
    for bad in (math.nan, -math.nan, math.inf):
        logits = torch.zeros(2, 2050, dtype=torch.bfloat16)
        logits[1, place] = bad
        may_fork = torch.ones(2, dtype=torch.int32)
        assert emulator.greedy_tokens(Device(), logits, may_fork).tolist() == [0, -1]
        numbers = torch.tensor([0, 5])
        assert emulator.sample_tokens(Device(), logits, may_fork, numbers).tolist() == [0, -1]
        logits[1] = -math.inf
        assert emulator.greedy_tokens(Device(), logits, may_fork).tolist() == [0, -1]
        assert emulator.sample_tokens(Device(), logits, may_fork, numbers).tolist() == [0, -1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (9, 1.0), (0, 0.8), (40, 0.6), (1, 0.5), (0, 1e-9)])
def test_sampled_tokens_are_those_of_the_cpu(dtype, top_k, top_p):
    columns, rows = 1300, 4
    numbers = torch.tensor([0, -1, 2**62, -(2**40)])
    may_fork = torch.arange(rows, dtype=torch.int32) % 2
    for distinct, temperature in ((0, 1.0), (1, 5.0)):
        logits = row_of(columns, dtype, rows, 3, seed=top_k, distinct=distinct)
        logits[1, 40] = -math.inf
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        tokens = emulator.sample_tokens(Device(), logits, may_fork, numbers, 5, 1000, **options)
        assert tokens.tolist() == apar_ext.sample_tokens(logits, may_fork, numbers, 5, 1000, **options).tolist()


@pytest.mark.parametrize("options", [dict(), dict(top_k=4), dict(top_p=0.5), dict(top_k=6, top_p=0.9)])
def test_any_number_meets_the_cpus_token_on_short_rows(options):
    """Few tokens, many equal ones, every number of a fine grid: each edge between two tokens is met."""
    rows = 16
    logits = row_of(11, torch.bfloat16, 1, 1, distinct=1).expand(rows, -1)
    numbers = torch.arange(rows) * (2**64 // rows // 2) * 2 - 2**63
    may_fork = torch.ones(rows, dtype=torch.int32)
    tokens = emulator.sample_tokens(Device(), logits, may_fork, numbers, **options)
    assert tokens.tolist() == apar_ext.sample_tokens(logits, may_fork, numbers, **options).tolist()
    assert len(set(tokens.tolist())) > 1


@pytest.mark.parametrize("num_opened", [0, 3, 300])
def test_numbers_are_those_of_the_cpu(num_opened):
    slots, rows = 700, 333
    generator = torch.Generator().manual_seed(num_opened)
    keys = torch.randint(-(2**63), 2**63 - 1, (slots,), generator=generator)
    opened = torch.full((slots, 6), 1 << 30, dtype=torch.int32)
    opened[:num_opened, 0] = torch.arange(num_opened)
    opened[:num_opened, 5] = torch.arange(num_opened) % 7
    arguments = (
        opened,
        torch.tensor([num_opened], dtype=torch.int32),
        torch.randint(num_opened, slots, (slots,), generator=generator, dtype=torch.int32),
        torch.randint(-1, slots, (rows,), generator=generator, dtype=torch.int32),
        torch.randint(0, 5000, (rows,), generator=generator, dtype=torch.int32),
    )
    expected_keys = keys.clone()
    expected = apar_ext.draw_numbers(expected_keys, *arguments)
    assert torch.equal(emulator.draw_numbers(Device(), keys, *arguments), expected)
    assert torch.equal(keys, expected_keys)
