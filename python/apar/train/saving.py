"""Folders that appear whole or not at all, so that a full disk or a killed process leaves the last good one."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from apar.files import written_whole

# What writing may raise: torch and safetensors do not turn a full disk into an OSError.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


def unfinished_name(folder: Path) -> Path:
    """Where the files of ``folder`` are until they are complete; no other run looks there."""
    return folder.with_name(f".{folder.name}.unfinished")


def begin_folder(folder: Path) -> Path:
    """An empty folder to write to, for ``end_folder`` or ``discard_folder``."""
    discard_folder(folder)
    unfinished_name(folder).mkdir(parents=True)
    return unfinished_name(folder)


def end_folder(folder: Path) -> None:
    """Put what was written in the place of ``folder``."""
    unfinished = unfinished_name(folder)
    _flush(unfinished)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(unfinished, folder)


def discard_folder(folder: Path) -> None:
    shutil.rmtree(unfinished_name(folder), ignore_errors=True)


@contextlib.contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """A new folder to write to, whose files are moved to ``folder`` when the block ends well; other files there stay,
    but for those that `move_files` names.
    """
    result = folder / "result"
    unfinished = begin_folder(result)
    try:
        yield unfinished
        _flush(unfinished)
    except BaseException:
        discard_folder(result)
        raise
    move_files(unfinished, folder)
    unfinished.rmdir()


def move_files(source: Path, target: Path) -> None:
    """Move every file of a folder into another one. The old configuration goes first and the new one comes last:
    without it there is no model, so that nobody reads one that is half of each.

    What another model left there and would be read with this one, weights and a chat template, is removed.
    """
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").unlink(missing_ok=True)
    names = {path.name for path in source.iterdir()}
    for path in itertools.chain(target.glob("model*.safetensors*"), target.glob("chat_template.jinja")):
        if path.name not in names:
            path.unlink()
    for path in sorted(source.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, target / path.name)


def write_text_whole(path: Path, text: str) -> None:
    """Write a file; what was there stays if that fails."""
    with written_whole(path) as file:
        file.write(text.encode())


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))


def _flush(folder: Path) -> None:
    """Wait until the files are on the disk: what is renamed before may come back empty after a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
