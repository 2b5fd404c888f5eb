"""How often is the default model right, and does it fork where it should?

Decodes held-out prompts (names and wordings that training never had) with branches in parallel and one at a time, and
compares every detail with the facts. A prompt has one right answer; a detail is right when it is that answer's.

    python -m bench.default_model                     # the model that comes with apar, 1,000 prompts
    python -m bench.default_model --model build/default-model/second --count 200 --show-wrong 5
    python -m bench.default_model --kinds which yes_no
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apar
from apar.data.synth import KINDS, check_answer, synth_records
from apar.eval import EvalOptions, EvalPrompt, EvalReport, evaluate
from apar.eval.report import PARALLEL, SEQUENTIAL
from apar.loading import DEFAULT_MODEL

from bench.common import RESULTS, machine, machine_line
from bench.tables import ROOT, markdown, write_table

GOALS = {
    "details_right": (0.97, "at least"),
    "forked_where_expected": (0.99, "at least"),
    "forked_where_not": (0.01, "at most"),
}
SAYING = {
    "details_right": "details exactly right",
    "answers_right": "answers exactly right",
    "forked_where_expected": "branches that the right answer has, forked",
    "forked_where_not": "answers that fork where none should",
}
PAGES = (ROOT / "docs" / "default_model.md", DEFAULT_MODEL / "README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(DEFAULT_MODEL))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="heldout", choices=("train", "heldout"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, metavar="KIND", help="of these kinds alone")
    parser.add_argument("--at-once", type=int, default=50, help="prompts in a call")
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print N wrong answers")
    parser.add_argument("--save", action="store_true", help="write bench/results/ and the tables of the docs")
    options = parser.parse_args()
    if options.save and (options.kinds or options.split != "heldout"):
        parser.error("--save: what the docs show is held out, and of all kinds")
    records = synth_records(options.seed, split=options.split, kinds=options.kinds)
    report = evaluate(
        *apar.load(options.model),
        [EvalPrompt(one.messages, one.extra["kind"], one) for one in itertools.islice(records, options.count)],
        checker=check_answer,
        options=EvalOptions(max_new_tokens=400, at_once=options.at_once),
    )
    for wrong in itertools.islice(_wrong(report), options.show_wrong):
        print(wrong)
    results = {
        "machine": machine(),
        "model": Path(options.model).name,
        "split": options.split,
        "seed": options.seed,
        **report.to_dict(),
    }
    print(render(results))
    if options.save:
        (RESULTS / "default_model.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
        for path in PAGES:
            write_table(path, "default-model", tables(results))


def render(results: dict[str, Any]) -> str:
    ways = _both_ways(results)
    lines = [
        f"{ways[0]['answers']} {results['split']} prompts, {ways[0]['details']} details, on {machine_line()}",
        "",
        f"{'':<44}{'parallel':>10}{'one at a time':>16}   goal",
    ]
    for name, saying in SAYING.items():
        lines.append(f"{saying:<44}{_share(ways[0], name, 2):>10}{_share(ways[1], name, 2):>16}   {_goal(name)}")
    lines += [f"{'branches where none should be':<44}{ways[0]['extra_forks']:>10}{ways[1]['extra_forks']:>16}", ""]
    for kind, found in results["ways"][PARALLEL]["by_category"].items():
        right = _share(found, "details_right", 1)
        lines.append(f"{kind:<16}{found['answers']:>5} answers{found['details']:>6} details, right {right}")
    lines.append(f"\nthe same text both ways: {_same_text(results):.2%}")
    return "\n".join(lines)


def tables(results: dict[str, Any]) -> str:
    """The same for the model's card and the docs."""
    ways, machine = _both_ways(results), results["machine"]
    rows = [(saying, *(_share(way, name, 1) for way in ways), _goal(name)) for name, saying in SAYING.items()]
    kinds = [
        (kind, found["answers"], found["details"], *(_share(found, name, 1) for name in tuple(SAYING)[:2]))
        for kind, found in results["ways"][PARALLEL]["by_category"].items()
    ]
    return "\n".join(
        [
            f"`python -m bench.default_model --count {ways[0]['answers']} --seed {results['seed']}`: "
            f"{ways[0]['answers']} held-out prompts,",
            f"{ways[0]['details']} details, {machine['date']}, {machine['cores']} cores of an {machine['processor']}, "
            f"torch {machine['torch']}. The text was the same both ways",
            f"in {_same_text(results):.1%} of the prompts.",
            "",
            markdown(("", "branches in parallel", "one at a time", "goal"), rows),
            "",
            markdown(("kind", "answers", "details", "details right", "answers right"), kinds),
        ]
    )


def _wrong(report: EvalReport) -> Iterator[str]:
    """What was asked, the right answer and what was written, for every wrong answer."""
    for prompt, answer in zip(report.prompts, report.answers[PARALLEL], strict=True):
        if not answer.check.exact:
            yield (
                f"--- {prompt.category}\n{prompt.messages[-1]['content']}\n>>> expected\n{prompt.record.tree.text}\n"
                f">>> written\n{answer.text}\n"
            )


def _both_ways(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [results["ways"][way]["all"] for way in (PARALLEL, SEQUENTIAL)]


def _same_text(results: dict[str, Any]) -> float:
    return results["agreement"][f"{SEQUENTIAL} {PARALLEL}"]["all"]["same_text"]


def _share(found: dict[str, Any], name: str, digits: int) -> str:
    return f"{found[name]:.{digits}%}" if name in found else ""


def _goal(name: str) -> str:
    return f"{GOALS[name][1]} {GOALS[name][0]:.0%}" if name in GOALS else ""


if __name__ == "__main__":
    main()
