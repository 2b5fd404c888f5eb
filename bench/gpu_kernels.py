"""Which family of kernels is faster, and do they give the same bits?  python -m bench.gpu_kernels

The environment variable APAR_TREE_ATTENTION (docs/cuda.md) asks for a family: ``portable`` (cp.async), ``bulk`` (the
copy engine brings keys and values) or ``warpgroup`` (wgmma besides, where items have 128 packed rows). Each family does
the same problems in turn, cold and warm; results are checked before they are timed. Writes <folder>/kernels.json.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.gpu import Card, add_options
from bench.gpu_problem import Problem, make_problem
from bench.tree_rows import Rows, flat_rows, flops, kernel_shapes, one_request_rows, vicuna_rows

FAMILIES = ("portable", "bulk", "warpgroup")
VARIABLE = "APAR_TREE_ATTENTION"


@contextmanager
def family_of_kernels(name: str) -> Iterator[None]:
    """Launches inside use this family where it has what they need."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})


def prefill_rows(length: int, rows: int) -> Rows:
    """The last rows of a prompt, each of which sees one entry more than the one before."""
    return [[(0, 0, length - rows + 1 + row)] for row in range(rows)]


def problems(card: Card) -> Iterator[tuple[str, Problem]]:
    shapes = {shape.name: shape.rows for shape in kernel_shapes()}
    cases: list[tuple[str, Rows, tuple[int, int]]] = [
        ("64 requests of vicuna80", vicuna_rows(64, more_prompt=512), (32, 8)),
        ("flat", flat_rows(64, 4096), (32, 8)),
        ("one request, 8 branches", one_request_rows(8, 256, 40), (32, 32)),
        ("F3: 256 rows on one stream", shapes["F3"], (32, 8)),
        ("F10", shapes["F10"], (32, 8)),
        ("prefill, 1024 rows", prefill_rows(4096, 1024), (32, 8)),
    ]
    for name, rows, heads in cases:
        if card.is_dry_run:
            rows = [[(stream, begin, max(begin + 1, end // 64)) for stream, begin, end in row] for row in rows[:24]]
            heads = (4, 1)
        yield name, make_problem(rows, heads, card.device, head_dim=64 if card.is_dry_run else 128)


def measure(card: Card, problem: Problem) -> dict[str, Any]:
    """By family: microseconds and relative error, and whether its bits are those of the portable kernels."""
    found: dict[str, Any] = {"bytes": problem.bytes, "flops": flops(problem.rows, problem.heads[0])}
    outputs: dict[str, torch.Tensor] = {}
    for family in FAMILIES:
        with family_of_kernels(family):
            outputs[family] = problem.call()
            found[family] = {
                "relative_error": problem.check(outputs[family]),
                "same_bits": bool(torch.equal(outputs[family], outputs["portable"])),
            }
    for cold in (True, False):
        for family in FAMILIES:
            with family_of_kernels(family):
                found[family]["us_cold" if cold else "us_warm"] = card.median_us(problem.calls(), cold=cold)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    card = Card(parser.parse_args())
    torch.manual_seed(0)
    begin = time.perf_counter()
    results: dict[str, Any] = {"problems": {}}
    for name, problem in problems(card):
        found = measure(card, problem)
        results["problems"][name] = found
        times = ", ".join(
            f"{family} {found[family]['us_cold']:.1f} us"
            + ("" if found[family]["same_bits"] else f" (other bits, error {found[family]['relative_error']:.1e})")
            for family in FAMILIES
        )
        print(f"  {name:<28} {found['bytes'] / 1e6:8.1f} MB  {times}", flush=True)
        results["seconds"] = round(time.perf_counter() - begin, 1)
        card.write("kernels", results)


if __name__ == "__main__":
    main()
