"""Decoding a prompt set several ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from apar.data.records import TreeRecord
from apar.data.synth.check import Checker
from apar.eval.prompts import EvalPrompt
from apar.eval.report import BASE, PARALLEL, SEQUENTIAL, Answer, EvalReport
from apar.grammar import Grammar
from apar.meter import KvMeter
from apar.page_sizes import DEFAULT_PAGE_SIZE
from apar.progress import progress_bar
from apar.prompts import encode_prompts
from apar.room import DEFAULT_LIVE_BRANCHES, check_integer
from apar.run import PreparedRun
from apar.sampling import make_sampling


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """As in `apar.generate`. max_answer_tokens: of all branches of an answer together, which is cut off there, so that
    a model that never ends does not keep all others waiting. at_once: prompts decoded together; 1 gives each prompt's
    own time.
    """

    max_new_tokens: int = 512
    max_answer_tokens: int = 4096
    max_depth: int | None = None
    max_live_branches: int = DEFAULT_LIVE_BRANCHES
    page_size: int = DEFAULT_PAGE_SIZE
    at_once: int = 1

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_answer_tokens", "max_live_branches", "at_once"):
            check_integer(name, getattr(self, name), 1)


def evaluate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[EvalPrompt],
    *,
    base: tuple[Any, Any] | None = None,
    checker: Checker | None = None,
    options: EvalOptions | None = None,
    on_answers: Callable[[EvalReport], None] | None = None,
    progress: bool | None = None,
) -> EvalReport:
    """Answer prompts greedily three ways and report what each cost and how the answers compare.

    - ``"parallel"``: branches at once;
    - ``"sequential"``: the same model and grammar, one branch after the other, the twin;
    - ``"base"``, if given: another (model, tokenizer), as a rule the one before tuning, decoded as it is.

    A prompt is answered all these ways before the next one is, so that the report is whole at any time. Prompts for
    which a model has too few positions are left out, and counted.

    Args:
        model, tokenizer: as `apar.load` returns them.
        prompts: see ``read_prompts``. Texts are asked as messages where the tokenizer has a chat template.
        base: a second model and its tokenizer.
        checker: compares an answer with the right one, for prompts that have a record; (record, tree) -> AnswerCheck.
        options: see ``EvalOptions``.
        on_answers: called with the report so far whenever there are new answers in it.
        progress: whether to show a bar; None: if there is a terminal.

    Raises:
        ValueError: there is no prompt, none that the models have positions for, or a chat template refuses one.
    """
    if not prompts:
        raise ValueError("prompts: expected at least one")
    options = options or EvalOptions()
    ways = [_Way(PARALLEL, model, tokenizer, True), _Way(SEQUENTIAL, model, tokenizer, False)]
    if base is not None:
        ways.append(_Way(BASE, *base, True))
    asked = {way.name: way.encode(prompts) for way in ways}
    chosen = [
        number for number in range(len(prompts)) if all(len(asked[way.name][number]) < way.positions for way in ways)
    ]
    if not chosen:
        raise ValueError(
            f"prompts: expected at least one shorter than the {min(way.positions for way in ways)} positions of the "
            f"model, got {len(prompts)} that are longer"
        )
    report = EvalReport(
        [], {way.name: [] for way in ways}, options.at_once, len(chosen), left_out=len(prompts) - len(chosen)
    )
    with progress_bar(len(ways) * len(chosen), "answers", progress) as bar:
        # The first answer of a model is slower than all others, so it is given twice.
        for way in ways:
            warm_up = dataclasses.replace(options, max_new_tokens=4)
            way.answer([asked[way.name][chosen[0]]], [prompts[chosen[0]]], warm_up, None)
        for begin in range(0, len(chosen), options.at_once):
            numbers = chosen[begin : begin + options.at_once]
            part = [prompts[number] for number in numbers]
            found = {}
            for way in ways:
                found[way.name] = way.answer([asked[way.name][number] for number in numbers], part, options, checker)
                bar.update_to(len(ways) * begin + len(part) * len(found))
            report.add(part, found)
            if on_answers is not None:
                on_answers(report)
    return report


class _Way:
    """A model and whether its branches are decoded at once."""

    def __init__(self, name: str, model: Any, tokenizer: Any, fork: bool) -> None:
        self.name, self.model, self.tokenizer, self.fork = name, model, tokenizer, fork
        self.positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**30

    def encode(self, prompts: Sequence[EvalPrompt]) -> list[list[int]]:
        """Token ids of prompts: of their messages, or of the text of these where there is no chat template."""
        if self.tokenizer.chat_template is not None:
            return encode_prompts(self.tokenizer, [prompt.messages for prompt in prompts])
        texts = ["\n\n".join(message["content"] for message in prompt.messages) for prompt in prompts]
        return encode_prompts(self.tokenizer, texts)

    def answer(
        self,
        prompt_ids: list[list[int]],
        prompts: Sequence[EvalPrompt],
        options: EvalOptions,
        checker: Callable[[TreeRecord, Any], Any] | None,
    ) -> list[Answer]:
        """Times and KV pages read are known of all prompts of a run together, and shared out evenly."""
        run = PreparedRun.prepare(
            self.model,
            self.tokenizer,
            prompt_ids,
            sampling=make_sampling(0.0, 1.0, 0, 0),
            grammar=Grammar.for_model(self.model, self.tokenizer, max_depth=options.max_depth),
            max_new_tokens=options.max_new_tokens,
            max_answer_tokens=options.max_answer_tokens,
            fork=self.fork,
            max_live_branches=options.max_live_branches,
            page_size=options.page_size,
        )
        meter = run.decoder.observe = KvMeter(self.model, options.page_size)
        for _ in run.events():
            pass
        outputs, recorder = run.outputs, run.decoder.recorder
        begun = min(output.stats.queue_seconds for output in outputs)
        seconds = max(output.stats.seconds for output in outputs) - begun
        decode_seconds = recorder.forward_seconds + recorder.overhead_seconds
        return [
            Answer(
                text=output.text,
                steps=output.stats.steps,
                tokens=output.stats.tokens,
                forks=output.tree.num_forks,
                seconds=seconds / len(outputs),
                decode_seconds=decode_seconds / len(outputs),
                pages_held=output.stats.peak_pages,
                pages_read=meter.pages_read / len(outputs),
                complete=all(branch.finish_reason == "stop" for branch in output.branches),
                check=checker(prompt.record, output.tree) if checker is not None and prompt.record else None,
            )
            for prompt, output in zip(prompts, outputs, strict=True)
        ]
