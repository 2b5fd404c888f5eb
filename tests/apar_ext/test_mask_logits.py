"""mask_logits_: which columns it writes, what it refuses, and that torch's machinery accepts it."""

from __future__ import annotations

import math

import pytest
import torch

import apar_ext
from apar_ext import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def make_case(dtype: torch.dtype = torch.float32, rows: int = 5, vocabulary: int = 7):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=random).to(dtype)
    may_fork = torch.tensor([0, 1, 0, -3, 2] * (rows // 5 + 1), dtype=torch.int32)[:rows]
    return logits, may_fork


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fork_token", "child_token"), [(2, 6), (0, 3), (-1, 4), (5, -1), (-1, -1), (1, 1)])
def test_columns(dtype, fork_token, child_token):
    logits, may_fork = make_case(dtype)
    expected = [
        [
            -math.inf if column == child_token or (column == fork_token and may_fork[row] == 0) else value
            for column, value in enumerate(values)
        ]
        for row, values in enumerate(logits.tolist())
    ]
    by_reference = reference.mask_logits_(logits.clone(), may_fork, fork_token, child_token)
    result = apar_ext.mask_logits_(logits, may_fork, fork_token, child_token)
    assert result is logits
    assert logits.tolist() == expected
    assert torch.equal(by_reference, logits)


def test_many_rows_and_gaps_between_them():
    wide = torch.zeros(9001, 12)
    logits = wide[:, 2:9]
    may_fork = (torch.arange(9001) % 3).int()
    apar_ext.mask_logits_(logits, may_fork, 1, 4)
    expected = torch.zeros(9001, 12)
    expected[:, 6] = -math.inf
    expected[::3, 3] = -math.inf
    assert torch.equal(wide, expected)


def test_no_rows():
    assert apar_ext.mask_logits_(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int32), 0, 1).shape == (0, 4)


BAD_INPUT = {
    "integers": ({"logits": torch.zeros(5, 7, dtype=torch.int64)}, "logits has dtype int64, expected one of float32"),
    "logits 1-d": ({"logits": torch.zeros(7)}, r"logits has shape \[7\], expected \[R, V\]"),
    "logits columns apart": ({"logits": torch.zeros(7, 5).T}, "logits has stride 5 in its last dimension, expected 1"),
    "may_fork bool": ({"may_fork": torch.zeros(5, dtype=torch.bool)}, "may_fork has dtype bool, expected int32"),
    "may_fork short": ({"may_fork": torch.zeros(4, dtype=torch.int32)}, r"may_fork has shape \[4\], expected \[R=5\]"),
    "may_fork elsewhere": (
        {"may_fork": torch.zeros(5, dtype=torch.int32, device="meta")},
        "may_fork is on device meta, expected cpu as logits is",
    ),
    "fork_token too large": ({"fork_token": 7}, r"fork_token is 7, expected -1 \(none\) or 0 to V - 1 = 6"),
    "child_token too small": ({"child_token": -2}, r"child_token is -2, expected -1 \(none\) or 0 to V - 1 = 6"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_written(name):
    changes, message = BAD_INPUT[name]
    logits, may_fork = make_case()
    case = {"logits": logits, "may_fork": may_fork, "fork_token": 1, "child_token": 2, **changes}
    before = case["logits"].clone()
    with pytest.raises(ValueError, match="mask_logits_: " + message):
        apar_ext.mask_logits_(**case)
    assert torch.equal(case["logits"], before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    torch.library.opcheck(torch.ops.apar.mask_logits_.default, (*make_case(dtype), 1, 2))


def test_compiles_into_one_graph():
    logits, may_fork = make_case()
    expected = reference.mask_logits_(logits * 2, may_fork, 1, 2)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(logits, may_fork):
        return apar_ext.mask_logits_(logits * 2, may_fork, 1, 2)

    assert torch.equal(step(logits, may_fork), expected)
