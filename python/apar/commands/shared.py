"""Options and loading that several commands share."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_model_options(parser: argparse.ArgumentParser, *, default: str) -> None:
    """``default``: which model it is without --model, for the help."""
    parser.add_argument("--model", metavar="PATH", help=f"folder or hub id of a model (default: {default})")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as saved)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cpu)")


def add_room_options(parser: Any) -> None:
    parser.add_argument(
        "--max-live-branches", type=int, default=16, metavar="N", help="branches of a prompt at once (16)"
    )
    parser.add_argument("--page-size", type=int, default=16, metavar="N", help="tokens per KV page (default 16)")
    parser.add_argument("--max-pages", type=int, metavar="N", help="KV pages (default: what the prompts could need)")


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
