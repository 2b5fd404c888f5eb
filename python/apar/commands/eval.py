"""`apar eval`: a prompt set answered in parallel and one branch after the other, compared."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import time
from typing import Any

from apar.commands.shared import add_model_options, add_step_options, integer, load_model
from apar.files import check_output, written_whole
from apar.pictures import check_picture

SAVED_EVERY_SECONDS = 60


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        description="Answers a prompt set three ways, greedily: branches at once, the same one branch after the other, "
        "and with the model before tuning, if one is given. Reports steps, time, KV pages, how often answers fork per "
        "category, how far the texts agree, and, where right answers are known, how many are exactly right. When it is "
        "interrupted it reports the prompts that were answered.",
        epilog="example: apar eval heldout.jsonl --model ./tuned --base ./plain --limit 100 --plot eval.png",
    )
    parser.set_defaults(command=_eval)
    parser.add_argument(
        "prompts",
        nargs="+",
        metavar="FILE",
        help="questions of Vicuna-Bench or MT-Bench, trees of `apar data`, prompts or chats, as JSON lines or JSON",
    )
    add_model_options(parser, default="the small model that comes with apar")
    parser.add_argument("--base", metavar="PATH", help="the model before tuning, decoded as it is")
    parser.add_argument("--split", choices=("train", "heldout"), help="of files of trees only those of this split")
    parser.add_argument("--limit", type=integer(1), metavar="N", help="only the first N prompts of each file")
    parser.add_argument(
        "--check",
        choices=("auto", "always", "never"),
        default="auto",
        help="compare answers with those of a file of trees: auto, those that `apar data synth` made up",
    )
    parser.add_argument("--max-new-tokens", type=integer(1), default=512, metavar="N", help="tokens along a path (512)")
    parser.add_argument(
        "--max-answer-tokens",
        type=integer(1),
        default=4096,
        metavar="N",
        help="tokens of an answer, all branches together, which is cut off there (4096)",
    )
    parser.add_argument(
        "--max-depth", type=integer(1), metavar="N", help="levels of branches, the trunk counted (the model's, or 2)"
    )
    add_step_options(parser)
    parser.add_argument(
        "--at-once", type=integer(1), default=1, metavar="N", help="prompts decoded together (1: its own time each)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw a picture to a PNG file")
    parser.add_argument("--out", metavar="FILE", help="write all numbers and answers to a JSON file")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _eval(options: argparse.Namespace) -> int:
    check_picture("--plot", options.plot, [*options.prompts, options.out])
    check_output("--out", options.out, options.prompts)

    from apar.data.inputs import check_inputs

    check_inputs(options.prompts)

    from apar.data.synth.check import check_answer
    from apar.eval.run import EvalOptions, evaluate

    prompts = _read(options)
    chosen = EvalOptions(
        max_new_tokens=options.max_new_tokens,
        max_answer_tokens=options.max_answer_tokens,
        max_depth=options.max_depth,
        max_live_branches=options.max_live_branches,
        page_size=options.page_size,
        at_once=options.at_once,
    )
    model = load_model(options)
    base = None if options.base is None else load_model(options, options.base)
    results = _Results(options)
    try:
        evaluate(
            *model,
            prompts,
            base=base,
            checker=check_answer,
            options=chosen,
            on_answers=results.update,
            progress=False if options.json else None,
        )
    finally:  # whatever ended it: what was answered is kept
        results.finish()
    return 0


def _read(options: argparse.Namespace) -> list[Any]:
    """The prompts of all files; of those whose answers are not to be checked without the right answer."""
    from apar.eval.prompts import read_prompts

    prompts = []
    for path in options.prompts:
        found = list(itertools.islice(read_prompts(path, options.split), options.limit))
        if not found:
            split = "" if options.split is None else f" of the split {options.split}"
            raise ValueError(f"FILE: expected at least one prompt{split}, got none in {path}")
        prompts += found
    if options.check == "always" and not any(prompt.record for prompt in prompts):
        raise ValueError("--check always: expected files of trees, but no prompt comes with its right answer")
    checked = {"always": lambda record: True, "auto": lambda record: record.source == "synth"}.get(options.check)
    return [
        prompt
        if prompt.record is None or (checked is not None and checked(prompt.record))
        else dataclasses.replace(prompt, record=None)
        for prompt in prompts
    ]


class _Results:
    """Where the report goes: to the files while it grows and at the end, then to the terminal."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._report: Any = None
        self._saved_at = time.monotonic()

    def update(self, report: Any) -> None:
        self._report = report
        if time.monotonic() - self._saved_at > SAVED_EVERY_SECONDS:
            with contextlib.suppress(OSError):  # perhaps the disk has room again at the end
                self._save()
            self._saved_at = time.monotonic()

    def finish(self) -> None:
        from apar.eval.report import draw, table

        if self._report is None:
            return
        try:  # one of the two may fail: a pipe that is closed, a disk that is full
            print(json.dumps(self._numbers()) if self._options.json else table(self._report), flush=True)
        finally:
            self._save()
        if self._options.plot is not None:
            draw(self._report, self._options.plot)

    def _save(self) -> None:
        from apar.data.records import json_line

        if self._options.out is None:
            return
        with written_whole(self._options.out) as file:
            file.write(json_line(self._numbers(texts=True)))

    def _numbers(self, *, texts: bool = False) -> dict[str, Any]:
        given = {name: value for name, value in vars(self._options).items() if name not in ("command", "json", "plot")}
        return {"options": given, **self._report.to_dict(texts=texts)}
