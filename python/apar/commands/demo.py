"""`apar demo`: a prompt decoded by the model that comes with apar, branches shown live, timed against its twin."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from apar.commands.shared import add_model_options, integer, load_model

SHOWN_STEP_SECONDS = 0.06
"""A step takes this long where it is shown: the small model writes faster than anyone can read."""

PROMPT = """\
Facts:
## North
Anna works as a baker and lives in Oslo. Karim works as a pilot and lives in Lima.

## South
Selma works as a nurse and lives in Ghent. Tom works as a judge and lives in Dublin.

List all people by team."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        description="Decode a prompt that carries facts with the small model that comes with apar: its branches appear "
        "in the terminal, and the same text is timed with branches in parallel and one at a time.",
    )
    parser.set_defaults(command=_demo)
    parser.add_argument("prompt", nargs="?", default=PROMPT, metavar="PROMPT", help="another prompt")
    add_model_options(parser, default="the small model that comes with apar")
    parser.add_argument("--runs", type=integer(1), default=7, metavar="N", help="timed runs of each kind (default 7)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _demo(options: argparse.Namespace) -> int:
    from apar.generate import generate
    from apar.live import LiveBranches

    if not options.prompt.strip():
        raise ValueError("PROMPT: it is empty, expected a text")
    model, tokenizer = load_model(options)
    prompt: Any = options.prompt
    if tokenizer.chat_template is not None:
        prompt = [{"role": "user", "content": options.prompt}]
    if not options.json:
        print(f"{options.prompt}\n", flush=True)
        live = LiveBranches()
        if live.enabled:
            generate(model, tokenizer, prompt, on_event=_Slowly(live))
            print()
            # The lines of the branches stay on the screen, above the text.
    outputs = {}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for run in range(options.runs + 1):
        for fork in seconds:
            started_at = time.perf_counter()
            [outputs[fork]] = generate(model, tokenizer, prompt, fork=fork)
            if run:  # the first one warms up
                seconds[fork].append(time.perf_counter() - started_at)
    parallel, sequential = outputs[True], outputs[False]
    medians = {fork: statistics.median(times) for fork, times in seconds.items()}
    report = {
        "text": parallel.text,
        "same_text": parallel.text == sequential.text,
        "branches": len(parallel.branches),
        "steps": parallel.stats.steps,
        "sequential_steps": sequential.stats.steps,
        "seconds": medians[True],
        "sequential_seconds": medians[False],
    }
    print(json.dumps(report) if options.json else _render(parallel, report, options.runs))
    return 0


class _Slowly:
    """Hands events on, the events of a step all at once, at a pace that can be followed."""

    def __init__(self, show: Any) -> None:
        self._show = show
        self._step = -1

    def __call__(self, event: Any) -> None:
        if event.step != self._step:
            self._step = event.step
            time.sleep(SHOWN_STEP_SECONDS)
        self._show(event)


def _render(output: Any, report: dict[str, Any], runs: int) -> str:
    import torch

    from apar.live import is_terminal

    # A terminal has seen the branches grow.
    shown = output.text if is_terminal(sys.stdout) else output.tree.render()
    rows = [
        ("", "branches in parallel", "one at a time"),
        ("steps", f"{report['steps']}", f"{report['sequential_steps']}"),
        ("time", f"{1e3 * report['seconds']:.0f} ms", f"{1e3 * report['sequential_seconds']:.0f} ms"),
    ]
    # Where two tokens are as likely but for the last bits of a sum, that of several rows may come out another way.
    differs = (
        [] if report["same_text"] else ["One at a time the text differs: somewhere two tokens were all but equal."]
    )
    return "\n".join(
        [
            shown,
            "",
            *(f"{name:<8}{parallel:>22}{sequential:>18}" for name, parallel, sequential in rows),
            "",
            f"{report['branches']} branches: {report['sequential_steps'] / report['steps']:.2f}x fewer steps, "
            f"{report['sequential_seconds'] / report['seconds']:.2f}x faster on this machine "
            f"({_counted(torch.get_num_threads(), 'thread')}, median of {_counted(runs, 'run')})",
            *differs,
        ]
    )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
