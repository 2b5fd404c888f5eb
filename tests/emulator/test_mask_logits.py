"""mask_logits_'s CUDA kernel on the emulated device."""

from __future__ import annotations

import pytest
import torch

from apar_ext import reference

from .emulator import Device, mask_logits_


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "tokens"), [(1, (3, 4)), (130, (0, 10)), (5, (-1, 2)), (5, (7, -1)), (0, (1, 2))])
def test_masks_as_the_reference(dtype, rows, tokens):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 16, generator=generator).to(dtype)[:, :11]
    may_fork = torch.randint(0, 2, (rows,), generator=generator, dtype=torch.int32)
    expected = reference.mask_logits_(logits.clone(), may_fork, *tokens)
    mask_logits_(Device(), logits, may_fork, *tokens)
    assert torch.equal(logits, expected)
