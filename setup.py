"""Builds apar_ext._C with CMake and ninja; everything else about the package stands in pyproject.toml.

Environment variables:
  APAR_CUDA        AUTO (default: when nvcc is found), ON or OFF
  APAR_CUDA_ARCHS  CUDA architectures, default "80;90a"; PTX is added for the newest
  APAR_BUILD_DIR   folder for object files, default build/<python>-torch<version>
  MAX_JOBS         parallel compile jobs, default the number of cores
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_tool(name: str) -> str:
    """Path of cmake or ninja: beside this Python (from PyPI), else in PATH."""
    beside_python = Path(sysconfig.get_path("scripts")) / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        sys.exit(f"apar: {name} is not found; install it with: {sys.executable} -m pip install {name}")
    return found


def torch_folders() -> tuple[str, Path, Path]:
    """Version, include folder and library folder of the torch to build against."""
    try:
        import torch
    except ImportError:
        sys.exit("apar: torch is needed to build; install torch>=2.10 first and use pip install --no-build-isolation")
    root = Path(torch.__file__).parent
    return torch.__version__, root / "include", root / "lib"


def run(*command: str) -> None:
    """Runs a command; its own output says what went wrong, so failure adds one line and no traceback."""
    if subprocess.run(command).returncode != 0:
        sys.exit(f"apar: the build failed in: {' '.join(command)}")


def python_include() -> str:
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").exists():
        sys.exit(f"apar: {include}/Python.h is not found; install the headers of this Python (python3-dev)")
    return include


class CMakeBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        torch_version, torch_include, torch_lib = torch_folders()
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        default_folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch_version}"
        folder = Path(os.environ.get("APAR_BUILD_DIR", default_folder))
        folder.mkdir(parents=True, exist_ok=True)
        run(
            find_tool("cmake"),
            *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DAPAR_TORCH_INCLUDE={torch_include}",
            f"-DAPAR_TORCH_LIB={torch_lib}",
            f"-DAPAR_PYTHON_INCLUDE={python_include()}",
            f"-DAPAR_MODULE_NAME={target.name}",
            f"-DAPAR_CUDA={os.environ.get('APAR_CUDA', 'AUTO')}",
            f"-DAPAR_CUDA_ARCHS={os.environ.get('APAR_CUDA_ARCHS', '80;90a')}",
        )
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        run(find_tool("ninja"), "-C", str(folder), "-j", jobs, "apar_extension")

        # Put in place by renaming, so that a Python that has the old file mapped goes on undisturbed.
        built = folder / target.name
        if not target.exists() or target.stat().st_mtime_ns < built.stat().st_mtime_ns:
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = target.with_name(target.name + ".new")
            shutil.copy2(built, copy)
            copy.replace(target)


class CleanBuild(build):
    def run(self) -> None:
        # setuptools packs whatever lies in its staging folder, files of earlier builds included.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension("apar_ext._C", sources=[])],
    cmdclass={"build": CleanBuild, "build_ext": CMakeBuild},
)
