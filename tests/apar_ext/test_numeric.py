"""One suite for every device: the CPU, the emulated device, a GPU (-m gpu). Expected values are the float64 reference.

In every case the KV entries that no row sees are NaN and the unused entries of the page table are far out of range.
What concerns one device alone (instruction sets, planted faults, counters) stands in that device's own tests.
"""

from __future__ import annotations

import math
import random

import pytest
import torch

from apar_ext import reference
from tests.apar_ext.devices import DEVICES, DeviceUnderTest
from tests.emulator import cases
from tests.emulator.cases import make_case

HALVES = [torch.bfloat16, torch.float16]
DTYPES = [*HALVES, torch.float32]
E4M3 = torch.float8_e4m3fn


@pytest.fixture(params=DEVICES)
def device(request) -> DeviceUnderTest:
    return request.param()


def check(device: DeviceUnderTest, case: cases.Case, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the case and holds it against the reference."""
    out, lse = device.tree_attention(case, **options)
    assert out.dtype == case.inputs["q"].dtype
    assert lse.dtype == torch.float32
    cases.assert_right(case, out, lse, **options)
    return out, lse


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


# ---- tree_attention ----


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_trees(device, head_dim, dtype):
    check(device, make_case(cases.tree(head_dim), head_dim=head_dim, dtype=dtype, num_heads=6, num_kv_heads=2))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (3, 3), (8, 1), (14, 2), (24, 3), (32, 1), (71, 1)])
def test_group_sizes(device, num_heads, num_kv_heads):
    check(device, make_case(cases.tree(num_heads, streams=4), num_heads=num_heads, num_kv_heads=num_kv_heads))


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
def test_page_sizes(device, page_size):
    rows = [*cases.tree(page_size, trunk=150), [(0, 70, 75)], []]
    check(device, make_case(rows, page_size=page_size, dtype=torch.float16, num_heads=14, num_kv_heads=2))


@pytest.mark.parametrize("seed", range(16))
def test_any_set_of_ranges(device, seed):
    """Joins, windows, streams read twice, empty ranges and rows, with random sizes and options."""
    rng = random.Random(1000 + seed)
    case = make_case(
        cases.anything(1000 + seed),
        seed=seed,
        num_kv_heads=(num_kv_heads := rng.choice([1, 2, 3])),
        num_heads=num_kv_heads * rng.choice([1, 2, 3, 5, 7]),
        head_dim=rng.choice([64, 80]),
        page_size=rng.choice([8, 16, 64]),
        dtype=rng.choice(DTYPES),
    )
    num_heads = case.inputs["q"].shape[1]
    options = dict(
        scale=rng.choice([None, 0.3]),
        softcap=rng.choice([0.0, 5.0]),
        sinks=torch.randn(num_heads) * 2 if rng.random() < 0.5 else None,
    )
    check(device, case, **options)


def test_joins(device):
    """A parent that reads its finished children, in the order in which it joined them, next to one that goes on."""
    rows = [
        [(0, 0, 90), (3, 0, 20)],
        [(0, 0, 90), (1, 0, 33), (2, 0, 70), (0, 90, 120)],
        [(0, 0, 90), (2, 0, 70), (1, 0, 33), (4, 0, 5)],
    ]
    check(device, make_case(rows))


def test_a_stream_read_twice(device):
    """Entries in both ranges count twice."""
    check(device, make_case([[(0, 0, 70), (0, 30, 100)], [(0, 0, 100)], [(0, 30, 100), (0, 0, 70)]]))


@pytest.mark.parametrize("window", [1, 16, 50, 130])
def test_windows(device, window):
    rows = [[(0, max(0, end - window), end)] for end in range(40, 200, 23)]
    check(device, make_case(rows, num_heads=8, num_kv_heads=4))


@pytest.mark.parametrize("dtype", HALVES)
def test_prefill(device, dtype):
    check(device, make_case(cases.prefill(300, 70), dtype=dtype, num_heads=2, num_kv_heads=2))


def test_one_row_over_a_long_stream(device):
    """Segments grow along the stream; devices with many blocks of threads cut it."""
    check(device, make_case([[(0, 7900, 9000)], [(0, 8100, 8900)]], num_heads=2, num_kv_heads=1))


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1e-4, 0.7])
def test_scales(device, scale):
    check(device, make_case(cases.tree(3, streams=4), dtype=torch.float32), scale=scale)


def test_large_scores(device):
    """One entry outweighs all others, some weights vanish; nothing overflows."""
    case = make_case(cases.tree(3))
    out, lse = device.tree_attention(case, scale=40.0)
    right, _ = cases.expected(case, scale=40.0)
    assert (out.double() - right).norm() / right.norm() < 2e-2
    assert lse.isfinite().all()


@pytest.mark.parametrize("softcap", [0.02, 1.0, 30.0, 1e4])
def test_softcaps(device, softcap):
    check(device, make_case(cases.tree(4, streams=4), dtype=torch.float16), softcap=softcap)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks(device, dtype):
    case = make_case([*cases.tree(5, streams=4), []], num_heads=6, num_kv_heads=2, dtype=dtype)
    sinks = torch.tensor([-200.0, 0.0, 2.5, 90.0, -math.inf, 7.0])
    check(device, case, sinks=sinks)
    check(device, case, sinks=sinks.to(dtype))


def test_rows_that_read_nothing(device):
    case = make_case([[], [(0, 0, 3)], [(0, 3, 3)], []], num_heads=2, num_kv_heads=1)
    out, lse = check(device, case)
    assert out[[0, 2, 3]].abs().max() == 0
    assert lse[[0, 2, 3]].eq(-math.inf).all()
    out, lse = check(device, case, sinks=torch.tensor([1.5, -2.0]))
    assert out[[0, 2, 3]].abs().max() == 0
    assert torch.allclose(lse[[0, 2, 3]], torch.tensor([1.5, -2.0]), atol=1e-6)


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_no_rows_and_no_entries(device, rows):
    out, lse = device.tree_attention(make_case(rows))
    assert out.shape == (len(rows), 4, 64)
    assert lse.shape == (len(rows), 4)
    assert out.eq(0).all()
    assert lse.eq(-math.inf).all()


def test_strided_queries(device):
    """transformers hands over [1, Hq, R, D] views and slices of fused projections."""
    case = make_case(cases.tree(5), dtype=torch.float16)
    expected, _ = device.tree_attention(case)
    q = case.inputs["q"]
    by_head = q.transpose(0, 1).contiguous().transpose(0, 1)
    fused = torch.full((q.shape[0], 9, 80), math.nan, dtype=q.dtype)
    fused[:, 2:6, 8:72] = q
    for strided in (by_head, fused[:, 2:6, 8:72]):
        assert not strided.is_contiguous()
        case.inputs["q"] = strided
        assert same_bits(device.tree_attention(case)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("with_scales", [False, True])
def test_8_bit_caches(device, dtype, head_dim, with_scales):
    case = make_case(cases.tree(7, streams=5), head_dim=head_dim, dtype=dtype, num_heads=6, num_kv_heads=2)
    for name in ("k_cache", "v_cache"):
        case.inputs[name] = case.inputs[name].to(E4M3)
    scales = {}
    if with_scales:
        scales = {"k_scale": torch.tensor([0.4, 1.3]), "v_scale": torch.tensor([30.0, 0.01])}
    check(device, case, **scales)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_same_bits_in_any_company(device, dtype):
    case = make_case([*cases.tree(11, streams=6, trunk=400), *cases.anything(4)], dtype=dtype)
    out, lse = device.tree_attention(case)
    again, _ = device.tree_attention(case)
    assert same_bits(out, again)
    for row in range(0, len(case.rows), 2):
        out_alone, lse_alone = device.tree_attention(case.subset([row]))
        assert same_bits(out[row], out_alone[0])
        assert same_bits(lse[row], lse_alone[0])


def test_nan_of_one_row_stays_there(device):
    case = make_case([[(0, 0, 300)], [(0, 0, 101)], [(0, 103, 200)]])
    clean = device.tree_attention(case)
    page = case.inputs["page_table"][0, 102 // 16]
    for name in ("k_cache", "v_cache"):
        case.inputs[name][page, :, 102 % 16] = math.nan
    out, _ = device.tree_attention(case)
    assert out[0].isnan().all()
    assert same_bits(out[1:], clean[0][1:])


# ---- append_kv ----


def cache_case(seed: int, *, rows: int, heads: int, pages: int, page_size: int, head_dim: int, dtype: torch.dtype):
    """k, v, k_cache, v_cache, slots; some rows are skipped."""
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, rows, heads, head_dim, generator=generator).to(dtype)
    k_cache, v_cache = (torch.full((pages, heads, page_size, head_dim), math.nan, dtype=dtype) for _ in range(2))
    slots = torch.randperm(pages * page_size, generator=generator)[:rows].int()
    slots[torch.rand(rows, generator=generator) < 0.3] = -1
    return k, v, k_cache, v_cache, slots


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_dim", "page_size"), [(1, 64, 16), (3, 80, 8), (2, 5, 24), (8, 128, 128)])
def test_append_writes_exactly_its_slots(device, dtype, heads, head_dim, page_size):
    k, v, *caches, slots = cache_case(
        head_dim, rows=11, heads=heads, pages=3, page_size=page_size, head_dim=head_dim, dtype=dtype
    )
    expected = [cache.clone() for cache in caches]
    reference.append_kv(k, v, *expected, slots)
    device.append_kv(k, v, *caches, slots)
    assert all(same_bits(cache, right) for cache, right in zip(caches, expected, strict=True))


def test_append_of_strided_and_unaligned_rows(device):
    k, v, *caches, slots = cache_case(2, rows=6, heads=3, pages=2, page_size=8, head_dim=20, dtype=torch.float16)
    expected = [cache.clone() for cache in caches]
    reference.append_kv(k, v, *expected, slots)
    fused = torch.full((6, 3, 51), math.nan, dtype=torch.float16)
    fused[:, :, 7:27] = v
    device.append_kv(k.transpose(0, 1).contiguous().transpose(0, 1), fused[:, :, 7:27], *caches, slots)
    assert all(same_bits(cache, right) for cache, right in zip(caches, expected, strict=True))


@pytest.mark.parametrize("rows", [0, 5])
def test_append_with_all_rows_skipped(device, rows):
    k, v, *caches, slots = cache_case(3, rows=rows, heads=2, pages=2, page_size=8, head_dim=16, dtype=torch.float32)
    device.append_kv(k, v, *caches, slots.fill_(-1))
    assert all(cache.isnan().all() for cache in caches)


@pytest.mark.parametrize("slot", [-2, 24, 1 << 30])
def test_append_does_not_write_where_there_is_no_slot(device, slot):
    k, v, *caches, slots = cache_case(3, rows=4, heads=1, pages=3, page_size=8, head_dim=16, dtype=torch.float16)
    slots[:] = torch.tensor([3, slot, -1, 17])
    with pytest.raises(ValueError, match=rf"append_kv: .*slots\[1\] is {slot}, expected -1 or 0 to .* = 23"):
        device.append_kv(k, v, *caches, slots)
    written = caches[0].isnan().logical_not()[:, 0, :, 0].nonzero().tolist()
    assert written in ([], [[0, 3], [2, 1]])  # found before anything is written, or the row is left out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "gap"), [(64, 0), (20, 0), (64, 1)])
@pytest.mark.parametrize("with_scales", [False, True])
def test_append_rounds_to_8_bits_alike_on_all_devices(device, dtype, head_dim, gap, with_scales):
    k, v, _, _, slots = cache_case(5, rows=9, heads=3, pages=2, page_size=8, head_dim=head_dim, dtype=dtype)
    k = torch.cat([k * 300, torch.full((9, 3, gap), math.nan, dtype=dtype)], dim=2)[:, :, :head_dim]
    k[:, 0, :4] = torch.tensor([math.nan, math.inf, -1e-3, 2.0**-9])
    caches = [torch.zeros(2, 3, 8, head_dim, dtype=E4M3) for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    scales = {}
    if with_scales:
        scales = {"k_scale": torch.tensor([1.0, 0.3, 7.0]), "v_scale": torch.tensor([0.01, 1.0, 3.0])}
    device.append_kv(k, v, *caches, slots, **scales)
    reference.append_kv(k, v, *expected, slots, **scales)
    assert all(same_bits(cache, right) for cache, right in zip(caches, expected, strict=True))


# ---- mask_logits_ ----


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(("rows", "tokens"), [(1, (3, 4)), (130, (0, 10)), (5, (-1, 2)), (5, (7, -1)), (0, (1, 2))])
def test_mask_logits(device, dtype, rows, tokens):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 16, generator=generator).to(dtype)[:, :11]
    may_fork = torch.randint(0, 2, (rows,), generator=generator, dtype=torch.int32)
    expected = reference.mask_logits_(logits.clone(), may_fork, *tokens)
    device.mask_logits_(logits, may_fork, *tokens)
    assert torch.equal(logits, expected)


def test_a_device_that_lacks_a_head_size_says_so(device):
    case = make_case(cases.tree(2), head_dim=32)
    if 32 in device.head_dims:
        check(device, case)
    else:
        with pytest.raises(Exception, match="q has head_dim 32, expected one of 64, 80, 96, 128, 256"):
            device.tree_attention(case)
