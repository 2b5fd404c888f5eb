"""`apar eval`: a prompt set answered in parallel and one branch after the other, compared."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from apar.commands.shared import add_model_options, load_model


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        description="Answers a prompt set three ways, greedily: branches at once, the same one branch after the other, "
        "and with the model before tuning, if one is given. Reports steps, time, KV pages, how often answers fork per "
        "category, how far the texts agree, and, where right answers are known, how many are exactly right.",
        epilog="example: apar eval heldout.jsonl --model ./tuned --base ./plain --limit 100 --plot eval.png",
    )
    parser.set_defaults(command=_eval)
    parser.add_argument(
        "prompts",
        nargs="+",
        metavar="FILE",
        help="JSON lines: questions of Vicuna-Bench or MT-Bench, trees of `apar data`, prompts or messages",
    )
    add_model_options(parser, default="the small model that comes with apar")
    parser.add_argument("--base", metavar="PATH", help="the model before tuning, decoded as it is")
    parser.add_argument("--split", choices=("train", "heldout"), help="of files of trees only those of this split")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts of each file")
    parser.add_argument(
        "--check",
        choices=("auto", "always", "never"),
        default="auto",
        help="compare answers with those of a file of trees: auto, those that `apar data synth` made up",
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="tokens along a path (512)")
    parser.add_argument(
        "--max-depth", type=int, metavar="N", help="levels of branches, the trunk counted (the model's, or 2)"
    )
    parser.add_argument(
        "--max-live-branches", type=int, default=16, metavar="N", help="branches of a prompt at once (16)"
    )
    parser.add_argument("--page-size", type=int, default=16, metavar="N", help="tokens per KV page (16)")
    parser.add_argument(
        "--at-once", type=int, default=1, metavar="N", help="prompts decoded together (1: its own time each)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw a picture to a PNG file")
    parser.add_argument("--out", metavar="FILE", help="write all numbers and answers to a JSON file")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _eval(options: argparse.Namespace) -> int:
    from apar.data.records import written_whole
    from apar.data.synth.check import check_answer
    from apar.eval.prompts import read_prompts
    from apar.eval.report import draw, table
    from apar.eval.run import EvalOptions, evaluate

    prompts = [
        prompt
        for path in options.prompts
        for prompt in itertools.islice(read_prompts(path, options.split), options.limit)
    ]
    if not prompts:
        raise ValueError(f"no prompt in {', '.join(options.prompts)}")
    chosen = EvalOptions(
        options.max_new_tokens, options.max_depth, options.max_live_branches, options.page_size, options.at_once
    )
    for path in (options.plot, options.out):
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no such folder")
    checks = options.check == "always" or (
        options.check == "auto" and any(prompt.record and prompt.record.source == "synth" for prompt in prompts)
    )
    model = load_model(options)
    base = None
    if options.base is not None:
        base = load_model(argparse.Namespace(**{**vars(options), "model": options.base}))
    report = evaluate(
        *model,
        prompts,
        base=base,
        checker=check_answer if checks else None,
        options=chosen,
        progress=False if options.json else None,
    )
    if options.out:
        with written_whole(options.out) as file:
            file.write(json.dumps(report.to_dict(texts=True), ensure_ascii=False, indent=1).encode())
    if options.plot:
        draw(report, options.plot)
    print(json.dumps(report.to_dict()) if options.json else table(report))
    return 0
