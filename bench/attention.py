"""How fast is tree attention, against what torch offers and against what the machine can do?

    python -m bench.attention             # the headline numbers, a few minutes
    python -m bench.attention --shapes    # the 35 kernel shapes of FastTree and PAT

Results are checked before they are timed. Candidates of one comparison take turns; the machine's ceilings too.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import apar_ext
from apar_ext import reference
from bench.common import Matmul, MemoryReader, machine_line, print_table, time_together, tree_rows, write_results

ACCURACY = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
HEAD_DIM = 128
PAGE_SIZE = 16

Range = tuple[int, int, int]  # stream, begin, end


@dataclass
class Problem:
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    page_table: torch.Tensor
    rows: list[list[Range]]
    plan: apar_ext.Plan

    def run(self) -> torch.Tensor:
        return apar_ext.tree_attention(self.q, self.k_cache, self.v_cache, self.plan)

    @property
    def flop(self) -> int:
        """Multiplications and additions of Q K^T and P V over what rows read."""
        read = sum(end - begin for row in self.rows for _, begin, end in row)
        return 4 * read * self.q.shape[1] * self.q.shape[2]

    @property
    def bytes(self) -> int:
        """KV that anyone reads, each entry once, and queries and outputs."""
        longest: dict[int, int] = {}
        for row in self.rows:
            for stream, _, end in row:
                longest[stream] = max(longest.get(stream, 0), end)
        kv_heads, head_dim = self.k_cache.shape[1], self.k_cache.shape[3]
        return (2 * sum(longest.values()) * kv_heads * head_dim + 2 * self.q.numel()) * self.q.element_size()

    def gather(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that a row reads: [Hkv, T, D]."""
        k, v = (
            reference.gather_ranges(cache, self.page_table, self.rows[row]) for cache in (self.k_cache, self.v_cache)
        )
        return k, v

    def check(self) -> float:
        """Relative error of some rows against float64."""
        rows = sorted({0, len(self.rows) // 3, len(self.rows) - 1})
        out = self.run()[rows].double()
        group = self.q.shape[1] // self.k_cache.shape[1]
        expected = []
        for row in rows:
            k, v = (x.double() for x in self.gather(row))
            q = self.q[row].double().view(k.shape[0], group, -1)
            expected.append((torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v).flatten(0, 1))
        error = ((out - torch.stack(expected)).norm() / torch.stack(expected).norm()).item()
        if not error < ACCURACY[self.q.dtype]:
            raise SystemExit(f"wrong result: relative error {error:.1e} in {NAMES[self.q.dtype]}")
        return error


def make_problem(rows: list[list[Range]], heads: tuple[int, int], dtype: torch.dtype) -> Problem:
    """Random queries and caches; every stream has pages of its own, in order."""
    longest: dict[int, int] = {}
    for row in rows:
        for stream, _, end in row:
            longest[stream] = max(longest.get(stream, 0), end)
    num_streams = max(longest) + 1
    pages = [-(-longest.get(stream, 0) // PAGE_SIZE) for stream in range(num_streams)]
    page_table = torch.full((num_streams, max(pages)), -1, dtype=torch.int32)
    first = 0
    for stream, count in enumerate(pages):
        page_table[stream, :count] = torch.arange(first, first + count, dtype=torch.int32)
        first += count
    shape = (first, heads[1], PAGE_SIZE, HEAD_DIM)
    k_cache, v_cache = (torch.empty(shape, dtype=dtype).normal_() for _ in range(2))
    q = torch.empty(len(rows), heads[0], HEAD_DIM, dtype=dtype).normal_()
    bounds = [0]
    for row in rows:
        bounds.append(bounds[-1] + len(row))
    columns = list(zip(*(range_ for row in rows for range_ in row), strict=True))
    plan = apar_ext.make_plan(
        page_table,
        torch.tensor(bounds, dtype=torch.int32),
        *(torch.tensor(column, dtype=torch.int32) for column in columns),
        num_kv_heads=heads[1],
        group_size=heads[0] // heads[1],
        page_size=PAGE_SIZE,
    )
    return Problem(q, k_cache, v_cache, page_table, rows, plan)


# ---- against torch ----


def against_torch(dtype: torch.dtype, *, with_flex: bool) -> dict[str, Any]:
    """4,096 shared entries and 8 branches of 64: per-branch SDPA, masked SDPA and FlexAttention on the shared KV."""
    shared, branches, own = 4096, 8, 64
    problem = make_problem([[(0, 0, shared), (1 + i, 0, own)] for i in range(branches)], (32, 8), dtype)
    error = problem.check()

    gathered = [problem.gather(row) for row in range(branches)]
    k_rows, v_rows = (torch.stack(parts).contiguous() for parts in zip(*gathered, strict=True))  # [8, Hkv, 4160, D]
    q_rows = problem.q.unsqueeze(2)  # [8, Hq, 1, D]
    everything = [(0, 0, shared), *((1 + i, 0, own) for i in range(branches))]
    k_all, v_all = (
        reference.gather_ranges(cache, problem.page_table, everything).unsqueeze(0).contiguous()
        for cache in (problem.k_cache, problem.v_cache)
    )  # [1, Hkv, 4608, D]
    q_all = problem.q.transpose(0, 1).unsqueeze(0).contiguous()  # [1, Hq, 8, D]
    owner = torch.arange(shared + branches * own).sub(shared).div(own, rounding_mode="floor")
    owner[:shared] = -1
    mask = (owner == -1) | (owner == torch.arange(branches)[:, None])

    candidates = {
        "tree_attention": problem.run,
        "sdpa, KV gathered per branch": lambda: F.scaled_dot_product_attention(q_rows, k_rows, v_rows, enable_gqa=True),
        "sdpa, shared KV and mask": lambda: F.scaled_dot_product_attention(
            q_all, k_all, v_all, attn_mask=mask, enable_gqa=True
        ),
    }
    if with_flex:
        candidates["compiled FlexAttention, shared KV"] = flex_candidate(q_all, k_all, v_all, owner)
    expected = problem.run().float()
    for name, candidate in list(candidates.items()):
        try:
            out = candidate().float()
        except Exception as problem_of_peer:
            print(f"{name} ({NAMES[dtype]}) does not run here: {str(problem_of_peer).splitlines()[0][:120]}")
            del candidates[name]
            continue
        out = out.squeeze(2) if out.shape[0] == branches and out.dim() == 4 else out
        out = out.squeeze(0).transpose(0, 1) if out.dim() == 4 else out
        if (out - expected).norm() > 2e-2 * expected.norm():
            raise SystemExit(f"{name} computes something else than tree_attention")
    times = time_together(candidates, rounds=15, seconds=25)
    return {"relative_error": error, "flop": problem.flop, "bytes": problem.bytes, "seconds": times}


def flex_candidate(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, owner: torch.Tensor):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch, head, query, entry):
        return (owner[entry] == -1) | (owner[entry] == query)

    mask = create_block_mask(visible, None, None, q.shape[2], k.shape[2], device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True)


# ---- against the machine ----


def against_machine(dtype: torch.dtype, reader: MemoryReader) -> list[dict[str, Any]]:
    """Fractions of the machine's matmul rate and read bandwidth, where one of them is the bound."""
    matmul = Matmul(dtype)
    shapes = {
        "4,096 shared + 8 branches x 64, Hkv 8": ([[(0, 0, 4096), (1 + i, 0, 64)] for i in range(8)], (32, 8)),
        "prefill, 512 rows after 3,072, Hkv 8": ([[(0, 0, 3072 + i + 1)] for i in range(512)], (32, 8)),
        "4,096 shared + 64 branches x 64, Hkv 8": ([[(0, 0, 4096), (1 + i, 0, 64)] for i in range(64)], (32, 8)),
        "one branch, 16,384, Hkv 8": ([[(0, 0, 16384)]], (32, 8)),
        "one branch, 16,384, Hkv 32": ([[(0, 0, 16384)]], (32, 32)),
    }
    results = []
    for name, (rows, heads) in shapes.items():
        problem = make_problem(rows, heads, dtype)
        problem.check()
        times = time_together({"attention": problem.run, "matmul": matmul, "read": reader}, rounds=15, seconds=12)
        results.append(
            {"shape": name, "dtype": NAMES[dtype], **fractions(problem, times, matmul.flop, reader.size_bytes)}
        )
    return results


def fractions(problem: Problem, times: dict[str, float], matmul_flop: int, read_bytes: int) -> dict[str, Any]:
    flop_rate, byte_rate = matmul_flop / times["matmul"], read_bytes / times["read"]
    flop_seconds, byte_seconds = problem.flop / flop_rate, problem.bytes / byte_rate
    return {
        "seconds": times["attention"],
        "gflop_per_s": problem.flop / times["attention"] * 1e-9,
        "gb_per_s": problem.bytes / times["attention"] * 1e-9,
        "matmul_gflop_per_s": flop_rate * 1e-9,
        "read_gb_per_s": byte_rate * 1e-9,
        "of_matmul": flop_seconds / times["attention"],
        "of_read": byte_seconds / times["attention"],
        "bound": "arithmetic" if flop_seconds > byte_seconds else "memory",
    }


def overhead() -> dict[str, float]:
    """Microseconds that are not the kernel's: one row of one entry, and plans."""
    tiny = make_problem([[(0, 0, 1)]], (32, 8), torch.bfloat16)
    tree = [[(0, 0, 100), (1, 0, 100), (2, 0, 100), (3 + i, 0, 64)] for i in range(64)]
    problem = make_problem(tree, (32, 8), torch.bfloat16)
    plan = problem.plan
    ranges = (plan.page_table, plan.row_indptr, plan.range_stream, plan.range_begin, plan.range_end)
    sizes = {"num_kv_heads": 8, "group_size": 4, "page_size": PAGE_SIZE}

    def many(run, count=200):
        return lambda: [run() for _ in range(count)]

    times = time_together(
        {
            "tree_attention, 1 row x 1 entry": many(tiny.run),
            "make_plan, 64 rows x 4 ranges": many(lambda: apar_ext.make_plan(*ranges, **sizes)),
        },
        rounds=30,
    )
    return {name: seconds / 200 * 1e6 for name, seconds in times.items()}


# ---- published kernel shapes ----


def kernel_shapes(reader: MemoryReader, max_gb: float) -> list[dict[str, Any]]:
    matmul = Matmul(torch.bfloat16)
    path = pathlib.Path(__file__).parent / "shapes" / "kernel_shapes.json"
    results = []
    for shape in json.loads(path.read_text())["shapes"]:
        nodes, tokens = shape["nodes_per_level"], shape["tokens_per_node"]
        for heads in ((32, 32), (32, 8), (16, 1)):
            cache_gb = sum(n * t for n, t in zip(nodes, tokens, strict=True)) * heads[1] * HEAD_DIM * 4 / 1e9
            if cache_gb > max_gb:
                print(f"{shape['name']} {heads[0]}/{heads[1]}: left out, its KV takes {cache_gb:.1f} GB (--max-gb)")
                continue
            problem = make_problem(tree_rows(nodes, tokens), heads, torch.bfloat16)
            problem.check()
            times = time_together({"attention": problem.run, "matmul": matmul, "read": reader}, rounds=5, seconds=3)
            name = f"{shape['name']} {heads[0]}/{heads[1]}"
            results.append(
                {"shape": name, "dtype": "bf16", **fractions(problem, times, matmul.flop, reader.size_bytes)}
            )
            print_machine_rows(results[-1:], header=len(results) == 1)
    return results


# ---- output ----


def print_machine_rows(results: list[dict[str, Any]], *, header: bool = True) -> None:
    rows = [
        (
            f"{result['shape']:<40}",
            result["dtype"],
            f"{result['seconds'] * 1e3:9.3f}",
            f"{result['gflop_per_s']:7.1f}",
            f"{result['of_matmul']:9.0%}",
            f"{result['gb_per_s']:6.1f}",
            f"{result['of_read']:7.0%}",
            f"{result['bound']:>10}",
        )
        for result in results
    ]
    columns = (f"{'shape':<40}", "type", f"{'ms':>9}", "GFLOP/s", "of matmul", "  GB/s", "of read", f"{'bound':>10}")
    if header:
        print_table(columns, rows)
    else:
        print("\n".join("  ".join(row) for row in rows))


def draw(results: dict[str, Any]):
    def on(figure) -> None:
        left, right = figure.subplots(1, 2)
        labels, values = [], []
        for dtype, result in results["against_torch"].items():
            ours = result["seconds"]["tree_attention"]
            for name, seconds in result["seconds"].items():
                if name != "tree_attention":
                    labels.append(f"{name}\n{dtype}")
                    values.append(seconds / ours)
        left.barh(labels, values)
        left.bar_label(left.containers[0], fmt="%.1fx", padding=3, fontsize=8)
        left.set_xscale("log")
        left.margins(x=0.2)
        left.invert_yaxis()
        left.set_title("speed-up of tree_attention\n4,096 shared + 8 branches x 64, Hq 32, Hkv 8", fontsize=9)
        left.tick_params(labelsize=7)
        labels = [f"{r['shape']}\n{r['dtype']}, {r['bound']}" for r in results["against_machine"]]
        values = [100 * max(r["of_matmul"], r["of_read"]) for r in results["against_machine"]]
        right.barh(labels, values, color="tab:green")
        right.bar_label(right.containers[0], fmt="%.0f%%", padding=3, fontsize=8)
        right.set_xlim(0, 115)
        right.invert_yaxis()
        right.set_title("of what binds: the machine's own\nmatmul rate or read bandwidth", fontsize=9)
        right.tick_params(labelsize=7)

    return on


def draw_shapes(results: list[dict[str, Any]]):
    def on(figure) -> None:
        figure.set_size_inches(9, 0.16 * len(results) + 1)
        axes = figure.subplots()
        colors = {"arithmetic": "tab:blue", "memory": "tab:green"}
        values = [100 * max(r["of_matmul"], r["of_read"]) for r in results]
        axes.barh([r["shape"] for r in results], values, color=[colors[r["bound"]] for r in results])
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.tick_params(labelsize=6)
        axes.set_title(
            "tree_attention, bf16: per cent of what binds (blue: matmul rate, green: read bandwidth)", fontsize=9
        )

    return on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", action="store_true", help="the kernel shapes of FastTree and PAT instead")
    parser.add_argument("--max-gb", type=float, default=2.0, help="largest KV of a kernel shape (default 2)")
    parser.add_argument(
        "--no-flex", action="store_true", help="leave out FlexAttention, which takes a while to compile"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    print(machine_line() + "\n")
    reader = MemoryReader()

    if arguments.shapes:
        results = kernel_shapes(reader, arguments.max_gb)
        write_results("attention_shapes", {"shapes": results}, draw_shapes(results))
        return

    comparison = {}
    for dtype in (torch.bfloat16, torch.float32):
        comparison[NAMES[dtype]] = against_torch(dtype, with_flex=not arguments.no_flex)
    print("4,096 shared entries + 8 branches x 64, Hq 32, Hkv 8, D 128")
    rows = []
    for dtype, result in comparison.items():
        ours = result["seconds"]["tree_attention"]
        for name, seconds in result["seconds"].items():
            rows.append((f"{name}, {dtype}", f"{seconds * 1e3:.2f}", f"{seconds / ours:.1f}x"))
    print_table(("", "ms", "tree_attention is faster by"), rows)
    print()
    machine_results = [r for dtype in (torch.bfloat16, torch.float32) for r in against_machine(dtype, reader)]
    print_machine_rows(machine_results)
    print()
    overheads = overhead()
    print_table(("overhead", "us"), [(name, f"{value:.1f}") for name, value in overheads.items()])
    results = {"against_torch": comparison, "against_machine": machine_results, "overhead_us": overheads}
    write_results("attention", results, draw(results))


if __name__ == "__main__":
    main()
