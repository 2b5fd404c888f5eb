"""KV bytes that tree_attention reads: of each entry that any row sees once and of no other, whatever the forest."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bench.tree_count import TreeCount
from bench.work_list import make_work_list

from . import cases
from .emulator import Device, tree_attention, work_input_for

LIMIT = 1.05
PLANNED_ROWS = 128  # packed rows (rows x query heads of a KV head) of a tile of the plan
KERNEL_ROWS = 128  # packed rows of the largest tile of the kernels; a larger item is done in parts
TREES = Path(__file__).resolve().parents[2] / "bench" / "trees" / "vicuna80.jsonl"


@st.composite
def forests(draw, tile_rows: int) -> tuple[list[list[cases.Range]], int]:
    """Requests with trees of any form, each of which fits one tile; and the group size."""
    group = draw(st.sampled_from([1, 2, 4, 7, 8, 16]))
    rows: list[list[cases.Range]] = []
    for _ in range(draw(st.integers(1, 4))):
        seed = draw(st.integers(0, 1 << 30))
        rng = random.Random(seed)
        request = cases.tree(
            seed,
            streams=rng.randint(1, max(1, min(40, tile_rows // group))),
            trunk=rng.choice([4, 20, 100, 700]),
            longest=rng.choice([3, 30, 200]),
        )
        first = 1 + max((stream for row in rows for stream, _, _ in row), default=-1)
        rows += [[(first + stream, begin, end) for stream, begin, end in row] for row in request]
    return rows, group


def answers_in_the_middle(number: int, requests: int) -> list[list[cases.Range]]:
    """Real answers, each at some step of its decoding."""
    rng = random.Random(number)
    lines = TREES.read_text().splitlines()
    answers = [answer for answer in map(json.loads, lines) if "apar" in answer]
    rows: list[list[cases.Range]] = []
    first = 0
    for answer in rng.sample(answers, requests):
        tree = answer.get("nested", answer["apar"]) if rng.random() < 0.5 else answer["apar"]
        count = TreeCount(tree, answer["prompt_tokens"], 16)
        step = rng.randrange(count.steps)
        rows += [[(first + stream, begin, end) for stream, begin, end in row] for row in count.rows_at(step)]
        first += len(count.streams)
    return rows


@settings(max_examples=300, deadline=None)
@given(forests(PLANNED_ROWS), st.sampled_from([1, 5, 132]))
def test_planned_bytes_of_any_forest(forest, multiprocessors):
    """By the work list alone, which is quick to count."""
    rows, group = forest
    work = make_work_list(rows, 2 * group, 2, multiprocessors)
    assert work.unique_entries <= work.entries < LIMIT * work.unique_entries


@pytest.mark.parametrize("heads", [(32, 32), (32, 8), (28, 4), (16, 2)])
def test_planned_bytes_of_real_answers(heads):
    for number in range(40):
        rows = answers_in_the_middle(number, [1, 4, 16][number % 3])
        work = make_work_list(rows, *heads, 132)
        assert work.unique_entries <= work.entries < LIMIT * work.unique_entries


def read_ratio(case: cases.Case, seed: int) -> float:
    """KV bytes that the kernel reads over those of the entries that any row sees."""
    device = Device(seed=seed, multiprocessors=6)
    rows, num_heads, head_dim = case.inputs["q"].shape
    num_kv_heads = case.inputs["k_cache"].shape[1]
    options = work_input_for(device, rows, num_kv_heads, num_heads // num_kv_heads)
    result = tree_attention(device, **case.inputs, **options)
    cases.assert_right(case, result.out, result.lse)
    unique = case.visible_entries * num_kv_heads * head_dim * case.inputs["k_cache"].element_size()
    read = result.launch.bytes_read
    assert read["k_cache"] == read["v_cache"]
    return read["k_cache"] / unique


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking would take minutes
@given(forests(KERNEL_ROWS), st.integers(0, 1 << 30))
def test_read_bytes_of_any_forest(forest, seed):
    rows, group = forest
    case = cases.make_case(rows, seed=seed, num_heads=group, num_kv_heads=1)
    assert 1.0 <= read_ratio(case, seed) < LIMIT


@pytest.mark.parametrize("number", range(4))
def test_read_bytes_of_real_answers(number):
    rows = answers_in_the_middle(number, 3)
    case = cases.make_case(rows, seed=number, num_heads=2 * [1, 4][number % 2], num_kv_heads=2)
    assert 1.0 <= read_ratio(case, number) < LIMIT
