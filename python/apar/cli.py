"""The command line: `apar generate`, `apar replay`, `apar info`."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 1 after an error, 2 on a wrong command line, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (ValueError, TypeError, OSError, ArithmeticError, MemoryError, RuntimeError) as error:
        print(f"apar: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("apar: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apar",
        description="Tree decoding on top of transformers: models that write the parts of an answer in parallel.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_replay(commands)
    _add_info(commands)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        help="answer prompts with a model",
        description="Answer prompts. A model that was tuned to fork writes the branches of its answer in parallel, "
        "which a terminal shows while they grow; any other model answers in a single branch.",
        epilog='example: apar generate --model ./my-model "Give three tips for a good night\'s sleep."',
    )
    parser.set_defaults(command=_generate)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; without any, one is read from the input")
    _add_model_options(parser, required=True)
    text = parser.add_argument_group("what is written")
    text.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="tokens along a path (default 512)")
    text.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the likeliest token"
    )
    text.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest tokens of mass P"
    )
    text.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens (0: all)")
    text.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    text.add_argument("--max-depth", type=int, default=2, metavar="N", help="levels of branches (default 2)")
    text.add_argument("--max-children", type=int, default=64, metavar="N", help="forks of one branch (default 64)")
    text.add_argument("--stop", action="append", metavar="TEXT", help="end a branch where it writes TEXT (repeatable)")
    text.add_argument("--system", metavar="TEXT", help="system message, for models with a chat template")
    text.add_argument("--raw", action="store_true", help="do not wrap prompts into the model's chat template")
    cost = parser.add_argument_group("how it is decoded (never changes the text)")
    cost.add_argument("--no-fork", action="store_true", help="one branch at a time: the sequential twin")
    _add_room_options(cost)
    show = parser.add_argument_group("what is shown")
    show.add_argument("--tree", action="store_true", help="print the answer as a tree of branches")
    show.add_argument("--stats", action="store_true", help="print steps, branches, pages and time, too")
    show.add_argument("--json", action="store_true", help="print one JSON object per prompt and nothing else")


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="decode trees of given shapes and report what parallel branches save",
        description="Decode trees of real shapes with forced tokens: steps, time and memory of tree decoding against "
        "one branch at a time, on any model, trained or not. Without --model a Llama with random weights is made up; "
        "without --trees one real tree is built in.",
        epilog="example: apar replay --trees bench/trees/vicuna80.jsonl --limit 8",
    )
    parser.set_defaults(command=_replay)
    _add_model_options(parser, required=False)
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
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N trees of the file")
    parser.add_argument("--one-by-one", action="store_true", help="one tree after the other instead of all at once")
    parser.add_argument("--no-compare", action="store_true", help="leave the sequential twin out")
    _add_room_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="version, torch, CPU features, devices",
        description="What this installation was built for and what it finds on this machine.",
    )
    parser.set_defaults(command=_info)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _add_model_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--model", required=required, metavar="PATH", help="folder or hub id of a transformers model")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as saved)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: cpu)")


def _add_room_options(parser: Any) -> None:
    parser.add_argument(
        "--max-live-branches", type=int, default=16, metavar="N", help="branches of a prompt at once (16)"
    )
    parser.add_argument("--page-size", type=int, default=16, metavar="N", help="tokens per KV page (default 16)")
    parser.add_argument("--max-pages", type=int, metavar="N", help="KV pages (default: what the prompts could need)")


def _generate(options: argparse.Namespace) -> int:
    from apar.generate import generate
    from apar.live import LiveBranches

    texts = options.prompts or [sys.stdin.read()]
    model, tokenizer = _load(options)
    if options.system is not None and (options.raw or tokenizer.chat_template is None):
        raise ValueError("--system: needs a model with a chat template, and no --raw")
    prompts: list[Any] = list(texts)
    if tokenizer.chat_template is not None and not options.raw:
        system = [] if options.system is None else [{"role": "system", "content": options.system}]
        prompts = [[*system, {"role": "user", "content": text}] for text in texts]
    live = None if options.json else LiveBranches()
    outputs = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        fork=not options.no_fork,
        max_depth=options.max_depth,
        max_children=options.max_children,
        max_live_branches=options.max_live_branches,
        stop=options.stop,
        on_event=live if live is not None and live.enabled else None,
        page_size=options.page_size,
        max_pages=options.max_pages,
        progress=False if live is not None and live.enabled else None,
    )
    if live is not None:
        live.clear()
    for number, output in enumerate(outputs):
        if options.json:
            print(output.to_json())
            continue
        if len(outputs) > 1:
            print(f"{'' if number == 0 else chr(10)}── {texts[number].strip().splitlines()[0][:70]}")
        print(output.tree.render(color=sys.stdout.isatty()) if options.tree else output.text)
        if options.stats:
            print(_stats_line(output.stats), file=sys.stderr)
    return 0


def _stats_line(stats: Any) -> str:
    return (
        f"{stats.tokens} tokens in {stats.steps} steps ({stats.step_ratio:.2f} tokens a step, "
        f"{stats.peak_branches} branches at once), {stats.peak_pages} pages, {stats.seconds:.2f} s"
    )


def _replay(options: argparse.Namespace) -> int:
    from apar.live import LiveBranches
    from apar.replay import DEMO_TREE, random_llama, read_trees, replay

    if options.trees is None:
        trees, prompt_tokens = [DEMO_TREE], [32]
    else:
        records = list(itertools.islice(read_trees(options.trees, options.rule), options.limit))
        trees = [record["tree"] for record in records]
        prompt_tokens = [max(1, int(record.get("prompt_tokens", 32))) for record in records]
    if options.model is not None:
        model, _ = _load(options)
        described = options.model
    else:
        model = random_llama(**({} if options.dtype is None else {"dtype": _dtype(options.dtype)}))
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


def _info(options: argparse.Namespace) -> int:
    from apar import info

    found = info.collect()
    print(json.dumps(found) if options.json else info.render(found))
    return 0


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    from transformers.utils import logging

    from apar.loading import load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(options.model, dtype=None if options.dtype is None else _dtype(options.dtype), device=options.device)


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)
