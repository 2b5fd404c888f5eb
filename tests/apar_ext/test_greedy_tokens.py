"""greedy_tokens: the first largest logit of every row that the masks leave, rows without one, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apar_ext
from apar_ext import reference

ANY = [-math.inf, -1.0, -0.0, 0.0, 2.0]


def ones(rows: int) -> torch.Tensor:
    return torch.ones(rows, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 7, 31, 32, 33, 1023, 1024, 1025, 32000, 70001])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_agrees_with_argmax(rows, columns, dtype):
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    tokens = apar_ext.greedy_tokens(logits, ones(rows))
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]


@settings(deadline=None)
@given(st.lists(st.sampled_from(ANY), min_size=1, max_size=80), st.integers(0, 2100), st.data())
def test_agrees_with_mask_logits(values, shift, data):
    # Shifted, so that equals and masked tokens stand in one block, in two, and at the ragged end of the last one.
    columns = shift + len(values)
    fork, child = (data.draw(st.integers(max(-1, shift - 2), columns - 1)) for _ in range(2))
    logits = torch.tensor([[-5.0] * shift + values] * 2)
    may_fork = torch.tensor([0, 1], dtype=torch.int32)
    tokens = apar_ext.greedy_tokens(logits, may_fork, fork, child).tolist()
    assert tokens == reference.greedy_tokens(logits, may_fork, fork, child).tolist()
    for token, row in zip(tokens, apar_ext.mask_logits_(logits, may_fork, fork, child).tolist(), strict=True):
        assert token == (-1 if max(row) == -math.inf else row.index(max(row)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 5, 31, 32, 1500, 2047, 2049])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_and_infinity_give_no_token(place, sign, dtype):
    for bad in (math.copysign(math.nan, sign), math.inf):
        logits = torch.zeros(3, 2050, dtype=dtype)
        logits[1, place] = bad
        assert apar_ext.greedy_tokens(logits, ones(3)).tolist() == [0, -1, 0]


def test_rows_apart():
    wide = torch.zeros(4, 10)
    wide[:, 0] = 9.0  # outside the view
    wide[:, 5] = 1.0
    assert apar_ext.greedy_tokens(wide[:, 2:8], ones(4)).tolist() == [3] * 4


def test_no_columns():
    assert apar_ext.greedy_tokens(torch.zeros(2, 0), ones(2)).tolist() == [-1, -1]


BAD_INPUT = {
    "dtype": ({"logits": torch.zeros(2, 3, dtype=torch.float64)}, "logits has dtype float64, expected one of float32"),
    "shape": ({"logits": torch.zeros(3)}, r"logits has shape \[3\], expected \[R, V\]"),
    "stride": ({"logits": torch.zeros(3, 2).T}, "logits has stride 2 in its last dimension, expected 1"),
    "may_fork": ({"may_fork": ones(3)}, r"may_fork has shape \[3\], expected \[R=2\]"),
    "fork_token": ({"fork_token": 3}, r"fork_token is 3, expected -1 \(none\) or 0 to V - 1 = 2"),
    "child_token": ({"child_token": -2}, "child_token is -2, expected -1"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=f"greedy_tokens: {message}"):
        apar_ext.greedy_tokens(**{"logits": torch.zeros(2, 3), "may_fork": ones(2), **change})


def test_torch_machinery():
    logits = torch.randn(3, 50)
    torch.library.opcheck(torch.ops.apar.greedy_tokens.default, (logits, ones(3), 2, 4))
    compiled = torch.compile(apar_ext.greedy_tokens, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits, ones(3), 2, 4), apar_ext.greedy_tokens(logits, ones(3), 2, 4))
