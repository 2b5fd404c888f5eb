"""What the extension was built with and what it uses on this machine."""

from __future__ import annotations

from apar_ext import _C

__all__ = ["build_info"]


def build_info() -> dict[str, object]:
    """Returns a dictionary of plain values.

    Keys: ``compiler`` (str), ``cuda_built`` (bool: CUDA kernels are in the module), ``cuda_archs`` (list of str),
    ``nvcc_version`` (str, empty without CUDA), ``cpu_level_detected`` and ``cpu_level`` (str: ``portable``, ``avx2``,
    ``avx512``, ``avx512bf16``; the second is what kernels use, which APAR_CPU_LEVEL in the environment may lower).
    """
    return {**_C.build_info(), "cpu_level": _C.cpu_level()}
