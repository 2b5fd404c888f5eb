"""Reading chat files piece by piece: JSON lines, JSON arrays of any size, compressed files, data sets of the Hub.

Nothing is parsed here but what finding the ends of the records takes; the records travel on as bytes.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

HUB = "hub:"
_BATCH_BYTES = 1 << 20
_LARGEST_RECORD = 1 << 28
"""Bytes of a line, characters of an element of an array: more than that is no record of a chat."""
_SPACE = re.compile(r"[\s,]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"


class UnreadableInput(ValueError):
    """An input that cannot be read, or not to its end."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Records of one input. lines: where each begins, counted from 1. done: bytes of the input read so far."""

    source: str
    path: str
    lines: list[int]
    records: list[bytes]
    done: int


def check_inputs(inputs: list[str]) -> None:
    """Raises UnreadableInput for a file that is not there, is a folder, or may not be read; before any work is done."""
    for name in inputs:
        if name.startswith(HUB):
            _import_datasets(name)
            continue
        try:
            kind = os.stat(name).st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                continue  # what is read from a pipe is gone
            raw, file = _open(name)
            with raw, file:
                file.read(1)
        except (OSError, EOFError, zlib.error) as error:
            raise UnreadableInput(f"{name} cannot be read: {error}") from error


def input_bytes(inputs: list[str]) -> int:
    """Bytes of all files, as they lie on the disk; 0 of a pipe and of the Hub."""
    return sum(os.path.getsize(name) for name in inputs if not name.startswith(HUB))


def source_name(name: str) -> str:
    """The name that records of an input get: of a file its name without endings."""
    if name.startswith(HUB):
        return name[len(HUB) :].partition("@")[0]
    return Path(name).name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")


def read_batches(name: str) -> Iterator[Batch]:
    """The records of an input, about a megabyte at a time.

    Raises:
        UnreadableInput: the input breaks off or is no JSON; what came before has been given out.
    """
    source = source_name(name)
    if name.startswith(HUB):
        yield from _batched(_hub_records(name), source, name)
        return
    try:
        raw, file = _open(name)
        with raw, file:
            head = file.peek(1 << 16)
            encoding = json.detect_encoding(head)
            if not encoding.startswith("utf-8"):
                raise UnreadableInput(f"{name} looks like {encoding.upper()}, expected UTF-8 (iconv can convert it)")
            head = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
            if head[:1] == b"[" or (head[:1] == b"{" and _is_spread_over_lines(head)):
                yield from _batched(_array_elements(name, file), source, name, raw)
            else:
                yield from _line_batches(file, raw, source, name)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableInput(f"{name} cannot be read to its end: {error}") from error


def _open(name: str) -> tuple[BinaryIO, Any]:
    """The file on the disk, which tells how far reading has come, and what to read from."""
    raw = open(name, "rb")  # noqa: SIM115 (closed by the caller)
    compressed = name.endswith(".gz") or raw.peek(2).startswith(_GZIP_MAGIC)
    return raw, gzip.GzipFile(fileobj=raw) if compressed else raw


def _position(raw: BinaryIO | None) -> int:
    return raw.tell() if raw is not None and raw.seekable() else 0


def _is_spread_over_lines(head: bytes) -> bool:
    """Whether an object goes on over several lines, so that this is no file of one record a line."""
    first = head.partition(b"\n")[0].strip()
    return first == b"{" or (b"\n" in head and first.endswith((b"{", b"[", b",")))


def _line_batches(file: Any, raw: BinaryIO, source: str, path: str) -> Iterator[Batch]:
    number = 1
    while lines := _some_lines(file):
        if len(lines[-1]) > _LARGEST_RECORD:
            where = f"{path}, line {number + len(lines) - 1}"
            raise UnreadableInput(f"{where}: longer than {_LARGEST_RECORD >> 20} MB, expected one record a line")
        if number == 1:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        filled = [(place, line) for place, line in enumerate(lines, number) if line and not line.isspace()]
        if filled:
            yield Batch(source, path, [place for place, _ in filled], [line for _, line in filled], _position(raw))
        number += len(lines)


def _some_lines(file: Any) -> list[bytes]:
    """About a megabyte of lines; the last one is cut behind ``_LARGEST_RECORD``."""
    lines, size = [], 0
    while size < _BATCH_BYTES and (line := file.readline(_LARGEST_RECORD + 1)):
        lines.append(line)
        size += len(line)
    return lines


def _batched(
    records: Iterator[tuple[int, bytes]], source: str, path: str, raw: BinaryIO | None = None
) -> Iterator[Batch]:
    lines: list[int] = []
    batch: list[bytes] = []
    size = 0
    for line, record in records:
        lines.append(line)
        batch.append(record)
        size += len(record)
        if size >= _BATCH_BYTES:
            yield Batch(source, path, lines, batch, _position(raw))
            lines, batch, size = [], [], 0
    if batch:
        yield Batch(source, path, lines, batch, _position(raw))


def _array_elements(path: str, file: Any) -> Iterator[tuple[int, bytes]]:
    """(line, bytes) of the elements of an array, or of objects that follow each other, without reading it whole."""
    decode = json.JSONDecoder(parse_int=str).raw_decode  # numbers of any length: only the end is looked for
    reader = codecs.getincrementaldecoder("utf-8-sig")()
    buffer, place, line = "", 0, 1
    at_end = False
    closing: str | None = None  # what ends the file's value: "]" of an array, "" where objects follow each other
    closed = False
    wanted = _BATCH_BYTES
    while True:
        space = _SPACE.match(buffer, place).end()
        line += buffer.count("\n", place, space)
        place = space
        if place < len(buffer):
            if closed:
                what = "more stands behind the end of the array, expected one array or one object a line"
                raise UnreadableInput(f"{path}, line {line}: {what}")
            if closing is None:
                closing = "]" if buffer[place] == "[" else ""
                place += len(closing)
                continue
            if buffer[place] == closing:
                closed = True
                place += 1
                continue
            try:
                _, end = decode(buffer, place)
                # A number at the end of the buffer may go on behind it; objects end with their bracket.
                if end < len(buffer) or at_end or buffer[end - 1] in '}]"':
                    yield line, buffer[place:end].encode("utf-8", "surrogatepass")
                    line += buffer.count("\n", place, end)
                    place, wanted = end, _BATCH_BYTES
                    continue
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 8
                if unfinished and not at_end and len(buffer) - place > _LARGEST_RECORD:
                    what = f"a record of more than {_LARGEST_RECORD >> 20} million characters"
                    raise UnreadableInput(f"{path}, line {line}: {what}") from error
                if at_end or not unfinished:
                    broken = line + buffer.count("\n", place, error.pos)
                    what = "it breaks off" if at_end and unfinished else "broken JSON"
                    raise UnreadableInput(f"{path}, line {broken}: {what} ({error.msg})") from error
            except RecursionError as error:
                raise UnreadableInput(f"{path}, line {line}: the JSON is nested too deeply") from error
        elif at_end:
            if closing and not closed:
                raise UnreadableInput(f"{path}, line {line}: it breaks off, the array is not closed")
            return
        try:
            data = file.read(wanted)
            more = reader.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise UnreadableInput(f"{path}, behind line {line}: not UTF-8 ({error.reason})") from error
        at_end = not data
        buffer, place = buffer[place:] + more, 0
        wanted = max(wanted, len(buffer))  # reading twice as much each time keeps long records cheap


def _hub_records(name: str) -> Iterator[tuple[int, bytes]]:
    """Rows of a data set of the Hub, `hub:owner/name` or `hub:owner/name@split` (split: train)."""
    datasets = _import_datasets(name)
    path, _, split = name[len(HUB) :].partition("@")
    try:
        rows = datasets.load_dataset(path, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield number, json.dumps(row, default=str).encode()
    except Exception as error:  # what datasets raises without a network is of many kinds
        raise UnreadableInput(f"{name} cannot be read from the Hub: {type(error).__name__}: {error}") from error


def _import_datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UnreadableInput(f"{name} needs the package datasets: pip install 'apar[data]'") from error
    return datasets
