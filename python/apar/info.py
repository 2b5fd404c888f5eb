"""What `apar info` prints: versions, instructions in use, compiled CUDA architectures, devices found."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import apar_ext

__all__ = ["collect", "render"]


def collect() -> dict[str, object]:
    """Returns plain values, ready for JSON.

    Keys: ``version``, ``python``, ``torch``, ``transformers`` (str); ``compiler`` (str); ``cpu`` (str), ``cpu_threads``
    (int), ``cpu_level`` and ``cpu_level_detected`` (str); ``cuda_built`` (bool), ``cuda_archs`` (list of str),
    ``nvcc_version`` (str); ``devices`` (list of dicts with ``name``, ``capability``, ``memory_gib``).
    """
    return {
        "version": apar_ext.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _package_version("transformers"),
        "cpu": _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        **apar_ext.build_info(),
        "devices": _devices(),
    }


def render(info: dict[str, object]) -> str:
    """The same as lines for a terminal."""
    level, detected = info["cpu_level"], info["cpu_level_detected"]
    limited = "" if level == detected else f" (limited; this CPU has {detected})"
    if info["cuda_built"]:
        cuda = f"built for {' '.join(info['cuda_archs'])} with nvcc {info['nvcc_version']}"
    else:
        cuda = "not built (no nvcc when this package was compiled); CPU kernels only"
    devices = [
        f"{device['name']}, compute capability {device['capability']}, {device['memory_gib']} GiB"
        for device in info["devices"]
    ]
    lines = {
        "apar": info["version"],
        "python": info["python"],
        "torch": info["torch"],
        "transformers": info["transformers"],
        "compiler": info["compiler"],
        "CPU": f"{info['cpu']}, {info['cpu_threads']} threads",
        "CPU kernels": f"{level}{limited}",
        "CUDA kernels": cuda,
        "CUDA device": "; ".join(devices) or "none found",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _devices() -> list[dict[str, object]]:
    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return devices
