"""How fast does `apar data build` cut chats into trees, and how much memory do all its processes hold together?

    python -m bench.data                                     # 200 MB of made-up chats
    python -m bench.data chats/*.jsonl --megabytes 1000      # answers of one's own, over and over

Every answer gets a prompt of its own, so that as many different prompts are compared as a file of that size can have.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from apar.data.formats import MalformedRecord, answers
from apar.data.inputs import read_batches
from apar.data.synth import synth_records

from bench.common import machine_line

_SAMPLED_EVERY_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="chats whose answers are taken (default: made up)")
    parser.add_argument("--megabytes", type=int, default=200, metavar="N", help="size of the input")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        chats = Path(folder, "chats.jsonl")
        count = write_chats(chats, list(_answers(options.files)), options.megabytes * 10**6)
        command = [sys.executable, "-m", "apar", "data", "build", str(chats), "-o", str(Path(folder, "trees.jsonl"))]
        started_at = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        memory = PeakMemory(process.pid)
        if process.wait():
            raise SystemExit(f"apar data build ended with status {process.returncode}")
        seconds = time.perf_counter() - started_at
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{count:,} answers, {options.megabytes:,} MB, on {machine_line()}")
        print(f"{seconds:.1f} s, {count / seconds:,.0f} answers a second, {used.ru_utime + used.ru_stime:.1f} s of CPU")
        print(f"at most {memory.stop() / 1e6:,.0f} MB, all processes together (proportional set size)")


def write_chats(path: Path, texts: list[str], size: int) -> int:
    """Writes about ``size`` bytes of JSON lines, the texts in turn as answers. Returns how many."""
    rng = random.Random(0)
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for count, text in enumerate(itertools.cycle(texts)):
            if written >= size:
                return count
            prompt = " ".join(f"{rng.getrandbits(32):x}" for _ in range(12))
            written += file.write(json.dumps({"prompt": prompt, "response": text}) + "\n")
    raise ValueError("expected at least one answer")


def _answers(files: list[str]) -> Iterator[str]:
    if not files:
        yield from (record.tree.text for record in itertools.islice(synth_records(0), 5000))
    for record in itertools.chain.from_iterable(batch.records for name in files for batch in read_batches(name)):
        try:
            yield from (answer.text for answer in answers(json.loads(record)))
        except (ValueError, MalformedRecord):
            continue


class PeakMemory:
    """Watches a process and its children: the most bytes that they held at once, shared pages counted once."""

    def __init__(self, process: int) -> None:
        self._process = process
        self._most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLED_EVERY_SECONDS):
            family = [self._process, *_children(self._process)]
            self._most = max(self._most, sum(map(_proportional_bytes, family)))


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def _proportional_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
