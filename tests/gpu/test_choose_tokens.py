"""greedy_tokens, sample_tokens and draw_numbers on a GPU: the CPU's tokens, to the last one, captured or not."""

from __future__ import annotations

import pytest
import torch

import apar_ext

HAS_CUDA_KERNELS = torch.cuda.is_available() and bool(apar_ext.build_info()["cuda_built"])
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="no GPU, or no CUDA kernels in this build"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_case(rows: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    logits = (torch.randn(rows, columns, generator=generator) * 4).to(dtype)
    may_fork = torch.randint(0, 2, (rows,), generator=generator, dtype=torch.int32)
    numbers = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)
    return logits, may_fork, numbers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (256, 32002), (9, 151936), (0, 5)])
def test_greedy_tokens(rows, columns, dtype):
    logits, may_fork, _ = make_case(rows, columns, dtype)
    masks = (columns - 1, columns // 2) if columns > 2 else (-1, -1)
    tokens = apar_ext.greedy_tokens(logits.cuda(), may_fork.cuda(), *masks)
    assert tokens.cpu().tolist() == apar_ext.greedy_tokens(logits, may_fork, *masks).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (9, 1.0), (0, 0.8), (40, 0.6), (1, 0.5), (0, 1e-9)])
def test_sample_tokens(dtype, top_k, top_p):
    for rows, columns in ((64, 32002), (5, 11), (2, 151936)):
        logits, may_fork, numbers = make_case(rows, columns, dtype)
        for temperature in (0.3, 1.0, 4.0):
            options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
            tokens = apar_ext.sample_tokens(logits.cuda(), may_fork.cuda(), numbers.cuda(), 3, 5, **options)
            assert tokens.cpu().tolist() == apar_ext.sample_tokens(logits, may_fork, numbers, 3, 5, **options).tolist()


def test_draw_numbers():
    generator = torch.Generator().manual_seed(0)
    slots, rows, opened = 5000, 900, 1500
    keys = torch.randint(-(2**63), 2**63 - 1, (slots,), generator=generator)
    events = torch.full((slots, 6), 1 << 30, dtype=torch.int32)
    events[:opened, 0] = torch.arange(opened)
    events[:opened, 5] = torch.arange(opened) % 9
    arguments = (
        events,
        torch.tensor([opened], dtype=torch.int32),
        torch.randint(opened, slots, (slots,), generator=generator, dtype=torch.int32),
        torch.randint(-1, slots, (rows,), generator=generator, dtype=torch.int32),
        torch.randint(0, 5000, (rows,), generator=generator, dtype=torch.int32),
    )
    on_device = keys.cuda()
    numbers = apar_ext.draw_numbers(on_device, *(argument.cuda() for argument in arguments))
    assert torch.equal(numbers.cpu(), apar_ext.draw_numbers(keys, *arguments))
    assert torch.equal(on_device.cpu(), keys)


def test_graph_capture():
    logits, may_fork, numbers = (tensor.cuda() for tensor in make_case(8, 32002, torch.bfloat16))
    options = dict(temperature=0.8, top_k=50, top_p=0.9)
    apar_ext.sample_tokens(logits, may_fork, numbers, **options)
    apar_ext.greedy_tokens(logits, may_fork)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sampled = apar_ext.sample_tokens(logits, may_fork, numbers, **options)
        greedy = apar_ext.greedy_tokens(logits, may_fork)
    for seed in range(3):
        logits.copy_(torch.randn(8, 32002, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        assert torch.equal(sampled, apar_ext.sample_tokens(logits, may_fork, numbers, **options))
        assert torch.equal(greedy, apar_ext.greedy_tokens(logits, may_fork))
