"""Builds and runs the C++ tests, which need neither torch nor a GPU: python tests/cpp/run.py [--sanitize] [filter]."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sanitize", action="store_true", help="compile with AddressSanitizer and UBSan")
    parser.add_argument("filter", nargs="?", default="", help="run the tests whose name contains this")
    arguments = parser.parse_args()

    folder = ROOT / "build" / ("cpp-tests-sanitize" if arguments.sanitize else "cpp-tests")
    tools = {
        name: str(beside) if (beside := Path(sys.executable).parent / name).exists() else name
        for name in ("cmake", "ninja")
    }
    configure = [
        tools["cmake"],
        *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tools['ninja']}",
        "-DAPAR_BUILD_EXTENSION=OFF",
        "-DAPAR_BUILD_CPP_TESTS=ON",
        f"-DAPAR_SANITIZE={'ON' if arguments.sanitize else 'OFF'}",
    ]
    build = [tools["ninja"], "-C", str(folder), "-j", os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))]
    for command in (configure, build, [str(folder / "apar_cpp_tests"), *filter(None, [arguments.filter])]):
        code = subprocess.run(command).returncode
        if code != 0:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
