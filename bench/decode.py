"""What do parallel branches save on real answers? `python -m bench.decode` (about 6 minutes on two cores).

Replays the shapes of real answers to the Vicuna-Bench questions on a Llama with 110M random parameters:

1. one request at a time: steps and time of tree decoding against one branch at a time,
2. 16 requests at once: tokens a second against plain `transformers` batch generation of as many tokens,
3. time a step takes outside the model, with 8 branches,
4. peak KV pages against a count from the trees themselves.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import time
from typing import Any

import torch
from apar.random_model import random_llama
from apar.replay import add_stats, replay
from apar.shapes import read_shapes

from bench.common import print_table, write_results
from bench.tree_count import TreeCount

ROOT = pathlib.Path(__file__).parents[1]

SIZE = {"hidden_size": 768, "layers": 12, "heads": 12, "intermediate_size": 2048}  # 110M with 32,000 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers-of", default="gpt4", help="model whose answers are replayed (default gpt4)")
    parser.add_argument("--trees", type=int, default=8, metavar="N", help="trees replayed one by one (default 8)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="requests at once (default 16)")
    parser.add_argument("--rule", choices=("apar", "nested"), default="apar", help="how answers are read as trees")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--quick", action="store_true", help="a small model and few trees, to try the script itself")
    options = parser.parse_args()
    if options.quick:
        options.trees, options.batch = min(options.trees, 2), min(options.batch, 4)

    records = [
        r for r in read_shapes(ROOT / "bench/trees/vicuna80.jsonl", options.rule) if r["model"] == options.answers_of
    ]
    if not records:
        parser.error(f"--answers-of: no answers of {options.answers_of!r}")
    forked = [record for record in records if len(record["tree"]) > 1]
    size = {"hidden_size": 64, "layers": 2, "heads": 2} if options.quick else SIZE
    model = random_llama(
        **size, vocabulary=32000, positions=2048, tie_embeddings=True, dtype=getattr(torch, options.dtype)
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.0f}M parameters, {options.dtype}; {len(forked)} of {len(records)} answers fork\n")

    results: dict[str, Any] = {"parameters": parameters, "dtype": options.dtype, "answers_of": options.answers_of}
    results["one_at_a_time"] = one_at_a_time(model, spread(forked, options.trees))
    results["at_once"] = at_once(model, spread(records, options.batch))
    results["overhead"] = overhead()
    if not options.quick:
        write_results("decode", results, lambda figure: draw(figure, results))


def spread(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` of the records, evenly over the list."""
    count = min(count, len(records))
    return [records[number * len(records) // count] for number in range(count)]


def one_at_a_time(model: Any, records: list[dict[str, Any]]) -> dict[str, Any]:
    replay(model, [[4, [4], 4]], progress=False)  # warms up
    rows, trees, twins, counts = [], [], [], []
    for record in records:
        report = replay(model, [record["tree"]], prompt_tokens=record["prompt_tokens"])
        count = TreeCount(record["tree"], record["prompt_tokens"], 16)
        assert report.tree.steps == count.steps
        trees.append(report.tree)
        twins.append(report.sequential)
        counts.append(count)
        rows.append(
            {
                "question": record["id"],
                "tokens": report.tree.tokens,
                "steps": report.tree.steps,
                "step_ratio": report.step_ratio,
                "seconds": report.tree.seconds,
                "sequential_seconds": report.sequential.seconds,
                "speedup": report.sequential.seconds / report.tree.seconds,
                "peak_pages": report.tree.peak_pages,
                "peak_pages_counted": count.peak_pages,
                "peak_branches": report.tree.peak_branches,
                "kv_read_saved": report.tree.kv_bytes_read_per_branch / report.tree.kv_bytes_read,
            }
        )
    tree, twin = add_stats(trees), add_stats(twins)
    step_ratio, speedup = twin.steps / tree.steps, twin.seconds / tree.seconds
    print("1. one request at a time")
    print_table(
        ["question", "tokens", "steps", "fewer steps", "faster", "peak branches", "peak pages", "counted"],
        [
            [
                row["question"], row["tokens"], row["steps"], f"{row['step_ratio']:.2f}x", f"{row['speedup']:.2f}x",
                row["peak_branches"], row["peak_pages"], row["peak_pages_counted"],
            ]
            for row in rows
        ],
    )  # fmt: skip
    print(f"all: {step_ratio:.2f}x fewer steps, {speedup:.2f}x faster")
    print(f"that is {speedup / step_ratio:.2f} of the step ratio (goal 0.85)")
    as_counted = all(row["peak_pages"] == row["peak_pages_counted"] for row in rows)
    print(f"peak pages as counted from the trees: {'yes' if as_counted else 'NO'}\n")
    return {
        "trees": rows,
        "step_ratio": step_ratio,
        "speedup": speedup,
        "speedup_over_step_ratio": speedup / step_ratio,
        "overhead_us_per_step": statistics.median(stats.overhead_us_per_step for stats in trees),
        "peak_pages_as_counted": as_counted,
    }


def at_once(model: Any, records: list[dict[str, Any]]) -> dict[str, Any]:
    trees = [record["tree"] for record in records]
    prompts = [record["prompt_tokens"] for record in records]
    visible = [sum_tokens(tree) for tree in trees]
    ours = replay(model, trees, prompt_tokens=prompts, compare=False)
    model.set_attn_implementation("sdpa")
    seconds = plain_generation_seconds(model, prompts, max(visible))
    model.set_attn_implementation("apar")
    tokens = sum(visible)
    result = {
        "requests": len(trees),
        "visible_tokens": tokens,
        "tokens_per_second": tokens / ours.tree.seconds,
        "steps": ours.tree.steps,
        "peak_pages": ours.tree.peak_pages,
        "plain_steps": max(visible),
        "plain_tokens_per_second": tokens / seconds,
        "plain_rows_per_second": len(trees) * max(visible) / seconds,
    }
    print(f"2. {len(trees)} requests at once, {tokens} visible tokens")
    print_table(
        ["", "steps", "tokens/s"],
        [
            ["apar", result["steps"], f"{result['tokens_per_second']:.1f}"],
            ["transformers generate, sdpa", result["plain_steps"], f"{result['plain_tokens_per_second']:.1f}"],
            ["  counting the padding of answers that are over", "", f"{result['plain_rows_per_second']:.1f}"],
        ],
    )
    print(f"{result['tokens_per_second'] / result['plain_tokens_per_second']:.2f}x (goal 1)\n")
    return result


def sum_tokens(tree: list[Any]) -> int:
    return sum(sum_tokens(part) if isinstance(part, list) else part for part in tree)


def plain_generation_seconds(model: Any, prompts: list[int], new_tokens: int) -> float:
    """Seconds of `model.generate` for a batch padded on the left; all rows run as long as the longest answer."""
    longest = max(prompts)
    ids = torch.full((len(prompts), longest), 5)
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in prompts])

    def generate(count: int) -> None:
        model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count, pad_token_id=0
        )

    generate(4)
    started_at = time.perf_counter()
    generate(new_tokens)
    return time.perf_counter() - started_at


def overhead() -> dict[str, Any]:
    """Eight branches of 150 tokens each on a model that is nearly nothing but its vocabulary of 32,000."""
    model = random_llama(hidden_size=64, layers=1, heads=2, vocabulary=32000)
    tree = [1, *(part for _ in range(7) for part in ([150], 1))]
    tree[-1] = 150
    medians = [replay(model, [tree], compare=False).tree.overhead_us_per_step for _ in range(5)]
    result = {"branches": 8, "us_per_step": min(medians)}
    print(f"3. outside the model's forward: {result['us_per_step']:.0f} us a step with 8 branches (goal 300)")
    return result


def draw(figure: Any, results: dict[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    rows = results["one_at_a_time"]["trees"]
    largest = max(row["step_ratio"] for row in rows) * 1.05
    left.plot([1, largest], [1, largest], color="gray", linewidth=1, label="time = steps")
    left.plot([1, largest], [0.85, 0.85 * largest], color="gray", linewidth=1, linestyle="--", label="0.85 of it")
    left.scatter([row["step_ratio"] for row in rows], [row["speedup"] for row in rows])
    left.set(xlabel="fewer steps", ylabel="faster than one branch at a time", title="one request at a time")
    left.legend()
    both = results["at_once"]
    names = ["apar", "transformers\nbatch generation"]
    right.bar(names, [both["tokens_per_second"], both["plain_tokens_per_second"]], color=["C0", "C7"])
    right.set(ylabel="tokens / s", title=f"{both['requests']} requests at once")


if __name__ == "__main__":
    main()
