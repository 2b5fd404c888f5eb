"""advance's CUDA kernel on the emulated device: after every step the whole forest has the bits of the CPU."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from apar.forest import Forest, ForestConfig

from tests.apar.forest_pair import CHILD, FORK, STOP, Pair, writer
from tests.apar.test_forest import random_script, smallest
from tests.apar_ext.plans import Schedule

from .bookkeeping import advance
from .emulator import Device, DeviceError, EmulatorFault

GARBAGE = -77


def expect_equal(found: Forest, expected: Forest) -> None:
    """All bits, but for the scratch of the schedule and what stands behind the used parts of its sections."""
    begin = expected.plan_schedule.data_ptr() - expected.data.data_ptr()
    begin, size = begin // 4, len(expected.plan_schedule)
    for name in vars(found):
        if name in ("plan_schedule", "data", "_host_header"):
            continue
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(other, torch.Tensor):
            assert torch.equal(one, other), f"{name}: {one.tolist()}, expected {other.tolist()}"
    assert torch.equal(found.data[:begin], expected.data[:begin])
    assert torch.equal(found.data[begin + size :], expected.data[begin + size :])
    assert Schedule.parse(found.plan_schedule) == Schedule.parse(expected.plan_schedule)


class TwinForest(Forest):
    """Runs every advance on the emulated device too and compares.

    Args:
        seed: draws threads, the order in which warps run, and whether the plan's work space is in shared memory.
    """

    def __init__(self, config: ForestConfig, seed: int) -> None:
        super().__init__(config)
        self.draw = random.Random(seed)
        self.launches = 0

    def advance(self, sampled: torch.Tensor, *, row_limit: int | None = None) -> None:
        twin = self.to("cpu")
        twin.plan_schedule.fill_(GARBAGE)
        device = Device(
            seed=self.draw.randrange(1 << 30), shared_bytes=self.draw.choice([227 * 1024, 227 * 1024, 8 * 1024])
        )
        limit = {} if row_limit is None else {"row_limit": row_limit}
        advance(device, twin.data, sampled, threads=self.draw.choice([32, 64, 96]), **limit)
        super().advance(sampled, row_limit=row_limit)
        expect_equal(twin, self)
        self.launches += 1


def twin_pair(config: ForestConfig, write, seed: int) -> Pair:
    pair = Pair(config, write)
    pair.forest = TwinForest(config, seed)
    return pair


def script_config(draw: random.Random, keep_finished: bool) -> ForestConfig:
    """Little more than the least: everything is refused now and then."""
    return smallest(
        max_depth=3,
        longest=40,
        num_slots=draw.choice([8, 12]) if keep_finished else draw.choice([5, 9]),
        num_pages=draw.choice([40, 60]) if keep_finished else draw.choice([9, 14]),
        max_children=3,
        keep_finished=keep_finished,
        max_ranges=9,
        max_rows=draw.choice([2, 8]),
        max_live_branches=draw.choice([1, 2, 8, 8]),
        group_size=draw.choice([1, 32]),
    )


def test_random_scripts_give_the_same_bits():
    seen: Counter[str] = Counter()
    launches = 0
    for seed in range(24):
        draw = random.Random(seed)
        config = script_config(draw, keep_finished=seed % 3 == 0)
        pair = twin_pair(config, writer(seed, fork_share=0.4, stop_share=0.05), seed)
        random_script(pair, 40, draw, actions=60)
        seen += pair.seen
        launches += pair.forest.launches
    assert launches > 400
    for situation in (
        "fed",
        "fork",
        "waits behind others of its request",
        "waits for a row",
        "waits by row_limit",
        "waits with its fork",
        "waits for a page",
        "child waits for its first page",
        "finished stream is read",
        "joined child is read",
        "shared stream is read",
    ):
        assert seen[situation] >= 5, seen


def crowd(requests: int, seed: int, **changes) -> TwinForest:
    """More branches than threads: the block goes over them in portions."""
    sizes = dict(num_slots=160, num_pages=700, page_size=8, max_pages=6, max_depth=3, max_ranges=4, max_rows=100)
    tokens = dict(fork_token=FORK, child_token=CHILD, stop_tokens=(STOP,))
    forest = TwinForest(ForestConfig(**{**sizes, **tokens, **changes}), seed)
    for request in range(requests):
        assert forest.admit(request, 1 + request % 9, 40, 5) >= 0
    forest.schedule()
    return forest


@pytest.mark.parametrize(
    "changes",
    [{}, dict(num_slots=90), dict(num_pages=330), dict(max_rows=70, max_live_branches=2), dict(group_size=16)],
    ids=str,
)
def test_more_branches_than_threads(changes):
    forest = crowd(40, seed=1, **changes)
    draw = random.Random(3)
    most_rows = 0
    for _ in range(25):
        rows = forest.num_rows
        most_rows = max(most_rows, rows)
        sampled = [draw.choice([*[FORK] * 8, STOP, *range(10, 25)]) for _ in range(rows)]
        if rows > 70:
            sampled[60:64] = [-1] * 4
        forest.advance(torch.tensor(sampled, dtype=torch.int32), row_limit=draw.choice([None] * 5 + [50]))
    assert most_rows >= 66


def test_an_empty_forest_stays_empty():
    forest = TwinForest(smallest(2, 20), seed=0)
    forest.advance(torch.empty(0, dtype=torch.int32))
    assert forest.num_rows == 0
    assert forest.admit(0, 3, 4, 5) == 0
    forest.schedule()
    forest.advance(torch.tensor([10], dtype=torch.int32))
    assert forest.num_rows == 0
    assert forest.done.tolist() == [0]


def test_a_long_stream_gives_its_pages_back_in_order():
    config = ForestConfig(num_slots=4, num_pages=300, page_size=8, stop_tokens=(STOP,))
    forest = TwinForest(config, seed=0)
    assert forest.admit(0, 900, 910, 5) == 0
    assert forest.admit(1, 700, 710, 5) == 1
    forest.schedule()
    forest.advance(torch.tensor([STOP, STOP], dtype=torch.int32))
    assert forest.counter("num_free_pages") == 300


# ---- what the device alone can see --------------------------------------------------------------------------------


def two_requests() -> Forest:
    forest = Forest(smallest(2, 20, num_slots=6, num_pages=20, max_children=9))
    for request in range(2):
        forest.admit(request, 3, 20, 5)
    forest.schedule()
    return forest


def test_a_bad_token_ends_its_branch_and_is_reported():
    forest, device = two_requests(), Device()
    expected = forest.to("cpu")
    with pytest.raises(DeviceError, match=r"sampled\[1\] is -2, expected a token, or -1"):
        advance(device, forest.data, torch.tensor([10, -2], dtype=torch.int32))
    expected.advance(torch.tensor([10, -1], dtype=torch.int32))
    expect_equal(forest, expected)


@pytest.mark.parametrize(
    ("tokens", "header", "report"),
    [
        (1, None, "sampled has 1 tokens, expected at least num_rows = 2"),
        (2, ("max_children", 3), "forest had 3 as number 14 of its header, expected 9"),
        (2, ("total_size", 16), "forest had 16 as number 2 of its header"),
    ],
)
def test_a_forest_that_was_not_meant_stays_as_it_is(tokens, header, report):
    forest, device = two_requests(), Device()
    data = forest.data.clone()
    if header is not None:
        data[forest._header[header[0]]] = header[1]
    before = data.clone()
    with pytest.raises(DeviceError, match=report):
        advance(device, data, torch.full((tokens,), 10, dtype=torch.int32), config_of=forest.data)
    assert torch.equal(data, before)


# ---- planted faults ------------------------------------------------------------------------------------------------


def busy_steps() -> list[tuple[Forest, torch.Tensor]]:
    """Steps that meet every phase: forks, ends, releases of branches and shared streams, refusals, several portions."""
    steps = []
    for shares, changes in (
        (True, dict(num_pages=160)),
        (False, dict(num_pages=150, group_size=128, max_live_branches=3)),
        (False, dict(num_pages=88, num_slots=39, keep_finished=False)),
    ):
        config = smallest(3, 40, **{**dict(num_slots=80, max_children=3, max_ranges=5, max_rows=60), **changes})
        forest = Forest(config)
        shared = forest.open_shared(20) if shares else -1
        for request in range(36):
            start = shared if request % 2 else -1
            forest.admit(request, 22 if start >= 0 else 3, 40, 5, start)
        forest.schedule()
        draw = random.Random(5)
        for _ in range(6):
            sampled = [draw.choice([FORK, 10, 11, 12]) for _ in range(forest.num_rows)]
            forest.advance(torch.tensor(sampled, dtype=torch.int32))
        sampled = [draw.choice([FORK, STOP, 10]) for _ in range(forest.num_rows)]
        if shares:
            forest.close_shared(shared)
        steps.append((forest, torch.tensor(sampled, dtype=torch.int32)))
    return steps


def sites_of_the_header() -> set[str]:
    """Where all threads agree that this is the forest that was meant: it matters only if it is not."""
    forest, device = two_requests(), Device()
    sampled = torch.full((2,), 10, dtype=torch.int32)
    bad = forest.data.clone()
    bad[forest._header["max_children"]] = 3
    with pytest.raises(DeviceError):
        advance(device, bad, sampled, config_of=forest.data)
    sites = set(device.library.emulator_sites().decode().split())
    assert len(sites) == 1
    for site in sites:
        with pytest.raises(EmulatorFault):  # some threads go on alone
            advance(Device(drop=[site]), bad.clone(), sampled, config_of=forest.data)
    return sites


def test_every_barrier_is_needed():
    unnoticed, met = set(), set()
    for forest, sampled in busy_steps():
        expected = forest.to("cpu")
        expected.advance(sampled)
        assert len(expected.opened)
        assert len(expected.ended)

        def run(forest=forest, sampled=sampled, **device) -> tuple[Forest, set[str]]:
            twin = forest.to("cpu")
            launch = advance(Device(**device), twin.data, sampled, threads=64)
            return twin, set(launch.sites)

        twin, sites = run()
        expect_equal(twin, expected)
        for site in sites - (met - unnoticed):
            try:
                expect_equal(run(drop=[site])[0], expected)
            except (EmulatorFault, AssertionError):
                unnoticed.discard(site)
            else:
                unnoticed.add(site)
            met.add(site)
    assert len(met) >= 20
    unnoticed -= sites_of_the_header()
    assert not unnoticed, f"taking these away changed nothing: {unnoticed}"
