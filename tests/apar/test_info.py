"""The facts behind `apar info`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch
from apar import info

import apar_ext


def test_collect_is_ready_for_json():
    facts = info.collect()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["version"] == apar_ext.__version__
    assert facts["torch"] == torch.__version__
    assert facts["cuda_built"] == bool(facts["cuda_archs"])
    assert len(facts["devices"]) == torch.cuda.device_count()


def test_render_says_what_was_built():
    facts = info.collect()
    built = info.render({**facts, "cuda_built": True, "cuda_archs": ["80", "90+PTX"], "nvcc_version": "13.0.88"})
    assert "built for 80 90+PTX with nvcc 13.0.88" in built
    assert "not built" in info.render({**facts, "cuda_built": False, "cuda_archs": []})
    device = {"name": "Some GPU", "capability": "9.0", "memory_gib": 139.8}
    assert "Some GPU, compute capability 9.0, 139.8 GiB" in info.render({**facts, "devices": [device]})


def test_level_limited_by_the_environment():
    code = "import apar_ext; print(apar_ext.build_info()['cpu_level'])"

    def run(level: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "APAR_CPU_LEVEL": level, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert run("portable").stdout.strip() == "portable"
    wrong = run("sse9")
    assert wrong.returncode != 0
    assert "CPU level is 'sse9', expected one of portable, avx2, avx512, avx512bf16" in wrong.stderr
