"""The kernels for Hopper: right, and to the bit what the portable ones give."""

from __future__ import annotations

import random

import pytest
import torch

from . import cases
from .emulator import Device, EmulatorFault, tree_attention

HALVES = [torch.bfloat16, torch.float16]
FAMILIES = ["bulk", "warpgroup"]  # the latter where items have 128 packed rows, and head_dim is 64 or 128
SPLIT = dict(target_items=6, max_partials=64)


@pytest.fixture(autouse=True)
def family(request, monkeypatch) -> str:
    """Which kernels run; "bulk" for tests that do not ask for several."""
    name = getattr(request, "param", "bulk")
    monkeypatch.setenv("APAR_TREE_ATTENTION", name)
    return name


all_families = pytest.mark.parametrize("family", FAMILIES, indirect=True)


def run(case: cases.Case, *, seed: int = 0, capability: int = 90, drop: tuple[str, ...] = (), **options):
    device = Device(seed=seed, compute_capability=capability, drop=drop)
    return tree_attention(device, **case.inputs, **options)


def assert_as_portable(case: cases.Case, *, seed: int = 0, check: dict | None = None, **options):
    result = run(case, seed=seed, **options)
    cases.assert_right(case, result.out, result.lse, **(check or {}))
    portable = run(case, seed=seed + 1, capability=80, **options)
    assert torch.equal(result.out.view(torch.int16), portable.out.view(torch.int16))
    assert torch.equal(result.lse.view(torch.int32), portable.lse.view(torch.int32))
    return result.launch


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", HALVES)
def test_trees(head_dim, dtype):
    case = cases.make_case(cases.tree(head_dim), head_dim=head_dim, dtype=dtype, num_heads=6, num_kv_heads=2)
    launch = assert_as_portable(case, seed=head_dim)
    assert launch.counters.warpgroup_products == 0


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("dtype", HALVES)
def test_8_bit_caches(head_dim, dtype):
    """Those of head_dim 64 are half a panel wide: the portable kernels take them."""
    rows = [*cases.tree(head_dim), [(0, 3, 40)]]
    kv_dtype = torch.float8_e4m3fn
    case = cases.make_case(rows, head_dim=head_dim, dtype=dtype, kv_dtype=kv_dtype, num_heads=10, num_kv_heads=2)
    check = dict(k_scale=torch.tensor([0.5, 1.7]), v_scale=torch.tensor([3.0, 0.25]))
    launch = assert_as_portable(case, check=check, **check)
    assert any(site.startswith("producer.cuh") for site in launch.sites) == (head_dim > 64)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", ["warpgroup"], indirect=True)
@pytest.mark.parametrize("cut", [False, True])
def test_warpgroups(head_dim, dtype, family, cut):
    """Items of more and of fewer rows than a warpgroup has, prefill, segments that fill and that do not."""
    rows = [*cases.tree(head_dim, streams=9, trunk=330), *cases.prefill(150, 23), []]
    case = cases.make_case(rows, head_dim=head_dim, dtype=dtype, num_heads=14, num_kv_heads=2)
    launch = assert_as_portable(case, packed_rows=128, **(SPLIT if cut else {}))
    assert launch.counters.warpgroup_products > 0


@pytest.mark.parametrize("family", ["warpgroup"], indirect=True)
def test_a_warpgroup_that_comes_later(family):
    """Its rows see nothing of the steps that bring its queries and the entries in front."""
    rows = [[(0, 0, 320)], [(0, 0, 320)], [(0, 192, 300)], [(0, 130, 320)]]
    case = cases.make_case(rows, num_heads=32, num_kv_heads=1)
    launch = assert_as_portable(case, packed_rows=128)
    assert launch.counters.warpgroup_products > 0


@pytest.mark.parametrize("page_size", [8, 16, 32, 64, 128])
@pytest.mark.parametrize("packed_rows", [32, 64, 128])
def test_page_sizes_and_classes(page_size, packed_rows):
    """Pages seen as a whole, in part and not at all."""
    rows = [*cases.tree(page_size, trunk=150), [(0, 70, 75)], []]
    case = cases.make_case(rows, page_size=page_size, dtype=HALVES[packed_rows // 32 % 2])
    assert_as_portable(case, packed_rows=packed_rows)


@pytest.mark.parametrize("seed", range(10))
@all_families
def test_any_set_of_ranges(seed, family):
    rng = random.Random(1000 + seed)
    case = cases.make_case(
        cases.anything(seed),
        seed=seed,
        num_kv_heads=(num_kv_heads := rng.choice([1, 2])),
        num_heads=num_kv_heads * rng.choice([1, 3, 7]),
        page_size=rng.choice([8, 16, 64]),
        dtype=rng.choice(HALVES),
    )
    num_heads = case.inputs["q"].shape[1]
    check = dict(
        scale=rng.choice([None, 0.3]),
        softcap=rng.choice([0.0, 5.0]),
        sinks=torch.randn(num_heads) * 2 if rng.random() < 0.5 else None,
    )
    cut = SPLIT if rng.random() < 0.5 else {}
    assert_as_portable(case, seed=seed, check=check, packed_rows=rng.choice([32, 128, 128]), **cut, **check)


def test_many_short_items():
    """Items of one step each, more than there are stages: queries of two items at a time."""
    case = cases.make_case([[(row, 0, 5 + row)] for row in range(14)], num_heads=4, num_kv_heads=2)
    assert_as_portable(case)


@pytest.mark.parametrize("seed", range(3))
def test_every_visible_entry_is_read_once(seed):
    case = cases.make_case(cases.tree(seed, streams=8, trunk=600), seed=seed, num_heads=4, num_kv_heads=2)
    launch = run(case, seed=seed).launch
    unique = case.visible_entries * 2 * 64 * 2
    for name in ("k_cache", "v_cache"):
        assert 1.0 <= launch.bytes_read[name] / unique < 1.05


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("packed_rows", [32, 64, 128])
def test_matrix_loads_have_no_bank_conflicts(head_dim, packed_rows):
    case = cases.make_case(cases.tree(1, streams=3), head_dim=head_dim)
    counters = run(case, packed_rows=packed_rows).launch.counters
    assert counters.matrix_load_passes > 0
    assert counters.matrix_load_conflicts == 0


@pytest.mark.parametrize(
    ("family", "packed_rows"), [("bulk", 32), ("bulk", 64), ("bulk", 128), ("warpgroup", 128)], indirect=["family"]
)
def test_every_barrier_and_wait_is_needed(family, packed_rows):
    """Items of all widths; stages are used again, whole pages behind pages in part."""
    rows = [[(7, 0, 5), (0, 0, 1200 - 9 * row), (row + 1, 0, 5 + row)] for row in range(6)]
    case = cases.make_case(rows, num_heads=packed_rows // 6 * 2, num_kv_heads=2)
    options = dict(packed_rows=packed_rows, target_items=2, max_partials=200)
    right = run(case, **options)
    assert set(right.packed) == {packed_rows // 6 * 6}
    assert right.num_merges > 0
    sites = set(right.launch.sites)
    assert any(site.startswith("producer.cuh") for site in sites)
    assert any(site.startswith("warpgroup_fold.cuh") for site in sites) == (family == "warpgroup")
    unnoticed = set()
    for site in sites:
        try:
            result = run(case, drop=(site,), **options)
        except (EmulatorFault, AssertionError):
            continue
        if torch.equal(result.out, right.out):
            unnoticed.add(site)
    assert not unnoticed, f"taking these away changed nothing: {unnoticed}"


def test_who_decides_which_kernels_run(monkeypatch):
    case = cases.make_case(cases.tree(5, streams=30), num_heads=8, num_kv_heads=1)

    def sites(**options) -> set[str]:
        return {site.split(":")[0] for site in run(case, packed_rows=128, **options).launch.sites}

    monkeypatch.delenv("APAR_TREE_ATTENTION")
    assert "kernel.cuh" in sites(capability=80)
    assert "producer.cuh" in sites()
    assert "warpgroup_fold.cuh" not in sites()
    assert "warpgroup_fold.cuh" in sites(batch_invariant=False)
    monkeypatch.setenv("APAR_TREE_ATTENTION", "bulk")
    assert "warpgroup_fold.cuh" not in sites(batch_invariant=False)
    monkeypatch.setenv("APAR_TREE_ATTENTION", "portable")
    assert "kernel.cuh" in sites()
    assert "producer.cuh" not in sites()
    monkeypatch.setenv("APAR_TREE_ATTENTION", "fastest")
    with pytest.raises(EmulatorFault, match="APAR_TREE_ATTENTION is fastest, expected"):
        run(case)
