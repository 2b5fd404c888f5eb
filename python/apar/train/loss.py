"""The loss of a batch, and what a held-out evaluation counts."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch

from apar.grammar import Grammar
from apar.train.attention import training_masks


def target_logits(model: Any, batch: dict[str, torch.Tensor], implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """Logits [N, V] at the places of the batch whose next token is a target.

    model: the plain or a wrapped model. dtype: in which its attention computes.
    """
    plain = getattr(model, "module", model)
    mask = training_masks(plain.config, implementation, batch["ends"], batch["position_ids"], dtype)
    inputs = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "attention_mask": mask,
        "use_cache": False,
    }
    if _takes_places(plain):
        return model(**inputs, logits_to_keep=batch["target_places"]).logits[0]
    return model(**inputs).logits[0, batch["target_places"]]


def target_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[N] cross-entropy in fp32, or in float64 for such logits."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@dataclasses.dataclass
class HeldoutSums:
    """Sums over held-out targets. Losses are sums of unweighted cross-entropies.

    hits, misses, false_alarms: places where a fork is right and likeliest, right but not likeliest, likeliest but
    wrong. Likeliest as the decoder chooses: the child token never, a fork token not right behind a control token.
    """

    trunk_loss: float = 0.0
    trunk_targets: float = 0.0
    detail_loss: float = 0.0
    detail_targets: float = 0.0
    right_tokens: float = 0.0
    hits: float = 0.0
    misses: float = 0.0
    false_alarms: float = 0.0

    def add(self, batch: dict[str, torch.Tensor], logits: torch.Tensor, grammar: Grammar) -> None:
        targets, is_detail = batch["targets"], batch["is_detail"]
        losses = target_losses(logits, targets)
        behind_control = torch.isin(
            batch["input_ids"][0, batch["target_places"]],
            torch.tensor([grammar.fork_id, grammar.child_id], device=targets.device),
        )
        logits = logits.clone()
        logits[:, grammar.child_id] = -torch.inf
        logits[behind_control, grammar.fork_id] = -torch.inf
        chosen = logits.argmax(-1)
        forks, fork_chosen = targets == grammar.fork_id, chosen == grammar.fork_id
        found = {
            "trunk_loss": losses[~is_detail],
            "trunk_targets": ~is_detail,
            "detail_loss": losses[is_detail],
            "detail_targets": is_detail,
            "right_tokens": chosen == targets,
            "hits": forks & fork_chosen,
            "misses": forks & ~fork_chosen,
            "false_alarms": ~forks & fork_chosen,
        }
        sums = torch.stack([values.sum().double() for values in found.values()]).tolist()
        for name, value in zip(found, sums, strict=True):
            setattr(self, name, getattr(self, name) + value)

    def to_tensor(self, device: torch.device) -> torch.Tensor:
        return torch.tensor(dataclasses.astuple(self), dtype=torch.float64, device=device)

    def metrics(self) -> dict[str, float]:
        """What is logged. Precision and recall are left out where there is nothing to divide by."""
        targets = self.trunk_targets + self.detail_targets
        fractions = {
            "loss": (self.trunk_loss + self.detail_loss, targets),
            "trunk_loss": (self.trunk_loss, self.trunk_targets),
            "detail_loss": (self.detail_loss, self.detail_targets),
            "token_accuracy": (self.right_tokens, targets),
            "fork_precision": (self.hits, self.hits + self.false_alarms),
            "fork_recall": (self.hits, self.hits + self.misses),
        }
        return {name: above / below for name, (above, below) in fractions.items() if below}


def _takes_places(model: Any) -> bool:
    """Whether the model computes logits at given places alone."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
