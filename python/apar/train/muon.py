"""Muon for the matrices of a model and AdamW for the rest, as one optimizer.

Muon makes every update of a matrix equally large in all directions. A small model that is trained from nothing needs a
fraction of the tokens that AdamW needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAME = "muon"
"""What a config calls it; everything else is one of transformers' optimizers."""


class MuonWithAdamW(torch.optim.Optimizer):
    """``matrices`` are updated by Muon, as long as AdamW's updates would be, ``others`` by AdamW without decay."""

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        others: list[torch.nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        beta2: float,
    ) -> None:
        if not matrices:
            raise ValueError("optimizer: muon needs weights that are matrices, the model has none besides embeddings")
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        ]
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, beta2), weight_decay=0.0))
        super().__init__([*matrices, *others], {"lr": learning_rate})
        self._share_groups()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        """The groups are those of the parts: a learning rate that a schedule sets here is theirs."""
        self.param_groups = [group for part in self._parts for group in part.param_groups]


def make_muon(model: torch.nn.Module, *, learning_rate: float, weight_decay: float, beta2: float) -> MuonWithAdamW:
    """For a model of transformers: embeddings and the head are no matrices in Muon's sense."""
    tables = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer}
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return MuonWithAdamW(
        [parameter for parameter in learned if parameter.dim() == 2 and id(parameter) not in tables],
        [parameter for parameter in learned if parameter.dim() != 2 or id(parameter) in tables],
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        beta2=beta2,
    )
