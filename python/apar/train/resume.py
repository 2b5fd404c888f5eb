"""What a run must have in common with the checkpoint that it goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from apar.train.config import TrainConfig
from apar.train.dataset import TreeStore

RUN_FILE = "run.json"
# The optimizer's are read from the checkpoint, whatever the config says; the others would make another curve.
KEPT_KEYS = (
    *("lora", "too_long", "weighting", "detail_weight", "length", "learning_rate", "schedule", "schedule_options"),
    *("min_learning_rate", "warmup_steps", "warmup_ratio", "weight_decay", "beta2", "max_grad_norm", "optimizer"),
    *("precision", "seed"),
)
# How keys of ``trainer`` begin that say how something is logged, loaded or spread over devices.
FREE_TRAINER_KEYS = (
    *("dataloader_", "ddp_", "disable_tqdm", "eval_", "fsdp", "hub_", "log", "project", "push_to_hub", "report_to"),
    *("run_name", "save_", "skip_memory_metrics", "torch_compile_", "trackio_"),
)
DIGESTED = 1024  # values of every weight


def run_facts(
    config: TrainConfig, model: torch.nn.Module, control_tokens: list[str], store: TreeStore, rows_per_step: int
) -> dict[str, Any]:
    """What is written beside every checkpoint. Data and a base model stand there by what is in them: files may move.

    model: as the run begins with it. control_tokens: their names.
    """
    keys = dataclasses.asdict(config)
    facts = {
        "model": config.model["config"] if isinstance(config.model, dict) else f"weights {weights_digest(model)}",
        "control tokens": control_tokens,
        **{name: keys[name] for name in KEPT_KEYS},
        "trainer": {name: value for name, value in config.trainer.items() if not name.startswith(FREE_TRAINER_KEYS)},
        "rows of a step (rows x accumulate x processes)": rows_per_step,
        "tokens of data": store.digest(),
    }
    return json.loads(json.dumps(facts, default=str))  # as they come back from a file


def weights_digest(model: torch.nn.Module) -> str:
    """Of the beginnings of all weights that were read; with low-rank additions these are the frozen ones."""
    weights = dict(model.named_parameters())
    frozen = {name: weight for name, weight in weights.items() if not weight.requires_grad}
    found = hashlib.blake2b(digest_size=8)
    for name, weight in sorted((frozen or weights).items()):
        found.update(name.encode())
        found.update(weight.detach().flatten()[:DIGESTED].float().cpu().numpy().tobytes())
    return found.hexdigest()


def check_resumed(checkpoint: Path, facts: dict[str, Any], steps: int) -> None:
    """Raise ValueError where a run of ``steps`` steps with these facts is not the one that made ``checkpoint``."""
    try:
        made_with = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"resume: {checkpoint} does not say which run made it ({error})") from error
    changed = [
        f"{name} was {made_with.get(name)}, is {value}" for name, value in facts.items() if made_with.get(name) != value
    ]
    if changed:
        raise ValueError(f"resume: {checkpoint} is of another run: {'; '.join(changed)}")
    done = int(checkpoint.name.rsplit("-", 1)[1])
    if steps < done:
        raise ValueError(f"resume: {checkpoint} has {done} steps behind it, expected at most the {steps} of this run")
