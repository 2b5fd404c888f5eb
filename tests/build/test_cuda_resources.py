"""No attention kernel keeps its registers in memory: what ptxas reports, on machines with nvcc."""

from __future__ import annotations

import importlib.util
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
