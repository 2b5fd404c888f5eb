"""Faults planted into the real kernels: every barrier and every wait taken away in turn, pages one off."""

from __future__ import annotations

import pytest
import torch

from . import cases
from .emulator import Device, DeviceError, EmulatorFault, tree_attention

# Of all kinds: cut items, several items per block of threads, strips of one and of several warps.
CONFIGURATIONS = {
    "32": dict(packed_rows=32, target_items=6, max_partials=64),
    "128": dict(packed_rows=128, target_items=6, max_partials=64),
}


def make_case() -> cases.Case:
    return cases.make_case(cases.tree(1, streams=6, trunk=700), num_heads=4, num_kv_heads=2)


def run(case: cases.Case, configuration: str, **device):
    return tree_attention(Device(**device), **case.inputs, **CONFIGURATIONS[configuration])


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_every_barrier_and_wait_is_needed(configuration):
    case = make_case()
    right = run(case, configuration)
    assert right.num_merges > 0
    sites = set(right.launch.sites)
    # Barriers: four of the step, two of a strip, two of the merge; the wait for a stage; two fences of the merge.
    assert len(sites) >= 11
    unnoticed = set()
    for site in sites:
        try:
            result = run(case, configuration, drop=[site])
        except (EmulatorFault, AssertionError):
            continue
        if torch.equal(result.out, right.out):
            unnoticed.add(site)
    assert not unnoticed, f"taking these away changed nothing: {unnoticed}"


@pytest.mark.parametrize("by", [-1, 1])
def test_wrong_pages_are_found(by):
    case = make_case()
    right = run(case, "32")
    try:
        wrong = run(case, "32", shift=("page_table", by))
    except DeviceError as error:
        assert "page_table has page id" in str(error)  # noqa: PT017
    except EmulatorFault as fault:
        assert "k_cache" in str(fault) or "v_cache" in str(fault)  # noqa: PT017
    else:
        assert not torch.equal(wrong.out, right.out)


def test_loads_beyond_a_tensor_are_found():
    with pytest.raises(EmulatorFault, match=r"of (k_cache|v_cache|q|work|page_table|no tensor)"):
        run(make_case(), "32", shift=("work", 1 << 20))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("by", [1 << 20, -(1 << 30)])
def test_page_ids_out_of_range_are_told_of_and_not_followed(configuration, by):
    with pytest.raises(DeviceError, match=r"tree_attention: .* page_table has page id .*, expected 0 to num_pages - 1"):
        run(make_case(), configuration, shift=("page_table", by))
