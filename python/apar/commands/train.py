"""`apar train`: tune a model on paragraph trees."""

from __future__ import annotations

import argparse
import importlib.util
import os
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        description="Tune a model on paragraph trees, or train a new one, as a YAML file says (docs/training.md). "
        "`torchrun --nproc-per-node N -m apar train ...` uses N GPUs.",
        epilog="example: apar train config.yaml rows=2 accumulate=16",
    )
    parser.set_defaults(command=_train)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="in place of what the file says")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the output folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")


def _train(options: argparse.Namespace) -> int:
    missing = [name for name in ("accelerate", "yaml") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'train: {" and ".join(missing)} not found; expected the extra: pip install "apar[train]"')
    from apar.train.config import load_config
    from apar.train.run import train

    config = load_config(options.config, options.changes)
    folder = train(config, resume=options.resume, overwrite=options.overwrite)
    if os.environ.get("RANK", "0") == "0":
        print(folder)
    return 0
