"""The decoder behind model.generate: `model.generate(input_ids, custom_generate=apar.custom_generate, ...)`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from apar.grammar import Grammar
from apar.output import Output
from apar.page_sizes import DEFAULT_PAGE_SIZE
from apar.room import DEFAULT_LIVE_BRANCHES
from apar.run import PreparedRun
from apar.sampling import Sampling, make_sampling


def custom_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    grammar: Grammar | None = None,
    fork: bool = True,
    max_depth: int | None = None,
    max_children: int = 64,
    max_live_branches: int = DEFAULT_LIVE_BRANCHES,
    seed: int | None = None,
    page_size: int = DEFAULT_PAGE_SIZE,
    max_pages: int | None = None,
    keep_control_tokens: bool = False,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateDecoderOnlyOutput:
    """Called by `model.generate`, which takes all keyword arguments of this function beside its own.

    `generate` hands no tokenizer to such a function. So the control tokens come from ``grammar`` or from the model's
    generation config.

    Args:
        model, logits_processor, stopping_criteria, generation_config: from `generate`. Processors and criteria are
            called for each branch with the ids of its own path.
        input_ids: [B, L] int64, padded on the left where ``attention_mask`` says so.
        grammar: `apar.Grammar.for_model(model, tokenizer)`; by default made of ``fork_token_id`` and
            ``child_token_id`` in the model's generation config, where `apar.load` puts them.
        keep_control_tokens: leave control tokens and the end tokens of details in the answers.
        fork, max_depth, max_children, max_live_branches, seed, page_size, max_pages: as in `apar.generate`.

    Returns:
        What `generate` returns: [B, L + n] int64, prompts and answers in reading order, padded on the right.

    Raises:
        ValueError: something that has no meaning here is asked for: beam, assisted or contrastive search,
            inputs_embeds, a cache that holds tokens.
    """
    config = generation_config or model.generation_config
    if config.num_beams != 1:
        raise ValueError(
            f"custom_generate: num_beams is {config.num_beams}, expected 1: there is no beam search over trees"
        )
    if model_kwargs.get("inputs_embeds") is not None or input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"custom_generate: expected input_ids [B, L] with L of at least 1, got {list(input_ids.shape)}"
        )
    cache = model_kwargs.get("past_key_values")  # generate always makes one; trees live in a paged cache of their own
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            f"custom_generate: past_key_values holds {cache.get_seq_length()} tokens, expected an empty cache or none"
        )
    for name in ("assistant_model", "prompt_lookup_num_tokens", "penalty_alpha"):
        if model_kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise ValueError(f"custom_generate: {name} came, expected none: there is no such decoding over trees")
    if grammar is None:
        grammar = Grammar.for_model(model, None, max_depth=max_depth, max_children=max_children)
        if not grammar.can_fork and grammar.max_depth > 1:
            warnings.warn(
                "custom_generate: no control tokens known, so the answer is a single branch; pass "
                "grammar=apar.Grammar.for_model(model, tokenizer) or load the model with apar.load",
                stacklevel=2,
            )
    sampling, processors = _split_processors(config, logits_processor or LogitsProcessorList(), seed)
    run = PreparedRun.prepare(
        model,
        None,
        _unpadded(input_ids, model_kwargs.get("attention_mask")),
        max_new_tokens=config.max_length - input_ids.shape[1],
        sampling=sampling,
        fork=fork,
        max_live_branches=max_live_branches,
        grammar=grammar,
        logits_processor=processors,
        stopping_criteria=_own_criteria(stopping_criteria),
        page_size=page_size,
        max_pages=max_pages,
    )
    for _ in run.events():
        pass
    answers = [_answer_ids(output, grammar, keep_control_tokens) for output in run.outputs]
    sequences = _padded(input_ids, answers, _pad_token(config))
    return GenerateDecoderOnlyOutput(sequences=sequences) if config.return_dict_in_generate else sequences


def _unpadded(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[list[int]]:
    if attention_mask is None:
        return input_ids.tolist()
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]


def _split_processors(
    config: GenerationConfig, processors: LogitsProcessorList, seed: int | None
) -> tuple[Sampling, list[Any]]:
    """The sampler's own filters and what is left to call for each row."""
    filters = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
    others = [processor for processor in processors if not isinstance(processor, filters)]
    if not config.do_sample:
        return Sampling(), others
    own = list(processors)[len(others) :]
    kinds = [filters.index(type(processor)) if isinstance(processor, filters) else -1 for processor in own]
    plain = all(getattr(processor, "min_tokens_to_keep", 1) == 1 for processor in own)
    if not plain or -1 in kinds or kinds != sorted(set(kinds)):
        return make_sampling(1.0, 1.0, 0, seed), list(processors)  # another order than the sampler's: keep it
    found = {type(processor): processor for processor in own}
    temperature, top_k, top_p = (found.get(kind) for kind in filters)
    return make_sampling(
        temperature.temperature if temperature else 1.0,
        float(top_p.top_p) if top_p else 1.0,
        int(top_k.top_k) if top_k else 0,
        seed,
    ), others


def _own_criteria(criteria: StoppingCriteriaList | None) -> list[Any]:
    """Without length and end of sequence, which the grammar and the path limit know."""
    return [one for one in criteria or () if not isinstance(one, (MaxLengthCriteria, EosTokenCriteria))]


def _answer_ids(output: Output, grammar: Grammar, keep_control_tokens: bool) -> list[int]:
    if keep_control_tokens:
        return output.token_ids
    last = output.branches[0].token_ids[-1:]
    return output.visible_ids + [token for token in last if token in grammar.stop_ids]


def _pad_token(config: GenerationConfig) -> int:
    pad = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
    if isinstance(pad, (list, tuple)):
        pad = pad[0] if pad else None
    return 0 if pad is None else int(pad)


def _padded(input_ids: torch.Tensor, answers: list[list[int]], pad_token: int) -> torch.Tensor:
    longest = max(map(len, answers))
    padded = torch.tensor([answer + [pad_token] * (longest - len(answer)) for answer in answers])
    return torch.cat([input_ids, padded.to(input_ids)], dim=1)
