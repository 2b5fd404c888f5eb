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


def run(case: cases.Case, *, seed: int = 0, shared_bytes: int = 227 * 1024, **options):
    return tree_attention(Device(seed=seed, shared_bytes=shared_bytes), **case.inputs, **options)


def assert_same_bits(first: torch.Tensor, second: torch.Tensor) -> None:
    assert torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_trees(head_dim, dtype):
    case = cases.make_case(cases.tree(head_dim), head_dim=head_dim, dtype=dtype, num_heads=6, num_kv_heads=2)
    result = run(case, seed=head_dim)
    cases.assert_right(case, result.out, result.lse)


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("packed_rows", [32, 64, 128])
def test_page_sizes_and_classes(page_size, packed_rows):
    rows = [*cases.tree(page_size, trunk=150), [(0, 70, 75)], []]
    case = cases.make_case(rows, page_size=page_size, dtype=HALVES[packed_rows // 32 % 2])
    result = run(case, packed_rows=packed_rows)
    cases.assert_right(case, result.out, result.lse)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads"), [(1, 1), (3, 3), (8, 1), (10, 2), (7, 1), (24, 3), (20, 1), (71, 1)]
)
def test_group_sizes(num_heads, num_kv_heads):
    case = cases.make_case(cases.tree(num_heads, streams=4), num_heads=num_heads, num_kv_heads=num_kv_heads)
    result = run(case)
    cases.assert_right(case, result.out, result.lse)


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


@pytest.mark.parametrize("dtype", HALVES)
def test_prefill(dtype):
    case = cases.make_case(cases.prefill(300, 70), dtype=dtype, num_heads=2, num_kv_heads=2)
    result = run(case)
    cases.assert_right(case, result.out, result.lse)


def test_streams_so_long_that_segments_grow():
    case = cases.make_case([[(0, 7900, 9000)], [(0, 8100, 8900)]], num_heads=2, num_kv_heads=1)
    result = run(case)
    cases.assert_right(case, result.out, result.lse)
    cut = run(case, **SPLIT)
    assert cut.num_merges == 1
    assert_same_bits(cut.out, result.out)


def test_large_scores():
    """One entry outweighs all others, some weights vanish; nothing overflows."""
    case = cases.make_case(cases.tree(3), dtype=torch.bfloat16)
    result = run(case, scale=40.0)
    right, _ = cases.expected(case, scale=40.0)
    assert (result.out.double() - right).norm() / right.norm() < 2e-2
    assert result.lse.isfinite().all()


def test_sinks_of_empty_rows():
    case = cases.make_case([[], [(0, 0, 3)], [(0, 3, 3)]], num_heads=2, num_kv_heads=1)
    result = run(case, sinks=torch.tensor([1.5, -2.0]))
    assert result.out[[0, 2]].abs().max() == 0
    assert torch.allclose(result.lse[[0, 2]], torch.tensor([1.5, -2.0]), atol=1e-6)
    result = run(case)
    assert result.lse[[0, 2]].eq(-math.inf).all()


def test_strided_queries():
    case = cases.make_case(cases.tree(5), dtype=torch.float16)
    contiguous = run(case)
    wide = torch.full((case.inputs["q"].shape[0], 9, 64), math.nan, dtype=torch.float16)
    wide[:, 2:6] = case.inputs["q"]
    case.inputs["q"] = wide[:, 2:6]
    assert_same_bits(run(case).out, contiguous.out)


# ---- bits


@pytest.mark.parametrize("dtype", HALVES)
def test_rows_have_the_same_bits_in_any_company(dtype):
    case = cases.make_case([*cases.tree(11, streams=7, trunk=400), *cases.anything(4)], dtype=dtype)
    together = run(case, **SPLIT)
    for row in range(len(case.rows)):
        alone = run(case.subset([row]), seed=row)
        assert_same_bits(together.out[row], alone.out[0])
        assert_same_bits(together.lse[row], alone.lse[0])


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
    case = cases.make_case(cases.tree(seed, streams=8, trunk=600), seed=seed, num_heads=4, num_kv_heads=2)
    launch = run(case, seed=seed, **options).launch
    unique = case.visible_entries * 2 * 64 * 2
    for name in ("k_cache", "v_cache"):
        ratio = launch.bytes_read[name] / unique
        assert 1.0 <= ratio < 1.05


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("packed_rows", [32, 64, 128])
def test_matrix_loads_have_no_bank_conflicts(head_dim, packed_rows):
    case = cases.make_case(cases.tree(1, streams=3), head_dim=head_dim)
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
