"""Tree attention on a GPU: the published kernel shapes against the card's own read ceiling, measured in the same run.

Writes bench/results/<card>/attention.json and prints a table. Times are medians of single launches under a graph, with
the second-level cache flushed before each, and without. Results are checked before they are timed, against the float32
kernel, wherever the caches in float32 fit.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import apar_ext
from bench.common import tree_rows
from bench.cuda_expected import HEADS, PAGE_SIZE, SHAPES

HEAD_DIM = 128


def median_us(call: Callable[[], object], *, flush: torch.Tensor | None, repeats: int = 15) -> float:
    """Of one launch in a graph."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(repeats + 3):
        if flush is not None:
            flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times[3:])


def read_ceiling() -> float:
    """Bytes per second of a large sum, which reads and writes next to nothing."""
    data = torch.ones(1 << 30, dtype=torch.float32, device="cuda")
    return data.numel() * 4 / (median_us(lambda: data.sum(), flush=None) * 1e-6)


def measure(nodes: list[int], tokens: list[int], num_heads: int, num_kv_heads: int, flush: torch.Tensor) -> dict:
    rows = tree_rows(nodes, tokens)
    flat = torch.tensor([one for ranges in rows for one in ranges], dtype=torch.int32)
    lengths = [length for count, length in zip(nodes, tokens, strict=True) for _ in range(count)]
    pages = [-(-length // PAGE_SIZE) for length in lengths]
    table = torch.full((len(lengths), max(pages)), 1 << 30, dtype=torch.int32)
    order = torch.randperm(sum(pages), dtype=torch.int32)
    first = 0
    for stream, count in enumerate(pages):
        table[stream, :count] = order[first : first + count]
        first += count
    indptr = torch.arange(len(rows) + 1, dtype=torch.int32) * len(nodes)
    columns = [flat[:, column].contiguous().cuda() for column in range(3)]
    group = num_heads // num_kv_heads
    plan = apar_ext.make_plan(
        table.cuda(), indptr.cuda(), *columns, num_kv_heads=num_kv_heads, group_size=group, page_size=PAGE_SIZE
    )
    shape = (sum(pages), num_kv_heads, PAGE_SIZE, HEAD_DIM)
    k_cache, v_cache = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    q = torch.randn(len(rows), num_heads, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
    out = apar_ext.tree_attention(q, k_cache, v_cache, plan)
    error = None
    if k_cache.numel() * 12 < torch.cuda.mem_get_info()[0]:
        right = apar_ext.tree_attention(q.float(), k_cache.float(), v_cache.float(), plan)
        error = ((out.float() - right).norm() / right.norm()).item()
        if not error < 5e-3:
            sys.exit(f"wrong result: relative error {error}")

    def call() -> object:
        return apar_ext.tree_attention(q, k_cache, v_cache, plan)

    unique_bytes = sum(lengths) * num_kv_heads * HEAD_DIM * 4 + 2 * q.numel() * 2
    return dict(
        unique_bytes=unique_bytes,
        relative_error=error,
        us_cold=median_us(call, flush=flush),
        us_warm=median_us(call, flush=None),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", help="names, default all")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/cuda_attention.py: no GPU here")
    card = torch.cuda.get_device_name()
    flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    ceiling = read_ceiling()
    print(f"{card}: reads {ceiling / 1e12:.2f} TB/s")
    results = []
    for shape in json.loads(SHAPES.read_text())["shapes"]:
        if arguments.shapes and shape["name"] not in arguments.shapes:
            continue
        for num_heads, num_kv_heads in HEADS:
            result = measure(shape["nodes_per_level"], shape["tokens_per_node"], num_heads, num_kv_heads, flush)
            result = dict(shape=shape["name"], heads=f"{num_heads}/{num_kv_heads}", **result)
            result["of_read_ceiling"] = result["unique_bytes"] / (result["us_cold"] * 1e-6) / ceiling
            results.append(result)
            print(
                f"{result['shape']:>4} {result['heads']:>6} {result['unique_bytes'] / 1e6:8.1f} MB "
                f"{result['us_cold']:8.1f} us cold {result['us_warm']:8.1f} us warm {result['of_read_ceiling']:.2f}",
                flush=True,
            )
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.strip()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    folder = Path(__file__).parent / "results" / card.lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    facts = dict(card=card, driver=driver, commit=commit, date=datetime.date.today().isoformat())
    facts |= dict(torch=torch.__version__, read_bytes_per_second=ceiling, results=results)
    (folder / "attention.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
