"""What does the bookkeeping of a step cost on a GPU, from 1 to 4,096 branches?  python -m bench.gpu_advance

One launch of `advance` under a CUDA graph, as a captured decode step has it: in a steady step, where every branch
writes an ordinary token, and in busy ones, where some fork and some end. The forest on the device is compared with the
one on the CPU after every busy step before anything is timed. Goals on an H200: 5 us at 64 branches, 10 us at 1,024.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
from typing import Any

import torch
from apar.forest import Forest

from bench.advance import BRANCHES, FORK, ORDINARY, STOP, grow, make_forest
from bench.common import print_table
from bench.gpu import Card, add_options

BUSY_STEPS = 40
GOALS_US = {64: 5.0, 1024: 10.0}
COMPARED = ("row_token", "row_position", "row_kv_slot", "row_may_fork", "row_indptr", "page_table", "length", "state")


def steady_us(card: Card, branches: int) -> float:
    forest = make_forest(branches, new_tokens=100)
    grow(forest, branches)
    on_device = forest.to(card.device)
    sampled = torch.full((branches,), ORDINARY, dtype=torch.int32, device=card.device)
    return card.median_us([lambda: on_device.advance(sampled)], cold=False)


def busy_scripts(branches: int) -> tuple[Forest, list[torch.Tensor], list[Forest]]:
    """The forest at first, the tokens of each step, and the forest after it, by the CPU."""
    draw = random.Random(branches)
    forest = make_forest(branches, new_tokens=400)
    grow(forest, branches)
    first = forest.to("cpu")
    tokens, after = [], []
    for _ in range(BUSY_STEPS):
        sampled = torch.full((branches,), ORDINARY, dtype=torch.int32)
        for row, may_fork in enumerate(forest.row_may_fork[: forest.num_rows].tolist()):
            share = draw.random()
            sampled[row] = STOP if share < 0.03 else FORK if may_fork and share < 0.09 else ORDINARY
        tokens.append(sampled)
        forest.advance(sampled)
        after.append(forest.to("cpu"))
    return first, tokens, after


def busy_us(card: Card, branches: int) -> tuple[float, float]:
    """Median microseconds of a busy step, and the mean number of rows."""
    first, tokens, after = busy_scripts(branches)
    on_device, sampled = first.to(card.device), tokens[0].to(card.device)
    for step_tokens, right in zip(tokens, after, strict=True):
        sampled.copy_(step_tokens)
        on_device.advance(sampled)
        for name in COMPARED:
            if not torch.equal(getattr(on_device, name).cpu(), getattr(right, name)):
                raise SystemExit(f"advance on the device differs from the CPU in {name}, {branches} branches")
    step = card.captured([lambda: on_device.advance(sampled)])
    on_device.copy_(first)
    times = []
    for step_tokens in tokens:
        sampled.copy_(step_tokens)
        times.append(card.timed_us(step))
    return statistics.median(times), statistics.fmean(forest.num_rows for forest in [first, *after[:-1]])


def draw(points: list[dict[str, Any]], figure: Any) -> None:
    axes = figure.subplots()
    branches = [point["branches"] for point in points]
    axes.loglog(branches, [point["steady_us"] for point in points], "o-", label="steady step")
    axes.loglog(branches, [point["busy_us"] for point in points], "s--", label="busy step (forks and ends)")
    axes.loglog(list(GOALS_US), list(GOALS_US.values()), "rx", label="goals on an H200")
    axes.set(xlabel="branches", ylabel="us per advance, attention plan included")
    axes.grid(alpha=0.3, which="both")
    axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    card = Card(parser.parse_args())
    points: list[dict[str, Any]] = []
    for branches in BRANCHES[:4] if card.is_dry_run else BRANCHES:
        busy, rows = busy_us(card, branches)
        points.append(
            {"branches": branches, "steady_us": steady_us(card, branches), "busy_us": busy, "busy_rows": rows}
        )
        card.write("advance", {"points": points}, functools.partial(draw, points))
    print_table(
        ["branches", "steady us", "busy us", "rows"],
        [[p["branches"], f"{p['steady_us']:.1f}", f"{p['busy_us']:.1f}", f"{p['busy_rows']:.1f}"] for p in points],
    )


if __name__ == "__main__":
    main()
