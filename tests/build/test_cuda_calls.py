"""Every call of the CUDA runtime has its result looked at."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
CALL = re.compile(r"\bcuda[A-Z]\w*\s*\(")
# What looks at a result: check_cuda(call, ...), a variable of the result, a cast that says it does not matter (a
# destructor), and the function that turns a result into words.
CHECKED = re.compile(r"(check_cuda\(|cudaError_t \w+ =|\(void\))\s*$")


def unchecked_calls(text: str) -> list[str]:
    text = re.sub(r'"[^"\n]*"', '""', re.sub(r"//.*", "", text))
    return [
        text[call.start() :].split("\n")[0]
        for call in CALL.finditer(text)
        if not call[0].startswith("cudaGetErrorString") and not CHECKED.search(text[: call.start()])
    ]


def test_finds_unchecked_calls():
    assert unchecked_calls("  cudaSetDevice(3);\n") == ["cudaSetDevice(3);"]
    assert unchecked_calls("  f(cudaSetDevice(3));  // check_cuda(\n") == ["cudaSetDevice(3));  "]
    assert not unchecked_calls('check_cuda(cudaFree(p), "cudaFree(p)");')
    assert not unchecked_calls("check_cuda(\n    cudaSetDevice(3), name); (void)cudaSetDevice(2);")


def test_every_call_is_checked():
    files = [path for path in SOURCES.rglob("*") if path.suffix in (".h", ".cu", ".cuh", ".cpp")]
    assert len(files) > 50
    unchecked = {str(path.relative_to(SOURCES)): unchecked_calls(path.read_text()) for path in files}
    assert not {name: calls for name, calls in unchecked.items() if calls}
