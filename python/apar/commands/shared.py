"""Options and loading that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
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
    add_step_options(parser)
    parser.add_argument(
        "--max-pages", type=integer(1), metavar="N", help="KV pages (default: what the prompts could need)"
    )


def add_step_options(parser: Any) -> None:
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


def load_model(options: argparse.Namespace, path: str | None = None) -> tuple[Any, Any]:
    """The model of ``add_model_options``, or another one at ``path``, in its dtype and on its device."""
    from transformers.utils import logging

    from apar.loading import DEFAULT_MODEL, load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(
        path or options.model or DEFAULT_MODEL,
        dtype=None if options.dtype is None else dtype_named(options.dtype),
        device=options.device,
    )


def dtype_named(name: str) -> Any:
    import torch

    return getattr(torch, name)
