"""What each attention kernel takes of a multiprocessor: registers, spills, shared memory, blocks, bytes in flight.

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
HEAD_DIMS = (64, 80, 96, 128, 256)
TYPES = ("bfloat16", "float16")
SHARED_KILOBYTES = {"80": 164, "90a": 228}  # of a multiprocessor; the driver keeps 1 per block


@dataclass(frozen=True)
class Kernel:
    """One instantiation for one architecture, as the compiler reports it."""

    type: str
    head_dim: int
    packed_rows: int
    arch: str
    registers: int
    stack_bytes: int
    spill_bytes: int

    @property
    def threads(self) -> int:
        return (4 if self.packed_rows == 16 else 8) * 32 + 32

    @property
    def stage_bytes(self) -> int:
        """Keys and values of 64 entries."""
        stride = self.head_dim if self.head_dim % 64 == 0 else self.head_dim + 8
        return 2 * 64 * stride * 2


def find_nvcc() -> str | None:
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compile_report(type_name: str, head_dim: int, arch: str) -> list[Kernel]:
    """Compiles one instantiation file and reads what ptxas says about its kernels."""
    source = ROOT / "csrc" / "cuda" / "tree_attention" / "instantiations" / f"{type_name}_{head_dim}.cu"
    with tempfile.TemporaryDirectory() as folder:
        command = [str(find_nvcc()), "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "--expt-relaxed-constexpr"]
        command += ["-Xptxas", "-v", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin"]
        command += [str(source), "-o", str(Path(folder) / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    kernels = []
    for part in done.stderr.split("Compiling entry function")[1:]:
        shape = re.search(r"ELi(\d+)ELi(\d+)E", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        if not (shape and frame and registers):
            raise RuntimeError(f"ptxas says something else than expected: {part}")
        kernels.append(
            Kernel(
                type_name,
                int(shape[1]),
                int(shape[2]),
                arch,
                int(registers[1]),
                int(frame[1]),
                int(frame[2]) + int(frame[3]),
            )
        )
    return kernels


def compile_reports(types: tuple[str, ...] = TYPES, archs: tuple[str, ...] = ("80", "90a")) -> list[Kernel]:
    """All instantiations, two compilers at a time."""
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_report, one, dim, arch) for one in types for dim in HEAD_DIMS for arch in archs]
        return [kernel for job in jobs for kernel in job.result()]


def blocks_by_registers(kernel: Kernel) -> int:
    """Registers are given to warps in units of 256, from a quarter of 64 K for every fourth warp."""
    per_warp = -(-kernel.registers * 32 // 256) * 256
    return (16384 // per_warp) * 4 // (kernel.threads // 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="90a", choices=sorted(SHARED_KILOBYTES))
    parser.add_argument("--write", action="store_true", help="fill the table cuda-resources of docs/kernels.md")
    arguments = parser.parse_args()
    columns = "head_dim, packed rows, threads, registers, spill bytes, shared KB, stages, blocks per SM, KB in flight"
    lines = []
    for kernel in sorted(compile_reports(("bfloat16",), (arguments.arch,)), key=lambda k: (k.head_dim, k.packed_rows)):
        multiprocessor = SHARED_KILOBYTES[kernel.arch] * 1024
        fixed = fixed_shared_bytes(kernel)
        wanted = 2 if kernel.packed_rows == 16 and kernel.head_dim <= 128 else 1
        stages = 0
        for blocks in range(wanted, 0, -1):
            stages = min(5, (multiprocessor // blocks - 1024 - fixed) // kernel.stage_bytes)
            if stages >= 2:
                break
        shared = fixed + stages * kernel.stage_bytes
        resident = min(blocks_by_registers(kernel), multiprocessor // (shared + 1024))
        in_flight = resident * (stages - 1) * kernel.stage_bytes
        cells = [kernel.head_dim, kernel.packed_rows, kernel.threads, kernel.registers, kernel.spill_bytes]
        cells += [round(shared / 1024), stages, resident, round(in_flight / 1024)]
        lines.append(cells)
    table = markdown(columns.split(", "), lines)
    print(table)
    if arguments.write:
        write_table(ROOT / "docs" / "kernels.md", "cuda-resources", table)


def fixed_shared_bytes(kernel: Kernel) -> int:
    """Queries, weights, maxima and block descriptions (csrc/cuda/tree_attention/traits.h)."""
    rows, strips = kernel.packed_rows, kernel.packed_rows // 16
    warps_per_strip = (4 if rows == 16 else 8) // strips
    queries = 2 * rows * (kernel.stage_bytes // (2 * 64 * 2)) * 2
    weights, maxima = strips * 16 * 72 * 2, strips * warps_per_strip * 16 * 4
    blocks = 6 * (6 * 4 + 12 * 4 + 8 * 4 + rows * 4)
    return -(-(queries + weights + maxima + blocks + 4) // 128) * 128


if __name__ == "__main__":
    main()
