"""`apar data build` as a command."""

from __future__ import annotations

import argparse
import json
import signal
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
    _add_number(
        cut,
        "--max-depth",
        default.forks.max_depth,
        "levels of details, 1 as in the paper; the trunk is not counted, so that `apar generate --max-depth`, which "
        "counts it, needs one more",
    )
    _add_number(cut, "--min-detail", default.forks.min_detail, "characters that a detail must have")
    _add_number(
        cut,
        "--short-text",
        default.forks.short_text,
        "answers of fewer characters have no paragraph split after its first sentence; 0: all are split",
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
    _add_number(
        choice,
        "--heldout",
        default.heldout,
        "share of the prompts, with all that are nearly the same on one side",
        metavar="SHARE",
    )
    choice.add_argument(
        "--source", metavar="NAME", help="source of all records (default: their own, else the name of the file)"
    )
    _add_number(choice, "--seed", default.seed, "of the choices")
    choice.add_argument("--append", action="store_true", help="keep the trees that FILE has and add what is new")
    choice.add_argument("--strict", action="store_true", help="stop at the first malformed record")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_number(group: Any, name: str, default: int | float, meaning: str, metavar: str = "N") -> None:
    group.add_argument(
        name, type=type(default), default=default, metavar=metavar, help=f"{meaning} (default {default})"
    )


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
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        report = build(options.inputs, options.out, chosen, progress=False if options.json else None)
    finally:
        signal.signal(signal.SIGTERM, before)
    if options.json:
        print(json.dumps(report.to_dict()))
        return 0
    if report.malformed:
        print(malformed_lines(report), file=sys.stderr)
    print(report_lines(report))
    return 0


def _terminate(*_: object) -> None:
    """As after Ctrl-C, nothing half done stays."""
    raise SystemExit(128 + signal.SIGTERM)
