"""Options, loading and checks that several commands share."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apar.page_sizes import DEFAULT_PAGE_SIZE, PAGE_SIZES


def add_model_options(parser: argparse.ArgumentParser, *, default: str) -> None:
    """``default``: which model it is without --model, for the help."""
    parser.add_argument("--model", metavar="PATH", help=f"folder or hub id of a model (default: {default})")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as saved)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cpu)")


def add_room_options(parser: Any) -> None:
    parser.add_argument(
        "--max-live-branches", type=integer(1), default=16, metavar="N", help="branches of a prompt at once (16)"
    )
    parser.add_argument(
        "--page-size",
        type=int,
        choices=PAGE_SIZES,
        default=DEFAULT_PAGE_SIZE,
        metavar="N",
        help=f"tokens per KV page (default {DEFAULT_PAGE_SIZE})",
    )
    parser.add_argument(
        "--max-pages", type=integer(1), metavar="N", help="KV pages (default: what the prompts could need)"
    )


def integer(minimum: int) -> Callable[[str], int]:
    """For ``type=`` of an argument: an integer of at least ``minimum``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}, got {text!r}")
        return value

    return parse


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    from transformers.utils import logging

    from apar.loading import DEFAULT_MODEL, load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(
        options.model or DEFAULT_MODEL,
        dtype=None if options.dtype is None else dtype_named(options.dtype),
        device=options.device,
    )


def dtype_named(name: str) -> Any:
    import torch

    return getattr(torch, name)


def check_output(option: str, path: str | None) -> None:
    """Raises ValueError where a file cannot be written: now, and not when all the work is done."""
    if path is None:
        return
    if Path(path).is_dir():
        raise ValueError(f"{option}: expected a file, but {path} is a folder")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{option}: {path}: there is no such folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option}: nothing can be written to the folder of {path} ({error})") from error


def check_picture(option: str, path: str | None) -> None:
    """`check_output` for a picture: also raises ValueError where nothing can be drawn."""
    from apar.pictures import MISSING, can_draw

    check_output(option, path)
    if path is not None and not can_draw():
        raise ValueError(f"{option}: {MISSING}")
