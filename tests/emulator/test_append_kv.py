"""append_kv's CUDA kernel on the emulated device."""

from __future__ import annotations

import pytest
import torch

import apar_ext
from apar_ext import reference

from .emulator import Device, DeviceError, append_kv

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_case(seed: int, *, rows: int, heads: int, pages: int, page_size: int, head_dim: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, rows, heads, head_dim, generator=generator).to(dtype)
    k_cache, v_cache = torch.full((2, pages, heads, page_size, head_dim), float("nan"), dtype=dtype)
    slots = torch.randperm(pages * page_size, generator=generator)[:rows].int()
    slots[torch.rand(rows, generator=generator) < 0.3] = -1
    return k, v, k_cache.clone(), v_cache.clone(), slots


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_dim", "page_size"), [(1, 64, 16), (3, 80, 8), (2, 5, 24), (8, 128, 128)])
def test_writes_exactly_its_slots(dtype, heads, head_dim, page_size):
    case = make_case(head_dim, rows=11, heads=heads, pages=3, page_size=page_size, head_dim=head_dim, dtype=dtype)
    k_cache, v_cache = case[2].clone(), case[3].clone()
    reference.append_kv(case[0], case[1], k_cache, v_cache, case[4])
    launch = append_kv(Device(seed=heads), *case)
    assert torch.equal(case[2].nan_to_num(7), k_cache.nan_to_num(7))
    assert torch.equal(case[3].nan_to_num(7), v_cache.nan_to_num(7))
    row_bytes = heads * head_dim * dtype.itemsize
    for name in ("k", "v"):
        assert launch.bytes_read[name] == launch.bytes_written[f"{name}_cache"] == (case[4] >= 0).sum() * row_bytes


def test_strided_and_unaligned_inputs():
    k, v, k_cache, v_cache, slots = make_case(
        2, rows=6, heads=3, pages=2, page_size=8, head_dim=20, dtype=torch.float16
    )
    fused = torch.full((6, 3, 51), float("nan"), dtype=torch.float16)
    fused[:, :, 7:27] = v
    expected = k_cache.clone(), v_cache.clone()
    reference.append_kv(k, v, *expected, slots)
    append_kv(Device(), k.transpose(0, 1).contiguous().transpose(0, 1), fused[:, :, 7:27], k_cache, v_cache, slots)
    assert torch.equal(k_cache.nan_to_num(7), expected[0].nan_to_num(7))
    assert torch.equal(v_cache.nan_to_num(7), expected[1].nan_to_num(7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "gap"), [(64, 0), (20, 0), (64, 1)])
def test_8_bit_caches_have_the_bits_of_the_cpu(dtype, head_dim, gap):
    """In vectors of 16 numbers, and one by one where the head's size or an address allows no more."""
    k, v, _, _, slots = make_case(5, rows=9, heads=3, pages=2, page_size=8, head_dim=head_dim, dtype=dtype)
    k = torch.cat([k * 300, torch.full((9, 3, gap), float("nan"), dtype=dtype)], dim=2)[:, :, :head_dim]
    k[:, 0, :4] = torch.tensor([float("nan"), float("inf"), -1e-3, 2.0**-9])
    caches = [torch.zeros(2, 3, 8, head_dim, dtype=torch.float8_e4m3fn) for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    scales = {"k_scale": torch.tensor([1.0, 0.3, 7.0]), "v_scale": torch.tensor([0.01, 1.0, 3.0])}
    for options in ({}, scales):
        launch = append_kv(Device(seed=gap), k, v, *caches, slots, **options)
        apar_ext.append_kv(k, v, *expected, slots, **options)
        for cache, right in zip(caches, expected, strict=True):
            assert torch.equal(cache.view(torch.uint8), right.view(torch.uint8))
        assert launch.bytes_written["k_cache"] == (slots >= 0).sum() * 3 * head_dim


@pytest.mark.parametrize("slot", [-2, 24, 1 << 30])
@pytest.mark.parametrize("kv_dtype", [torch.float16, torch.float8_e4m3fn])
def test_rows_with_slots_out_of_range_are_skipped_and_told_of(slot, kv_dtype):
    k, v, _, _, slots = make_case(3, rows=4, heads=1, pages=3, page_size=8, head_dim=16, dtype=torch.float16)
    caches = [torch.zeros(3, 1, 8, 16, dtype=kv_dtype) for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    slots[:] = torch.tensor([3, 9, -1, 17])
    reference.append_kv(k, v, *expected, slots)
    slots[2] = slot
    message = (
        rf"append_kv: in an earlier call .* slots\[2\] is {slot}, expected -1 or 0 to .* = 23; the row was skipped"
    )
    with pytest.raises(DeviceError, match=message):
        append_kv(Device(), k, v, *caches, slots)
    for cache, right in zip(caches, expected, strict=True):
        assert torch.equal(cache.view(torch.uint8), right.view(torch.uint8))
