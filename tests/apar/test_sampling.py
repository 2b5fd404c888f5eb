"""Sampling: the filters of transformers, numbers that do not depend on the load."""

from __future__ import annotations

import math

import apar
import numpy as np
import pytest
import torch
from apar.sampling import Sampling, child_key, choose, choose_greedy, random_numbers
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.apar.forking import forking_grammar, forking_model, random_prompts


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (7, 0.6), (1, 0.5), (0, 1e-9), (50, 0.95)])
def test_frequencies_are_those_of_transformers_filters(temperature: float, top_k: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 23, generator=generator) * 2
    logits[0, 4] = -torch.inf
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores.softmax(-1)[0].double()

    draws = 20_000
    # Evenly over [0, 1), so frequencies are probabilities up to 1 / draws.
    numbers = ((np.arange(draws) + 0.5) / draws * 2.0**64).astype(np.uint64)
    any_fork = torch.ones(draws, dtype=torch.int32)
    tokens = choose(logits.expand(draws, -1), Sampling(temperature, top_p, top_k), numbers, any_fork)
    counts = torch.bincount(tokens.long(), minlength=23).double() / draws
    assert (counts - expected).abs().max() < 2 / draws
    assert not counts[expected == 0].any()


def test_edges_of_the_unit_interval_give_tokens_that_can_be() -> None:
    logits = torch.full((2, 9), -torch.inf)
    logits[:, 3] = 1.0
    logits[:, 5] = 1.0
    numbers = np.array([0, 2**64 - 1], dtype=np.uint64)
    any_fork = torch.ones(2, dtype=torch.int32)
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.99)):
        assert choose(logits, sampling, numbers, any_fork).tolist() == [3, 5]


def test_numbers_are_even_and_depend_on_seed_prompt_branch_and_position() -> None:
    positions = np.arange(200_000, dtype=np.int32)
    trunk = Sampling(1.0, seed=7).trunk_key(0)
    keys = [trunk, Sampling(1.0, seed=8).trunk_key(0), Sampling(1.0, seed=7).trunk_key(1), child_key(trunk, 0)]
    keys += [child_key(trunk, 1), child_key(child_key(trunk, 0), 0), child_key(child_key(trunk, 0), 1)]
    drawn = [
        random_numbers(np.full(len(positions), key, dtype=np.uint64), positions).astype(np.float64) * 2.0**-64
        for key in keys
    ]
    for numbers in drawn:
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts, _ = np.histogram(numbers, bins=100, range=(0, 1))
        chi_square = ((counts - len(numbers) / 100) ** 2 / (len(numbers) / 100)).sum()
        assert chi_square < 99 + 5 * math.sqrt(2 * 99)
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.015
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.015


def test_greedy_takes_the_first_of_the_largest_and_refuses_nan() -> None:
    any_fork = torch.ones(3, dtype=torch.int32)
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])
    assert choose_greedy(logits, any_fork[:2]).tolist() == [1, 0]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert choose_greedy(logits.to(dtype), any_fork[:2]).tolist() == [1, 0]
    no_fork = torch.tensor([0, 1], dtype=torch.int32)
    assert choose_greedy(logits, no_fork, fork_id=1, child_id=0).tolist() == [2, 1]
    for bad in (math.nan, math.inf):
        logits = torch.zeros(3, 4)
        logits[1, 2] = bad
        with pytest.raises(FloatingPointError, match="row 1"):
            choose_greedy(logits, any_fork)
        with pytest.raises(FloatingPointError, match="row 1"):
            choose(logits, Sampling(1.0), np.zeros(3, dtype=np.uint64), any_fork)
    with pytest.raises(FloatingPointError, match="row 0"):
        choose_greedy(torch.full((1, 4), -torch.inf), any_fork[:1])


def test_the_same_seed_gives_the_same_text_whatever_the_load() -> None:
    model = forking_model(seed=2)
    prompts = random_prompts(10, seed=1)
    options = dict(grammar=forking_grammar(), max_new_tokens=32, temperature=0.8, top_p=0.95, top_k=40)
    expected = apar.generate(model, None, prompts, seed=5, **options)
    for room in ({"fork": False}, {"max_rows": 2}, {"max_pages": 12, "page_size": 8}, {"max_live_branches": 3}):
        assert apar.generate(model, None, prompts, seed=5, **options, **room) == expected, room
    assert apar.generate(model, None, prompts, seed=6, **options) != expected
    torch.manual_seed(0)
    drawn = apar.generate(model, None, prompts, **options)
    torch.manual_seed(0)
    assert apar.generate(model, None, prompts, **options) == drawn
    assert apar.generate(model, None, prompts, **options) != drawn
    same_prompt = apar.generate(model, None, [prompts[0]] * 4, seed=5, **options)
    assert len({tuple(output.token_ids) for output in same_prompt}) > 1, "every prompt draws its own numbers"
