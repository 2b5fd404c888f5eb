"""How near is tree attention to what the card can read, and to what others do?  python -m bench.gpu_attention

In one run: the read ceiling, then the rows of the goal table: much KV, little KV with a cold cache, one request under a
graph, the published kernel shapes with the baselines, 8-bit caches. Results are checked before they are timed; times
are medians under a CUDA graph. Writes <folder>/attention.json and a picture (bench/gpu.py).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from typing import Any

import torch

from bench.gpu import Card, add_options, read_ceiling
from bench.gpu_baselines import ALL, FLASHINFER, measure_baselines
from bench.gpu_problem import Problem, WrongResult, make_problem
from bench.tree_rows import (
    HEADS,
    KernelShape,
    Rows,
    flat_rows,
    ideal_us,
    kernel_shapes,
    one_request_rows,
    unique_entries,
    vicuna_rows,
)

E4M3 = torch.float8_e4m3fn
PARTS = ("large", "medium", "request", "shapes", "fp8")


class Bench:
    """What all parts share: the card, its ceiling, why a baseline is missing."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.ceiling = read_ceiling(card)
        self.notes: dict[str, str] = {}
        print(", ".join(f"{name}: {rate / 1e12:.3f} TB/s" for name, rate in self.ceiling.items()), flush=True)

    def problem(self, rows: Rows, heads: tuple[int, int], **options: Any) -> Problem:
        """Shrunk in a dry run: fewer rows, shorter ranges, two heads."""
        if self.card.is_dry_run:
            rows = [[(stream, begin, max(begin + 1, end // 64)) for stream, begin, end in row] for row in rows[:24]]
            heads = (heads[0] // heads[1] * 2, 2) if heads[0] // heads[1] < 8 else (4, 1)
            options["head_dim"] = 64
        return make_problem(rows, heads, self.card.device, **options)

    def measure(self, problem: Problem, *, cold: bool) -> dict[str, Any]:
        """Of one layer, with the share of the read ceiling that its bytes come to."""
        error = problem.check()
        us = self.card.median_us(problem.calls(), cold=cold)
        rate = problem.bytes / (us * 1e-6)
        return {
            "rows": len(problem.rows),
            "layers": len(problem.layers),
            "bytes": problem.bytes,
            "relative_error": error,
            "us": us,
            "of_read_ceiling": rate / self.ceiling["memory"],
        }


def measure_large(bench: Bench) -> list[dict[str, Any]]:
    """At least 200 MB of KV that is read: trees of 64 requests, and as much for requests of one branch."""
    results = []
    for heads, more_prompt in (((32, 32), 0), ((32, 8), 512)):
        trees = vicuna_rows(64, more_prompt=more_prompt)
        flat = flat_rows(64, unique_entries(trees) // 64)
        for name, rows in (("64 requests of vicuna80", trees), ("flat", flat)):
            problem = bench.problem(rows, heads)
            for cold in (True, False):
                found = {"shape": name, "heads": heads_text(heads), "more_prompt": more_prompt, "cold": cold}
                found |= bench.measure(problem, cold=cold)
                if cold and name != "flat":
                    found["baselines_us"] = measure_baselines(bench.card, problem, ALL, bench.notes, cold=True)
                show(found)
                results.append(found)
    return results


def measure_medium(bench: Bench) -> list[dict[str, Any]]:
    """32 to 64 MB, cold: caches of many layers, each read once in a run of the graph, and a flushed cache before it."""
    results = []
    for heads, requests in (((32, 8), 32), ((32, 32), 8), ((32, 8), 40)):
        problem = bench.problem(vicuna_rows(requests), heads, min_bytes=4 * bench.card.cache_bytes)
        found = {"shape": f"{requests} requests of vicuna80", "heads": heads_text(heads), "cold": True}
        found |= bench.measure(problem, cold=True)
        show(found)
        results.append(found)
    return results


def measure_request(bench: Bench) -> list[dict[str, Any]]:
    """One request in a graph of 32 layers, as a model has them: microseconds and launches per layer."""
    results = []
    layers = 4 if bench.card.is_dry_run else 32
    for branches, heads in ((1, (32, 32)), (5, (32, 32)), (8, (32, 32)), (1, (32, 8)), (8, (32, 8))):
        problem = bench.problem(one_request_rows(branches, 256, 40), heads)
        problem.layers = [tuple(cache.clone() for cache in problem.layers[0]) for _ in range(layers)]
        found = {"shape": f"{branches} branches, 256 shared + 40 each", "heads": heads_text(heads), "cold": False}
        found |= bench.measure(problem, cold=False)
        found["launches_per_layer"] = launches(problem)
        show(found)
        results.append(found)
    return results


def measure_shapes(bench: Bench, names: list[str] | None) -> list[dict[str, Any]]:
    """The published shapes, cold, against the ideal time and the baselines."""
    results = []
    dense = {"F1", "F4", "P2"}  # small enough to compile FlexAttention for, and to gather
    for shape in kernel_shapes():
        if names is not None and shape.name not in names:
            continue
        for heads in HEADS:
            try:
                results.append(measure_shape(bench, shape, heads, ALL if shape.name in dense else FLASHINFER))
            except (WrongResult, torch.OutOfMemoryError) as failure:
                results.append({"shape": shape.name, "heads": heads_text(heads), "failed": str(failure)[:300]})
                print(f"    {shape.name} {heads_text(heads)}: {failure}", flush=True)
    return results


def measure_shape(bench: Bench, shape: KernelShape, heads: tuple[int, int], names: tuple[str, ...]) -> dict[str, Any]:
    problem = bench.problem(shape.rows, heads)
    found = {"shape": shape.name, "heads": heads_text(heads), "cold": True, "shares_nothing": shape.shares_nothing}
    found |= bench.measure(problem, cold=True)
    found["us_warm"] = bench.card.median_us(problem.calls(), cold=False)
    ideal = ideal_us(problem.rows, *problem.heads)
    found |= {"ideal_us_h200": ideal, "goal_us": 1.35 * ideal + 6}
    found["baselines_us"] = measure_baselines(bench.card, problem, names, bench.notes, cold=True)
    show(found)
    return found


def measure_fp8(bench: Bench) -> list[dict[str, Any]]:
    """The rows of ``measure_large`` with caches of 8 bits, against 16 bits in turn."""
    results = []
    for heads, more_prompt in (((32, 32), 512), ((32, 8), 2048)):
        rows = vicuna_rows(64, more_prompt=more_prompt)
        found: dict[str, Any] = {"shape": "64 requests of vicuna80", "heads": heads_text(heads), "cold": True}
        found["more_prompt"] = more_prompt
        try:
            narrow = bench.problem(rows, heads, kv_dtype=E4M3)
            narrow_result = bench.measure(narrow, cold=True)
        except (ValueError, WrongResult) as refusal:
            results.append(found | {"failed": str(refusal)[:300]})
            print(f"    fp8 {heads_text(heads)}: {refusal}", flush=True)
            continue
        del narrow
        wide_result = bench.measure(bench.problem(rows, heads), cold=True)
        found |= {"bf16": wide_result, "fp8": narrow_result, "times_bf16": wide_result["us"] / narrow_result["us"]}
        print(f"    fp8 {found['heads']}: {found['times_bf16']:.2f} x bf16", flush=True)
        results.append(found)
    return results


def launches(problem: Problem) -> int | None:
    """Kernels of one call; None where nobody counts."""
    if not problem.q.is_cuda:
        return None
    problem.call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        problem.call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def heads_text(heads: tuple[int, int]) -> str:
    return f"{heads[0]}/{heads[1]}"


def show(found: dict[str, Any]) -> None:
    baselines = ", ".join(f"{name} {us:.1f}" for name, us in found.get("baselines_us", {}).items())
    print(
        f"  {found['shape']:<34} {found['heads']:>6} {found['bytes'] / 1e6:9.1f} MB {found['us']:9.1f} us "
        f"{'cold' if found['cold'] else 'warm'} {found['of_read_ceiling']:.2f} of the ceiling"
        + (f" ({baselines})" if baselines else ""),
        flush=True,
    )


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that goals are set for."""
    shapes = [found for found in results.get("shapes", []) if "failed" not in found]

    def ratios(name: str, which: list[dict[str, Any]]) -> list[float]:
        return [found["baselines_us"][name] / found["us"] for found in which if name in found["baselines_us"]]

    def geometric_mean(values: list[float]) -> float | None:
        return math.exp(sum(map(math.log, values)) / len(values)) if values else None

    unshared = [found for found in shapes if found["shares_nothing"]]
    return {
        "shapes_measured": len(shapes),
        "shapes_within_goal": sum(found["us"] <= found["goal_us"] for found in shapes),
        "times_flashinfer_cascade": geometric_mean(ratios("FlashInfer cascade", shapes)),
        "times_flashinfer_paged": geometric_mean(ratios("FlashInfer paged decode", shapes)),
        "times_best_flat_unshared": min(
            (min(found["baselines_us"].values()) / found["us"] for found in unshared if found["baselines_us"]),
            default=None,
        ),
    }


def draw_shapes(results: dict[str, Any], figure: Any) -> None:
    """Times over the ideal ones, one point per shape and heads."""
    axes = figure.subplots()
    for number, heads in enumerate(map(heads_text, HEADS)):
        shapes = [found for found in results.get("shapes", []) if found["heads"] == heads and "us" in found]
        axes.loglog(
            [found["ideal_us_h200"] for found in shapes],
            [found["us"] for found in shapes],
            "os^"[number],
            label=f"heads {heads}",
        )
    points = [10 ** (exponent / 4) for exponent in range(-2, 16)]
    axes.loglog(points, points, "k-", linewidth=0.8, label="ideal for an H200")
    axes.loglog(points, [1.35 * x + 6 for x in points], "k--", linewidth=0.8, label="goal: 1.35 x ideal + 6 us")
    axes.set_xlabel("ideal us")
    axes.set_ylabel("us, second-level cache flushed")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="some of the kernel shapes (default: all)")
    options = parser.parse_args()
    torch.manual_seed(0)
    begin = time.perf_counter()
    bench = Bench(Card(options))
    measured = {
        "large": lambda: measure_large(bench),
        "medium": lambda: measure_medium(bench),
        "request": lambda: measure_request(bench),
        "shapes": lambda: measure_shapes(bench, options.shapes),
        "fp8": lambda: measure_fp8(bench),
    }
    results: dict[str, Any] = {"read_ceiling": bench.ceiling}
    for part in options.parts:
        print(f"{part}:", flush=True)
        results[part] = measured[part]()
        results |= {"summary": summary(results), "missing_baselines": bench.notes}
        results["seconds"] = round(time.perf_counter() - begin, 1)
        # After every part: an interrupted run leaves what it has.
        bench.card.write("attention", results, functools.partial(draw_shapes, results))
    print(json.dumps(results["summary"]))


if __name__ == "__main__":
    main()
