"""A packed tree teaches what one row per branch teaches: the same loss, the same gradient of every weight."""

from __future__ import annotations

import itertools

import pytest
import torch
from apar.train.attention import register
from apar.train.dataset import PackedRow, collate, make_row
from apar.train.loss import target_logits, target_losses
from apar.train.packing import PackedTree, one_row_per_branch, split_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.apar.tiny_models import reference_implementation, tiny_model
from tests.apar.train.trees import random_packed

register()


def plain_loss(model: torch.nn.Module, trees: list[PackedTree], weighting: str) -> torch.Tensor:
    """The weighted mean over the rows of all branches, each through the model alone, with its own causal attention."""
    model.set_attn_implementation(reference_implementation(model.config.model_type))
    total, weights = 0.0, 0.0
    for tree in trees:
        for row in one_row_per_branch(tree):
            ids = torch.from_numpy(row.token_ids).long()
            learned = torch.from_numpy(row.branch[1:] >= 0)
            if not learned.any():
                continue
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits[learned], ids[1:][learned], reduction="sum")
            weight = 1 / learned.sum() if weighting == "branch" else 1.0
            total, weights = total + losses * weight, weights + learned.sum() * weight
    return total / weights


def packed_loss(model: torch.nn.Module, rows: list[PackedRow]) -> torch.Tensor:
    model.set_attn_implementation("apar_tiles")
    batch = collate(rows)
    losses = target_losses(target_logits(model, batch, "apar_tiles", torch.float64), batch["targets"])
    return (losses * batch["weights"]).sum() / batch["weights"].double().sum()


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_equal_training(model: torch.nn.Module, plain: torch.Tensor, packed: torch.Tensor) -> None:
    assert abs(plain.item() - packed.item()) < 1e-6
    expected, found = gradients(model, plain), gradients(model, packed)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        assert (gradient - found[name]).abs().max() < 1e-6 * max(1.0, largest), name


@pytest.mark.parametrize(
    ("family", "weighting"),
    [
        *itertools.product(["llama", "qwen2", "mistral"], ["token", "branch"]),
        ("gemma2", "token"),  # a soft cap
        ("gpt_oss", "branch"),  # sinks
    ],
)
@settings(max_examples=6, deadline=None)
@given(seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=4), num_rows=st.integers(1, 2))
def test_loss_and_gradients_are_those_of_one_row_per_branch(
    family: str, weighting: str, seeds: list[int], num_rows: int
) -> None:
    model = tiny_model(family).double()
    if family == "gpt_oss":
        model.set_experts_implementation("eager")  # the others have no float64
    trees = [random_packed(seed) for seed in seeds]
    length = max(len(tree) for tree in trees) * len(trees) + 3
    rows = [make_row(trees[number::num_rows], length, weighting) for number in range(num_rows)]
    assert_equal_training(model, plain_loss(model, trees, weighting), packed_loss(model, rows))


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_a_split_tree_teaches_the_same(seed: int) -> None:
    model = tiny_model("llama").double()
    tree = random_packed(seed, depth=3, most_children=4)
    for length in range(len(tree) - 1, 0, -1):
        parts, left_out = split_tree(tree, length)
        if left_out or len(parts) == 4:
            break
        most_parts = parts
    assert len(most_parts) > 1
    rows = [make_row([part], len(tree)) for part in most_parts]
    assert_equal_training(model, plain_loss(model, [tree], "token"), packed_loss(model, rows))
