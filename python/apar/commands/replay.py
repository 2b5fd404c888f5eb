"""`apar replay`: decode trees of given shapes."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from typing import Any

from apar.commands.shared import add_model_options, add_room_options, dtype_named, integer, load_model


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        description="Decode trees of real shapes with forced tokens: steps, time and memory of tree decoding against "
        "one branch at a time, on any model, trained or not. Without --model a Llama with random weights is made up; "
        "without --trees one real tree is built in.",
        epilog="example: apar replay --trees bench/trees/vicuna80.jsonl --limit 8",
    )
    parser.set_defaults(command=_replay)
    add_model_options(parser, default="a Llama of random weights")
    parser.add_argument(
        "--trees",
        metavar="FILE",
        help='trees, one JSON object a line: {"prompt_tokens": 9, "apar": [12, [30], 8, [25], 4]}',
    )
    parser.add_argument(
        "--rule",
        choices=("apar", "nested"),
        default="apar",
        help="which of a record's trees: the paper's rule or nested",
    )
    parser.add_argument("--limit", type=integer(1), metavar="N", help="only the first N trees of the file")
    parser.add_argument("--one-by-one", action="store_true", help="one tree after the other instead of all at once")
    parser.add_argument("--no-compare", action="store_true", help="leave the sequential twin out")
    add_room_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _replay(options: argparse.Namespace) -> int:
    from apar.live import LiveBranches
    from apar.random_model import random_llama
    from apar.replay import replay
    from apar.shapes import DEMO_TREE, read_shapes

    if options.trees is None:
        trees, prompt_tokens = [DEMO_TREE], [32]
    else:
        records = list(itertools.islice(read_shapes(options.trees, options.rule), options.limit))
        trees = [record["tree"] for record in records]
        prompt_tokens = [max(1, int(record.get("prompt_tokens", 32))) for record in records]
    if not trees:
        raise ValueError(f"--trees: expected at least one tree, got none in {options.trees}")
    if options.model is not None:
        model, _ = load_model(options)
        described = options.model
    else:
        model = random_llama(**({} if options.dtype is None else {"dtype": dtype_named(options.dtype)}))
        model = model.to(options.device) if options.device else model
        parameters = sum(parameter.numel() for parameter in model.parameters())
        described = f"a Llama of {parameters / 1e6:.0f}M random parameters"
    live = LiveBranches(show_text=False)
    live.enabled &= not options.json and len(trees) == 1
    groups = [([tree], [length]) for tree, length in zip(trees, prompt_tokens, strict=True)]
    if not options.one_by_one:
        groups = [(trees, prompt_tokens)]
    reports = [
        replay(
            model,
            group,
            prompt_tokens=lengths,
            compare=not options.no_compare,
            max_live_branches=options.max_live_branches,
            page_size=options.page_size,
            max_pages=options.max_pages,
            on_event=live if live.enabled else None,
        )
        for group, lengths in groups
    ]
    if options.json:
        print(json.dumps(reports[0].to_dict() if len(reports) == 1 else [report.to_dict() for report in reports]))
    else:
        print(_replay_table(reports, f"{len(trees)} tree{'s' * (len(trees) > 1)} on {described}"))
    return 0


def _replay_table(reports: Sequence[Any], title: str) -> str:
    from apar.replay import add_stats

    tree = add_stats([report.tree for report in reports])
    columns = [("branches in parallel", tree)]
    if reports[0].sequential is not None:
        columns.append(("one at a time", add_stats([report.sequential for report in reports])))
    rows = [
        ("steps", lambda stats: f"{stats.steps:,}"),
        ("tokens", lambda stats: f"{stats.tokens:,}"),
        ("decoding", lambda stats: f"{stats.decode_seconds:.2f} s"),
        ("  outside the model", lambda stats: f"{stats.overhead_us_per_step:.0f} us a step"),
        ("prefill", lambda stats: f"{stats.prefill_seconds:.2f} s"),
        ("KV read", lambda stats: f"{stats.kv_bytes_read / 1e6:,.1f} MB"),
        ("  without sharing reads", lambda stats: f"{stats.kv_bytes_read_per_branch / 1e6:,.1f} MB"),
        ("peak pages", lambda stats: f"{stats.peak_pages:,}"),
        ("peak branches", lambda stats: f"{stats.peak_branches:,}"),
    ]
    lines = [title, "", " " * 24 + "".join(f"{name:>22}" for name, _ in columns)]
    lines += [f"{name:<24}" + "".join(f"{show(stats):>22}" for _, stats in columns) for name, show in rows]
    if len(columns) == 2:
        sequential = columns[1][1]
        lines += [
            "",
            f"{sequential.steps / tree.steps:.2f}x fewer steps, "
            f"{sequential.decode_seconds / tree.decode_seconds:.2f}x faster, "
            f"{sequential.kv_bytes_read / max(1, tree.kv_bytes_read):.2f}x less KV read",
        ]
    return "\n".join(lines)
