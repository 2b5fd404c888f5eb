"""What each attention kernel takes of a multiprocessor: registers, spills, shared memory, bytes in flight.

Needs nvcc and no GPU: the numbers are the compiler's and follow from the kernel's shapes. Prints a table in Markdown;
with --write it goes to docs/kernels.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.tables import markdown, write_table

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda" / "tree_attention"
HEAD_DIMS = (64, 80, 96, 128, 256)
TYPES = ("bfloat16", "float16", "bfloat16_float8", "float16_float8")  # of queries, and of caches where they differ
# Of a block of threads at most; 99 KB on 8.6, 8.9 and 12.0.
SHARED_KILOBYTES = {"80": 163, "90a": 227}
THREADS = 288


@dataclass(frozen=True)
class Kernel:
    """One instantiation for one architecture, as the compiler reports it."""

    type: str
    head_dim: int
    arch: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    family: str = "portable"  # bulk, warpgroup: for Hopper alone


@dataclass(frozen=True)
class SharedPlan:
    """As TreeAttentionTraits::plan_for in csrc/cuda/tree_attention/traits.h chooses it."""

    rows: int = 0
    q_rows: int = 0
    stages: int = 0
    bytes: int = 0
    bytes_in_flight: int = 0


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compile_report(type_name: str, head_dim: int, arch: str, folder: str = "") -> list[Kernel]:
    """Compiles one instantiation file, of those for Hopper with ``folder="hopper"``, and reads what ptxas says."""
    with tempfile.TemporaryDirectory() as scratch:
        report = compile_cubin(
            SOURCES / folder / "instantiations" / f"{type_name}_{head_dim}.cu", arch, Path(scratch) / "kernel.cubin"
        )
    kernels = []
    for part in report.split("Compiling entry function")[1:]:
        family = re.search(r"(tree|bulk|warpgroup)_attention_kernel", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if not (family and frame and registers):
            raise RuntimeError(f"ptxas says something else than expected: {part}")
        spills = int(frame[2]) + int(frame[3])
        name = family[1].replace("tree", "portable")
        kernels.append(Kernel(type_name, head_dim, arch, int(registers[1]), int(frame[1]), spills, name))
    return kernels


def compile_cubin(source: Path, arch: str, target: Path) -> str:
    """What ptxas says about the kernels of a file."""
    command = [str(find_nvcc()), "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "--expt-relaxed-constexpr"]
    command += ["-Xptxas", "-v", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", str(source)]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return done.stderr


def compile_reports(types: tuple[str, ...] = TYPES, archs: tuple[str, ...] = ("80", "90a")) -> list[Kernel]:
    """All instantiations, two compilers at a time."""
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_report, one, dim, arch) for one in types for dim in HEAD_DIMS for arch in archs]
        return [kernel for job in jobs for kernel in job.result()]


def compile_hopper_reports(types: tuple[str, ...] = TYPES) -> list[Kernel]:
    """The same of the kernels for Hopper."""
    files = [(one, dim) for one in types for dim in HEAD_DIMS if hopper_has(one, dim)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_report, *file, "90a", "hopper") for file in files]
        return [kernel for job in jobs for kernel in job.result()]


def hopper_has(type_name: str, head_dim: int) -> bool:
    """Rows of keys and values are whole panels of the copy engine."""
    return head_dim * (1 if "float8" in type_name else 2) % 128 == 0


def blocks_by_registers(kernel: Kernel) -> int:
    """Registers are given to warps in units of 256, from a quarter of 64 K for every fourth warp."""
    per_warp = -(-kernel.registers * 32 // 256) * 256
    warps_of_a_quarter = -(-(THREADS // 32) // 4)
    return 16384 // (per_warp * warps_of_a_quarter)


def row_bytes(numbers: int, size: int) -> int:
    """RowLayout::kStrideBytes."""
    length = numbers * size
    return length if length % 128 == 0 or length // 16 % 2 == 1 else length + 16


def plan_for(type_name: str, head_dim: int, packed_rows: int, arch: str, shared_bytes: int) -> SharedPlan:
    """What a launch with items of at most `packed_rows` packed rows takes."""
    stage = 2 * 64 * row_bytes(head_dim, 1 if "float8" in type_name else 2)
    wanted = 64 * 1024
    most_stages = max(5, wanted // stage + 2)
    most_rows = 32 if head_dim > 128 else 64 if arch == "80" else 128
    block = 6 * 4 + 12 * 4 + 8 * 4 + (32 if head_dim > 128 else 128) * 4
    fixed = 6 * 16 * 72 * 2 + 2 * 8 * 16 * 4 + (most_stages + 1) * block + 4
    fixed = -(-fixed // 128) * 128
    best = SharedPlan()
    rows = min(packed_rows, most_rows)
    while rows >= 32:
        for q_rows in (2 * rows, rows):
            used = fixed + (rows * head_dim * 4 if rows > 64 else 0) + q_rows * row_bytes(head_dim, 2)
            stages = (shared_bytes - used) // stage
            stages = 0 if stages < 2 else min(stages, most_stages)
            if stages > best.stages:
                best = SharedPlan(rows, q_rows, stages, used + stages * stage, (stages - 1) * stage)
            if best.bytes_in_flight >= wanted:
                return best
        rows //= 2
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="90a", choices=sorted(SHARED_KILOBYTES))
    parser.add_argument("--write", action="store_true", help="fill the table cuda-resources of docs/kernels.md")
    arguments = parser.parse_args()
    columns = ["head_dim", "caches", "registers", "spill bytes"]
    columns += [f"items of {rows}: rows at once, shared KB, stages, KB in flight" for rows in (32, 64, 128)]
    lines = []
    for kernel in compile_reports(("bfloat16", "bfloat16_float8"), (arguments.arch,)):
        cells = [kernel.head_dim, "e4m3" if "float8" in kernel.type else "16-bit", kernel.registers]
        cells.append(kernel.spill_bytes)
        for rows in (32, 64, 128):
            plan = plan_for(kernel.type, kernel.head_dim, rows, kernel.arch, SHARED_KILOBYTES[kernel.arch] * 1024)
            cells.append(f"{plan.rows}, {plan.bytes // 1024}, {plan.stages}, {plan.bytes_in_flight // 1024}")
        lines.append(cells)
    table = markdown(columns, lines)
    print(table)
    if arguments.write:
        write_table(ROOT / "docs" / "kernels.md", "cuda-resources", table)
    if arguments.arch == "90a":
        print(hopper_table())


def hopper_table() -> str:
    lines = []
    for kernel in compile_hopper_reports(("bfloat16", "bfloat16_float8")):
        caches = "e4m3" if "float8" in kernel.type else "16-bit"
        # Warpgroups trade registers after the launch (csrc/cuda/tree_attention/hopper/traits.h).
        threads, registers = (384, "168, then 216 and 80") if kernel.family == "warpgroup" else (288, kernel.registers)
        lines.append([kernel.family, kernel.head_dim, caches, threads, registers, kernel.spill_bytes])
    return markdown(["kernel", "head_dim", "caches", "threads", "registers", "spill bytes"], lines)


if __name__ == "__main__":
    main()
