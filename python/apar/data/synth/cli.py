"""`apar data synth`."""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "synth",
        help="make up prompts with facts and their right answers",
        description="Make up prompts that carry facts about people, towns, products ... and ask for an overview, a "
        "comparison, a report, instructions, or something short, with the right answers as paragraph trees.",
        epilog="example: apar data synth --count 1000 --seed 1 --split heldout -o heldout.jsonl",
    )
    parser.set_defaults(command=_synth)
    parser.add_argument("-o", "--output", metavar="FILE", help="JSONL, or .jsonl.gz (default: the standard output)")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="records (default 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed, the same file (default 0)")
    parser.add_argument(
        "--split", choices=("train", "heldout"), default="train", help="held out: names and wordings never trained on"
    )
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="only these kinds of requests (default: all)")
    parser.add_argument(
        "--max-items", type=int, metavar="N", help="at most so many things, or of each group (default: 5, in groups 3)"
    )
    parser.add_argument(
        "--requests", type=int, default=1, metavar="N", help="so many records about the same facts (default 1)"
    )


def _synth(options: argparse.Namespace) -> int:
    from apar.data.records import json_line, write_trees
    from apar.data.synth.generate import synth_records
    from apar.progress import progress_bar

    if options.count < 0:
        raise ValueError(f"--count: expected 0 or more, got {options.count}")
    records = synth_records(
        options.seed,
        split=options.split,
        kinds=options.kinds,
        max_items=options.max_items,
        requests=options.requests,
    )
    records = itertools.islice(records, options.count)
    if options.output is None:
        for record in records:
            sys.stdout.buffer.write(json_line(record.to_dict()))
        return 0
    with progress_bar(options.count, "records", None) as bar:

        def counted() -> Any:
            for number, record in enumerate(records, 1):
                yield record
                bar.update_to(number)

        written = write_trees(options.output, counted())
    print(f"{written} records in {options.output}")
    return 0
