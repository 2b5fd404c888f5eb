"""`apar generate`: answer prompts with a model."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from apar.commands.shared import add_model_options, add_room_options, integer, load_model


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        description="Answer prompts. A model that was tuned to fork writes the branches of its answer in parallel, "
        "which a terminal shows while they grow; any other model answers in a single branch.",
        epilog='example: apar generate --model ./my-model "Give three tips for a good night\'s sleep." '
        "The model that comes with apar only writes about facts that the prompt carries; see `apar demo`.",
    )
    parser.set_defaults(command=_generate)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts; without any, one is read from the input")
    add_model_options(parser, default="the small model that comes with apar")
    text = parser.add_argument_group("what is written")
    text.add_argument(
        "--max-new-tokens", type=integer(1), default=512, metavar="N", help="tokens along a path (default 512)"
    )
    text.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) takes the likeliest token"
    )
    text.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest tokens of mass P"
    )
    text.add_argument(
        "--top-k", type=integer(0), default=0, metavar="K", help="sample from the K likeliest tokens (0: all)"
    )
    text.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    text.add_argument(
        "--max-depth",
        type=integer(1),
        metavar="N",
        help="levels of branches, the trunk counted (default: the model's, or 2)",
    )
    text.add_argument(
        "--max-children", type=integer(0), default=64, metavar="N", help="forks of one branch (default 64)"
    )
    text.add_argument("--stop", action="append", metavar="TEXT", help="end a branch where it writes TEXT (repeatable)")
    text.add_argument("--system", metavar="TEXT", help="system message, for models with a chat template")
    text.add_argument("--raw", action="store_true", help="do not wrap prompts into the model's chat template")
    text.add_argument("--kv-dtype", choices=("fp8",), help="keys and values in 8 bits (default: the model's dtype)")
    cost = parser.add_argument_group("how it is decoded (never changes the text)")
    cost.add_argument("--no-fork", action="store_true", help="one branch at a time: the sequential twin")
    add_room_options(cost)
    show = parser.add_argument_group("what is shown")
    show.add_argument("--tree", action="store_true", help="print the answer as a tree of branches")
    show.add_argument("--stats", action="store_true", help="print steps, branches, pages and time, too")
    show.add_argument("--json", action="store_true", help="print one JSON object per prompt and nothing else")


def _generate(options: argparse.Namespace) -> int:
    from apar.generate import generate
    from apar.live import LiveBranches, uses_color
    from apar.sampling import Sampling

    texts = options.prompts or [_read_prompt()]
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ValueError(f"PROMPT: prompt {number} is empty, expected a text")
    Sampling(options.temperature, options.top_p, options.top_k)  # an error now and not after the model was read
    model, tokenizer = load_model(options)
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
        kv_dtype=options.kv_dtype,
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
        print(output.tree.render(color=uses_color(sys.stdout)) if options.tree else output.text)
        if options.stats:
            print(_stats_line(output.stats), file=sys.stderr)
    return 0


def _read_prompt() -> str:
    """The prompt on the standard input, without the line break at its end."""
    if sys.stdin is None:
        raise ValueError("PROMPT: expected one, or one on the standard input, which is closed")
    if sys.stdin.isatty():
        print("Write the prompt and end it with Ctrl-D.", file=sys.stderr)
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"PROMPT: expected {error.encoding} on the standard input ({error})") from error


def _stats_line(stats: Any) -> str:
    return (
        f"{stats.tokens} tokens in {stats.steps} steps ({stats.step_ratio:.2f} tokens a step, "
        f"{stats.peak_branches} branches at once), {stats.peak_pages} pages, {stats.seconds:.2f} s"
    )
