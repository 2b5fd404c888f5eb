"""The forest's step and its plans on a GPU: the bits of the CPU, in and out of a captured graph."""

from __future__ import annotations

import random

import pytest
import torch
from apar.forest import Forest, ForestConfig

from tests.apar_ext.devices import HAS_CUDA_KERNELS
from tests.apar_ext.plans import Schedule

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="no GPU, or no CUDA kernels in this build"),
]

FORK, CHILD, STOP = 7, 8, 2


def make_forest(branches: int, seed: int, **changes) -> Forest:
    sizes = dict(num_slots=2 * branches + 8, num_pages=12 * branches, page_size=8, max_pages=10, max_depth=3)
    sizes |= dict(max_rows=branches, max_ranges=4, num_kv_heads=8, group_size=4)
    tokens = dict(fork_token=FORK, child_token=CHILD, stop_tokens=(STOP,))
    forest = Forest(ForestConfig(**{**sizes, **tokens, **changes}))
    draw = random.Random(seed)
    for request in range(max(1, branches // 4)):
        if forest.admit(request, draw.randint(1, 20), 80, 5) < 0:
            break
    forest.schedule()
    return forest


def draw_tokens(draw: random.Random, rows: int) -> torch.Tensor:
    tokens = [draw.choice([*[FORK] * 6, STOP, -1, *range(10, 40)]) for _ in range(rows)]
    return torch.tensor(tokens, dtype=torch.int32)


def assert_same_bits(found: Forest, expected: Forest) -> None:
    """All but the schedule's scratch and what stands behind the used parts of its sections."""
    data = found.data.cpu()
    begin = (expected.plan_schedule.data_ptr() - expected.data.data_ptr()) // 4
    end = begin + len(expected.plan_schedule)
    assert torch.equal(data[:begin], expected.data[:begin])
    assert torch.equal(data[end:], expected.data[end:])
    assert Schedule.parse(data[begin:end]) == Schedule.parse(expected.plan_schedule)


@pytest.mark.parametrize("branches", [1, 8, 64, 700])
@pytest.mark.parametrize("pages_per_branch", [12, 4])
def test_steps_have_the_bits_of_the_cpu(branches, pages_per_branch):
    pages = max(pages_per_branch * branches, 14)
    forest = make_forest(branches, branches, num_pages=pages)
    twin = forest.to("cuda")
    draw = random.Random(branches)
    for _ in range(40):
        tokens = draw_tokens(draw, forest.num_rows)
        limit = draw.choice([None, None, max(1, branches // 2)])
        twin.advance(tokens.cuda(), row_limit=limit)
        forest.advance(tokens, row_limit=limit)
        assert_same_bits(twin, forest)


def test_a_captured_step_goes_on_by_itself():
    branches = 32
    forest = make_forest(branches, 3)
    twin = forest.to("cuda")
    tokens = torch.zeros(branches, dtype=torch.int32, device="cuda")
    plans = twin.step_plans(branches, windows=(16,))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        warm = forest.to("cuda")
        warm.advance(torch.full_like(tokens, 10), row_limit=branches)
        warm.write_plans(plans)
        side.synchronize()
        with torch.cuda.graph(graph, stream=side):
            twin.advance(tokens, row_limit=branches)
            twin.write_plans(plans)
    draw = random.Random(5)
    for _ in range(30):
        sampled = draw_tokens(draw, forest.num_rows)
        tokens[: len(sampled)] = sampled.cuda()
        graph.replay()
        forest.advance(sampled, row_limit=branches)
        assert_same_bits(twin, forest)
        eager = forest.to("cuda").step_plans(branches, windows=(16,))
        forest.to("cuda").write_plans(eager)
        assert torch.equal(eager.begins, plans.begins)
        assert torch.equal(eager.schedules[:, 1:8], plans.schedules[:, 1:8])


def test_what_only_the_device_sees_is_raised_later():
    forest = make_forest(8, 1).to("cuda")
    forest.advance(torch.full((8,), -5, dtype=torch.int32, device="cuda"))
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match=r"sampled\[\d+\] is -5, expected a token"):
        forest.advance(torch.full((8,), 10, dtype=torch.int32, device="cuda"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda forest: forest.advance(torch.zeros(8, dtype=torch.int32)), "sampled is on device cpu"),
        (lambda forest: forest.advance(torch.zeros(8, device="cuda")), "sampled has dtype float32"),
        (lambda forest: forest.write_plans(forest.to("cpu").step_plans(4)), "is on device cpu"),
    ],
)
def test_bad_input_is_refused_before_the_launch(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_forest(8, 1).to("cuda"))
