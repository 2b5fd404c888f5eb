"""Faults planted into the real kernels: every barrier and every wait taken away in turn, pages one off."""

from __future__ import annotations

import pytest
import torch

from . import cases
from .emulator import Device, DeviceError, EmulatorFault, tree_attention

# Packed rows, and the least number of barriers, waits and fences: four of the step, two of a strip with several warps,
# two of the merge; the wait for a stage; two fences of the merge.
CONFIGURATIONS = {30: 11, 60: 11, 120: 9}


def make_case(packed: int) -> cases.Case:
    """Items are cut, and blocks of threads have several."""
    rows = [[(0, 0, 650 - 9 * row), (row + 1, 0, 5 + row)] for row in range(6)]
    return cases.make_case(rows, num_heads=packed // 6 * 2, num_kv_heads=2)


def run(case: cases.Case, **device):
    return tree_attention(Device(**device), **case.inputs, target_items=6, max_partials=300)


@pytest.mark.parametrize("packed", CONFIGURATIONS)
def test_every_barrier_and_wait_is_needed(packed):
    case = make_case(packed)
    right = run(case)
    assert right.num_merges > 0
    assert set(right.packed) == {packed}
    sites = set(right.launch.sites)
    assert len(sites) >= CONFIGURATIONS[packed]
    unnoticed = set()
    for site in sites:
        try:
            result = run(case, drop=[site])
        except (EmulatorFault, AssertionError):
            continue
        if torch.equal(result.out, right.out):
            unnoticed.add(site)
    assert not unnoticed, f"taking these away changed nothing: {unnoticed}"


@pytest.mark.parametrize("by", [-1, 1])
def test_wrong_pages_are_found(by):
    case = make_case(30)
    right = run(case)
    try:
        wrong = run(case, shift=("page_table", by))
    except DeviceError as error:
        assert "page_table has page id" in str(error)  # noqa: PT017
    except EmulatorFault as fault:
        assert "k_cache" in str(fault) or "v_cache" in str(fault)  # noqa: PT017
    else:
        assert not torch.equal(wrong.out, right.out)


def test_loads_beyond_a_tensor_are_found():
    with pytest.raises(EmulatorFault, match=r"of (k_cache|v_cache|q|work|page_table|no tensor)"):
        run(make_case(30), shift=("work", 1 << 20))


@pytest.mark.parametrize("packed", CONFIGURATIONS)
@pytest.mark.parametrize("by", [1 << 20, -(1 << 30)])
def test_page_ids_out_of_range_are_told_of_and_not_followed(packed, by):
    with pytest.raises(DeviceError, match=r"tree_attention: .* page_table has page id .*, expected 0 to num_pages - 1"):
        run(make_case(packed), shift=("page_table", by))
