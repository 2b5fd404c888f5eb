"""The promise: every branch says what plain greedy generation from its own path says, however little room there is."""

from __future__ import annotations

import apar
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tests.apar.forking import (
    CHILD,
    FORK,
    STOP,
    compare_with_plain_model,
    forking_grammar,
    forking_model,
    random_prompts,
)
from tests.apar.tiny_models import VOCABULARY, reference_implementation

MAX_NEW_TOKENS = 48


def decode(model, prompts, grammar, **options):
    options = {"max_new_tokens": MAX_NEW_TOKENS, **options}
    return apar.generate(model, None, prompts, grammar=grammar, **options)


@pytest.mark.parametrize(
    ("family", "seeds", "prompts"),
    [("llama", range(6), 36), ("mistral", range(2), 24), ("gemma2", range(2), 20), ("gpt_oss", range(2), 20)],
)
def test_branches_equal_greedy_generation_from_their_own_path(family: str, seeds: range, prompts: int) -> None:
    grammar = forking_grammar(max_depth=4)
    tokens = ties = forked = depth = 0
    for seed in seeds:
        model = forking_model(family, seed)
        # Fewer pages and rows than the trees want, in every second run.
        room = {"max_pages": 16, "page_size": 8, "max_rows": 5} if seed % 2 else {}
        outputs = decode(model, random_prompts(prompts, seed), grammar, **room)
        comparison = compare_with_plain_model(model, family, outputs, grammar, MAX_NEW_TOKENS)
        tokens += comparison.tokens
        ties += comparison.ties
        forked += comparison.trees_with_forks
        depth = max(depth, *(output.tree.depth for output in outputs))
    assert forked >= len(seeds) * prompts // 4, "the models were to fork"
    assert depth >= (2 if family == "gemma2" else 4)
    assert ties <= 1 + tokens // 10_000


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_branch_is_what_model_generate_writes(family: str) -> None:
    grammar = forking_grammar(max_depth=3)
    model = forking_model(family, seed=1)
    for output in decode(model, random_prompts(6, seed=5), grammar):
        for branch in output.branches:
            path = output.path_ids(branch.id)
            begin = len(path) - len(branch.token_ids) + (branch.parent is not None)
            masks = StaticMasks(output, branch, grammar)
            model.set_attn_implementation(reference_implementation(family))
            plain = model.generate(
                torch.tensor([path[:begin]]),
                attention_mask=torch.ones(1, begin, dtype=torch.long),
                do_sample=False,
                max_length=len(output.prompt_ids) + MAX_NEW_TOKENS,
                eos_token_id=STOP,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([masks]),
            )
            model.set_attn_implementation("apar")
            assert plain[0].tolist() == path


class StaticMasks(LogitsProcessor):
    """The grammar's masks for one branch, as transformers wants them."""

    def __init__(self, output, branch, grammar) -> None:
        self.grammar = grammar
        self.limit = len(output.prompt_ids) + MAX_NEW_TOKENS
        self.depth = len(branch.id)
        self.own_from = len(output.path_ids(branch.id)) - len(branch.token_ids)

    def __call__(self, input_ids, scores):
        path = input_ids[0].tolist()
        scores = scores.clone()
        scores[:, CHILD] = -torch.inf
        if (
            self.depth + 1 >= self.grammar.max_depth
            or path[self.own_from :].count(FORK) >= self.grammar.max_children
            or path[-1] in (FORK, CHILD)
            or len(path) + 2 >= self.limit
        ):
            scores[:, FORK] = -torch.inf
        return scores


ROOMS = {
    "one branch at a time": {"fork": False},
    "two branches at once": {"max_live_branches": 2},
    "three rows": {"max_rows": 3},
    "smallest pages": {"page_size": 8},
    "smallest pool": {"max_pages": 14, "page_size": 8},  # 87 entries and three more levels
    "one row, smallest pool": {"max_rows": 1, "max_pages": 14, "page_size": 8},
    "short prefill": {"prefill_tokens": 7},
    "large pages": {"page_size": 64},
}


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_room_never_changes_what_is_written(family: str, two_threads) -> None:
    grammar = forking_grammar(max_depth=4)
    model = forking_model(family, seed=2)
    prompts = random_prompts(12, seed=9)
    expected = decode(model, prompts, grammar)
    assert max(output.stats.peak_branches for output in expected) > 2
    for name, room in ROOMS.items():
        assert decode(model, prompts, grammar, **room) == expected, name
    assert [decode(model, [prompt], grammar)[0] for prompt in prompts] == expected, "one prompt at a time"
    assert decode(model, prompts[::-1], grammar)[::-1] == expected, "prompts in another order"
    two_threads()
    assert decode(model, prompts, grammar) == expected, "another number of threads"


def test_sequential_twin_takes_a_step_for_every_token_and_reads_in_order() -> None:
    grammar = forking_grammar(max_depth=3)
    model = forking_model(seed=3)
    [prompt] = random_prompts(1, seed=4)
    [tree] = decode(model, [prompt], grammar)
    [twin] = decode(model, [prompt], grammar, fork=False)
    assert len(tree.branches) > 2
    assert twin == tree
    sampled = sum(len(branch.token_ids) - (branch.parent is not None) for branch in twin.branches)
    assert (
        twin.stats.steps == twin.stats.tokens == twin.stats.sequential_steps == tree.stats.sequential_steps == sampled
    )
    assert tree.stats.steps < sampled
    assert twin.stats.peak_branches == 1
    # A child is over before the next paragraph of its parent: nobody begins inside a branch that is no ancestor.
    for branch in twin.branches:
        for other in twin.branches:
            if other.id[: len(branch.id)] != branch.id and other.start_step > branch.start_step:
                assert other.start_step > branch.end_step


def test_max_children_and_max_depth_hold() -> None:
    model = forking_model(seed=4, fork_bias=3.0)
    prompts = random_prompts(8, seed=3)
    for depth, children in ((1, 5), (2, 1), (2, 4), (3, 0), (3, 2)):
        outputs = decode(model, prompts, forking_grammar(depth, children))
        assert max(output.tree.depth for output in outputs) == (depth if children else 1)
        counts = [
            sum(other.parent == branch.id for other in output.branches)
            for output in outputs
            for branch in output.branches
        ]
        assert max(counts) == (children if depth > 1 else 0)


def test_a_model_without_control_tokens_is_one_branch() -> None:
    model = forking_model(seed=6)
    grammar = apar.Grammar(stop_ids=(STOP,))
    prompts = random_prompts(5, seed=1)
    for prompt, output in zip(prompts, decode(model, prompts, grammar), strict=True):
        assert [branch.id for branch in output.branches] == [()]
        model.set_attn_implementation("sdpa")
        plain = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=STOP,
            pad_token_id=0,
        )
        model.set_attn_implementation("apar")
        assert output.path_ids(()) == plain[0].tolist()
        assert max(output.token_ids) < VOCABULARY
