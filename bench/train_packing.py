"""What packing saves in training: each tree forwarded once against one row per branch, on shapes of real answers.

python -m bench.train_packing [--trees FILE] [--rule nested] [--answers 16] [--dtype bfloat16]

Both sides learn the same targets with the same weights and the same attention kernel, and both are packed to full rows;
the losses are compared before anything is timed. Only answers that fork are taken: others are the same on both sides.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from typing import Any

import numpy as np
import torch
from apar.shapes import read_shapes
from apar.train.attention import TILE_ATTENTION, register
from apar.train.dataset import RowDataset, TreeStore, collate
from apar.train.loss import target_logits, target_losses
from apar.train.packing import PackedTree, TokenTree, one_row_per_branch, pack_tree
from transformers import LlamaConfig, LlamaForCausalLM

from bench.common import machine_line, print_table, time_together, write_results

ROOT = pathlib.Path(__file__).parents[1]

VOCABULARY, FORK, CHILD, END, FIRST_WORD = 4096, 3, 4, 2, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", default=str(ROOT / "bench/trees/vicuna80.jsonl"))
    parser.add_argument("--rule", choices=("apar", "nested"), default="nested")
    parser.add_argument("--answers", type=int, default=16, help="forking answers that a step learns (16)")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, help="of torch (default: all cores)")
    parser.add_argument("--seconds", type=float, default=60, help="spent on timing (60)")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    register()
    print(machine_line(), "\n")

    everything = list(packed_trees(options.trees, options.rule))
    counts = count_tokens(everything)
    fits = [tree for tree in everything if len(tree) <= options.length]
    trees = [fits[place] for place in np.random.default_rng(0).permutation(len(fits))[: options.answers]]
    sides = {
        "each tree once": batches(trees, options.length),
        "one row per branch": batches(itertools.chain.from_iterable(map(one_row_per_branch, trees)), options.length),
    }
    model = small_llama(options.length)
    steps = {name: Step(model, own, options.dtype) for name, own in sides.items()}
    losses = [step.loss() for step in steps.values()]
    if abs(losses[0] - losses[1]) > 1e-3 * losses[1]:
        raise SystemExit(f"the losses differ: {losses}")
    seconds = time_together(steps, rounds=7, seconds=options.seconds)

    packed, rows = (seconds[name] for name in sides)
    chosen = count_tokens(trees)
    print_table(
        ["", "tokens", "targets", "seconds a step", "targets a second"],
        [
            [
                name,
                f"{chosen[name]:,}",
                f"{chosen['targets']:,}",
                f"{seconds[name]:.2f}",
                f"{chosen['targets'] / seconds[name]:,.0f}",
            ]
            for name in sides
        ],
    )
    token_ratio, time_ratio = chosen["one row per branch"] / chosen["each tree once"], rows / packed
    all_ratio = counts["one row per branch"] / counts["each tree once"]
    print(
        f"\n{token_ratio:.2f}x fewer tokens, {time_ratio:.2f}x faster; "
        f"all {len(everything)} forking answers: {all_ratio:.2f}x fewer tokens"
    )
    write_results(
        "train_packing",
        {
            "trees": pathlib.Path(options.trees).name,
            "rule": options.rule,
            "dtype": options.dtype,
            "length": options.length,
            "answers": len(trees),
            "losses": losses,
            "tokens": chosen,
            "seconds": seconds,
            "token_ratio": token_ratio,
            "time_ratio": time_ratio,
            "all_forking_answers": {"answers": len(everything), **counts, "token_ratio": all_ratio},
        },
        lambda figure: draw(figure, chosen, seconds),
    )


def packed_trees(path: str, rule: str) -> Any:
    """The forking answers of a file of shapes, with random tokens."""
    generator = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return generator.integers(FIRST_WORD, VOCABULARY, count).tolist()

    def token_tree(shape: list[Any]) -> TokenTree:
        return [token_tree(part) if place % 2 else ids(part) for place, part in enumerate(shape)]

    for record in read_shapes(path, rule):
        if len(record["tree"]) > 1:
            yield pack_tree(ids(record["prompt_tokens"]), token_tree(record["tree"]), FORK, CHILD, END)


def count_tokens(trees: list[PackedTree]) -> dict[str, int]:
    rows = [row for tree in trees for row in one_row_per_branch(tree)]
    return {
        "each tree once": sum(map(len, trees)),
        "one row per branch": sum(map(len, rows)),
        "targets": sum(int((row.branch >= 0).sum()) for row in rows),
    }


def batches(trees: Any, length: int) -> list[dict[str, torch.Tensor]]:
    # Rows of branches of one tree begin alike; sharing that is no part of the comparison.
    rows = RowDataset(TreeStore(trees, length, share=False))
    return [
        collate([rows[number] for number in range(begin, min(begin + 4, len(rows)))])
        for begin in range(0, len(rows), 4)
    ]


def small_llama(length: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=length,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(TILE_ATTENTION)
    return model.train()


class Step:
    """Forward and backward over all batches of one side, and an optimizer step."""

    def __init__(self, model: LlamaForCausalLM, own: list[dict[str, torch.Tensor]], dtype: str) -> None:
        self.model, self.batches, self.mixed = model, own, dtype == "bfloat16"
        self.weight = sum(batch["weights"].sum() for batch in own)
        # No change of the weights, so that both sides always compute the same.
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def loss(self) -> float:
        total = 0.0
        for batch in self.batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
                dtype = torch.bfloat16 if self.mixed else torch.float32
                logits = target_logits(self.model, batch, TILE_ATTENTION, dtype)
                loss = (target_losses(logits, batch["targets"]) * batch["weights"]).sum() / self.weight
            loss.backward()
            total += loss.item()
        return total

    def __call__(self) -> None:
        self.loss()
        self.optimizer.step()
        self.optimizer.zero_grad()


def draw(figure: Any, tokens: dict[str, int], seconds: dict[str, float]) -> None:
    for place, (title, values) in enumerate((("tokens forwarded", tokens), ("seconds a step", seconds))):
        axes = figure.add_subplot(1, 2, place + 1)
        names = [name for name in values if name != "targets"]
        axes.bar(names, [values[name] for name in names], color=["tab:blue", "tab:gray"])
        axes.set_title(title)


if __name__ == "__main__":
    main()
