"""What does a decode step cost on a GPU, and what do parallel branches save there? `python -m bench.gpu_decode`

A 7B Llama with random weights in bf16, one request at a time, every step captured:

1. the step with 1 to 8 branches against the time that reading the weights takes at the read ceiling measured here,
2. real answers' trees against the same branches one at a time (`fork=False`): wall-clock against steps.

Before anything is timed, captured and plain steps must choose the same tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from apar.captured import CudaGraphs, EagerGraphs
from apar.choosers import ScriptChooser, TokenChooser
from apar.device_decoder import DeviceDecoder
from apar.grammar import Grammar
from apar.output import Output
from apar.record import Recorder, Request
from apar.replay import replay_grammar
from apar.room import DEFAULT_LIVE_BRANCHES, make_room
from apar.run import apar_attention
from apar.sampling import Sampling
from apar.shapes import make_script, read_shapes
from apar.tree import BranchId

from bench.common import print_table
from bench.gpu import Card, add_options, read_ceiling

ROOT = Path(__file__).resolve().parents[1]
PROMPT_TOKENS = 64
STEPS = 100  # of a branch, in the first part
GOAL_STEP = 1.15  # times the time of reading the weights
GOAL_TREES = 0.95  # of the ratio of steps

Script = dict[BranchId, Sequence[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--trees", type=int, default=12, metavar="N", help="trees replayed (default 12)")
    parser.add_argument("--answers-of", default="gpt4", help="model whose answers are replayed (default gpt4)")
    parser.add_argument("--rule", choices=("apar", "nested"), default="apar", help="how answers are read as trees")
    options = parser.parse_args()
    card = Card(options)
    if card.is_dry_run:
        torch.set_num_threads(1)
    ceiling = read_ceiling(card)["memory"]
    model = llama(card)
    weight_bytes = read_weight_bytes(model)
    floor_seconds = weight_bytes / ceiling
    print(
        f"{card.name}: reads {ceiling / 1e12:.2f} TB/s; {weight_bytes / 1e9:.2f} GB of weights: "
        f"{1e3 * floor_seconds:.2f} ms a step at least\n"
    )
    results: dict[str, Any] = {
        "model": "Llama, random weights, bfloat16",
        "weight_bytes": weight_bytes,
        "read_bytes_per_second": ceiling,
        "floor_ms": 1e3 * floor_seconds,
    }
    with apar_attention(model):
        results["captured_as_plain"] = captured_as_plain(model, card)
        results["steps"] = steps(model, card, floor_seconds)
        records = [
            record
            for record in read_shapes(ROOT / "bench/trees/vicuna80.jsonl", options.rule)
            if record["model"] == options.answers_of and len(record["tree"]) > 1
        ]
        count = min(options.trees, len(records))
        records = [records[number * len(records) // count] for number in range(count)]
        if card.is_dry_run:
            records = [{"id": number, "tree": [3, [9], 2, [4], 5], "prompt_tokens": 7} for number in range(2)]
        results["trees"] = trees(model, card, records)
    card.write("decode", results, lambda figure: draw(figure, results))


def llama(card: Card) -> Any:
    """7B parameters, made where they stay."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    if card.is_dry_run:
        size = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    vocabulary = 500 if card.is_dry_run else 32000
    config = LlamaConfig(**size, vocab_size=vocabulary, max_position_embeddings=4096, attn_implementation="apar")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(card.device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def read_weight_bytes(model: Any) -> int:
    """Bytes of the weights that a step reads: all but the embedding, of which it reads a few rows."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return total - (0 if embedding is head else embedding.numel() * embedding.element_size())


class Runner:
    """Decodes prompts of one kind one at a time, with graphs that stay from one to the next."""

    def __init__(
        self,
        model: Any,
        card: Card,
        lengths: list[int],
        limits: list[int],
        grammar: Grammar,
        choose: Any,
        *,
        branches: int,
        capture: bool = True,
    ) -> None:
        room = make_room(
            model, lengths, limits, grammar, page_size=16, max_pages=None, max_rows=branches,
            max_live_branches=branches, prefill_tokens=512,
        )  # fmt: skip
        self.card = card
        self.recorder = Recorder(len(lengths), room.max_slots, grammar)
        graphs = EagerGraphs() if card.is_dry_run else CudaGraphs(card.device, capture=capture)
        self.decoder = DeviceDecoder(model, grammar, room, self.recorder, choose, graphs=graphs)
        self.requests = [
            Request(number, [5] * length, limit)
            for number, (length, limit) in enumerate(zip(lengths, limits, strict=True))
        ]
        self.seconds_of_steps: list[tuple[int, float]] = []  # (rows, seconds) of every step
        self._at = 0.0

    def run(self, number: int) -> tuple[Output, float]:
        """The output of a request, and the seconds that it took from its first step on."""
        recorder = self.recorder
        started_at = self._at = time.perf_counter()
        prefill_before = recorder.prefill_seconds
        for _ in self.decoder.run([self.requests[number]], self._after_step):
            pass
        seconds = time.perf_counter() - started_at - (recorder.prefill_seconds - prefill_before)
        return self.requests[number].output, seconds

    def _after_step(self) -> None:
        now = time.perf_counter()
        self.seconds_of_steps.append((self.decoder.forest.num_rows, now - self._at))
        self._at = now


def captured_as_plain(model: Any, card: Card) -> int:
    """Greedy and sampled tokens of both; returns how many were compared."""
    vocabulary = model.config.vocab_size
    grammar = Grammar(vocabulary - 1, vocabulary - 2, (vocabulary - 3,), max_depth=2, max_children=3)
    compared = 0
    for sampling in (Sampling(), Sampling(1.0, 0.9, 50, seed=7)):
        outputs = []
        for capture in (True, False):
            runner = Runner(model, card, [9], [9 + 40], grammar, TokenChooser(sampling), branches=4, capture=capture)
            outputs.append(runner.run(0)[0])
        if outputs[0] != outputs[1]:
            raise SystemExit("captured and plain steps choose different tokens")
        compared += len(outputs[0].token_ids)
    print(f"captured and plain steps chose the same {compared} tokens\n")
    return compared


def steps(model: Any, card: Card, floor_seconds: float) -> list[dict[str, Any]]:
    """Steps of trees with so many branches that all write at once."""
    rows = []
    length = 12 if card.is_dry_run else STEPS
    for branches in range(1, 3 if card.is_dry_run else 9):
        tree: list[Any] = [length]
        for _ in range(branches - 1):
            tree = [1, [length], *tree]
        grammar = replay_grammar(model, [tree])
        script = make_script(tree, grammar)
        repeats = 3
        limit = PROMPT_TOKENS + 3 * branches + length + 8
        runner = Runner(
            model, card, [PROMPT_TOKENS] * repeats, [limit] * repeats, grammar, ScriptChooser([script] * repeats),
            branches=branches,
        )  # fmt: skip
        for number in range(repeats):  # the first one captures
            runner.seconds_of_steps.clear()
            output, _ = runner.run(number)
            check(output, script)
        full = [seconds for rows, seconds in runner.seconds_of_steps[2:] if rows == branches]
        seconds = statistics.median(full)
        forward = (output.stats.forward_seconds) / output.stats.steps
        rows.append(
            {
                "branches": branches,
                "steps_timed": len(full),
                "ms": 1e3 * seconds,
                "forward_ms": 1e3 * forward,
                "of_floor": seconds / floor_seconds,
            }
        )
    print("1. a captured step, one request")
    print_table(
        ["branches", "ms a step", "of it forward", "x reading the weights"],
        [[row["branches"], f"{row['ms']:.3f}", f"{row['forward_ms']:.3f}", f"{row['of_floor']:.2f}"] for row in rows],
    )
    print(f"(goal {GOAL_STEP})\n")
    return rows


def trees(model: Any, card: Card, records: list[dict[str, Any]]) -> dict[str, Any]:
    shapes = [record["tree"] for record in records]
    grammar = replay_grammar(model, shapes)
    scripts = [make_script(shape, grammar) for shape in shapes]
    # The first one runs twice, so that graphs are captured before anything is timed.
    scripts.insert(0, scripts[0])
    lengths = [record["prompt_tokens"] for record in [records[0], *records]]
    limits = [
        length + 2 + longest_path(script, grammar.fork_id) for length, script in zip(lengths, scripts, strict=True)
    ]
    choose = ScriptChooser(scripts)
    both = [
        Runner(model, card, lengths, limits, grammar, choose, branches=branches)
        for branches in (DEFAULT_LIVE_BRANCHES, 1)
    ]
    rows = []
    for number, script in enumerate(scripts):
        (tree, seconds), (twin, twin_seconds) = (runner.run(number) for runner in both)
        check(tree, script)
        check(twin, script)
        if number == 0:
            continue
        rows.append(
            {
                "question": records[number - 1]["id"],
                "tokens": tree.stats.tokens,
                "steps": tree.stats.steps,
                "sequential_steps": twin.stats.steps,
                "seconds": seconds,
                "sequential_seconds": twin_seconds,
                "peak_branches": tree.stats.peak_branches,
            }
        )
    step_ratio = sum(row["sequential_steps"] for row in rows) / sum(row["steps"] for row in rows)
    speedup = sum(row["sequential_seconds"] for row in rows) / sum(row["seconds"] for row in rows)
    print("2. trees, one request at a time, prefill left out")
    print_table(
        ["question", "tokens", "steps", "fewer steps", "faster", "peak branches"],
        [
            [
                row["question"], row["tokens"], row["steps"], f"{row['sequential_steps'] / row['steps']:.2f}x",
                f"{row['sequential_seconds'] / row['seconds']:.2f}x", row["peak_branches"],
            ]
            for row in rows
        ],
    )  # fmt: skip
    of_ratio = speedup / step_ratio
    print(f"all: {step_ratio:.2f}x fewer steps, {speedup:.2f}x faster, {of_ratio:.3f} of it (goal {GOAL_TREES})")
    return {"trees": rows, "step_ratio": step_ratio, "speedup": speedup, "of_step_ratio": of_ratio}


def longest_path(script: Script, fork_id: int) -> int:
    """Tokens behind the prompt of the longest path, control tokens included."""
    before: dict[BranchId, int] = {}
    for branch in sorted(script):
        before[branch] = 0
        if branch:
            forks = [place for place, token in enumerate(script[branch[:-1]]) if token == fork_id]
            before[branch] = before[branch[:-1]] + forks[branch[-1]] + 2
    return max(before[branch] + len(tokens) for branch, tokens in script.items())


def check(output: Output, script: Script) -> None:
    """Every branch must have written its script."""
    written = {branch.id: branch.token_ids[branch.parent is not None :] for branch in output.branches}
    if written != {branch: list(tokens) for branch, tokens in script.items()}:
        raise SystemExit("a replay wrote something else than its script")


def draw(figure: Any, results: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    rows = results["steps"]
    left.plot([row["branches"] for row in rows], [row["ms"] for row in rows], marker="o", label="captured step")
    left.axhline(results["floor_ms"], color="gray", linewidth=1, label="reading the weights")
    left.set(xlabel="branches", ylabel="ms a step", title="7B Llama, bf16, one request", ylim=(0, None))
    left.legend()
    rows = results["trees"]["trees"]
    ratios = [row["sequential_steps"] / row["steps"] for row in rows]
    right.plot([1, max(ratios)], [1, max(ratios)], color="gray", linewidth=1, label="time = steps")
    right.scatter(ratios, [row["sequential_seconds"] / row["seconds"] for row in rows])
    right.set(xlabel="fewer steps", ylabel="faster than one branch at a time", title="answers to Vicuna-Bench")
    right.legend()


if __name__ == "__main__":
    main()
