"""How often is the default model right, and does it fork where it should?

Decodes held-out prompts (names and wordings that training never had) with branches in parallel and one at a time, and
compares every detail with the facts. A prompt has one right answer; a detail is right when it is that answer's.

    python -m bench.default_model                     # the model that comes with apar, 1,000 prompts
    python -m bench.default_model --model build/default-model/trained --count 200 --show-wrong 5
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import apar
from apar.data.synth import check_answer, summarize, synth_records
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
    "answers_exact": "answers exactly right",
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
    parser.add_argument("--at-once", type=int, default=50, help="prompts in a call")
    parser.add_argument("--show-wrong", type=int, default=0, metavar="N", help="print N wrong answers")
    parser.add_argument("--save", action="store_true", help="write bench/results/ and the tables of the docs")
    options = parser.parse_args()
    model, tokenizer = apar.load(options.model)
    records = list(itertools.islice(synth_records(options.seed, split=options.split), options.count))
    prompts = [record.messages for record in records]
    results = {"machine": machine(), "model": Path(options.model).name, "split": options.split, "seed": options.seed}
    shown = 0
    texts = {}
    for fork in (True, False):
        started_at = time.perf_counter()
        outputs = []
        for begin in range(0, len(prompts), options.at_once):
            outputs += apar.generate(
                model, tokenizer, prompts[begin : begin + options.at_once], fork=fork, max_new_tokens=400
            )
        seconds = time.perf_counter() - started_at
        texts[fork] = [output.text for output in outputs]
        checks = [check_answer(record, output.tree) for record, output in zip(records, outputs, strict=True)]
        kinds = sorted({record.extra["kind"] for record in records})
        results["parallel" if fork else "sequential"] = {
            **summarize(checks),
            "seconds": round(seconds, 1),
            "steps_alone": sum(output.stats.sequential_steps for output in outputs),
            "by_kind": {
                kind: summarize(
                    check for check, record in zip(checks, records, strict=True) if record.extra["kind"] == kind
                )
                for kind in kinds
            },
        }
        for record, output, check in zip(records, outputs, checks, strict=True):
            if fork and shown < options.show_wrong and not check.exact:
                shown += 1
                print(f"--- {record.extra['kind']}\n{record.messages[-1]['content']}\n>>> expected\n{record.tree.text}")
                print(f">>> written\n{output.text}\n")
    results["same_text"] = sum(a == b for a, b in zip(texts[True], texts[False], strict=True)) / max(1, len(records))
    print(render(results))
    if options.save:
        (RESULTS / "default_model.json").write_text(json.dumps(results, indent=2) + "\n")
        for path in PAGES:
            write_table(path, "default-model", tables(results))


def render(results: dict) -> str:
    parallel, sequential = results["parallel"], results["sequential"]
    lines = [
        f"{parallel['answers']} {results['split']} prompts, {parallel['details']} details, on {machine_line()}",
        "",
        f"{'':<26}{'parallel':>10}{'one at a time':>16}   goal",
    ]
    for name in SAYING:
        lines.append(f"{name:<26}{parallel[name]:>10.2%}{sequential[name]:>16.2%}   {_goal(name)}")
    lines += [f"{'extra_forks':<26}{parallel['extra_forks']:>10}{sequential['extra_forks']:>16}", ""]
    for kind, found in parallel["by_kind"].items():
        lines.append(
            f"{kind:<16}{found['answers']:>5} answers{found['details']:>6} details, right {found['details_right']:.1%}"
        )
    lines.append(f"\nthe same text both ways: {results['same_text']:.2%}")
    return "\n".join(lines)


def tables(results: dict) -> str:
    """The same for the model's card and the docs."""
    parallel, sequential, machine = results["parallel"], results["sequential"], results["machine"]
    rows = [
        (saying, f"{parallel[name]:.1%}", f"{sequential[name]:.1%}", _goal(name)) for name, saying in SAYING.items()
    ]
    kinds = [
        (kind, found["answers"], found["details"], f"{found['details_right']:.1%}", f"{found['answers_exact']:.1%}")
        for kind, found in parallel["by_kind"].items()
    ]
    return "\n".join(
        [
            f"`python -m bench.default_model --count {parallel['answers']} --seed {results['seed']}`: "
            f"{parallel['answers']} held-out prompts,",
            f"{parallel['details']} details, {machine['date']}, {machine['cores']} cores of an {machine['processor']}, "
            f"torch {machine['torch']}. The text was the same both ways",
            f"in {results['same_text']:.1%} of the prompts.",
            "",
            markdown(("", "branches in parallel", "one at a time", "goal"), rows),
            "",
            markdown(("kind", "answers", "details", "details right", "answers right"), kinds),
        ]
    )


def _goal(name: str) -> str:
    return f"{GOALS[name][1]} {GOALS[name][0]:.0%}" if name in GOALS else ""


if __name__ == "__main__":
    main()
