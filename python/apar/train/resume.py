"""What a run must have in common with the checkpoint that it goes on from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from apar.train.config import TrainConfig
from apar.train.dataset import TreeStore

RUN_FILE = "run.json"
# The optimizer's are read from the checkpoint, whatever the config says; the others would make another curve.
KEPT_KEYS = (
    *("lora", "too_long", "weighting", "detail_weight", "length", "learning_rate", "schedule", "min_learning_rate"),
    *("warmup_steps", "warmup_ratio", "weight_decay", "beta2", "max_grad_norm", "optimizer", "precision", "seed"),
)


def run_facts(config: TrainConfig, store: TreeStore, rows_per_step: int) -> dict[str, Any]:
    """What is written beside every checkpoint. The data stand there by their tokens: files may move."""
    keys = dataclasses.asdict(config)
    return {
        **{name: keys[name] for name in KEPT_KEYS},
        "rows of a step (rows x accumulate x processes)": rows_per_step,
        "tokens of data": store.digest(),
    }


def check_resumed(checkpoint: Path, facts: dict[str, Any], steps: int) -> None:
    """Raise ValueError where a run of ``steps`` steps with these facts is not the one that made ``checkpoint``."""
    path = checkpoint / RUN_FILE
    if path.exists():  # older checkpoints have none
        made_with = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {made_with[name]}, is {value}"
            for name, value in facts.items()
            if name in made_with and made_with[name] != value
        ]
        if changed:
            raise ValueError(f"resume: {checkpoint} is of another run: {'; '.join(changed)}")
    done = int(checkpoint.name.rsplit("-", 1)[1])
    if steps < done:
        raise ValueError(f"resume: {checkpoint} has {done} steps behind it, expected at most the {steps} of this run")
