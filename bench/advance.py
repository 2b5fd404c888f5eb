"""How long does the bookkeeping of a step take, from 1 to 4,096 branches?

    python -m bench.advance

Times one call of `advance` (transition, release, grants, rows, ranges, attention plan) as Python calls it: in a steady
step, where every branch writes an ordinary token, and in busy ones, where some fork and some end in every step.
Goal: under 50 us at 64 branches, growing linearly.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import torch
from apar.forest import Forest, ForestConfig

from bench.common import machine_line, print_table, write_results

BRANCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BRANCHES_PER_REQUEST = 8
PROMPT_TOKENS = 64
FORK, CHILD, STOP, ORDINARY = 7, 8, 2, 9


def make_forest(branches: int, new_tokens: int) -> Forest:
    """Requests enough for `branches` branches, each with its trunk alone."""
    requests = -(-branches // BRANCHES_PER_REQUEST)
    pages_of_branch = -(-(PROMPT_TOKENS + new_tokens) // 16)
    config = ForestConfig(
        num_slots=2 * branches + 8,
        num_pages=(2 * branches + 8) * pages_of_branch,
        max_pages=pages_of_branch,
        max_rows=branches,
        fork_token=FORK,
        child_token=CHILD,
        stop_tokens=(STOP,),
        max_depth=3,
        max_live_branches=min(branches, BRANCHES_PER_REQUEST),
        num_kv_heads=8,
        group_size=4,
    )
    forest = Forest(config)
    for request in range(requests):
        if forest.admit(request, PROMPT_TOKENS, PROMPT_TOKENS + new_tokens, ORDINARY) < 0:
            raise RuntimeError("the pool is too small for the benchmark")
    forest.schedule()
    return forest


def grow(forest: Forest, branches: int) -> None:
    """Forks until every row of the step is taken."""
    while forest.num_rows < branches:
        may_fork = forest.row_may_fork[: forest.num_rows]
        forest.advance(torch.where(may_fork > 0, FORK, ORDINARY).int())


def timed_advance(forest: Forest, sampled: torch.Tensor) -> float:
    begin = time.perf_counter()
    forest.advance(sampled)
    return (time.perf_counter() - begin) * 1e6


def steady_us(branches: int) -> float:
    steps = 200
    forest = make_forest(branches, new_tokens=steps + 100)
    grow(forest, branches)
    sampled = torch.full((branches,), ORDINARY, dtype=torch.int32)
    times = [timed_advance(forest, sampled) for _ in range(steps)]
    if forest.num_rows != branches:
        raise RuntimeError(f"{forest.num_rows} rows, expected {branches}")
    return statistics.median(times)


def busy_us(branches: int) -> tuple[float, float, float]:
    """Over steps in which about one row in thirty forks and as many end: median time, mean rows and branches opened."""
    draw = random.Random(branches)
    forest = make_forest(branches, new_tokens=400)
    grow(forest, branches)
    times, rows, opened = [], [], 0
    next_request = branches
    while len(times) < 200:
        if not forest.num_rows:  # every branch happened to end
            forest.admit(next_request, PROMPT_TOKENS, PROMPT_TOKENS + 400, ORDINARY)
            next_request += 1
            forest.schedule()
        sampled = []
        for may_fork in forest.row_may_fork[: forest.num_rows].tolist():
            share = draw.random()
            sampled.append(STOP if share < 0.03 else FORK if may_fork and share < 0.09 else ORDINARY)
        rows.append(len(sampled))
        times.append(timed_advance(forest, torch.tensor(sampled, dtype=torch.int32)))
        opened += len(forest.opened)
        for request in forest.done.tolist():
            if forest.admit(next_request + request, PROMPT_TOKENS, PROMPT_TOKENS + 400, ORDINARY) >= 0:
                next_request += branches
    return statistics.median(times), statistics.fmean(rows), opened / len(times)


def python_us() -> float:
    """What a decode loop adds per step in Python: the plan, the views of the rows, the events."""
    forest = make_forest(64, new_tokens=100)
    grow(forest, 64)

    def read_step() -> None:
        rows = forest.num_rows
        forest.plan()
        _ = forest.row_token[:rows], forest.row_position[:rows], forest.row_kv_slot[:rows], forest.row_may_fork[:rows]
        _ = forest.opened.tolist(), forest.ended.tolist(), forest.done.tolist()

    times = []
    for _ in range(2000):
        begin = time.perf_counter()
        read_step()
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def main() -> None:
    print(machine_line())
    points: list[dict[str, Any]] = []
    for branches in BRANCHES:
        busy, rows, opened = busy_us(branches)
        points.append(
            {"branches": branches, "steady_us": steady_us(branches), "busy_us": busy, "busy_rows": rows}
            | {"busy_opened": opened}
        )
    python = python_us()
    print_table(
        ["branches", "steady us", "us/branch", "busy us", "rows", "opened"],
        [
            [
                point["branches"],
                f"{point['steady_us']:.1f}",
                f"{point['steady_us'] / point['branches']:.3f}",
                f"{point['busy_us']:.1f}",
                f"{point['busy_rows']:.1f}",
                f"{point['busy_opened']:.2f}",
            ]
            for point in points
        ],
    )
    print(f"\nreading rows, plan and events of a step in Python: {python:.1f} us")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.loglog(BRANCHES, [point["steady_us"] for point in points], "o-", label="steady step")
        busy_points = [(point["busy_rows"], point["busy_us"]) for point in points]
        axes.loglog(*zip(*busy_points, strict=True), "s--", label="busy step (forks and ends)")
        axes.loglog([64], [50], "rx", label="goal: 50 us at 64")
        axes.set_xlabel("rows of the step")
        axes.set_ylabel("us per advance, plan included")
        axes.grid(alpha=0.3, which="both")
        axes.legend()

    write_results("advance", {"points": points, "python_us": python}, draw)


if __name__ == "__main__":
    main()
