"""No attention kernel keeps its registers in memory: what ptxas reports, on machines with nvcc."""

from __future__ import annotations

import importlib.util
import re
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
    """float16 kernels differ from these in two instructions."""
    kernels = resources.compile_reports(("bfloat16",), (arch,))
    assert len(kernels) == 14
    bad = [kernel for kernel in kernels if kernel.stack_bytes or kernel.spill_bytes]
    assert not bad
    for kernel in kernels:
        assert resources.blocks_by_registers(kernel) >= (
            2 if kernel.packed_rows == 16 and kernel.head_dim <= 128 else 1
        )


def test_the_choice_of_tokens_spills_nothing(resources, tmp_path):
    """A block of 1,024 threads leaves 64 registers for each."""
    source = SCRIPT.parents[1] / "csrc" / "cuda" / "choose_tokens" / "choose_tokens.cu"
    command = [resources.find_nvcc(), "-O3", "-std=c++20", "--expt-relaxed-constexpr", "-arch=sm_80", "-Xptxas", "-v"]
    command += ["-I", str(SCRIPT.parents[1] / "csrc"), "-c", str(source), "-o", str(tmp_path / "choose_tokens.o")]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(used) == 7
    assert set(used) == {("0", "0", "0")}
