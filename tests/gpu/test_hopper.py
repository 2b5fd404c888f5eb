"""The families of kernels for Hopper on a card: what tests/emulator/test_hopper.py shows without one."""

from __future__ import annotations

import pytest
import torch

import apar_ext
from tests.emulator import cases
from tests.gpu.test_kernels import HALVES, HAS_CUDA_KERNELS, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not HAS_CUDA_KERNELS
        or torch.cuda.get_device_capability() != (9, 0)
        or "90a" not in apar_ext.build_info()["cuda_archs"],
        reason="no GPU of compute capability 9.0, or no kernels for it in this build",
    ),
]


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("num_heads", [2, 10, 48])
@pytest.mark.parametrize("page_size", [8, 16, 64, 128])
def test_families_agree(head_dim, dtype, num_heads, page_size, monkeypatch):
    """The copy engine changes no bit; warpgroups may round otherwise, and no more than that."""
    rows = [*cases.tree(head_dim, streams=12, longest=200, trunk=1500), *cases.prefill(900, 90)]
    case = cases.make_case(rows, head_dim=head_dim, dtype=dtype, num_heads=num_heads, page_size=page_size)
    outputs = {}
    for family in ("portable", "bulk", "warpgroup"):
        monkeypatch.setenv("APAR_TREE_ATTENTION", family)
        out, lse = run(case)
        cases.assert_right(case, out, lse)
        outputs[family] = out
    assert torch.equal(outputs["bulk"].view(torch.int16), outputs["portable"].view(torch.int16))
