"""All that wants a GPU, one after the other, in under nine minutes: measurements, tests, memory and race checks.

Run by bench/run_gpu.sh. Every step has a limit of its own; one that fails or runs too long does not keep the next from
running. What happened is written to <folder>/run.json, what the steps said to <folder>/run.log.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu import Card, add_options
from bench.tables import ROOT

TOTAL_SECONDS = 535

# What the sanitizers run: one test of each kernel, since they slow it down by two orders.
SANITIZED_TESTS = (
    "tests/apar_ext/test_numeric.py::test_joins[gpu]",
    "tests/apar_ext/test_numeric.py::test_one_row_over_a_long_stream[gpu]",
    "tests/apar_ext/test_numeric.py::test_sinks[dtype0-gpu]",
    "tests/apar_ext/test_numeric.py::test_append_of_strided_and_unaligned_rows[gpu]",
)


@dataclass(frozen=True)
class Step:
    name: str
    seconds: int  # at most
    module: str = ""  # of bench, run with --dry-run where the whole run is dry
    command: tuple[str, ...] = ()  # or this
    needs: str = ""  # a program without which the step is skipped
    in_dry_run: bool = True


def steps() -> list[Step]:
    python = sys.executable
    sanitized = (python, "-m", "pytest", "-q", "-x", *SANITIZED_TESTS)
    return [
        Step("attention", 175, module="gpu_attention"),
        Step("kernels", 20, module="gpu_kernels"),
        Step("advance", 25, module="gpu_advance"),
        Step("decode", 100, module="gpu_decode"),
        Step("generate", 85, module="gpu_generate"),
        Step("tests", 85, command=(python, "-m", "pytest", "-q", "-m", "gpu", "tests"), in_dry_run=False),
        Step(
            "memcheck",
            40,
            command=("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1", *sanitized),
            needs="compute-sanitizer",
            in_dry_run=False,
        ),
        Step(
            "racecheck",
            40,
            command=("compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "1", *sanitized),
            needs="compute-sanitizer",
            in_dry_run=False,
        ),
        Step("tables", 15, command=(python, "-m", "bench.tables"), in_dry_run=False),
    ]


def run_step(step: Step, options: argparse.Namespace, limit: float, log: Any) -> dict[str, Any]:
    """name, status ("passed", "failed", "too slow", "skipped: ..."), seconds."""
    if options.dry_run and not step.in_dry_run:
        return {"name": step.name, "status": "skipped: dry run", "seconds": 0.0}
    if step.needs and shutil.which(step.needs) is None:
        return {"name": step.name, "status": f"skipped: {step.needs} is not here", "seconds": 0.0}
    if step.module and not (ROOT / "bench" / f"{step.module}.py").exists():
        return {"name": step.name, "status": f"skipped: bench/{step.module}.py is not here", "seconds": 0.0}
    command = list(step.command)
    if step.module:
        command = [sys.executable, "-m", f"bench.{step.module}"]
        command += ["--parts", *options.parts] if options.parts and step.name == "attention" else []
        command += ["--dry-run"] if options.dry_run else []
        command += ["--out", str(options.out)] if options.out else []
    log.write(f"\n==== {step.name}: {' '.join(command)}\n")
    log.flush()
    begin = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        status = "passed" if process.wait(limit) == 0 else f"failed: exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        status = f"too slow: stopped after {limit:.0f} s"
        stop(process)
    return {"name": step.name, "status": status, "seconds": round(time.monotonic() - begin, 1)}


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends the step and what it has started, which is a session of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
            return
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--parts", nargs="+", default=(), help="of the attention step (bench/gpu_attention.py)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"of {', '.join(step.name for step in steps())}")
    options = parser.parse_args()
    card = Card(options)
    folder: Path = card.folder
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [step for step in steps() if options.only is None or step.name in options.only]
    begin = time.monotonic()
    done: list[dict[str, Any]] = []
    with (folder / "run.log").open("w") as log:
        for step in chosen:
            left = TOTAL_SECONDS - (time.monotonic() - begin)
            if left < 1:
                done.append({"name": step.name, "status": "skipped: the time is over", "seconds": 0.0})
            else:
                slower = 10 if options.dry_run else 1  # than a machine that has a card
                done.append(run_step(step, options, min(step.seconds * slower, left), log))
            print(f"{done[-1]['name']:<10} {done[-1]['seconds']:6.1f} s  {done[-1]['status']}", flush=True)
            # After every step: an interrupted run says how far it came.
            card.write("run", {"steps": done, "seconds": round(time.monotonic() - begin, 1)})
    bad = [step["name"] for step in done if step["status"] not in ("passed",) and "skipped" not in step["status"]]
    print(f"{time.monotonic() - begin:.0f} s; {'failed: ' + ', '.join(bad) if bad else 'nothing failed'}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
