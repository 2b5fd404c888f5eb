"""The CUDA kernels on a GPU: what tests/emulator shows without one. `pytest -m gpu`."""

from __future__ import annotations

import random

import pytest
import torch

import apar_ext
from tests.emulator import cases

HAS_CUDA_KERNELS = torch.cuda.is_available() and bool(apar_ext.build_info()["cuda_built"])
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="no GPU, or no CUDA kernels in this build"),
]

HALVES = [torch.bfloat16, torch.float16]


def make_plan(case: cases.Case) -> apar_ext.Plan:
    names = ("page_table", "row_indptr", "range_stream", "range_begin", "range_end")
    q, k_cache = case.inputs["q"], case.inputs["k_cache"]
    return apar_ext.make_plan(
        *(case.inputs[name].cuda() for name in names),
        num_kv_heads=k_cache.shape[1],
        group_size=q.shape[1] // k_cache.shape[1],
        page_size=k_cache.shape[2],
    )


def run(case: cases.Case, **options) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = (case.inputs[name].cuda() for name in ("q", "k_cache", "v_cache"))
    sinks = options.pop("sinks", None)
    sinks = None if sinks is None else sinks.cuda()
    out, lse = apar_ext.tree_attention(*tensors, make_plan(case), sinks=sinks, return_lse=True, **options)
    return out.cpu(), lse.cpu()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("num_heads", [2, 10, 48])
def test_trees(head_dim, dtype, num_heads):
    rows = cases.tree(head_dim, streams=12, longest=200, trunk=1500)
    case = cases.make_case(rows, head_dim=head_dim, dtype=dtype, num_heads=num_heads)
    cases.assert_right(case, *run(case))


@pytest.mark.parametrize("seed", range(60))
def test_any_set_of_ranges(seed):
    rng = random.Random(seed)
    case = cases.make_case(
        cases.anything(seed),
        seed=seed,
        num_kv_heads=(num_kv_heads := rng.choice([1, 2, 8])),
        num_heads=num_kv_heads * rng.choice([1, 2, 3, 5, 16]),
        head_dim=rng.choice([64, 80, 128]),
        page_size=rng.choice([8, 16, 32, 64, 128]),
        dtype=rng.choice([*HALVES, torch.float32]),
    )
    options = dict(
        scale=rng.choice([None, 0.3]),
        softcap=rng.choice([0.0, 5.0]),
        sinks=torch.randn(case.inputs["q"].shape[1]) * 2 if rng.random() < 0.5 else None,
    )
    out, lse = run(case, **dict(options))
    cases.assert_right(case, out, lse, **options)


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_have_the_same_bits_in_any_company(dtype):
    """Alone a row is cut into many items, in company into few."""
    rows = [*cases.tree(11, streams=40, trunk=3000, longest=900), [(60, 0, 20000)], *cases.anything(4)]
    case = cases.make_case(rows, dtype=dtype, num_heads=8, num_kv_heads=2)
    out, lse = run(case)
    again, _ = run(case)
    assert torch.equal(out.view(torch.int16), again.view(torch.int16))
    for row in range(len(rows)):
        out_alone, lse_alone = run(case.subset([row]))
        assert torch.equal(out[row].view(torch.int16), out_alone[0].view(torch.int16))
        assert torch.equal(lse[row].view(torch.int32), lse_alone[0].view(torch.int32))


def test_graph_capture():
    case = cases.make_case(cases.tree(3, streams=8, trunk=4000), num_heads=8, num_kv_heads=2, head_dim=128)
    q, k_cache, v_cache = (case.inputs[name].cuda() for name in ("q", "k_cache", "v_cache"))
    plan = make_plan(case)
    expected = apar_ext.tree_attention(q, k_cache, v_cache, plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = apar_ext.tree_attention(q, k_cache, v_cache, plan)
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


def test_errors_come_before_the_launch():
    case = cases.make_case(cases.tree(3), head_dim=64)
    q, k_cache, v_cache = (case.inputs[name].cuda() for name in ("q", "k_cache", "v_cache"))
    plan = make_plan(case)
    with pytest.raises(ValueError, match="k_cache is on device cpu, expected cuda:0 as q is"):
        apar_ext.tree_attention(q, k_cache.cpu(), v_cache, plan)
    with pytest.raises(ValueError, match="head_dim 32"):
        apar_ext.tree_attention(
            q[..., :32].contiguous(), k_cache[..., :32].contiguous(), v_cache[..., :32].contiguous(), plan
        )


def test_plans_for_other_sizes_are_refused():
    case = cases.make_case(cases.tree(3), head_dim=64)
    q, k_cache, v_cache = (case.inputs[name].cuda() for name in ("q", "k_cache", "v_cache"))
    plan = make_plan(case)
    with pytest.raises(ValueError, match=r"plan was made for rows R = \d+, expected 1 as q has"):
        apar_ext.tree_attention(q[:1], k_cache, v_cache, plan)
    pages = plan.max_page
    with pytest.raises(ValueError, match=f"page_table has page id {pages} in a range, expected 0 to num_pages - 1 = "):
        apar_ext.tree_attention(q, k_cache[:pages].contiguous(), v_cache[:pages].contiguous(), plan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_page_ids_that_only_the_device_sees_are_reported(dtype):
    """And nothing breaks: the next call is right."""
    case = cases.make_case(cases.tree(3), head_dim=64, dtype=dtype)
    tensors = [case.inputs[name].cuda() for name in ("q", "k_cache", "v_cache")]
    plan = make_plan(case)
    right = apar_ext.tree_attention(*tensors, plan)
    table = plan.page_table.clone()
    plan.page_table[0, 0] = 1 << 28
    apar_ext.tree_attention(*tensors, plan)
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=f"page_table has page id {1 << 28} in a range of stream 0"):
        apar_ext.raise_device_error()
    apar_ext.raise_device_error()
    plan.page_table.copy_(table)
    assert torch.equal(apar_ext.tree_attention(*tensors, plan), right)


def test_reports_are_raised_by_the_next_operator():
    caches = [torch.zeros(2, 1, 8, 16, device="cuda") for _ in range(2)]
    rows = [torch.ones(3, 1, 16, device="cuda") for _ in range(2)]
    apar_ext.append_kv(*rows, *caches, torch.tensor([0, 16, 5], dtype=torch.int32, device="cuda"))
    torch.cuda.synchronize()
    slots = torch.tensor([1, 2, 3], dtype=torch.int32, device="cuda")
    with pytest.raises(ValueError, match=r"append_kv: in an earlier call .* slots\[1\] is 16, expected -1 or 0 to"):
        apar_ext.append_kv(*rows, *caches, slots)
    assert caches[0][0, 0, :, 0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    apar_ext.append_kv(*rows, *caches, slots)
