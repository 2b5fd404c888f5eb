"""Files that appear whole or not at all, and whether one can be written at all."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file for writing that takes its place when the block ends well, and leaves no trace when it does not.

    Raises:
        IsADirectoryError, ValueError: the path is that of a folder or a device. OSError: it cannot be written.
    """
    path = real_target(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with named_errors(path), open(unfinished, "wb") as file:
            if path.exists():
                shutil.copymode(path, unfinished)
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as compressed:
                    yield compressed
            else:
                yield file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def real_target(path: str | os.PathLike[str]) -> Path:
    """The file that a path stands for, behind symbolic links, which stay.

    Raises:
        IsADirectoryError: it is a folder. FileNotFoundError: the folder for it is not there. ValueError: it is a device
            or a pipe, which a file would take the place of.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a device or a pipe, expected the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def is_same_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two names, of files that are there or not yet, stand for one file."""
    if os.path.exists(path) and os.path.exists(other):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Adds the path to an error of the disk that names none, as "No space left on device" does."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_output(option: str, path: str | None, others: Iterable[str | None] = ()) -> None:
    """Raises ValueError where a file cannot be written: now, and not when all the work is done.

    others: files that the same command reads or writes, which it must not be.
    """
    if path is None:
        return
    if any(other is not None and is_same_file(path, other) for other in others):
        raise ValueError(f"{option}: {path} is another file of this command, too, expected one of its own")
    try:
        folder = real_target(path).parent
    except IsADirectoryError as error:
        raise ValueError(f"{option}: expected a file, but {path} is a folder") from error
    except FileNotFoundError as error:
        raise ValueError(f"{option}: {path}: there is no such folder") from error
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option}: nothing can be written to the folder of {path} ({error})") from error
