"""No attention kernel keeps its registers in memory: what ptxas reports, on machines with nvcc."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "cuda_resources.py"


@pytest.fixture(scope="module")
def resources():
    import sys

    spec = importlib.util.spec_from_file_location("cuda_resources", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if module.find_nvcc() is None:
        pytest.skip("no nvcc")
    return module


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_no_spills_and_no_stack_frames(resources, arch):
    kernels = resources.compile_reports(resources.TYPES, (arch,))
    assert len(kernels) == len(list((resources.SOURCES / "instantiations").glob("*.cu")))
    bad = [kernel for kernel in kernels if kernel.stack_bytes or kernel.spill_bytes]
    assert not bad
    assert all(resources.blocks_by_registers(kernel) >= 1 for kernel in kernels)


def test_the_choice_of_tokens_spills_nothing(resources, tmp_path):
    """A block of 1,024 threads leaves 64 registers for each."""
    source = SCRIPT.parents[1] / "csrc" / "cuda" / "choose_tokens" / "choose_tokens.cu"
    command = [resources.find_nvcc(), "-O3", "-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_80", "-Xptxas", "-v"]
    command += ["-I", str(SCRIPT.parents[1] / "csrc"), "-c", str(source), "-o", str(tmp_path / "choose_tokens.o")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(used) == 7
    assert set(used) == {("0", "0", "0")}


def test_no_spills_for_hopper(resources):
    kernels = resources.compile_hopper_reports(("bfloat16", "bfloat16_float8"))
    files = list((resources.SOURCES / "hopper" / "instantiations").glob("bfloat16*.cu"))
    assert sum(kernel.family == "bulk" for kernel in kernels) == len(files)
    assert sum(kernel.family == "warpgroup" for kernel in kernels) == 2
    assert not [kernel for kernel in kernels if kernel.stack_bytes or kernel.spill_bytes]


def test_hopper_instructions(resources, tmp_path):
    """The copy engine and the warpgroups' products are in use, and nothing goes through local memory."""
    cuobjdump = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if cuobjdump is None:
        pytest.skip("no cuobjdump")
    cubin = tmp_path / "kernel.cubin"
    resources.compile_cubin(resources.SOURCES / "hopper" / "instantiations" / "bfloat16_128.cu", "90a", cubin)
    done = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    listings = done.stdout.split("Function : ")[1:]
    assert len(listings) == 2
    for listing in listings:
        assert "UTMALDG.2D" in listing
        assert not re.search(r"\b(LDL|STL)\b", listing)
        assert ("HGMMA.64x128x16.F32.BF16" in listing) == ("warpgroup_attention_kernel" in listing.split()[0])


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("type_name", ["bfloat16", "bfloat16_float8"])
def test_wide_items_keep_enough_bytes_in_flight(resources, type_name, head_dim):
    plan = resources.plan_for(type_name, head_dim, 128, "90a", 227 * 1024)
    assert plan.rows == 128
    assert plan.bytes_in_flight >= 60 * 1024
