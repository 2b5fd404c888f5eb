"""Models whose fork token is likely, and the plain model's view of what such a model must write."""

from __future__ import annotations

import dataclasses
import random

import torch
from apar.grammar import Grammar
from apar.output import Output
from transformers import PreTrainedModel

from tests.apar.tiny_models import VOCABULARY, reference_implementation, tiny_model

FORK, CHILD, STOP = VOCABULARY - 1, VOCABULARY - 2, 2
TIE = 1e-5
"""Two logits closer than this may change places between two ways to compute them in fp32."""


def forking_grammar(max_depth: int = 4, max_children: int = 3) -> Grammar:
    return Grammar(fork_id=FORK, child_id=CHILD, stop_ids=(STOP,), max_depth=max_depth, max_children=max_children)


def forking_model(
    family: str = "llama", seed: int = 0, fork_bias: float = 0.0, stop_bias: float = -1.0
) -> PreTrainedModel:
    """A tiny random model that likes to fork and, somewhat less, to stop. Biases in standard deviations of logits."""
    model = tiny_model(family, seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY - 2, (4, 32), generator=generator)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        bias = torch.zeros(VOCABULARY)
        # To the average of the largest logit, so that each wins now and then.
        for token, deviations in ((FORK, fork_bias), (STOP, stop_bias)):
            bias[token] = logits.amax(-1).mean() - logits[..., token].mean() + deviations * logits[..., token].std()
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


def random_prompts(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    numbers = random.Random(seed)
    return [[numbers.randrange(3, VOCABULARY - 2) for _ in range(numbers.randint(1, longest))] for _ in range(count)]


@dataclasses.dataclass
class Comparison:
    """``tokens`` that were compared; ``ties``: those where the plain model itself hardly prefers one of two."""

    tokens: int = 0
    ties: int = 0
    branches: int = 0
    trees_with_forks: int = 0


def compare_with_plain_model(
    model: PreTrainedModel, family: str, outputs: list[Output], grammar: Grammar, max_new_tokens: int
) -> Comparison:
    """Every token of every branch must be what the plain model likes best behind the branch's own path, given the
    grammar's masks, which are written down here once more. Then greedy generation from the path writes the branch.
    """
    result = Comparison()
    paths, wanted = [], []
    for output in outputs:
        result.trees_with_forks += len(output.branches) > 1
        for branch in output.branches:
            path = output.path_ids(branch.id)
            assert path[-len(branch.token_ids) :] == branch.token_ids
            own = len(branch.token_ids) - (branch.parent is not None)
            allowed = _fork_allowed(output, branch.id, path, grammar, max_new_tokens)
            _check_end(path, branch, len(output.prompt_ids), grammar, max_new_tokens)
            paths.append(path)
            wanted.append((len(path) - own, allowed))
            result.branches += 1
    plain = _plain_logits(model, family, paths)
    for path, logits, (begin, allowed) in zip(paths, plain, wanted, strict=True):
        for place in range(begin, len(path)):
            scores = logits[place - 1].clone()
            scores[grammar.child_id] = -torch.inf
            if not allowed[place]:
                scores[grammar.fork_id] = -torch.inf
            best = scores.topk(2)
            result.tokens += 1
            if int(best.indices[0]) == path[place]:
                continue
            gap = float(best.values[0] - scores[path[place]])
            assert gap < TIE, f"at {place} of {path}: plain model wants {int(best.indices[0])}, by {gap}"
            result.ties += 1
    return result


def _fork_allowed(output: Output, branch_id: tuple, path: list[int], grammar: Grammar, max_new_tokens: int) -> dict:
    """For every place of the branch's own tokens: may the fork token stand there?"""
    limit = len(output.prompt_ids) + max_new_tokens
    begin = len(path) - len(output.branch(branch_id).token_ids)
    allowed, forks = {}, 0
    for place in range(begin, len(path)):
        allowed[place] = (
            len(branch_id) + 1 < grammar.max_depth
            and forks < grammar.max_children
            and path[place - 1] not in (grammar.fork_id, grammar.child_id)
            and place + 2 < limit  # behind it the child token and one token of the detail
        )
        forks += path[place] == grammar.fork_id
    return allowed


def _check_end(path: list[int], branch: object, prompt_length: int, grammar: Grammar, max_new_tokens: int) -> None:
    if branch.finish_reason == "stop":
        assert path[-1] in grammar.stop_ids
        assert len(path) - prompt_length <= max_new_tokens
    else:
        assert branch.finish_reason == "length"
        assert len(path) - prompt_length == max_new_tokens
    assert not set(branch.token_ids[:-1]) & set(grammar.stop_ids)


@torch.no_grad()
def _plain_logits(model: PreTrainedModel, family: str, paths: list[list[int]]) -> list[torch.Tensor]:
    """Logits of the plain model on every path, [len(path), V], in batches of similar length padded on the right."""
    model.set_attn_implementation(reference_implementation(family))
    logits: list[torch.Tensor] = [torch.empty(0)] * len(paths)
    by_length = sorted(range(len(paths)), key=lambda number: len(paths[number]))
    for start in range(0, len(paths), 64):
        batch = by_length[start : start + 64]
        longest = max(len(paths[number]) for number in batch)
        ids = torch.tensor([paths[number] + [0] * (longest - len(paths[number])) for number in batch])
        mask = torch.tensor([[1] * len(paths[number]) + [0] * (longest - len(paths[number])) for number in batch])
        out = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, number in enumerate(batch):
            logits[number] = out[row, : len(paths[number])]
    model.set_attn_implementation("apar")
    return logits
