"""What the measurements on a GPU share: naming the card, fair timing, the card's read ceiling, result files.

Everything here also runs on the CPU with tiny sizes (``--dry-run`` of the scripts): then times mean nothing and results
go to a folder of their own, so that no number in ``bench/results`` comes from anything but a card.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import apar_ext
from bench.common import RESULTS

FLUSH_BYTES = 256 << 20  # several times any second-level cache


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: only to see the script run")
    parser.add_argument("--out", type=Path, help="folder of the result (default: bench/results/<card>)")


class Card:
    """The device of a run: the current GPU, or the CPU in a dry run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.is_dry_run: bool = options.dry_run
        if not self.is_dry_run and not torch.cuda.is_available():
            raise SystemExit("no GPU here; --dry-run goes through the motions on the CPU")
        self.device = torch.device("cpu" if self.is_dry_run else "cuda")
        self.name = "dry run" if self.is_dry_run else torch.cuda.get_device_name()
        self._out: Path | None = options.out
        self._flush: torch.Tensor | None = None

    def facts(self) -> dict[str, Any]:
        """What a reader must know to judge a number."""
        facts = {
            "card": self.name,
            "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "commit": _first_line("git", "rev-parse", "HEAD"),
            "uncommitted_changes": bool(_first_line("git", "status", "--porcelain", "--untracked-files=no")),
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "apar": apar_ext.__version__,
            "nvcc": apar_ext.build_info()["nvcc_version"],
        }
        if not self.is_dry_run:
            properties = torch.cuda.get_device_properties(self.device)
            facts["multiprocessors"] = properties.multi_processor_count
            facts["compute_capability"] = f"{properties.major}.{properties.minor}"
            facts["memory_gib"] = round(properties.total_memory / 2**30, 1)
        return facts

    @property
    def cache_bytes(self) -> int:
        """Of the second-level cache."""
        return 1 << 20 if self.is_dry_run else torch.cuda.get_device_properties(self.device).L2_cache_size

    @property
    def folder(self) -> Path:
        if self._out is not None:
            return self._out
        if self.is_dry_run:
            return Path(tempfile.gettempdir()) / "apar-dry-run"
        return RESULTS / self.name.lower().replace(" ", "-")

    def write(self, name: str, results: dict[str, Any], draw: Callable[[Any], None] | None = None) -> Path:
        """<folder>/<name>.json, and <name>.png where matplotlib is installed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({"machine": self.facts(), **results}, indent=1) + "\n")
        print(f"written: {path}", flush=True)
        if draw is not None:
            self._draw(path.with_suffix(".png"), draw)
        return path

    def _draw(self, path: Path, draw: Callable[[Any], None]) -> None:
        try:
            import matplotlib
        except ImportError:
            print("no picture: matplotlib is not installed (extra [bench])")
            return
        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(9, 4.5), layout="constrained")
        draw(figure)
        facts = self.facts()
        line = f"{facts['card']}, driver {facts['driver']}, torch {facts['torch']}, {facts['date']}"
        figure.text(0.5, -0.02, line, ha="center", va="top", fontsize=7, color="gray")
        figure.savefig(path, dpi=130, bbox_inches="tight")
        pyplot.close(figure)

    # ---- timing ----

    def flush(self) -> None:
        """Fills the second-level cache with what nobody needs, by reading, so that nothing has to be written back."""
        if self._flush is None:
            size = (1 << 20) if self.is_dry_run else FLUSH_BYTES
            self._flush = torch.zeros(size // 4, device=self.device)
        self._flush.amax()

    def median_us(
        self, calls: Sequence[Callable[[], object]], *, cold: bool, repeats: int = 15, seconds: float = 1.5
    ) -> float:
        """Median microseconds of one of ``calls``, captured in one graph and run one after the other.

        Several calls over memory of their own stand for the layers of a model. cold: the second-level cache is flushed
        before each run of the graph. Stops after ``repeats`` runs, or after ``seconds`` once there are five.
        """
        for call in calls:
            call()
        run = self.captured(calls)
        times: list[float] = []
        begin = time.perf_counter()
        for number in range(repeats + 2):
            if number >= 7 and time.perf_counter() - begin > seconds:
                break
            if cold:
                self.flush()
            times.append(self.timed_us(run))
        return statistics.median(times[2:]) / len(calls)

    def captured(self, calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
        """One graph of all calls, which must have run before; nothing runs here. A plain function in a dry run."""

        def run() -> None:
            for call in calls:
                call()

        if self.is_dry_run:
            return run
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def timed_us(self, run: Callable[[], object]) -> float:
        """Microseconds of one run, by the device's clock."""
        if self.is_dry_run:
            begin = time.perf_counter()
            run()
            return 1e6 * (time.perf_counter() - begin)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end)

    def eager_us(self, call: Callable[[], object], repeats: int = 30) -> float:
        """Median of single calls outside of a graph, for what cannot be captured; launches from Python included."""
        for _ in range(3):
            call()
        return statistics.median(self.timed_us(call) for _ in range(repeats))


def read_ceiling(card: Card) -> dict[str, float]:
    """Bytes per second that the card reads at best, by size and state of the cache.

    ``memory``: from memory, of a block many times the cache; ``cold_48mb`` and ``warm_48mb``: of 48 MB that are not, or
    are, in the second-level cache. The best of torch's reductions and of a Triton kernel that only loads.
    """
    large = (4 << 20) if card.is_dry_run else (4 << 30)
    small = (1 << 20) if card.is_dry_run else (48 << 20)
    result = {}
    for name, size, cold in (("memory", large, False), ("cold_48mb", small, True), ("warm_48mb", small, False)):
        data = torch.ones(size // 4, device=card.device)
        rates = [size / (card.median_us([read], cold=cold) * 1e-6) for read in _readers(data)]
        result[name] = max(rates)
    return result


def _readers(data: torch.Tensor) -> list[Callable[[], object]]:
    readers: list[Callable[[], object]] = [lambda: data.sum(), lambda: data.amax()]
    if not data.is_cuda:
        return readers
    try:
        from bench.gpu_read import make_readers
    except ImportError:
        print("triton is not here: the read ceiling is that of torch's reductions")
        return readers
    return readers + make_readers(data)


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.splitlines()[0].strip() if done.stdout else ""
