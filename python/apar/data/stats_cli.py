"""`apar data stats` as a command."""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

from apar.pictures import check_picture


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "stats",
        help="what files of trees hold, and what their forks could save",
        description="Per source: how many answers fork, into how many details of what length, and how many steps fewer "
        "they take if all branches are written at once. Tokens are estimated unless a tokenizer is given.",
        epilog="example: apar data stats trees.jsonl --by model --plot shapes.png",
    )
    parser.set_defaults(command=_stats)
    parser.add_argument("files", nargs="+", metavar="FILE", help="files that `apar data build` or `synth` wrote")
    parser.add_argument(
        "--by", default="source", metavar="KEY", help="source (default), split, or a value of the records"
    )
    parser.add_argument("--only", metavar="KEY=VALUE", help="only records with this value")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder or hub id (default: an estimate)")
    parser.add_argument("--plot", metavar="FILE", help="draw the distributions to a PNG file")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _stats(options: argparse.Namespace) -> int:
    check_picture("--plot", options.plot, options.files)

    from apar.data.records import read_trees
    from apar.data.shape import estimate_tokens
    from apar.data.stats import draw, measure, table, tokenizer_counter

    count_tokens = tokenizer_counter(options.tokenizer) if options.tokenizer else estimate_tokens
    records = itertools.chain.from_iterable(read_trees(path) for path in options.files)
    if options.only is not None:
        key, equals, value = options.only.partition("=")
        if not equals:
            raise ValueError(f"--only: expected KEY=VALUE, got {options.only!r}")
        records = (record for record in records if record.value(key) == value)
    shapes = measure(records, by=options.by, count_tokens=count_tokens)
    summaries = {name: one.summary() for name, one in shapes.items()}
    if options.only is not None and not any(one.records for one in summaries.values()):
        raise ValueError(f"--only: no record has {options.only}")
    if options.by not in ("source", "split") and list(summaries) == [""]:
        raise ValueError(f"--by: no record has a value {options.by!r}")
    if options.plot:
        draw(shapes, summaries, options.plot)
    print(json.dumps({name: one.to_dict() for name, one in summaries.items()}) if options.json else table(summaries))
    return 0
