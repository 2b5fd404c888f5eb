"""apar.generate and apar.stream: text in, trees of text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from apar.choosers import LogitsProcessor
from apar.events import Event
from apar.grammar import Grammar
from apar.output import Output
from apar.page_sizes import DEFAULT_PAGE_SIZE
from apar.progress import progress_bar
from apar.prompts import Prompts
from apar.room import DEFAULT_LIVE_BRANCHES, DEFAULT_PREFILL_TOKENS, check_integer
from apar.run import PreparedRun, check_model_and_tokenizer
from apar.sampling import make_sampling


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
    max_depth: int | None = None,
    max_children: int = 64,
    max_live_branches: int = DEFAULT_LIVE_BRANCHES,
    grammar: Grammar | None = None,
    stop: str | Sequence[str] | None = None,
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
    on_event: Callable[[Event], None] | None = None,
    page_size: int = DEFAULT_PAGE_SIZE,
    max_pages: int | None = None,
    max_rows: int | None = None,
    prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
    kv_dtype: str | None = None,
    progress: bool | None = None,
) -> list[Output]:
    """Answer prompts, the branches of each answer decoded in parallel.

    Args:
        model: a causal language model of transformers; its attention is set for the call and put back afterwards.
        tokenizer: its tokenizer; None where prompts are token ids and ``grammar`` is given or stands in the model's
            generation config. Texts are empty then.
        prompts: a text, a list of texts, the messages of a conversation, a list of conversations, or token ids.
        max_new_tokens: tokens along a path from the prompt to the end of any branch, control tokens counted. A path
            ends at the model's last position, too.
        temperature: 0 is greedy.
        top_p, top_k: filters as in transformers, applied after the temperature, ``top_k`` first; 1 and 0 are off.
        seed: the same seed gives the same text whatever the load; None draws one from torch's global generator.
        max_depth: levels of branches, the trunk counted. 1: nothing forks; 2: the trunk forks, its details do not.
            None: what the model was tuned to, if its generation config says so (`fork_max_depth`), else 2.
        max_children: forks of one branch.
        grammar: control tokens, stop tokens and limits of the tree; by default found by name in the tokenizer. A
            grammar that is given brings its own ``max_depth`` and ``max_children``.
        stop: strings that end the branch that writes one; the string is left out of the text.
        logits_processor: (input_ids [1, L], scores [1, V]) -> scores, one or a list, called for every branch with the
            ids of its own path.
        kv_dtype: ``"fp8"`` keeps keys and values in 8 bits (float8_e4m3fn), half the memory; what is rounded so may
            change the text. None: the model's dtype.

    The rest decides what it costs, never what is written:
        fork: False decodes one branch at a time in reading order, the sequential twin of the same text.
        max_live_branches: branches of one prompt decoded at once; others wait.
        page_size: tokens of a KV page: 8, 16, 32, 64 or 128.
        max_pages: KV pages; by default as many as the prompts could need, at most a quarter of the free memory.
        max_rows: branches of all prompts decoded at once; by default ``max_live_branches`` for each, at most 256.
        prefill_tokens: prompt tokens in one forward pass.
        on_event: called with every event (see ``apar.events``) as it happens.
        progress: whether to show a bar; None: if there are several prompts and a terminal.

    Returns:
        One Output per prompt, in order.

    Raises:
        ValueError, TypeError: an argument is not as above; the text names it, and nothing has run.
        FloatingPointError: the model's logits are no numbers.

    KeyboardInterrupt and errors of callbacks pass through; the model can be used again at once.
    """
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event: expected a function, got {on_event!r}")
    run = _prepare(
        model,
        tokenizer,
        prompts,
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
        kv_dtype=kv_dtype,
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
    return _prepare(model, tokenizer, prompts, listening=True, **options).events()


def _prepare(
    model: Any,
    tokenizer: Any,
    prompts: Prompts,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    max_depth: int | None = None,
    max_children: int = 64,
    grammar: Grammar | None = None,
    **options: Any,
) -> PreparedRun:
    if max_depth is not None:
        check_integer("max_depth", max_depth, 1)
    check_integer("max_children", max_children, 0)
    sampling = make_sampling(temperature, top_p, top_k, seed)
    if grammar is None:
        check_model_and_tokenizer(model, tokenizer)
        grammar = Grammar.for_model(model, tokenizer, max_depth=max_depth, max_children=max_children)
    return PreparedRun.prepare(model, tokenizer, prompts, sampling=sampling, grammar=grammar, **options)
