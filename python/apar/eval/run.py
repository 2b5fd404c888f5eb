"""Decoding a prompt set several ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from apar.cache import DEFAULT_PAGE_SIZE
from apar.data.records import TreeRecord
from apar.data.synth.check import Checker
from apar.eval.prompts import EvalPrompt
from apar.eval.report import BASE, PARALLEL, SEQUENTIAL, Answer, EvalReport
from apar.grammar import Grammar
from apar.meter import KvMeter
from apar.output import Output
from apar.progress import progress_bar
from apar.room import DEFAULT_LIVE_BRANCHES
from apar.run import PreparedRun
from apar.sampling import make_sampling


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """As in `apar.generate`. at_once: prompts decoded together; 1 gives each prompt's own time."""

    max_new_tokens: int = 512
    max_depth: int | None = None
    max_live_branches: int = DEFAULT_LIVE_BRANCHES
    page_size: int = DEFAULT_PAGE_SIZE
    at_once: int = 1

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"at_once: expected at least 1, got {self.at_once}")


def evaluate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[EvalPrompt],
    *,
    base: tuple[Any, Any] | None = None,
    checker: Checker | None = None,
    options: EvalOptions | None = None,
    progress: bool | None = None,
) -> EvalReport:
    """Answer prompts greedily three ways and report what each cost and how the answers compare.

    - ``"parallel"``: branches at once;
    - ``"sequential"``: the same model and grammar, one branch after the other, the twin;
    - ``"base"``, if given: another (model, tokenizer), as a rule the one before tuning, decoded as it is.

    Args:
        model, tokenizer: as `apar.load` returns them.
        prompts: see ``read_prompts``. Texts are asked as messages where the tokenizer has a chat template.
        base: a second model and its tokenizer.
        checker: compares an answer with the right one, for prompts that have a record; (record, tree) -> AnswerCheck.
        options: see ``EvalOptions``.

    Raises:
        ValueError: there is no prompt, or one is longer than the model's positions.
    """
    if not prompts:
        raise ValueError("prompts: expected at least one")
    options = options or EvalOptions()
    runs: list[tuple[str, Any, Any, bool]] = [(PARALLEL, model, tokenizer, True), (SEQUENTIAL, model, tokenizer, False)]
    if base is not None:
        runs.append((BASE, *base, True))
    found: dict[str, list[Answer]] = {}
    with progress_bar(len(runs) * len(prompts), "answers", progress) as bar:
        for name, one_model, one_tokenizer, fork in runs:
            # The first answer of a model is slower than all others, so it is given twice.
            _decode(one_model, one_tokenizer, prompts[:1], fork, dataclasses.replace(options, max_new_tokens=4))
            found[name] = []
            for begin in range(0, len(prompts), options.at_once):
                part = prompts[begin : begin + options.at_once]
                outputs, meter = _decode(one_model, one_tokenizer, part, fork, options)
                found[name] += _answers(part, outputs, meter, checker)
                bar.update_to(sum(map(len, found.values())))
    return EvalReport([prompt.category for prompt in prompts], found, options.at_once)


def _decode(
    model: Any, tokenizer: Any, prompts: Sequence[EvalPrompt], fork: bool, options: EvalOptions
) -> tuple[list[Output], KvMeter]:
    run = PreparedRun.prepare(
        model,
        tokenizer,
        [_asked(prompt, tokenizer) for prompt in prompts],
        sampling=make_sampling(0.0, 1.0, 0, 0),
        grammar=Grammar.for_model(model, tokenizer, max_depth=options.max_depth),
        max_new_tokens=options.max_new_tokens,
        fork=fork,
        max_live_branches=options.max_live_branches,
        page_size=options.page_size,
    )
    meter = KvMeter(model, options.page_size)
    run.decoder.observe = meter
    for _ in run.events():
        pass
    return run.outputs, meter


def _asked(prompt: EvalPrompt, tokenizer: Any) -> Any:
    """The messages; for a tokenizer without a chat template their text."""
    if tokenizer.chat_template is not None:
        return prompt.messages
    return "\n\n".join(message["content"] for message in prompt.messages)


def _answers(
    prompts: Sequence[EvalPrompt],
    outputs: list[Output],
    meter: KvMeter,
    checker: Callable[[TreeRecord, Any], Any] | None,
) -> list[Answer]:
    """What the KV cache cost is known of all prompts of a run together, and shared out evenly."""
    return [
        Answer(
            text=output.text,
            steps=output.stats.steps,
            tokens=output.stats.tokens,
            forks=output.tree.num_forks,
            seconds=output.stats.seconds - output.stats.queue_seconds,
            decode_seconds=output.stats.forward_seconds + output.stats.overhead_seconds,
            pages_held=output.stats.peak_pages,
            pages_read=meter.pages_read / len(outputs),
            complete=all(branch.finish_reason == "stop" for branch in output.branches),
            check=checker(prompt.record, output.tree) if checker is not None and prompt.record is not None else None,
        )
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
