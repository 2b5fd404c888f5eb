"""`apar data`: its commands, each a module with `add_parser(commands)`."""

from __future__ import annotations

import importlib
from typing import Any

COMMANDS = ("apar.data.build_cli", "apar.data.stats_cli", "apar.data.synth.cli")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "data",
        description="Paragraph trees for tuning: text whose details can be written in parallel, marked as such.",
    )
    parts = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        importlib.import_module(module).add_parser(parts)
