"""tree_attention against the float64 reference, the independence of rows to the bit, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apar_ext
from apar_ext import _C, reference
from tests.apar_ext.plans import Case, make_case, prefill_rows, row_lists, tree_rows

ALL_LEVELS = ["portable", "avx2", "avx512", "avx512bf16"]
LEVELS = ALL_LEVELS[: ALL_LEVELS.index(apar_ext.build_info()["cpu_level_detected"]) + 1]
ACCURACY = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
DTYPES = list(ACCURACY)


@pytest.fixture(autouse=True)
def restore_machine():
    level, threads = _C.cpu_level(), torch.get_num_threads()
    yield
    _C.limit_cpu_level(level)
    torch.set_num_threads(threads)


def attend(case: Case, rows: list[int] | None = None, **options):
    """Kernel output and lse, of some of the rows or all."""
    chosen = list(range(len(case.rows))) if rows is None else rows
    part = Case(
        case.q[chosen], case.k_cache, case.v_cache, case.page_table, [case.rows[i] for i in chosen], case.group_size
    )
    plan = apar_ext.make_plan(*part.ranges, **part.plan_sizes)
    return apar_ext.tree_attention(part.q, part.k_cache, part.v_cache, plan, return_lse=True, **options)


def expect(case: Case, **options):
    if options.get("sinks") is not None:
        options["sinks"] = options["sinks"].double()
    return reference.tree_attention(
        case.q.double(), case.k_cache.double(), case.v_cache.double(), *case.ranges, return_lse=True, **options
    )


def assert_close(case: Case, **options):
    out, lse = attend(case, **options)
    out_expected, lse_expected = expect(case, **options)
    assert out.dtype == case.q.dtype
    assert out.shape == case.q.shape
    assert out.is_contiguous()
    assert lse.dtype == torch.float32
    error = (out.double() - out_expected).norm()
    assert error <= ACCURACY[case.q.dtype] * out_expected.norm()
    torch.testing.assert_close(lse.double(), lse_expected, rtol=2e-6, atol=2e-5)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


# ---- right ----


@settings(max_examples=100, deadline=None)
@given(
    rows=row_lists(),
    seed=st.integers(0, 1 << 30),
    heads=st.sampled_from([(1, 1), (4, 1), (8, 2), (7, 1), (3, 3), (32, 1)]),
    head_dim=st.sampled_from([32, 64, 80, 96, 128, 256]),
    page_size=st.sampled_from([8, 16, 32, 64, 128]),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(LEVELS),
    softcap=st.sampled_from([0.0, 0.0, 5.0]),
    with_sinks=st.booleans(),
)
def test_any_ranges(rows, seed, heads, head_dim, page_size, dtype, level, softcap, with_sinks):
    """Unreadable KV is NaN and unused page ids are impossible in these cases."""
    _C.limit_cpu_level(level)
    case = make_case(rows, seed=seed, heads=heads, head_dim=head_dim, page_size=page_size, dtype=dtype)
    sinks = torch.randn(heads[0]) if with_sinks else None
    assert_close(case, softcap=softcap, sinks=sinks)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_accuracy(head_dim, dtype, level):
    _C.limit_cpu_level(level)
    case = make_case(tree_rows(700, 5, 40), heads=(8, 2), head_dim=head_dim, dtype=dtype)
    assert_close(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_of_long_contexts(dtype):
    case = make_case(tree_rows(9000, 3, 70), heads=(4, 2), head_dim=64, dtype=dtype)
    assert_close(case)


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("group_size", [1, 2, 3, 7, 12, 32, 71, 130])
def test_group_and_page_sizes(group_size, page_size):
    rows = prefill_rows(5, before=60) + tree_rows(130, 3, 20)
    assert_close(make_case(rows, heads=(2 * group_size, 2), page_size=page_size))


def test_prefill():
    for dtype in DTYPES:
        assert_close(make_case(prefill_rows(150, before=37), heads=(8, 2), head_dim=64, dtype=dtype))


def test_windows():
    rows = [[(0, max(0, i - 30), i + 1)] for i in range(40, 300, 7)]
    assert_close(make_case(rows, heads=(4, 4)))


@pytest.mark.parametrize("level", LEVELS)
def test_large_scores(level):
    """Scores of several hundred: the softmax is one entry's, and nothing overflows."""
    _C.limit_cpu_level(level)
    case = make_case(tree_rows(300, 3, 20), heads=(4, 2))
    case.q.mul_(60)
    assert_close(case)
    case.q.mul_(1e-4)
    assert_close(case, softcap=0.02)
    assert_close(case, scale=-3.0)
    assert_close(case, scale=0.0)


@pytest.mark.parametrize("level", LEVELS)
def test_softcap_of_small_and_large_scores(level):
    _C.limit_cpu_level(level)
    case = make_case(tree_rows(300, 3, 20), heads=(4, 2), head_dim=64)
    for softcap in (1e-3, 0.1, 1.0, 30.0, 1e4):
        assert_close(case, softcap=softcap)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks_in_either_dtype(dtype):
    case = make_case([*tree_rows(90, 3, 20), []], heads=(6, 2), dtype=dtype)
    sinks = torch.tensor([-200.0, 0.0, 2.5, 90.0, -math.inf, 7.0])
    assert_close(case, sinks=sinks)
    assert_close(case, sinks=sinks.to(dtype))


def test_rows_that_read_nothing():
    case = make_case([[], [(0, 3, 3)], [(0, 0, 5)], []], heads=(4, 2))
    out, lse = attend(case)
    for row in (0, 1, 3):
        assert (out[row] == 0).all()
        assert (lse[row] == -math.inf).all()
    sinks = torch.tensor([1.0, -2.0, 3.5, 0.1])
    out, lse = attend(case, sinks=sinks)
    assert (out[[0, 1, 3]] == 0).all()
    assert torch.equal(lse[1], sinks)


def test_no_rows():
    case = make_case([], heads=(4, 2))
    out, lse = attend(case)
    assert out.shape == (0, 4, 32)
    assert lse.shape == (0, 4)


def test_strided_queries():
    """transformers hands over [1, Hq, R, D] views and slices of fused projections."""
    case = make_case(tree_rows(90, 5, 20), heads=(4, 2))
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    expected = apar_ext.tree_attention(case.q, case.k_cache, case.v_cache, plan)
    by_head = case.q.transpose(0, 1).contiguous().transpose(0, 1)
    fused = torch.full((5, 9, 40), float("nan"))
    fused[:, 3:7, 5:37] = case.q
    for q in (by_head, fused[:, 3:7, 5:37]):
        assert not q.is_contiguous()
        assert same_bits(apar_ext.tree_attention(q, case.k_cache, case.v_cache, plan), expected)


def test_without_lse():
    case = make_case(tree_rows(90, 5, 20))
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    out = apar_ext.tree_attention(case.q, case.k_cache, case.v_cache, plan)
    assert same_bits(out, attend(case)[0])


# ---- a row's bits are its own ----


@settings(max_examples=60, deadline=None)
@given(
    rows=row_lists(max_rows=20),
    seed=st.integers(0, 1 << 30),
    dtype=st.sampled_from(DTYPES),
    level=st.sampled_from(LEVELS),
    head_dim=st.sampled_from([32, 80]),
    data=st.data(),
)
def test_bits_do_not_depend_on_other_rows(rows, seed, dtype, level, head_dim, data):
    _C.limit_cpu_level(level)
    case = make_case(rows, seed=seed, heads=(6, 2), head_dim=head_dim, page_size=8, dtype=dtype)
    out, lse = attend(case)
    chosen = data.draw(st.lists(st.sampled_from(range(len(rows))), max_size=25) if rows else st.just([]))
    part_out, part_lse = attend(case, chosen)
    assert same_bits(part_out, out[chosen])
    assert same_bits(part_lse, lse[chosen])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows",
    [
        [[(0, 0, 20000)]],
        [[(0, 5, 9000), (1, 4000, 4200)], [(0, 5, 8999)], [(0, 5, 4096), (1, 0, 9000)], [(1, 8191, 8193)]],
        tree_rows(5000, 40, 33),
        prefill_rows(130, before=4000),
    ],
    ids=["one row", "windows over segments", "tree", "prefill"],
)
def test_bits_do_not_depend_on_threads(rows, dtype, level):
    """With few rows and KV heads, long contexts are cut between threads."""
    _C.limit_cpu_level(level)
    case = make_case(rows, heads=(4, 1), dtype=dtype)
    torch.set_num_threads(1)
    out, lse = attend(case)
    for threads in (2, 3, 16):
        torch.set_num_threads(threads)
        other_out, other_lse = attend(case)
        assert same_bits(out, other_out)
        assert same_bits(lse, other_lse)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_of_one_row_stays_there(dtype, level):
    """NaN in entries that row 0 reads, in the very block (and pair of entries) that the others end or begin in."""
    _C.limit_cpu_level(level)
    rows = [[(0, 0, 300)], [(0, 0, 101)], [(0, 0, 102)], [(0, 103, 200)], [(0, 104, 300)], [(0, 0, 102), (0, 103, 300)]]
    case = make_case(rows, heads=(4, 2), dtype=dtype)
    clean = attend(case)
    page, offset = case.page_table[0, 102 // 16], 102 % 16
    case.k_cache[page, :, offset] = float("nan")
    case.v_cache[page, :, offset] = float("nan")
    out, lse = attend(case)
    assert out[0].isnan().all()
    assert same_bits(out[1:], clean[0][1:])
    assert same_bits(lse[1:], clean[1][1:])


# ---- refused ----


def good():
    case = make_case(tree_rows(20, 3, 5), heads=(4, 2), poison=False)
    plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
    return {"q": case.q, "k_cache": case.k_cache, "v_cache": case.v_cache, "plan": plan}


def plan_for(rows, heads=(4, 2), page_size=16):
    case = make_case(rows, heads=heads, page_size=page_size, poison=False)
    return apar_ext.make_plan(*case.ranges, **case.plan_sizes)


def caches(*shape, dtype=torch.float32):
    return {"k_cache": torch.zeros(shape, dtype=dtype), "v_cache": torch.zeros(shape, dtype=dtype)}


REFUSED = [
    (lambda: {"q": torch.zeros(3, 4, 32, dtype=torch.float64)}, "q has dtype float64, expected one of float32"),
    (lambda: {"q": torch.zeros(3, 4, 32, dtype=torch.bfloat16)}, "k_cache has dtype float32, expected bfloat16 as q"),
    (lambda: {"q": torch.zeros(3, 128)}, r"q has shape \[3, 128\], expected \[R, Hq, D\]"),
    (lambda: {"q": torch.zeros(3, 32, 4).transpose(1, 2)}, "q has stride 4 in its last dimension, expected 1"),
    (lambda: {"q": torch.zeros(3, 4, 64)}, "q has head_dim 64, expected 32 as k_cache has"),
    (lambda: {"q": torch.zeros(3, 5, 32)}, "q has 5 heads, expected a multiple of the 2 KV heads"),
    (lambda: {"q": torch.zeros(3, 0, 32)}, "q has 0 heads, expected a multiple"),
    (lambda: {"q": torch.zeros(3, 6, 32)}, "plan was made for group_size 2, expected Hq / Hkv = 3"),
    (lambda: {"q": torch.zeros(3, 1026, 32)}, "query heads, expected at most 1024"),
    (lambda: {"q": torch.zeros(2, 4, 32)}, "plan was made for rows R = 3, expected 2 as q has"),
    (lambda: caches(8, 2, 16, 48), "k_cache has head_dim 48, expected one of 32, 64, 80, 96, 128, 256"),
    (lambda: caches(8, 2, 12, 32), "page_size of k_cache is 12, expected one of 8, 16, 32, 64, 128"),
    (lambda: caches(8, 2, 32, 32), "plan was made for page_size 16, expected 32 as k_cache has"),
    (lambda: caches(8, 4, 16, 32), "plan was made for num_kv_heads 2, expected 4 as k_cache has"),
    (lambda: caches(8, 0, 16, 32), "k_cache has 0 KV heads"),
    (lambda: caches(2, 2, 16, 32), r"in a range, expected 0 to num_pages - 1 = 1"),
    (lambda: caches(0, 2, 16, 32), r"in a range, expected 0 to num_pages - 1 = -1"),
    (lambda: {"k_cache": torch.zeros(8, 2, 16, 32).transpose(0, 1)}, "k_cache has 8 KV heads|v_cache has shape"),
    (lambda: {"k_cache": torch.zeros(10, 16, 2, 32).transpose(1, 2)}, "k_cache is not contiguous"),
    (lambda: {"v_cache": torch.zeros(10, 2, 32, 16).transpose(2, 3)}, "v_cache is not contiguous"),
    (lambda: {"v_cache": torch.zeros(9, 2, 16, 32)}, r"v_cache has shape \[9, 2, 16, 32\], expected \[num_pages=10"),
    (lambda: {"v_cache": torch.zeros(10, 2, 16, 32, dtype=torch.float16)}, "v_cache has dtype float16"),
    (lambda: {"v_cache": torch.zeros(10, 2, 16, 32, device="meta")}, "v_cache is on device meta, expected cpu"),
    (lambda: {"q": torch.zeros(3, 4, 32, device="meta")}, "k_cache is on device cpu, expected meta"),
    (lambda: {"plan": plan_for(tree_rows(20, 2, 5))}, "plan was made for rows R = 2, expected 3"),
    (lambda: {"scale": math.nan}, "scale is nan, expected a finite number"),
    (lambda: {"scale": math.inf}, "scale is inf, expected a finite number"),
    (lambda: {"scale": 1e60}, r"scale is 1e\+60, expected a finite number"),
    (lambda: {"softcap": -1.0}, "softcap is -1, expected a finite number of at least 0"),
    (lambda: {"softcap": math.nan}, "softcap is nan"),
    (lambda: {"softcap": math.inf}, "softcap is inf"),
    (lambda: {"sinks": torch.zeros(2)}, r"sinks has shape \[2\], expected \[Hq=4\]"),
    (lambda: {"sinks": torch.zeros(4, dtype=torch.float64)}, "sinks has dtype float64, expected one of float32"),
    (lambda: {"sinks": torch.zeros(8)[::2]}, "sinks is not contiguous"),
    (lambda: {"sinks": torch.zeros(4, device="meta")}, "sinks is on device meta, expected cpu"),
    (lambda: {"q": torch.zeros(3, 4, 32, requires_grad=True)}, "requires a gradient"),
    (lambda: {"sinks": torch.zeros(4, requires_grad=True)}, "requires a gradient"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:50] for _, message in REFUSED])
def test_refuses(change, message):
    with pytest.raises(ValueError, match=f"tree_attention: .*({message})"):
        apar_ext.tree_attention(**{**good(), **change()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": torch.zeros(5, dtype=torch.int32)}, "schedule has 5 numbers"),
        ({"schedule": torch.zeros(500, dtype=torch.int32)}, "schedule is not one"),
        ({"schedule": torch.zeros(500)}, "schedule has dtype float32, expected int32"),
        ({"page_table": torch.zeros(5, 1, dtype=torch.int32)}, "a page_table of max_pages = 2, expected 1"),
        ({"page_table": torch.zeros(4, 2, dtype=torch.int32)}, "a page_table of S = 5, expected 4"),
        ({"page_table": torch.zeros(5, 2, dtype=torch.int64)}, "page_table has dtype int64"),
        # Changed since the plan was made.
        ({"page_table": torch.full((5, 2), 500, dtype=torch.int32)}, "page_table has page id 500 in a range"),
        ({"page_table": torch.full((5, 2), -1, dtype=torch.int32)}, "page_table has page id -1 in a range"),
    ],
)
def test_refuses_a_plan_of_other_tensors(change, message):
    arguments = good()
    plan = arguments["plan"]
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    arguments["plan"] = apar_ext.Plan(**{**fields, **change})
    with pytest.raises(ValueError, match=f"tree_attention: .*{message}"):
        apar_ext.tree_attention(**arguments)


def test_cut_off_schedule_is_refused():
    arguments = good()
    plan = arguments["plan"]
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    arguments["plan"] = apar_ext.Plan(**{**fields, "schedule": plan.schedule[:-1].clone()})
    with pytest.raises(ValueError, match="schedule is not one"):
        apar_ext.tree_attention(**arguments)


# ---- torch ----


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_operator_is_accepted_by_torch(with_sinks, return_lse):
    arguments = good()
    plan = arguments["plan"]
    sinks = torch.randn(4) if with_sinks else None
    torch.library.opcheck(
        torch.ops.apar.tree_attention,
        (
            arguments["q"],
            arguments["k_cache"],
            arguments["v_cache"],
            plan.page_table,
            plan.schedule,
            0.2,
            0.0,
            sinks,
            return_lse,
        ),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles(dynamic):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def layer(q, k_cache, v_cache, plan):
        out, lse = apar_ext.tree_attention(q * 2, k_cache, v_cache, plan, softcap=3.0, return_lse=True)
        return out + 1, lse

    for branches in (3, 4, 6):
        case = make_case(tree_rows(20, branches, 5), heads=(4, 2), poison=False)
        plan = apar_ext.make_plan(*case.ranges, **case.plan_sizes)
        out, lse = layer(case.q, case.k_cache, case.v_cache, plan)
        expected = apar_ext.tree_attention(case.q * 2, case.k_cache, case.v_cache, plan, softcap=3.0, return_lse=True)
        torch.testing.assert_close(out, expected[0] + 1)
        torch.testing.assert_close(lse, expected[1])


def test_gradients_are_refused_only_where_one_would_be_needed():
    arguments = good()
    arguments["q"].requires_grad_(True)
    with torch.no_grad():
        apar_ext.tree_attention(**arguments)
    with torch.inference_mode():
        apar_ext.tree_attention(**arguments)
