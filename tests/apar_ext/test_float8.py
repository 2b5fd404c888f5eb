"""Caches of 8-bit floats (e4m3): what append_kv stores, what tree_attention reads, what both refuse."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apar_ext
from apar_ext import _C, reference
from tests.apar_ext.plans import make_case, row_lists, tree_rows
from tests.apar_ext.test_tree_attention import ACCURACY, LEVELS, attend, restore_machine, same_bits

__all__ = ["restore_machine"]

E4M3 = torch.float8_e4m3fn
CODES = torch.arange(256, dtype=torch.uint8)
VALUES = torch.tensor(
    [
        math.nan
        if code & 0x7F == 0x7F
        # Sign, exponent, fraction, as the format is defined.
        else (-1) ** (code >> 7)
        * (2.0**-6 * (code & 7) / 8 if code & 0x78 == 0 else 2.0 ** ((code >> 3 & 15) - 7) * (1 + (code & 7) / 8))
        for code in range(256)
    ]
)


def nearest_codes(numbers: torch.Tensor) -> torch.Tensor:
    """The codes of float32 numbers by trying all of them; of two that are as near, the even one."""
    magnitudes = VALUES[:127].double()
    distance = (numbers.double().abs().clamp(max=1e9)[:, None] - magnitudes).abs()
    nearest = distance == distance.amin(dim=1, keepdim=True)
    codes = torch.where(nearest, torch.arange(127) % 2, 2).argmin(dim=1)
    signs = torch.where(torch.signbit(numbers), 0x80, 0)
    return torch.where(numbers.isnan(), 0x7F, codes + signs).to(torch.uint8)


def numbers_of(dtype: torch.dtype) -> torch.Tensor:
    """All numbers of a 16-bit type; for float32 the borders between two codes, and their neighbours."""
    if dtype != torch.float32:
        return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    middle = (VALUES[:126] + VALUES[1:127]) / 2
    borders = torch.cat([VALUES[:127], middle, torch.tensor([464.0, 1e9, 3e38, math.inf, 1e-45, 1e-39, 2.0**-10])])
    near = [borders, borders.nextafter(torch.tensor(math.inf)), borders.nextafter(torch.tensor(-math.inf))]
    positive = torch.cat(near)
    return torch.cat([positive, -positive, torch.tensor([math.nan, -math.nan])])


def store(numbers: torch.Tensor, **scales) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of both caches after appending one row of these numbers to slot 0."""
    k = numbers[None, None]
    k_cache, v_cache = (torch.zeros(1, 1, 8, k.shape[2], dtype=E4M3) for _ in range(2))
    apar_ext.append_kv(k, k, k_cache, v_cache, torch.zeros(1, dtype=torch.int32), **scales)
    return k_cache[0, 0, 0].view(torch.uint8), v_cache[0, 0, 0].view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_rounded_to_the_nearest(dtype):
    numbers = numbers_of(dtype)
    expected = nearest_codes(numbers.float())
    for codes in store(numbers):
        assert torch.equal(codes, expected)
    assert torch.equal(reference.to_e4m3(numbers.float()).view(torch.uint8), expected)


def test_flushing_subnormals_changes_nothing():
    numbers = torch.tensor([1e-40, 2.0**-9, 2.0**-10, 3 * 2.0**-10, 1e-4])
    expected = nearest_codes(numbers)
    torch.set_flush_denormal(True)
    try:
        assert torch.equal(store(numbers)[0], expected)
    finally:
        torch.set_flush_denormal(False)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(0, 20),
    heads=st.integers(1, 5),
    head_dim=st.integers(1, 130),
    page_size=st.sampled_from([1, 8, 24]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    with_scales=st.booleans(),
)
def test_append_agrees_with_the_reference(seed, rows, heads, head_dim, page_size, dtype, with_scales):
    random = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, rows, heads, head_dim, generator=random) * 100).to(dtype)
    caches = [torch.randn(4, heads, page_size, head_dim, generator=random).to(E4M3) for _ in range(2)]
    expected = [cache.clone() for cache in caches]
    slots = torch.full((rows,), -1, dtype=torch.int32)
    filled = min(rows, 4 * page_size)
    slots[:filled] = torch.randperm(4 * page_size, generator=random)[:filled].int()
    scales = {}
    if with_scales:
        scales = {name: torch.rand(heads, generator=random) * 2 + 0.01 for name in ("k_scale", "v_scale")}
    apar_ext.append_kv(k, v, *caches, slots, **scales)
    reference.append_kv(k, v, *expected, slots, **scales)
    assert all(same_bits(cache, right) for cache, right in zip(caches, expected, strict=True))


def test_numbers_of_8_bits_are_copied():
    codes = CODES[None, None].view(E4M3)
    k_cache, v_cache = (torch.zeros(1, 1, 8, 256, dtype=E4M3) for _ in range(2))
    apar_ext.append_kv(codes, codes, k_cache, v_cache, torch.tensor([3], dtype=torch.int32))
    assert torch.equal(k_cache[0, 0, 3].view(torch.uint8), CODES)


# ---- attention ----


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_code_is_read_as_what_it_stands_for(level, dtype):
    """A row that reads one entry has its value as output."""
    _C.limit_cpu_level(level)
    case = make_case([[(0, 0, 1)]], heads=(1, 1), head_dim=256, dtype=dtype, kv_dtype=E4M3)
    page = case.page_table[0, 0]
    case.k_cache[page, 0, 0] = torch.zeros(256).to(E4M3)
    case.v_cache.view(torch.uint8)[page, 0, 0] = CODES
    scale = torch.tensor([0.375])
    out, _ = attend(case, v_scale=scale)
    expected = (VALUES * 0.375).to(dtype)
    assert torch.equal(out[0, 0].isnan(), expected.isnan())
    assert torch.equal(out[0, 0].nan_to_num(), expected.nan_to_num())


def assert_close(case, **options) -> None:
    """Against the reference in float64 on the numbers as they are stored."""
    out, lse = attend(case, **options)
    wide = {name: None if option is None else option.double() for name, option in options.items()}
    arguments = (case.q.double(), case.k_cache.double(), case.v_cache.double(), *case.ranges)
    right_out, right_lse = reference.tree_attention(*arguments, return_lse=True, **wide)
    assert out.dtype == case.q.dtype
    assert (out.double() - right_out).norm() <= ACCURACY[case.q.dtype] * right_out.norm()
    torch.testing.assert_close(lse.double(), right_lse, rtol=2e-6, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(
    rows=row_lists(),
    seed=st.integers(0, 1 << 30),
    heads=st.sampled_from([(1, 1), (4, 1), (8, 2), (7, 1), (3, 3)]),
    head_dim=st.sampled_from([32, 64, 80, 96, 128, 256]),
    page_size=st.sampled_from([8, 16, 32, 64, 128]),
    dtype=st.sampled_from(list(ACCURACY)),
    level=st.sampled_from(LEVELS),
    with_scales=st.booleans(),
)
def test_any_ranges(rows, seed, heads, head_dim, page_size, dtype, level, with_scales):
    """Unreadable KV is NaN and unused page ids are impossible in these cases."""
    _C.limit_cpu_level(level)
    case = make_case(rows, seed=seed, heads=heads, head_dim=head_dim, page_size=page_size, dtype=dtype, kv_dtype=E4M3)
    scales = {"k_scale": torch.rand(heads[1]) + 0.1, "v_scale": torch.rand(heads[1]) * 9 + 0.1} if with_scales else {}
    assert_close(case, **scales)


@pytest.mark.parametrize("level", LEVELS)
def test_bits_do_not_depend_on_other_rows(level):
    _C.limit_cpu_level(level)
    case = make_case(
        tree_rows(900, 12, 40), heads=(6, 2), head_dim=80, page_size=8, dtype=torch.bfloat16, kv_dtype=E4M3
    )
    scales = {"k_scale": torch.tensor([0.3, 2.0]), "v_scale": torch.tensor([5.0, 0.01])}
    out, lse = attend(case, **scales)
    part_out, part_lse = attend(case, [7, 2], **scales)
    assert same_bits(part_out, out[[7, 2]])
    assert same_bits(part_lse, lse[[7, 2]])


@pytest.mark.parametrize("level", LEVELS)
def test_nan_of_one_row_stays_there(level):
    _C.limit_cpu_level(level)
    case = make_case([[(0, 0, 300)], [(0, 0, 102)], [(0, 103, 300)]], heads=(4, 2), kv_dtype=E4M3)
    clean = attend(case)
    case.v_cache.view(torch.uint8)[case.page_table[0, 102 // 16], :, 102 % 16] = 0xFF
    out, _ = attend(case)
    assert out[0].isnan().all()
    assert same_bits(out[1:], clean[0][1:])


def test_stored_with_scales_and_read_with_them():
    """What scales are for: keys and values far outside of the format's range."""
    case = make_case(tree_rows(40, 3, 9), heads=(4, 2), head_dim=64, dtype=torch.bfloat16, poison=False)
    k, v = case.k_cache * 1e-4, case.v_cache * 3e4
    k_scale, v_scale = (x.float().abs().amax(dim=(0, 2, 3)) / 448 for x in (k, v))
    caches = [torch.zeros(k.shape, dtype=E4M3) for _ in range(2)]
    slots = torch.arange(k.shape[0] * 16, dtype=torch.int32)
    rows_of = (x.transpose(1, 2).flatten(0, 1) for x in (k, v))
    apar_ext.append_kv(*rows_of, *caches, slots, k_scale=k_scale, v_scale=v_scale)
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    q = case.q * 1e4
    out = apar_ext.tree_attention(q, *caches, plan, k_scale=k_scale, v_scale=v_scale)
    exact = reference.tree_attention(q.double(), k.double(), v.double(), *case.ranges)
    assert (out.double() - exact).norm() < 0.05 * exact.norm()  # a number of 3 digits is off by at most 1/16
    plain = apar_ext.tree_attention(q, *caches, plan)
    assert (plain.double() - exact).norm() > 0.5 * exact.norm()


# ---- refused ----


def appending(**changes):
    arguments = {"k": torch.randn(2, 3, 16), "v": torch.randn(2, 3, 16)}
    arguments |= {name: torch.zeros(2, 3, 8, 16, dtype=E4M3) for name in ("k_cache", "v_cache")}
    return arguments | {"slots": torch.tensor([1, 4], dtype=torch.int32)} | changes


ONES = torch.ones(3)
BAD_SCALES = [
    (torch.ones(2), r"has shape \[2\], expected \[Hkv=3\]"),
    (torch.ones(3, 1), r"has shape \[3, 1\], expected \[Hkv=3\]"),
    (ONES.double(), "has dtype float64, expected float32"),
    (ONES.to("meta"), "is on device meta, expected cpu"),
    (torch.ones(6)[::2], "is not contiguous"),
    (torch.tensor([1.0, 0.0, 1.0]), r"\[1\] is 0, expected a finite number above 0"),
    (torch.tensor([1.0, 1.0, -2.0]), r"\[2\] is -2, expected a finite number above 0"),
    (torch.tensor([math.nan, 1.0, 1.0]), r"\[0\] is nan, expected a finite number above 0"),
    (torch.tensor([1.0, math.inf, 1.0]), r"\[1\] is inf, expected a finite number above 0"),
]


@pytest.mark.parametrize("name", ["k_scale", "v_scale"])
@pytest.mark.parametrize(("scale", "message"), BAD_SCALES, ids=[message[:30] for _, message in BAD_SCALES])
def test_bad_scales_are_refused_before_anything_is_written(name, scale, message):
    arguments = appending(**{name: scale})
    with pytest.raises(ValueError, match=f"append_kv: {name} ?{message}"):
        apar_ext.append_kv(**arguments)
    assert not arguments["k_cache"].view(torch.uint8).any()
    case = make_case([[(0, 0, 9)]], heads=(6, 3), kv_dtype=E4M3)
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    with pytest.raises(ValueError, match=f"tree_attention: {name} ?{message}"):
        apar_ext.tree_attention(case.q, case.k_cache, case.v_cache, plan, **{name: scale})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(k=torch.randn(2, 3, 16).double(), v=torch.randn(2, 3, 16).double()), "k has dtype float64, expected one"),
        (dict(v=torch.randn(2, 3, 16).half()), "v has dtype float16, expected float32 as k has"),
        (dict(v_cache=torch.zeros(2, 3, 8, 16)), "v_cache has dtype float32, expected float8_e4m3fn as k_cache has"),
        (dict(k_cache=torch.zeros(2, 3, 8, 16)), "v_cache has dtype float8_e4m3fn, expected float32 as k_cache has"),
        (
            dict(k_cache=torch.zeros(2, 3, 8, 16, dtype=torch.float8_e5m2)),
            "k_cache has dtype Float8_e5m2, expected float32 as k has",
        ),
        (
            dict(k_cache=torch.zeros(2, 3, 8, 16), v_cache=torch.zeros(2, 3, 8, 16), v_scale=ONES),
            "v_scale is given for k of dtype float32 and k_cache of dtype float32, expected None",
        ),
        (
            dict(k=torch.zeros(2, 3, 16).to(E4M3), v=torch.zeros(2, 3, 16).to(E4M3), k_scale=ONES),
            "k_scale is given for k of dtype float8_e4m3fn and k_cache of dtype float8_e4m3fn, expected None",
        ),
    ],
)
def test_append_refuses_a_mix_of_types(changes, message):
    with pytest.raises(ValueError, match=f"append_kv: {message}"):
        apar_ext.append_kv(**appending(**changes))


def test_attention_refuses_a_mix_of_types():
    case = make_case([[(0, 0, 9)]], heads=(6, 3), kv_dtype=E4M3, poison=False)
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    wide = case.k_cache.float()
    for k_cache, v_cache, scale, message in [
        (case.k_cache, wide, None, "v_cache has dtype float32, expected float8_e4m3fn as k_cache has"),
        (wide, case.v_cache, None, "v_cache has dtype float8_e4m3fn, expected float32 as k_cache has"),
        (wide, wide, ONES, "k_scale is given for caches of dtype float32, expected None but for fp8 caches"),
    ]:
        with pytest.raises(ValueError, match=f"tree_attention: {message}"):
            apar_ext.tree_attention(case.q, k_cache, v_cache, plan, k_scale=scale)
    with pytest.raises(ValueError, match="q has dtype float8_e4m3fn, expected one of float32, float16, bfloat16"):
        apar_ext.tree_attention(case.q.to(E4M3), case.k_cache, case.v_cache, plan)


# ---- torch ----


def test_operators_are_accepted_by_torch():
    # Without test_schema, which multiplies what it compares; torch cannot multiply such numbers.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = appending(k_scale=ONES, v_scale=2 * ONES)
    torch.library.opcheck(torch.ops.apar.append_kv.default, tuple(arguments.values()), test_utils=checks)
    case = make_case([[(0, 0, 9)]], heads=(6, 3), kv_dtype=E4M3, poison=False)
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    arguments = (case.q, case.k_cache, case.v_cache, plan.page_table, plan.schedule, 0.2, 0.0, None, True, ONES, ONES)
    torch.library.opcheck(torch.ops.apar.tree_attention, arguments, test_utils=checks)


def test_compiles():
    case = make_case([[(0, 0, 9)], [(0, 0, 8)]], heads=(6, 3), kv_dtype=E4M3, poison=False)
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    k, v = torch.randn(2, 1, 3, 32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(q, k, v, k_cache, v_cache, slots, plan, scale):
        apar_ext.append_kv(k * 1.0, v, k_cache, v_cache, slots, k_scale=scale)
        return apar_ext.tree_attention(q * 2, k_cache, v_cache, plan, k_scale=scale) + 1

    slots = case.page_table[0, :1] * 16 + 8
    k_cache, v_cache = case.k_cache.clone(), case.v_cache.clone()
    scale = torch.tensor([0.5, 1.0, 0.1])
    out = layer(case.q, k, v, case.k_cache, case.v_cache, slots, plan, scale)
    apar_ext.append_kv(k, v, k_cache, v_cache, slots, k_scale=scale)
    expected = apar_ext.tree_attention(case.q * 2, k_cache, v_cache, plan, k_scale=scale) + 1
    assert same_bits(case.k_cache, k_cache)
    torch.testing.assert_close(out, expected)
