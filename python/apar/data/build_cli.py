"""`apar data build` as a command."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_parser(commands: Any) -> None:
    from apar.data.build import BuildOptions
    from apar.data.rules import RULE_GROUPS, RULES

    parser = commands.add_parser(
        "build",
        help="make paragraph trees from chat data",
        description="Reads chat records and writes each answer as a tree: lists, headings and long paragraphs become "
        "details that a branch can write on its own. The text of a tree is the answer, byte for byte.",
        epilog="example: apar data build chat.jsonl more.json.gz hub:owner/name@train -o trees.jsonl --negatives 1",
    )
    parser.set_defaults(command=_build)
    default = BuildOptions()
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="JSON or JSON lines, also .gz, with messages, conversations or prompt and response; "
        "hub:owner/name[@split] for a data set of the Hub",
    )
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the trees, JSON lines; .gz compresses")
    cut = parser.add_argument_group("how answers are cut")
    cut.add_argument(
        "--rules",
        metavar="NAMES",
        help=f"comma between names, default all: {', '.join(RULE_GROUPS)}, or single ones: {', '.join(RULES)}",
    )
    cut.add_argument(
        "--max-depth",
        type=int,
        default=default.forks.max_depth,
        metavar="N",
        help=f"levels of details, 1 as in the paper (default {default.forks.max_depth})",
    )
    cut.add_argument(
        "--min-detail",
        type=int,
        default=default.forks.min_detail,
        metavar="N",
        help=f"characters that a detail must have (default {default.forks.min_detail})",
    )
    cut.add_argument(
        "--short-text",
        type=int,
        default=default.forks.short_text,
        metavar="N",
        help="answers of fewer characters have no paragraph split after its first sentence "
        f"(default {default.forks.short_text}, 0: all are split)",
    )
    cut.add_argument("--fork-references", action="store_true", help="fork also details that refer to their siblings")
    choice = parser.add_argument_group("what is written")
    choice.add_argument("--last-turn", action="store_true", help="of a conversation only the last answer, not each")
    choice.add_argument(
        "--negatives",
        type=float,
        metavar="RATIO",
        help="answers without a fork for each that forks, 1 as in the paper (default: all)",
    )
    choice.add_argument(
        "--heldout",
        type=float,
        default=default.heldout,
        metavar="SHARE",
        help=f"of the prompts, with all that are nearly the same on one side (default {default.heldout})",
    )
    choice.add_argument("--source", metavar="NAME", help="source of all records (default: the name of the file)")
    choice.add_argument("--seed", type=int, default=default.seed, metavar="N", help="of the choices (default 0)")
    choice.add_argument("--append", action="store_true", help="keep the trees that FILE has and add what is new")
    choice.add_argument("--strict", action="store_true", help="stop at the first malformed record")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _build(options: argparse.Namespace) -> int:
    from apar.data.build import BuildOptions, build, malformed_lines, report_lines
    from apar.data.forks import ForkOptions
    from apar.data.rules import RULES

    names = tuple(RULES) if options.rules is None else tuple(name.strip() for name in options.rules.split(","))
    chosen = BuildOptions(
        forks=ForkOptions(names, options.max_depth, options.min_detail, options.short_text, options.fork_references),
        last_only=options.last_turn,
        negatives=options.negatives,
        heldout=options.heldout,
        seed=options.seed,
        source=options.source,
        strict=options.strict,
        append=options.append,
        workers=options.workers,
    )
    report = build(options.inputs, options.out, chosen, progress=False if options.json else None)
    if options.json:
        print(json.dumps(report.to_dict()))
        return 0
    if report.malformed:
        print(malformed_lines(report), file=sys.stderr)
    print(report_lines(report))
    return 0
