"""tree_attention's CUDA kernels on the emulated device, against the reference in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch

from . import cases
from .emulator import Device, EmulatorFault, tree_attention

HALVES = [torch.bfloat16, torch.float16]
SPLIT = dict(target_items=6, max_partials=64)


def run(case: cases.Case, *, seed: int = 0, shared_bytes: int = 227 * 1024, capability: int = 100, **options):
    device = Device(seed=seed, shared_bytes=shared_bytes, compute_capability=capability)
    return tree_attention(device, **case.inputs, **options)


def assert_same_bits(first: torch.Tensor, second: torch.Tensor) -> None:
    assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("packed_rows", [32, 64, 128])
def test_page_sizes_and_classes(page_size, packed_rows):
    rows = [[(0, 0, 140 - 7 * row), (1 + row // 2, 2 * row, 20)] for row in range(6)] + [[(0, 70, 75)], []]
    case = cases.make_case(rows, page_size=page_size, num_heads=15, num_kv_heads=1, dtype=HALVES[packed_rows // 32 % 2])
    result = run(case, packed_rows=packed_rows)
    assert max(result.packed) == {32: 30, 64: 60, 128: 120}[packed_rows]
    cases.assert_right(case, result.out, result.lse)


SCALES = dict(k_scale=torch.tensor([0.5, 1.7]), v_scale=torch.tensor([3.0, 0.25]))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_8_bit_caches(head_dim, dtype):
    case = cases.make_case(
        cases.tree(head_dim), head_dim=head_dim, dtype=dtype, kv_dtype=torch.float8_e4m3fn, num_heads=6
    )
    result = run(case, seed=head_dim, **SCALES)
    cases.assert_right(case, result.out, result.lse, **SCALES)
    cases.assert_right(case, (plain := run(case)).out, plain.lse)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_every_8_bit_number_is_read_exactly(dtype):
    """A row that sees one entry has its values as output."""
    case = cases.make_case(
        [[(0, entry, entry + 1)] for entry in range(4)], dtype=dtype, kv_dtype=torch.float8_e4m3fn, num_kv_heads=1
    )
    numbers = torch.arange(256, dtype=torch.uint8).view(4, 64)
    page = case.inputs["page_table"][0, 0]
    case.inputs["v_cache"].view(torch.uint8)[page, 0, :4] = numbers
    out = run(case).out[:, 0]
    right = numbers.view(torch.float8_e4m3fn).to(dtype)
    right[right == 0] = 0  # no sign
    assert torch.equal(out.isnan(), right.isnan())
    assert torch.equal(out.nan_to_num(), right.nan_to_num())


@pytest.mark.parametrize("seed", range(25))
def test_any_set_of_ranges(seed):
    """With random sizes and options; also cut into items, which must not change a bit."""
    rng = random.Random(seed)
    dtype = rng.choice([*HALVES, torch.float32])
    case = cases.make_case(
        cases.anything(seed),
        seed=seed,
        num_kv_heads=(num_kv_heads := rng.choice([1, 2])),
        num_heads=num_kv_heads * rng.choice([1, 2, 3, 5]),
        head_dim=rng.choice([64, 80]),
        page_size=rng.choice([8, 16, 64]),
        dtype=dtype,
        kv_dtype=rng.choice([dtype, torch.float8_e4m3fn]),
    )
    num_heads = case.inputs["q"].shape[1]
    options = dict(
        scale=rng.choice([None, 0.3]),
        softcap=rng.choice([0.0, 5.0]),
        sinks=torch.randn(num_heads) * 2 if rng.random() < 0.5 else None,
    )
    whole = run(case, seed=seed, **options)
    cases.assert_right(case, whole.out, whole.lse, **options)
    cut = run(case, seed=seed + 1, packed_rows=rng.choice([32, 64, 128]), **SPLIT, **options)
    assert_same_bits(whole.out, cut.out)
    assert_same_bits(whole.lse, cut.lse)


def test_streams_so_long_that_segments_grow():
    case = cases.make_case([[(0, 7900, 9000)], [(0, 8100, 8900)]], num_heads=2, num_kv_heads=1)
    result = run(case)
    cases.assert_right(case, result.out, result.lse)
    cut = run(case, **SPLIT)
    assert cut.num_merges == 1
    assert_same_bits(cut.out, result.out)


# ---- bits


@pytest.mark.parametrize("kv_dtype", [*HALVES, torch.float8_e4m3fn, torch.float32])
def test_rows_have_the_same_bits_in_any_company(kv_dtype):
    dtype = torch.bfloat16 if kv_dtype == torch.float8_e4m3fn else kv_dtype
    rows = [*cases.tree(11, streams=7, trunk=400), *cases.anything(4)]
    case = cases.make_case(rows, dtype=dtype, kv_dtype=kv_dtype)
    together = run(case, **SPLIT)
    for row in range(len(case.rows)):
        alone = run(case.subset([row]), seed=row)
        assert_same_bits(together.out[row], alone.out[0])
        assert_same_bits(together.lse[row], alone.lse[0])


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("head_dim", [80, 128])
def test_class_of_items_changes_no_bit(kv_dtype, head_dim):
    """Teams of two, four and eight strips; rows of one item that see different entries; cut and whole."""
    rows = [[(0, 0, 300 - row), (row + 1, 0, 3 + 9 * row)] for row in range(8)]
    case = cases.make_case(rows, num_heads=15, num_kv_heads=1, head_dim=head_dim, kv_dtype=kv_dtype)
    wide = run(case, packed_rows=128)
    cases.assert_right(case, wide.out, wide.lse)
    assert wide.packed == [120]
    assert_same_bits(wide.out, run(case, packed_rows=128, capability=80).out)  # in parts
    for packed_rows, packed in ((32, 30), (64, 60), (128, 120)):
        other = run(case, packed_rows=packed_rows, seed=packed_rows, target_items=3, max_partials=200)
        assert set(other.packed) == {packed}
        assert_same_bits(wide.out, other.out)
        assert_same_bits(wide.lse, other.lse)
    assert other.num_merges > 0


def test_items_of_all_classes_follow_each_other():
    """In one block of threads: teams change, and so does the place of the queries."""
    sizes = [8, 1, 3, 8, 8, 1, 1, 5, 2]  # rows of 15 query heads
    rows = [[(stream, 0, 200 + 10 * row)] for stream, size in enumerate(sizes) for row in range(size)]
    case = cases.make_case(rows, num_heads=15, num_kv_heads=1)
    result = run(case)
    assert result.packed == [15 * size for size in sizes]
    cases.assert_right(case, result.out, result.lse)
    for shared_kilobytes in (99, 163):
        assert_same_bits(result.out, run(case, shared_bytes=shared_kilobytes * 1024).out)


def test_without_batch_invariance_an_item_leaves_one_result():
    case = cases.make_case([[(0, 0, 3000)], [(0, 0, 2900)]])
    strict = run(case, target_items=3, max_partials=64)
    free = run(case, target_items=3, max_partials=64, batch_invariant=False)
    assert free.num_items == strict.num_items == 3
    assert free.num_partials == 3 < strict.num_partials
    cases.assert_right(case, free.out, free.lse)
    again = run(case, seed=5, target_items=3, max_partials=64, batch_invariant=False)
    assert_same_bits(free.out, again.out)


@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32])
@pytest.mark.parametrize("group", [1, 9, 20])
def test_values_that_are_not_finite_stay_with_the_rows_that_see_them(kv_dtype, group):
    rows = [[(0, 0, 40)], [(0, 0, 80)], [(0, 60, 64), (1, 0, 5)], [(0, 0, 50), (1, 0, 9)], [(1, 0, 30)], []]
    dtype = torch.bfloat16 if kv_dtype == torch.float8_e4m3fn else kv_dtype
    case = cases.make_case(rows, num_heads=group, num_kv_heads=1, dtype=dtype, kv_dtype=kv_dtype)
    clean = run(case)
    values, page_table = case.inputs["v_cache"], case.inputs["page_table"]
    special = {(0, 45): math.nan, (0, 62): math.nan, (1, 7): math.nan}
    if kv_dtype != torch.float8_e4m3fn:
        special = {(0, 45): math.inf, (0, 48): -math.inf, (0, 62): math.nan, (1, 7): -math.inf}
    for column, ((stream, entry), number) in enumerate(special.items()):
        bits = torch.tensor(number).to(kv_dtype)
        page = page_table[stream, entry // 16]
        # Several columns each, columns of their own and one in common.
        for c in (column, 8 + column, 33 + 9 * column, 63):
            if kv_dtype == torch.float8_e4m3fn:
                values.view(torch.uint8)[page, 0, entry % 16, c] = bits.view(torch.uint8)
            else:
                values[page, 0, entry % 16, c] = bits
    result = run(case)
    right, _ = cases.expected(case)
    assert torch.equal(result.out.isnan(), right.isnan())
    assert torch.equal(result.out.isposinf(), right.isposinf())
    assert torch.equal(result.out.isneginf(), right.isneginf())
    assert right.isnan().any()
    finite = right.isfinite()
    assert torch.equal(result.out[finite], clean.out[finite])
    assert_same_bits(result.out, run(case, seed=3, target_items=3, max_partials=200).out)
    assert_same_bits(result.lse, clean.lse)


def test_cuts_and_order_of_blocks_change_no_bit():
    rows = [[(0, 0, 1500), (1, 0, 700)], [(0, 0, 1500), (2, 0, 90)], [(0, 100, 900), (3, 0, 1)]]
    case = cases.make_case(rows, num_heads=2, num_kv_heads=1)
    whole = run(case)
    assert whole.num_items == 1
    counts = set()
    for seed, target in enumerate([2, 3, 5, 9, 100]):
        cut = run(case, seed=seed, target_items=target, max_partials=64)
        counts.add(cut.num_items)
        assert cut.num_items > 1
        assert cut.num_merges == 1
        assert_same_bits(whole.out, cut.out)
        assert_same_bits(whole.lse, cut.lse)
    assert len(counts) > 2


def test_work_space_is_left_ready_for_the_next_launch():
    case = cases.make_case([[(0, 0, 1500)], [(0, 0, 1300)]])
    once = run(case, **SPLIT)
    again = run(case, **SPLIT, launches=3)
    assert once.num_merges > 0
    assert_same_bits(once.out, again.out)


def test_no_room_for_partial_results_means_no_cuts():
    case = cases.make_case([[(0, 0, 1500)]])
    assert run(case, target_items=6, max_partials=2).num_items == 1


# ---- memory


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, SPLIT], ids=["whole", "cut"])
def test_every_visible_entry_is_read_once(seed, options):
    """Rows fit one tile; entries beyond what is visible are not read at all."""
    group = [2, 4, 8, 15][seed]
    case = cases.make_case(
        cases.tree(seed, streams=8, trunk=600, longest=20), seed=seed, num_heads=2 * group, num_kv_heads=2
    )
    result = run(case, seed=seed, **options)
    assert set(result.packed) == {8 * group}
    launch = result.launch
    unique = case.visible_entries * 2 * 64 * 2
    for name in ("k_cache", "v_cache"):
        ratio = launch.bytes_read[name] / unique
        assert 1.0 <= ratio < 1.05


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("packed_rows", [32, 64, 128])
def test_matrix_loads_have_no_bank_conflicts(head_dim, packed_rows):
    for kv_dtype in (torch.bfloat16, torch.float8_e4m3fn):
        case = cases.make_case(cases.tree(1, streams=3), num_heads=30, head_dim=head_dim, kv_dtype=kv_dtype)
        counters = run(case, packed_rows=packed_rows).launch.counters
        assert counters.matrix_load_passes > 0
        assert counters.matrix_load_conflicts == 0


@pytest.mark.parametrize("shared_kilobytes", [99, 163])
@pytest.mark.parametrize("options", [{}, SPLIT], ids=["whole", "cut"])
def test_smaller_cards_do_items_in_parts(shared_kilobytes, options):
    """sm_80 has 163 KB per block, sm_86, sm_89 and sm_120 have 99."""
    case = cases.make_case(cases.tree(2, streams=11, trunk=600), num_heads=10, head_dim=128)
    large = run(case)
    small = run(case, packed_rows=128, shared_bytes=shared_kilobytes * 1024, **options)
    assert small.launch.counters.largest_shared_bytes <= shared_kilobytes * 1024
    cases.assert_right(case, small.out, small.lse)
    assert_same_bits(small.out, large.out)
    assert_same_bits(small.lse, large.lse)


def test_too_much_shared_memory_is_an_error_before_the_launch():
    case = cases.make_case(cases.tree(2), head_dim=256)
    with pytest.raises(EmulatorFault, match=r"tree_attention: head_dim 256 needs .* shared memory .* has 101376"):
        run(case, shared_bytes=99 * 1024)


def test_head_dims_that_are_not_compiled():
    with pytest.raises(EmulatorFault, match="q has head_dim 32, expected one of 64, 80, 96, 128, 256"):
        run(cases.make_case(cases.tree(2), head_dim=32))
