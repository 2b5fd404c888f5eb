"""The plain-torch reference against dense attention in float64, which knows neither pages nor ranges.

The dense side lays all streams end to end and counts how often a row reads each entry; a count c is an additive mask
of log(c), so that trees, windows, prefill, joins and overlapping ranges are all the same to it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from apar_ext import reference


@dataclass
class Case:
    q: torch.Tensor  # [R, Hq, D]
    dense_k: torch.Tensor  # [Hkv, T, D], all streams end to end
    dense_v: torch.Tensor
    counts: torch.Tensor  # [R, T]: how often row r reads entry t
    arguments: dict[str, torch.Tensor]  # of reference.tree_attention


def make_case(
    seed: int,
    lengths: list[int],
    rows: list[list[tuple[int, int, int]]],
    *,
    num_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 5,
    page_size: int = 8,
) -> Case:
    """Streams of the given lengths in scattered pages; whatever no stream owns is NaN or an impossible page id."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q = randn(len(rows), num_heads, head_dim)
    dense_k, dense_v = randn(num_kv_heads, sum(lengths), head_dim), randn(num_kv_heads, sum(lengths), head_dim)
    starts = [sum(lengths[:stream]) for stream in range(len(lengths))]

    pages_of = [(length + page_size - 1) // page_size for length in lengths]
    free_pages = torch.randperm(sum(pages_of) + 2, generator=generator).tolist()
    k_cache = torch.full((len(free_pages), num_kv_heads, page_size, head_dim), math.nan, dtype=torch.float64)
    v_cache = k_cache.clone()
    page_table = torch.full((len(lengths), max(pages_of, default=0) + 1), 1 << 30, dtype=torch.int32)
    for stream, length in enumerate(lengths):
        for index in range(length):
            if index % page_size == 0:
                page_table[stream, index // page_size] = free_pages.pop()
            page = page_table[stream, index // page_size].item()
            k_cache[page, :, index % page_size] = dense_k[:, starts[stream] + index]
            v_cache[page, :, index % page_size] = dense_v[:, starts[stream] + index]

    counts = torch.zeros(len(rows), sum(lengths), dtype=torch.float64)
    for row, ranges in enumerate(rows):
        for stream, begin, end in ranges:
            counts[row, starts[stream] + begin : starts[stream] + end] += 1
    flat = [one for ranges in rows for one in ranges]
    indptr = [sum(len(ranges) for ranges in rows[:row]) for row in range(len(rows) + 1)]
    return Case(
        q,
        dense_k,
        dense_v,
        counts,
        dict(
            q=q,
            k_cache=k_cache,
            v_cache=v_cache,
            page_table=page_table,
            row_indptr=torch.tensor(indptr, dtype=torch.int32),
            range_stream=torch.tensor([stream for stream, _, _ in flat], dtype=torch.int32),
            range_begin=torch.tensor([begin for _, begin, _ in flat], dtype=torch.int32),
            range_end=torch.tensor([end for _, _, end in flat], dtype=torch.int32),
        ),
    )


def random_tree(seed: int) -> tuple[list[int], list[list[tuple[int, int, int]]]]:
    """Stream lengths, and for a row at the end of each stream the ranges it reads: ancestors cut at their forks."""
    rng = random.Random(seed)
    lengths = [rng.randint(1, 40)]
    contexts: list[list[tuple[int, int, int]]] = [[]]
    for stream in range(1, rng.randint(1, 9)):
        parent = rng.randrange(stream)
        lengths.append(rng.randint(1, 30))
        contexts.append([*contexts[parent], (parent, 0, rng.randint(1, lengths[parent]))])
    rows = [[*context, (stream, 0, lengths[stream])] for stream, context in enumerate(contexts)]
    rng.shuffle(rows)
    return lengths, rows


def dense_attention(case: Case, **options: float) -> torch.Tensor:
    """torch's own attention, [R, Hq, D]."""
    mask = torch.log(case.counts)  # log(0) = -inf: not read
    out = F.scaled_dot_product_attention(
        case.q.transpose(0, 1), case.dense_k, case.dense_v, attn_mask=mask, enable_gqa=True, **options
    )
    return out.transpose(0, 1)


def explicit_attention(
    case: Case, scale: float, softcap: float, sinks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula, head by head: weights exp(score) / (sum of exp(scores) + exp(sink)); out, lse."""
    out, lse = torch.zeros_like(case.q), torch.zeros(case.q.shape[:2], dtype=torch.float64)
    group = case.q.shape[1] // case.dense_k.shape[0]
    for head in range(case.q.shape[1]):
        scores = case.q[:, head] @ case.dense_k[head // group].T * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        weights = case.counts * torch.exp(scores)
        denominator = weights.sum(dim=1)
        if sinks is not None:
            denominator = denominator + torch.exp(sinks[head])
        out[:, head] = weights @ case.dense_v[head // group] / denominator[:, None]
        lse[:, head] = torch.log(denominator)
    return out, lse


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (6, 2), (5, 1)])
def test_trees(seed, num_heads, num_kv_heads):
    case = make_case(seed, *random_tree(seed), num_heads=num_heads, num_kv_heads=num_kv_heads)
    out = reference.tree_attention(**case.arguments)
    torch.testing.assert_close(out, dense_attention(case), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_windows(seed):
    """Each range loses a random part of its beginning."""
    lengths, rows = random_tree(seed)
    rng = random.Random(seed)
    rows = [
        [(stream, rng.randint(0, end), end) for stream, _, end in ranges[:-1]] + [(ranges[-1][0], 0, ranges[-1][2])]
        for ranges in rows
    ]
    case = make_case(seed, lengths, rows)
    torch.testing.assert_close(
        reference.tree_attention(**case.arguments), dense_attention(case), rtol=1e-12, atol=1e-12
    )


def test_prefill_is_causal_attention():
    case = make_case(0, [21], [[(0, 0, end)] for end in range(1, 22)], page_size=4)
    causal = F.scaled_dot_product_attention(
        case.q.transpose(0, 1), case.dense_k, case.dense_v, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(
        reference.tree_attention(**case.arguments), causal.transpose(0, 1), rtol=1e-12, atol=1e-12
    )


def test_joins_and_overlapping_ranges_count_every_entry_as_often_as_it_is_read():
    rows = [[(0, 0, 9), (1, 2, 7), (2, 0, 11)], [(1, 0, 8), (0, 3, 9), (1, 5, 8)], [(2, 4, 4), (2, 0, 11), (2, 0, 11)]]
    case = make_case(1, [9, 8, 11], rows)
    torch.testing.assert_close(
        reference.tree_attention(**case.arguments), dense_attention(case), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_softcap_sinks_scale_and_lse(softcap, with_sinks, scale):
    case = make_case(2, *random_tree(4))
    sinks = torch.linspace(-1, 2, case.q.shape[1], dtype=torch.float64) if with_sinks else None
    out, lse = reference.tree_attention(**case.arguments, scale=scale, softcap=softcap, sinks=sinks, return_lse=True)
    expected_scale = case.q.shape[2] ** -0.5 if scale is None else scale
    expected_out, expected_lse = explicit_attention(case, expected_scale, softcap, sinks)
    torch.testing.assert_close(out, expected_out, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)


def test_scale_reaches_dense_attention_alike():
    case = make_case(3, *random_tree(3))
    torch.testing.assert_close(
        reference.tree_attention(**case.arguments, scale=1.7), dense_attention(case, scale=1.7), rtol=1e-12, atol=1e-12
    )


def test_rows_without_entries():
    case = make_case(5, [3, 0], [[], [(0, 2, 2)], [(1, 0, 0)], [(0, 0, 3)]])
    out, lse = reference.tree_attention(**case.arguments, return_lse=True)
    assert (out[:3] == 0).all()
    assert (lse[:3] == -math.inf).all()
    assert torch.isfinite(lse[3]).all()
    sinks = torch.randn(6, dtype=torch.float64)
    out, lse = reference.tree_attention(**case.arguments, sinks=sinks, return_lse=True)
    assert (out[:3] == 0).all()
    torch.testing.assert_close(lse[:3], sinks.expand(3, 6))


def test_no_rows():
    case = make_case(6, [3], [])
    out, lse = reference.tree_attention(**case.arguments, return_lse=True)
    assert out.shape == (0, 6, 5)
    assert lse.shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_rounds_inputs_and_output_alone(dtype):
    """Arithmetic is float32: the result differs from float64 on the same rounded inputs by the output's rounding."""
    case = make_case(7, *random_tree(7))
    arguments = {name: t.to(dtype) if t.is_floating_point() else t for name, t in case.arguments.items()}
    exact = {name: t.double() if t.is_floating_point() else t for name, t in arguments.items()}
    out, lse = reference.tree_attention(**arguments, return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    expected, expected_lse = reference.tree_attention(**exact, return_lse=True)
    rounding = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=1e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=2e-6, atol=2e-6)
