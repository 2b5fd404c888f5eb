"""`apar info`: what this installation is and finds."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        description="What this installation was built for and what it finds on this machine.",
    )
    parser.set_defaults(command=_info)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _info(options: argparse.Namespace) -> int:
    from apar import info

    found = info.collect()
    print(json.dumps(found) if options.json else info.render(found))
    return 0
