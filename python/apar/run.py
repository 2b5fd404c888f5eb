"""A call that was checked from end to end before anything runs, and its run."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from apar.cache import ATTENTION_NAME
from apar.choosers import LogitsProcessor, TokenChooser
from apar.decoder import Decoder
from apar.device_decoder import make_decoder
from apar.events import Event
from apar.grammar import Grammar
from apar.loading import check_model, check_tokenizer
from apar.output import Output
from apar.page_sizes import DEFAULT_PAGE_SIZE
from apar.prompts import Prompts, encode_prompts
from apar.record import Recorder, Request, StoppingCriterion
from apar.room import DEFAULT_LIVE_BRANCHES, DEFAULT_PREFILL_TOKENS, check_integer, make_room
from apar.sampling import Sampling


@dataclasses.dataclass
class PreparedRun:
    """A checked call, ready to run."""

    decoder: Decoder
    requests: list[Request]

    @classmethod
    def prepare(
        cls,
        model: Any,
        tokenizer: Any,
        prompts: Prompts,
        *,
        sampling: Sampling,
        grammar: Grammar,
        listening: bool = False,
        max_new_tokens: int = 512,
        fork: bool = True,
        max_live_branches: int = DEFAULT_LIVE_BRANCHES,
        stop: str | Sequence[str] | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriterion] = (),
        page_size: int = DEFAULT_PAGE_SIZE,
        max_pages: int | None = None,
        max_rows: int | None = None,
        prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
        kv_dtype: str | None = None,
        max_answer_tokens: int | None = None,
    ) -> PreparedRun:
        """Raises ValueError or TypeError that names the argument of `apar.generate` that is not as it must be.

        ``max_answer_tokens``, which `apar.generate` does not have, cuts an answer off once all its branches together
        have so many tokens. Where that is depends on what else is decoded.
        """
        check_integer("max_new_tokens", max_new_tokens, 1)
        if max_answer_tokens is not None:
            check_integer("max_answer_tokens", max_answer_tokens, 1)
        if not isinstance(fork, bool):
            raise TypeError(f"fork: expected True or False, got {fork!r}")
        check_model_and_tokenizer(model, tokenizer)
        check_grammar(model, grammar)
        stop = _stop_strings(stop, tokenizer)
        processors = _processors(logits_processor)
        prompt_ids = encode_prompts(tokenizer, prompts)
        limits = path_limits(model, prompt_ids, max_new_tokens, grammar)
        room = make_room(
            model,
            [len(ids) for ids in prompt_ids],
            limits,
            grammar,
            page_size=page_size,
            max_pages=max_pages,
            max_rows=max_rows,
            max_live_branches=max_live_branches if fork else 1,
            prefill_tokens=prefill_tokens,
            kv_dtype=kv_dtype,
        )
        recorder = Recorder(
            len(prompt_ids),
            room.max_slots,
            grammar,
            tokenizer,
            sampling=sampling,
            stop=stop,
            stopping_criteria=stopping_criteria,
            listening=listening,
            max_answer_tokens=max_answer_tokens,
        )
        requests = [
            Request(index, ids, limit) for index, (ids, limit) in enumerate(zip(prompt_ids, limits, strict=True))
        ]
        return cls(make_decoder(model, grammar, room, recorder, TokenChooser(sampling, processors)), requests)

    def events(self, after_step: Callable[[], None] | None = None) -> Iterator[Event]:
        """Run to the end. Yields nothing unless the run was prepared with ``listening``."""
        with apar_attention(self.decoder.model):
            yield from self.decoder.run(self.requests, after_step)

    @property
    def num_finished(self) -> int:
        return sum(request.output is not None for request in self.requests)

    @property
    def outputs(self) -> list[Output]:
        """One per prompt, once ``events`` has come to its end."""
        return [request.output for request in self.requests]


# Per model how many runs use it, and the attention it had before the first of them: streams may overlap.
_borrowed: weakref.WeakKeyDictionary[Any, tuple[int, str]] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def apar_attention(model: Any) -> Iterator[None]:
    """The model with this package's attention; after the last run on it, with what it had before the first."""
    runs, before = _borrowed.get(model, (0, model.config.get_text_config(decoder=True)._attn_implementation))
    if runs == 0 and before != ATTENTION_NAME:
        model.set_attn_implementation(ATTENTION_NAME)
    _borrowed[model] = (runs + 1, before)
    try:
        check_model(model)
        yield
    finally:
        runs = _borrowed[model][0] - 1
        if runs:
            _borrowed[model] = (runs, before)
        else:
            del _borrowed[model]
            if before != ATTENTION_NAME:
                model.set_attn_implementation(before)


def check_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    """Raises TypeError for what is no model or tokenizer, ValueError if the tokenizer has ids the model lacks."""
    if not hasattr(model, "get_input_embeddings") or not hasattr(model, "set_attn_implementation"):
        raise TypeError(f"model: expected a transformers model, got {model!r}")
    if tokenizer is not None:
        if not (callable(tokenizer) and hasattr(tokenizer, "decode")):
            raise TypeError(f"tokenizer: expected a transformers tokenizer or None, got {tokenizer!r}")
        check_tokenizer(model, tokenizer)


def check_grammar(model: Any, grammar: Grammar) -> None:
    """Raises TypeError for what is no grammar, ValueError if it has token ids that the model does not know."""
    if not isinstance(grammar, Grammar):
        raise TypeError(f"grammar: expected an apar.Grammar, got {grammar!r}")
    known = model.get_input_embeddings().weight.shape[0]
    for name, token in (("fork_id", grammar.fork_id), ("child_id", grammar.child_id)):
        if token >= known:
            raise ValueError(
                f"grammar: {name} is {token}, expected less than {known}, the size of the model's vocabulary"
            )
    if max(grammar.stop_ids, default=0) >= known:
        raise ValueError(
            f"grammar: stop_ids are {grammar.stop_ids}, expected less than {known}, the model's vocabulary"
        )


def path_limits(model: Any, prompts: list[list[int]], max_new_tokens: int, grammar: Grammar) -> list[int]:
    """Per prompt the first position that no branch may use. Raises ValueError for a prompt the model cannot read."""
    known = model.get_input_embeddings().weight.shape[0]
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= known:
            bad = min(prompt) if min(prompt) < 0 else max(prompt)
            raise ValueError(f"prompts: prompt {number} has token id {bad}, expected 0 to {known - 1}")
        if prompt[-1] in grammar.control_ids:
            raise ValueError(
                f"prompts: prompt {number} ends with a control token of the grammar, expected another token"
            )
        if positions is not None and len(prompt) >= positions:
            raise ValueError(
                f"prompts: prompt {number} has {len(prompt)} tokens, expected at most {positions - 1}: the model has "
                f"{positions} positions"
            )
    return [min(len(prompt) + max_new_tokens, positions or 2**30) for prompt in prompts]


def _stop_strings(stop: str | Sequence[str] | None, tokenizer: Any) -> tuple[str, ...]:
    if stop is not None and not isinstance(stop, (str, Sequence)):
        raise TypeError(f"stop: expected a text or a list of texts, got {stop!r}")
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if any(not isinstance(string, str) or not string for string in strings):
        raise ValueError(f"stop: expected a text or a list of texts, none of them empty, got {stop!r}")
    if strings and tokenizer is None:
        raise ValueError("tokenizer: stop strings need a tokenizer, got None")
    return strings


def _processors(given: LogitsProcessor | Sequence[LogitsProcessor] | None) -> tuple[LogitsProcessor, ...]:
    # transformers' LogitsProcessorList is a list and callable; as a list its members are called in order just the same.
    processors = tuple(given) if isinstance(given, Sequence) else () if given is None else (given,)
    for processor in processors:
        if not callable(processor):
            raise TypeError(f"logits_processor: expected functions of (input_ids, scores), got {processor!r}")
    return processors
