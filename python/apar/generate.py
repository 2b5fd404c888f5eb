"""apar.generate, apar.stream, and the hook for model.generate."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .attention import ATTENTION_NAME
from .choosers import LogitsProcessor, TokenChooser
from .decoder import Decoder
from .events import Event, Finished, Token
from .grammar import Grammar
from .loading import check_model, check_tokenizer
from .output import Output
from .progress import progress_bar
from .prompts import Prompts, encode_prompts
from .record import Recorder, Request
from .room import check_integer, make_room
from .sampling import Sampling

DEFAULT_LIVE_BRANCHES = 16  # real answers are 4 to 5 branches wide, 14 at most


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    fork: bool = True,
    max_depth: int = 2,
    max_children: int = 64,
    max_live_branches: int = DEFAULT_LIVE_BRANCHES,
    grammar: Grammar | None = None,
    stop: str | Sequence[str] | None = None,
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
    on_event: Callable[[Event], None] | None = None,
    page_size: int = 16,
    max_pages: int | None = None,
    max_rows: int | None = None,
    prefill_tokens: int = 512,
    progress: bool | None = None,
) -> list[Output]:
    """Answer prompts, the branches of each answer decoded in parallel. Returns one Output per prompt, in order.

    Decides what is written:
        prompts: a text, a list of texts, the messages of a conversation, a list of conversations, or token ids.
        max_new_tokens: tokens along a path from the prompt to the end of any branch, control tokens counted. A path ends
            at the model's last position, too.
        temperature, top_p, top_k: 0 is greedy; filters as in transformers. seed: the same seed gives the same text
            whatever the load; None draws one from torch's global generator.
        max_depth, max_children: levels of branches (2: the trunk forks, its details do not), forks of one branch.
        grammar: control tokens, stop tokens and limits of the tree; by default found by name in the tokenizer. A grammar
            that is given brings its own max_depth and max_children.
        stop: strings that end the branch that writes one; the string is left out of the text.
        logits_processor: (input_ids [1, L], scores [1, V]) -> scores, called for every branch with the ids of its own path.

    Decides what it costs, never what is written:
        fork: False decodes one branch at a time in reading order, the sequential twin of the same text.
        max_live_branches: branches of one prompt decoded at once; others wait.
        page_size, max_pages: KV pages. By default as many as the prompts could need, at most a quarter of the free memory.
        max_rows: branches of all prompts decoded at once. prefill_tokens: prompt tokens in one forward pass.

    on_event is called with every event as it happens. progress shows a bar (None: if several prompts and a terminal).

    Raises ValueError or TypeError that names the argument before anything runs. KeyboardInterrupt and errors of callbacks
    pass through; the model can be used again at once.
    """
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event: expected a function, got {on_event!r}")
    run = _Run.prepare(
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        listening=on_event is not None,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        fork=fork,
        max_depth=max_depth,
        max_children=max_children,
        max_live_branches=max_live_branches,
        grammar=grammar,
        stop=stop,
        logits_processor=logits_processor,
        page_size=page_size,
        max_pages=max_pages,
        max_rows=max_rows,
        prefill_tokens=prefill_tokens,
    )
    with progress_bar(len(run.requests), "prompts", progress) as bar:
        for event in run.events(lambda: bar.update_to(run.num_finished)):
            on_event(event)
    return run.outputs


def stream(model: Any, tokenizer: Any, prompts: Prompts, **options: Any) -> Iterator[Event]:
    """As `generate` with the same options, but yields the events (see `apar.events`) as they happen.

    The last event of a prompt is `Finished` with its Output. Arguments are checked at the call, before the first event.
    """
    for name in ("on_event", "progress"):
        if name in options:
            raise TypeError(f"{name}: not an argument of stream, which yields the events themselves")
    return _Run.prepare(model=model, tokenizer=tokenizer, prompts=prompts, **options, listening=True).events()


@dataclasses.dataclass
class _Run:
    """A checked call, ready to run."""

    decoder: Decoder
    requests: list[Request]

    @classmethod
    def prepare(
        cls,
        *,
        model: Any,
        tokenizer: Any,
        prompts: Prompts,
        listening: bool,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        fork: bool = True,
        max_depth: int = 2,
        max_children: int = 64,
        max_live_branches: int = DEFAULT_LIVE_BRANCHES,
        grammar: Grammar | None = None,
        stop: str | Sequence[str] | None = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        page_size: int = 16,
        max_pages: int | None = None,
        max_rows: int | None = None,
        prefill_tokens: int = 512,
    ) -> _Run:
        check_integer("max_new_tokens", max_new_tokens, 1)
        check_integer("max_depth", max_depth, 1)
        check_integer("max_children", max_children, 0)
        sampling = make_sampling(temperature, top_p, top_k, seed)
        if grammar is None:
            grammar = Grammar.for_model(model, tokenizer, max_depth=max_depth, max_children=max_children)
        check_model_and_tokenizer(model, tokenizer, grammar)
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
        )
        recorder = Recorder(
            len(prompt_ids), room.max_slots, grammar, tokenizer, sampling=sampling, stop=stop, listening=listening
        )
        requests = [Request(index, ids, limit) for index, (ids, limit) in enumerate(zip(prompt_ids, limits, strict=True))]
        return cls(Decoder(model, grammar, room, recorder, TokenChooser(sampling, processors)), requests)

    def events(self, after_step: Callable[[], None] | None = None) -> Iterator[Event]:
        with apar_attention(self.decoder.model):
            yield from self.decoder.run(self.requests, after_step)

    @property
    def num_finished(self) -> int:
        return sum(request.output is not None for request in self.requests)

    @property
    def outputs(self) -> list[Output]:
        return [request.output for request in self.requests]


@contextlib.contextmanager
def apar_attention(model: Any) -> Iterator[None]:
    """The model with this package's attention, and afterwards with what it had before."""
    before = model.config.get_text_config(decoder=True)._attn_implementation
    if before != ATTENTION_NAME:
        model.set_attn_implementation(ATTENTION_NAME)
    try:
        check_model(model)
        yield
    finally:
        if before != ATTENTION_NAME:
            model.set_attn_implementation(before)


def make_sampling(temperature: float, top_p: float, top_k: int, seed: int | None) -> Sampling:
    if seed is None:
        seed = int(torch.randint(2**62, ())) if temperature else 0
    return Sampling(temperature, top_p, top_k, seed)


def check_model_and_tokenizer(model: Any, tokenizer: Any, grammar: Grammar) -> None:
    """Raises ValueError if tokenizer or grammar have token ids that the model does not know."""
    if tokenizer is not None:
        check_tokenizer(model, tokenizer)
    known = model.get_input_embeddings().weight.shape[0]
    for name, token in (("fork_id", grammar.fork_id), ("child_id", grammar.child_id)):
        if token >= known:
            raise ValueError(f"grammar: {name} is {token}, expected less than {known}, the size of the model's vocabulary")
    if max(grammar.stop_ids, default=0) >= known:
        raise ValueError(f"grammar: stop_ids are {grammar.stop_ids}, expected less than {known}, the model's vocabulary")


def path_limits(model: Any, prompts: list[list[int]], max_new_tokens: int, grammar: Grammar) -> list[int]:
    """Per prompt the first position that no branch may use. Raises ValueError for a prompt the model cannot read."""
    known = model.get_input_embeddings().weight.shape[0]
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        if min(prompt) < 0 or max(prompt) >= known:
            bad = min(prompt) if min(prompt) < 0 else max(prompt)
            raise ValueError(f"prompts: prompt {number} has token id {bad}, expected 0 to {known - 1}")
        if prompt[-1] in grammar.control_ids:
            raise ValueError(f"prompts: prompt {number} ends with a control token of the grammar, expected another token")
        if positions is not None and len(prompt) >= positions:
            raise ValueError(
                f"prompts: prompt {number} has {len(prompt)} tokens, expected at most {positions - 1}: the model has "
                f"{positions} positions"
            )
    return [min(len(prompt) + max_new_tokens, positions or 2**30) for prompt in prompts]


def _stop_strings(stop: str | Sequence[str] | None, tokenizer: Any) -> tuple[str, ...]:
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
