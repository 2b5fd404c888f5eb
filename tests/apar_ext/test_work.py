"""make_work: the work list that a plan carries on a CUDA device, made on the host."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import apar_ext
from apar_ext.attention import check_plan_fits


def make_schedule() -> torch.Tensor:
    page_table = torch.arange(80, dtype=torch.int32).view(2, 40)
    columns = [[0, 1, 0], [0, 0, 0], [500, 20, 100]]
    numbers = [torch.tensor(column, dtype=torch.int32) for column in ([0, 2, 3], *columns)]
    return apar_ext.make_plan(page_table, *numbers, num_kv_heads=2, group_size=4, page_size=16).schedule


def test_lists_items_and_ranges():
    work = torch.ops.apar.make_work(make_schedule(), 132)
    assert work[1:5].tolist() == [2, 1, 3, 32]  # items, merges, partial results, packed rows
    assert work[8 + 66 + 1 :][:3].tolist() == [0, 2, 3]  # behind header and bins
    assert work[-12:].view(3, 4).tolist() == [[0, 0, 0, 500], [1, 2, 0, 20], [0, 0, 0, 100]]


def test_without_batch_invariance_items_leave_one_result_each():
    work = torch.ops.apar.make_work(make_schedule(), 132, False)
    assert work[1:5].tolist() == [2, 1, 2, 32]


def test_operator_is_registered_as_torch_expects():
    torch.library.opcheck(torch.ops.apar.make_work.default, (make_schedule(), 132))


@pytest.mark.parametrize(
    ("schedule", "multiprocessors", "message"),
    [
        (torch.zeros(30, dtype=torch.int32), 132, "make_work: schedule is not one, expected what make_plan returns"),
        (torch.zeros(3, dtype=torch.int32), 132, "make_work: schedule is not one"),
        (torch.zeros(30), 132, "make_work: schedule has dtype float32, expected int32"),
        (None, 0, "make_work: multiprocessors is 0, expected at least 1"),
    ],
)
def test_bad_input(schedule, multiprocessors, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.apar.make_work(make_schedule() if schedule is None else schedule, multiprocessors)


def make_plan() -> apar_ext.Plan:
    page_table = torch.tensor([[3, 5]], dtype=torch.int32)
    numbers = [torch.tensor(column, dtype=torch.int32) for column in ([0, 1], [0], [0], [20])]
    plan = apar_ext.make_plan(page_table, *numbers, num_kv_heads=2, group_size=4, page_size=16)
    return dataclasses.replace(plan, max_page=5)


@pytest.mark.parametrize(
    ("q_shape", "cache_shape", "message"),
    [
        ((2, 8, 64), (6, 2, 16, 64), "plan was made for rows R = 1, expected 2 as q has"),
        ((1, 8, 64), (6, 4, 16, 64), "plan was made for num_kv_heads 2, expected 4 as k_cache has"),
        ((1, 8, 64), (6, 2, 32, 64), "plan was made for page_size 16, expected 32 as k_cache has"),
        ((1, 10, 64), (6, 2, 16, 64), "plan was made for group_size 4, expected Hq / Hkv = 10 / 2"),
        ((1, 8, 64), (5, 2, 16, 64), "page_table has page id 5 in a range, expected 0 to num_pages - 1 = 4"),
    ],
)
def test_plans_for_other_sizes_are_refused_without_asking_the_device(q_shape, cache_shape, message):
    with pytest.raises(ValueError, match=message):
        check_plan_fits(torch.empty(q_shape), torch.empty(cache_shape), make_plan())
    check_plan_fits(torch.empty(1, 8, 64), torch.empty(6, 2, 16, 64), make_plan())
