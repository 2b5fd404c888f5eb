"""`apar data build`: chat files to one file of paragraph trees, in two passes.

The first pass cuts all answers, in as many processes as there are cores, and writes them to a temporary folder beside
the result, with a few numbers on each. The second knows all prompts, so it decides what is held out and which answers
without a fork are left out, and writes the result. Memory holds a few megabytes of text at a time and some hundred
bytes a prompt; the prompts' signatures lie on the disk.
"""

from __future__ import annotations

import collections
import concurrent.futures.process
import contextlib
import dataclasses
import importlib.util
import json
import math
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from apar.data.convert import HELDOUT_START, INDEX, LINE_START, Converted, ConvertOptions, convert, keep
from apar.data.forks import ForkOptions
from apar.data.inputs import Batch, UnreadableInput, check_inputs, input_bytes, read_batches
from apar.data.records import json_line
from apar.data.rules import rules_named
from apar.data.splits import HELDOUT, PERMUTATIONS, UNDECIDED, choose_sides, near_duplicates
from apar.files import is_same_file, named_errors, real_target, written_whole

_ROWS_AT_ONCE = 1 << 18
_SMALL_INPUT_BYTES = 4_000_000  # below, making processes takes longer than they save


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """forks: how answers are cut. last_only: only the last answer of a conversation, not every one.

    negatives: answers without a fork that are kept for each one that forks; None: all. heldout: share of the prompts.
    similarity: share of common runs of three words from which two prompts go to the same side. seed: of the choice of
    what is held out and left out. source: the name that records get; None: their own, else their file's. strict: stop
    at a malformed record. append: keep the trees that the result has, and add what is new. workers: processes; None:
    all cores.
    """

    forks: ForkOptions = dataclasses.field(default_factory=ForkOptions)
    last_only: bool = False
    negatives: float | None = None
    heldout: float = 0.02
    similarity: float = 0.7
    seed: int = 0
    source: str | None = None
    strict: bool = False
    append: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("heldout", 0, 1), ("similarity", 0, 1), ("negatives", 0, float("inf"))):
            value = getattr(self, name)
            if value is not None and not (least <= value <= most and math.isfinite(value)):
                expected = f"{least} to {most}" if math.isfinite(most) else f"a number, at least {least}"
                raise ValueError(f"{name}: expected {expected}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 to 2**63 - 1, got {self.seed}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: expected at least 1, got {self.workers}")


@dataclasses.dataclass
class BuildReport:
    """records: read. malformed: of them left out. answers: in the records that are not. known: there already (append).

    dropped: answers without a fork beyond the ratio. written: trees in the result, of which forked, heldout, and kept
    (those that were there before). levels: of branches in the deepest tree, the trunk counted: what the decoder's
    ``max_depth`` must be at least. prompts: different ones. groups: of prompts that are nearly the same, each on one
    side; largest_group: prompts in the largest. malformed_list: where the malformed ones are listed, if there are any.
    """

    records: int = 0
    malformed: int = 0
    answers: int = 0
    known: int = 0
    dropped: int = 0
    written: int = 0
    forked: int = 0
    heldout: int = 0
    kept: int = 0
    levels: int = 0
    prompts: int = 0
    groups: int = 0
    largest_group: int = 0
    malformed_list: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def build(
    inputs: list[str], out: str | os.PathLike[str], options: BuildOptions | None = None, *, progress: bool | None = None
) -> BuildReport:
    """Make a file of paragraph trees from chat files.

    The result takes its place when all is done. Whatever goes wrong before, an unreadable input, a full disk, an
    interruption, leaves no trace: what stood there stays.

    Args:
        inputs: JSON or JSON lines, also .gz, or ``hub:owner/name[@split]``.
        out: the result, compressed if it ends in .gz.
        options: see ``BuildOptions``.
        progress: show a bar; None: if stderr is a terminal.

    Raises:
        UnreadableInput: an input cannot be read, or not to its end, or has no record that can be used. ValueError: a
        malformed record, with ``strict``; a result that is an input or a device.
        OSError: the result cannot be written. RuntimeError: a rule needs a package that is not installed.
    """
    options = options or BuildOptions()
    out = Path(out)
    if not inputs:
        raise ValueError("inputs: expected at least one file")
    out = real_target(out)
    listed = out.with_name(out.name + ".malformed.jsonl")
    for name in inputs:
        for target in (out, listed):
            if is_same_file(name, target):
                raise ValueError(f"{target} is an input, too; what OUT holds is kept with append")
    check_inputs(inputs)
    if "first_sentence" in rules_named(options.forks.rules) and importlib.util.find_spec("pysbd") is None:
        raise RuntimeError(
            "the rule first_sentence needs the package pysbd: pip install 'apar[data]', or choose rules without it"
        )
    report = BuildReport()
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".unfinished", dir=out.parent))
    try:
        with named_errors(out):
            useless = _first_pass(inputs, out, options, folder, report, progress)
            if useless is None:
                _second_pass(out, options, folder, report)
            if report.malformed:
                os.replace(folder / "malformed", listed)
                report.malformed_list = str(listed)
            else:
                listed.unlink(missing_ok=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if useless is not None:
        raise UnreadableInput(f"{useless}, {out} stays as it is\n{malformed_lines(report, 3)}".strip())
    return report


def _first_pass(
    inputs: list[str], out: Path, options: BuildOptions, folder: Path, report: BuildReport, progress: bool | None
) -> str | None:
    """Cuts all answers. Returns what is wrong where an input gives nothing: then it stops behind that input."""
    kept = [str(out)] if options.append and out.exists() else []
    total = input_bytes([*kept, *inputs])
    converting = ConvertOptions(options.forks, options.last_only, options.seed, options.source)
    with (
        _Workers(options.workers, total, converting) as workers,
        tqdm(
            total=total or None,
            unit="B",
            unit_scale=True,
            disable=not (sys.stderr.isatty() if progress is None else progress),
            leave=False,
        ) as bar,
        _Trees(folder) as trees,
    ):
        finished = 0
        # Trees that are there come first, so that what is new can be compared with them.
        for name in kept:
            for batch, converted in workers.map(keep, read_batches(name)):
                report.kept += trees.add(converted)
                bar.update(finished + batch.done - bar.n)
            finished += input_bytes([name])
        trees.know_these()
        for name in inputs:
            size = input_bytes([name])
            read_before, used_before = report.records, report.records - report.malformed
            for batch, converted in workers.map(convert, read_batches(name)):
                if options.strict and converted.malformed:
                    line, reason = converted.malformed[0]
                    raise ValueError(f"{batch.path}, line {line}: {reason}")
                trees.list_malformed(batch, converted)
                report.records += converted.records
                report.answers += len(converted.lines)
                report.malformed += len(converted.malformed)
                report.known += len(converted.lines) - trees.add(converted)
                bar.update(finished + min(batch.done, size) - bar.n)
                bar.set_postfix_str(f"{report.answers:,} answers", refresh=False)
            finished += size
            if report.records - report.malformed == used_before:
                read = report.records - read_before
                return f"none of the {read:,} records of {name} can be used" if read else f"{name} has no records"
    return None


class _Trees:
    """The files of the first pass: lines, index and signatures of the trees, and what is malformed."""

    def __init__(self, folder: Path) -> None:
        self._files = contextlib.ExitStack()
        self._lines, self._index, self._signatures, self._malformed = (
            self._files.enter_context(open(folder / name, "wb"))
            for name in ("lines", "index", "signatures", "malformed")
        )
        self._known = np.zeros(0, np.uint64)

    def __enter__(self) -> _Trees:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def add(self, converted: Converted) -> int:
        """Adds the trees that are not known already. Returns their number."""
        lines, index, signatures = converted.lines, converted.index, converted.signatures
        if len(self._known):
            new = self._known[np.searchsorted(self._known[:-1], index["record"])] != index["record"]
            lines = [line for line, is_new in zip(lines, new, strict=True) if is_new]
            index, signatures = index[new], signatures[new]
        self._lines.writelines(lines)
        self._index.write(index.tobytes())
        self._signatures.write(signatures.tobytes())
        return len(lines)

    def know_these(self) -> None:
        """From now on what has been added is known."""
        self._index.flush()
        self._known = np.unique(np.fromfile(self._index.name, INDEX)["record"])

    def list_malformed(self, batch: Batch, converted: Converted) -> None:
        for line, reason in converted.malformed:
            self._malformed.write(json_line({"file": batch.path, "line": line, "reason": reason}))


class _Workers:
    """Works on batches in order, in processes where there is enough to do."""

    def __init__(self, workers: int | None, total_bytes: int, options: ConvertOptions) -> None:
        count = workers or len(os.sched_getaffinity(0))
        self._options = options
        self._count = count
        self._pool = None
        if count > 1 and (total_bytes == 0 or total_bytes > _SMALL_INPUT_BYTES):
            # By fork: fresh processes would have to import everything first. They are made with the first call, so
            # one is made here, before there are threads (the bar has one).
            self._pool = concurrent.futures.ProcessPoolExecutor(
                count, multiprocessing.get_context("fork"), _start_worker
            )
            self._pool.submit(int)

    def map(
        self, work: Callable[[Batch, ConvertOptions], Converted], batches: Iterator[Batch]
    ) -> Iterator[tuple[Batch, Converted]]:
        """(batch, what became of it), reading ahead as far as the processes need."""
        if self._pool is None:
            for batch in batches:
                yield batch, work(batch, self._options)
            return
        pending: collections.deque[tuple[Batch, concurrent.futures.Future[Converted]]] = collections.deque()
        try:
            for batch in batches:
                pending.append((batch, self._pool.submit(work, batch, self._options)))
                if len(pending) > 2 * self._count:
                    yield _result(pending)
            while pending:
                yield _result(pending)
        except concurrent.futures.process.BrokenProcessPool as error:
            batch = pending[0][0]
            raise RuntimeError(
                f"{batch.path}, line {batch.lines[0]} or behind: a process that cuts answers was killed; out of memory?"
            ) from error
        finally:
            for _, future in pending:
                future.cancel()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _result(pending: collections.deque[Any]) -> tuple[Batch, Converted]:
    """What became of the first batch, which is taken off."""
    batch, future = pending[0]
    converted = future.result()
    pending.popleft()
    return batch, converted


def _second_pass(out: Path, options: BuildOptions, folder: Path, report: BuildReport) -> None:
    index = np.fromfile(folder / "index", INDEX)
    sides = _sides(index, folder / "signatures", options, report)
    wanted = _wanted(index, options)
    report.dropped = int((~wanted).sum())
    report.written = int(wanted.sum())
    report.forked = int((index["levels"][wanted] > 1).sum())
    report.levels = int(index["levels"][wanted].max(initial=0))
    report.heldout = int((sides[wanted] == HELDOUT).sum())
    with open(folder / "lines", "rb") as lines, written_whole(out) as file:
        _write_chosen(lines, file, wanted, (sides == HELDOUT) & ~index["kept"])


def _write_chosen(lines: BinaryIO, file: BinaryIO, wanted: np.ndarray, heldout: np.ndarray) -> None:
    write: Callable[[bytes], Any] = file.write
    for line, is_wanted, is_heldout in zip(lines, wanted, heldout, strict=True):
        if is_wanted:
            write(HELDOUT_START + line[len(LINE_START) :] if is_heldout else line)


def _sides(index: np.ndarray, signatures: Path, options: BuildOptions, report: BuildReport) -> np.ndarray:
    keys, first, inverse = np.unique(index["key"], return_index=True, return_inverse=True)
    report.prompts = len(keys)
    if not len(keys):
        return np.zeros(0, np.uint8)
    order = np.argsort(first).astype(np.int32)  # as they came, so that the disk is read forward
    first, inverse = first[order].astype(np.int32), inverse.astype(np.int32)
    groups = np.empty(len(keys), np.int32)
    with open(signatures, "rb") as file:
        groups[order] = order[near_duplicates(_Rows(file, first), options.similarity)]
    sizes = np.bincount(groups)
    report.groups, report.largest_group = int((sizes > 0).sum()), int(sizes.max())
    fixed = np.full(len(keys), UNDECIDED, np.uint8)
    np.maximum.at(fixed, inverse, index["side"])
    sides = choose_sides(keys, groups, fixed, options.heldout)[inverse]
    return np.where(index["side"] != UNDECIDED, index["side"], sides)


class _Rows:
    """Chosen rows of a file of signatures, read when they are asked for and not kept in memory."""

    def __init__(self, file: BinaryIO, rows: np.ndarray) -> None:
        self._file = file
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._values = np.frombuffer(self._map, np.uint32).reshape(-1, PERMUTATIONS)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> np.ndarray:
        if not isinstance(place, tuple):
            # Few and anywhere: a mapping would bring their whole neighbourhood.
            size = PERMUTATIONS * self._values.itemsize
            rows = (os.pread(self._file.fileno(), size, row * size) for row in self._rows[place].tolist())
            return np.frombuffer(b"".join(rows), np.uint32).reshape(-1, PERMUTATIONS)
        column = np.empty(len(self._rows), np.uint32)
        for begin in range(0, len(column), _ROWS_AT_ONCE):
            part = slice(begin, begin + _ROWS_AT_ONCE)
            column[part] = self._values[self._rows[part], place[1]]
            self._map.madvise(mmap.MADV_DONTNEED)
        return column


def _wanted(index: np.ndarray, options: BuildOptions) -> np.ndarray:
    """Which trees are written: all that fork, and of the rest as many as the ratio allows, chosen by their hash."""
    wanted = np.ones(len(index), bool)
    forked = index["levels"] > 1
    negatives = np.flatnonzero(~forked)
    if options.negatives is None:
        return wanted
    new = negatives[~index["kept"][negatives]]
    room = round(options.negatives * int(forked.sum())) - (len(negatives) - len(new))
    if room < len(new):
        by_hash = np.argsort(index["record"][new] ^ np.uint64(options.seed * 0x9E3779B97F4A7C15 % 2**64), kind="stable")
        wanted[new[by_hash[max(0, room) :]]] = False
    return wanted


def report_lines(report: BuildReport) -> str:
    """The report for a terminal."""
    share = report.forked / report.written if report.written else 0.0
    lines = [
        f"{report.written:,} trees written, {report.forked:,} of them fork ({share:.0%}), {report.heldout:,} held out",
        f"{report.records:,} records read, {report.answers:,} answers, {report.malformed:,} malformed records left out",
        f"{report.prompts:,} prompts in {report.groups:,} groups of near duplicates, the largest of "
        f"{report.largest_group:,}",
    ]
    if report.dropped:
        lines.append(f"{report.dropped:,} answers without a fork left out by the ratio")
    if report.levels > 2:
        lines.append(
            f"the deepest tree has {report.levels} levels of branches, the trunk counted: the decoder's max_depth, "
            "which `apar train` notes in the model"
        )
    if report.kept or report.known:
        lines.append(f"{report.kept:,} trees were there before; {report.known:,} answers were among them already")
    return "\n".join(lines)


def malformed_lines(report: BuildReport, most: int = 20) -> str:
    """The first malformed records for a terminal: file, line, reason."""
    if report.malformed_list is None:
        return ""
    shown = []
    with open(report.malformed_list, encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number == most:
                break
            entry = json.loads(line)
            shown.append(f"{entry['file']}, line {entry['line']}: {entry['reason']}")
    if report.malformed > len(shown):
        shown.append(f"... and {report.malformed - len(shown):,} more; all are in {report.malformed_list}")
    return "\n".join(shown)
