"""A tiny training run in a folder: data, tokenizer, configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apar.data import TreeRecord, write_trees
from apar.train.config import TrainConfig, from_dict
from apar.tree import ParagraphTree

from tests.apar.tiny_tokenizers import byte_level_tokenizer

TINY_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}

TINY_MIXTRAL = TINY_LLAMA | {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}

ANSWERS = {
    "Tips?": [
        {"text": "Two tips.\n1. Sleep:", "detail": [{"text": " go to bed."}]},
        {"text": "\n2. Food:", "detail": [{"text": " eat", "detail": [{"text": " slowly"}]}, {"text": "!"}]},
        {"text": "\nDone."},
    ],
    "Yes?": [{"text": "No."}],
    "Dog?": [{"text": "It jumps:", "detail": [{"text": " over the fox."}]}, {"text": ""}],
}


def records(split: str = "train") -> list[TreeRecord]:
    return [
        TreeRecord([{"role": "user", "content": prompt}], ParagraphTree.from_dict(answer), "made up", split)
        for prompt, answer in ANSWERS.items()
    ]


def tiny_run(folder: Path, **changes: Any) -> TrainConfig:
    """A configuration whose files lie in ``folder``; ``changes`` replace its keys, None removes one."""
    if not (folder / "trees.jsonl").exists():
        write_trees(folder / "trees.jsonl", records() + records("heldout"))
        byte_level_tokenizer((), chat=True).save_pretrained(folder / "tokenizer")
    values: dict[str, Any] = {
        "model": {"config": TINY_LLAMA},
        "tokenizer": str(folder / "tokenizer"),
        "data": str(folder / "trees.jsonl"),
        "output": str(folder / "output"),
        "length": 96,
        "rows": 2,
        "steps": 4,
        "learning_rate": 1e-3,
        "log_every": 1,
        "precision": "float32",
        "save_precision": "float32",
    }
    return from_dict(TrainConfig, {key: value for key, value in (values | changes).items() if value is not None})
