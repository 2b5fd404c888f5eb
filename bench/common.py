"""What the benchmarks share: naming the machine, its ceilings, fair timing, shapes, tables and results."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import apar_ext

RESULTS = pathlib.Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a reader must know of the machine to judge a number."""
    processor = platform.processor() or platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "cpu_level": apar_ext.build_info()["cpu_level"],
        "torch": torch.__version__,
        "apar": apar_ext.__version__,
        "date": datetime.date.today().isoformat(),
    }


def machine_line() -> str:
    facts = machine()
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, {facts['cpu_level']}, "
        f"torch {facts['torch']}"
    )


def time_together(
    candidates: dict[str, Callable[[], object]], *, rounds: int = 15, seconds: float = 10.0
) -> dict[str, float]:
    """Median seconds of each candidate.

    Candidates take turns, so that whatever else the machine does meets them alike; each is run once before. Stops after
    `rounds` rounds, or after `seconds` once there are three.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        candidate()
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > seconds:
            break
        for name, candidate in candidates.items():
            begin = time.perf_counter()
            candidate()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


class MemoryReader:
    """Reads a block of memory with all threads: the ceiling for whatever is bound by memory."""

    def __init__(self, size_bytes: int = 512 << 20) -> None:
        library = pathlib.Path(tempfile.mkdtemp()) / "read_bandwidth.so"
        source = pathlib.Path(__file__).parent / "read_bandwidth.cpp"
        compiler = os.environ.get("CXX", "c++")
        flags = ["-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        self._read = ctypes.CDLL(str(library)).read_all
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        self._read.restype = ctypes.c_uint64
        self._memory = torch.ones(size_bytes // 8, dtype=torch.int64)
        self.size_bytes = size_bytes

    def __call__(self) -> int:
        return self._read(self._memory.data_ptr(), self.size_bytes, torch.get_num_threads())


class Matmul:
    """A large square matrix product in torch: the ceiling for whatever is bound by arithmetic."""

    def __init__(self, dtype: torch.dtype, size: int = 2048) -> None:
        self._a = torch.randn(size, size).to(dtype)
        self._b = torch.randn(size, size).to(dtype)
        self.flop = 2 * size**3

    def __call__(self) -> torch.Tensor:
        return self._a @ self._b


def tree_rows(nodes_per_level: list[int], tokens_per_node: list[int]) -> list[list[tuple[int, int, int]]]:
    """One row per leaf, in depth-first order: the ranges (stream, begin, end) from the root to it, a stream per node.

    Streams are numbered level by level.
    """
    leaves = nodes_per_level[-1]
    first = [sum(nodes_per_level[:level]) for level in range(len(nodes_per_level))]
    return [
        [
            (first[level] + leaf * nodes // leaves, 0, tokens)
            for level, (nodes, tokens) in enumerate(zip(nodes_per_level, tokens_per_node, strict=True))
        ]
        for leaf in range(leaves)
    ]


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """First column left, the others right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for number, row in enumerate(cells):
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
        if number == 0:
            print("  ".join("-" * width for width in widths))


def write_results(name: str, results: dict[str, Any], draw: Callable[[Any], None] | None = None) -> None:
    """bench/results/<name>.json, and <name>.png where matplotlib is installed. `draw` gets an empty figure."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"\nwritten: {path}")
    if draw is None:
        return
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed (extra [bench])")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(9, 4.5), layout="constrained")
    draw(figure)
    figure.text(0.5, -0.02, machine_line(), ha="center", va="top", fontsize=7, color="gray")
    figure.savefig(path.with_suffix(".png"), dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    print(f"written: {path.with_suffix('.png')}")
