"""append_kv: what it writes, what it refuses, and that torch's machinery accepts it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apar_ext

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def make_case(
    seed: int, *, rows: int, heads: int, pages: int, page_size: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """k, v, k_cache, v_cache, slots; rows that do not fit and some others are skipped."""
    random = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, rows, heads, head_dim, generator=random, dtype=torch.float64).to(dtype)
    k_cache, v_cache = torch.randn(2, pages, heads, page_size, head_dim, generator=random, dtype=torch.float64).to(
        dtype
    )
    slots = torch.full((rows,), -1, dtype=torch.int32)
    filled = min(rows, pages * page_size)
    slots[:filled] = torch.randperm(pages * page_size, generator=random)[:filled].int()
    slots[torch.rand(rows, generator=random) < 0.2] = -1
    return k, v, k_cache, v_cache, slots


def append_by_hand(k, v, k_cache, v_cache, slots):
    """The caches as they should be afterwards."""
    k_cache, v_cache = k_cache.clone(), v_cache.clone()
    page_size = k_cache.shape[2]
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k_cache[slot // page_size, :, slot % page_size] = k[row]
            v_cache[slot // page_size, :, slot % page_size] = v[row]
    return k_cache, v_cache


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(0, 40),
    heads=st.integers(1, 9),
    pages=st.integers(1, 7),
    page_size=st.sampled_from([1, 8, 16, 24, 128]),
    head_dim=st.integers(1, 130),
    dtype=st.sampled_from(DTYPES),
)
def test_writes_exactly_its_slots(seed, rows, heads, pages, page_size, head_dim, dtype):
    k, v, k_cache, v_cache, slots = make_case(
        seed, rows=rows, heads=heads, pages=pages, page_size=page_size, head_dim=head_dim, dtype=dtype
    )
    k_expected, v_expected = append_by_hand(k, v, k_cache, v_cache, slots)
    apar_ext.append_kv(k, v, k_cache, v_cache, slots)
    assert torch.equal(k_cache, k_expected)
    assert torch.equal(v_cache, v_expected)


def test_large_enough_for_several_threads():
    case = make_case(1, rows=700, heads=8, pages=60, page_size=16, head_dim=128)
    expected = append_by_hand(*case)
    apar_ext.append_kv(*case)
    assert torch.equal(case[2], expected[0])
    assert torch.equal(case[3], expected[1])


def test_strided_inputs():
    """transformers hands over [1, Hkv, R, D] views; rows of a wider fused projection have gaps between them."""
    k, v, k_cache, v_cache, slots = make_case(2, rows=6, heads=3, pages=2, page_size=8, head_dim=20)
    expected = append_by_hand(k, v, k_cache, v_cache, slots)
    k_view = k.transpose(0, 1).contiguous().transpose(0, 1)
    fused = torch.full((6, 3, 50), float("nan"))
    fused[:, :, 7:27] = v
    apar_ext.append_kv(k_view, fused[:, :, 7:27], k_cache, v_cache, slots)
    assert torch.equal(k_cache, expected[0])
    assert torch.equal(v_cache, expected[1])


def test_all_rows_skipped():
    case = make_case(3, rows=5, heads=2, pages=2, page_size=8, head_dim=4)
    before = case[2].clone()
    case[4].fill_(-1)
    apar_ext.append_kv(*case)
    assert torch.equal(case[2], before)


def _bad(name: str, change):
    """A case in which one argument is changed."""

    def make():
        case = dict(
            zip(
                ["k", "v", "k_cache", "v_cache", "slots"],
                make_case(4, rows=5, heads=2, pages=3, page_size=8, head_dim=6),
                strict=True,
            )
        )
        case[name] = change(case[name])
        return case

    return make


def _with(tensor: torch.Tensor, index: int, value: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


BAD_INPUT = {
    "slot too large": (_bad("slots", lambda t: _with(t, 3, 24)), r"slots\[3\] is 24, expected -1 or 0 to .* = 23"),
    "slot too small": (_bad("slots", lambda t: _with(t, 0, -2)), r"slots\[0\] is -2, expected -1 or 0 to"),
    "slots int64": (_bad("slots", lambda t: t.long()), "slots has dtype int64, expected int32"),
    "slots strided": (_bad("slots", lambda t: t.repeat_interleave(2)[::2]), "slots is not contiguous"),
    "slots too short": (_bad("slots", lambda t: t[:4]), r"slots has shape \[4\], expected \[R=5\]"),
    "slots elsewhere": (_bad("slots", lambda t: t.to("meta")), "slots is on device meta, expected cpu as k is"),
    "k 2-d": (_bad("k", lambda t: t[0]), r"k has shape \[2, 6\], expected \[R, Hkv, D\]"),
    "k last dimension strided": (
        _bad("k", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)),
        "k has stride 2 in its last dimension, expected 1",
    ),
    "v other heads": (_bad("v", lambda t: t[:, :1]), r"v has shape \[5, 1, 6\], expected \[R=5, Hkv=2, D=6\]"),
    "v other dtype": (_bad("v", lambda t: t.half()), "v has dtype float16, expected float32 as k has"),
    "k_cache other heads": (
        _bad("k_cache", lambda t: t[:, :1].contiguous()),
        r"k_cache has shape \[3, 1, 8, 6\], expected \[num_pages, Hkv=2, page_size, D=6\]",
    ),
    "k_cache other dtype": (_bad("k_cache", lambda t: t.bfloat16()), "k_cache has dtype bfloat16, expected float32"),
    "k_cache strided": (
        _bad("k_cache", lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)),
        "k_cache is not contiguous",
    ),
    "v_cache other pages": (
        _bad("v_cache", lambda t: t[:2]),
        r"v_cache has shape \[2, 2, 8, 6\], expected \[num_pages=3, Hkv=2, page_size=8, D=6\]",
    ),
    "v_cache elsewhere": (_bad("v_cache", lambda t: t.to("meta")), "v_cache is on device meta, expected cpu"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_before_anything_is_written(name):
    make, message = BAD_INPUT[name]
    case = make()
    before = {key: tensor.clone() for key, tensor in case.items()}
    with pytest.raises(ValueError, match="append_kv: " + message):
        apar_ext.append_kv(**case)
    for key, tensor in case.items():
        assert tensor.device.type == "meta" or torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    case = make_case(5, rows=4, heads=2, pages=2, page_size=8, head_dim=10, dtype=dtype)
    torch.library.opcheck(torch.ops.apar.append_kv.default, case)


def test_compiles_into_one_graph():
    case = make_case(6, rows=4, heads=2, pages=2, page_size=8, head_dim=10)
    expected = append_by_hand(*case)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(k, v, k_cache, v_cache, slots):
        apar_ext.append_kv(k * 1.0, v, k_cache, v_cache, slots)
        return k_cache.sum()

    total = step(*case)
    assert torch.equal(case[2], expected[0])
    assert torch.equal(case[3], expected[1])
    assert torch.equal(total, expected[0].sum())


HAS_CUDA_KERNELS = torch.cuda.is_available() and bool(apar_ext.build_info()["cuda_built"])


@pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="no GPU, or no CUDA kernels in this build")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [1, 3, 20, 128])
def test_cuda(dtype, head_dim):
    """Head sizes of which only some allow 16-byte accesses; rows of a wider tensor, which start at odd addresses."""
    k, v, k_cache, v_cache, slots = make_case(
        7, rows=300, heads=3, pages=30, page_size=16, head_dim=head_dim, dtype=dtype
    )
    expected = append_by_hand(k, v, k_cache, v_cache, slots)
    wide = torch.full((300, 3, head_dim + 3), float("nan"), dtype=dtype)
    wide[:, :, 1 : head_dim + 1] = v
    k_cache, v_cache = k_cache.cuda(), v_cache.cuda()
    apar_ext.append_kv(k.cuda(), wide.cuda()[:, :, 1 : head_dim + 1], k_cache, v_cache, slots.cuda())
    assert torch.equal(k_cache.cpu(), expected[0])
    assert torch.equal(v_cache.cpu(), expected[1])


@pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="no GPU, or no CUDA kernels in this build")
def test_cuda_refuses_a_mix_of_devices():
    case = make_case(8, rows=4, heads=2, pages=2, page_size=8, head_dim=8)
    with pytest.raises(ValueError, match="append_kv: slots is on device cpu, expected cuda:0 as k is"):
        apar_ext.append_kv(*(tensor.cuda() for tensor in case[:4]), case[4])
