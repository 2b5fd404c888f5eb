"""Replay: the decoder driven by the shapes of real answers, on any model, trained or not.

A tree is ``[t0, child, t1, child, ..., tn]`` (``apar.shapes``). What the model says is ignored, so steps, time and
memory are those of the real shape.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from apar.choosers import ScriptChooser
from apar.device_decoder import make_decoder
from apar.events import Event
from apar.grammar import Grammar
from apar.meter import KvMeter
from apar.output import Output
from apar.page_sizes import DEFAULT_PAGE_SIZE
from apar.progress import progress_bar
from apar.record import Recorder, Request
from apar.room import DEFAULT_LIVE_BRANCHES, DEFAULT_PREFILL_TOKENS, check_integer, make_room
from apar.run import apar_attention, path_limits
from apar.shapes import Tree, check_tree, longest_path, make_script, most_children, tree_depth
from apar.tree import BranchId


@dataclasses.dataclass
class ReplayStats:
    """What a replay cost. Bytes are of the KV entries that attention had to read, of all layers and heads.

    ``steps``: forward passes that decoded. ``tokens``: tokens written, control and end tokens included, forced ones
    not. ``kv_bytes_read``: each entry once per step and prompt. ``kv_bytes_read_per_branch``: once per step and
    branch, as attention that shares only the storage of a prefix reads them. ``peak_pages``: most KV pages held at
    once. ``overhead_us_per_step``: median time of a step outside the model's forward.
    """

    prompts: int
    steps: int
    tokens: int
    seconds: float
    prefill_seconds: float
    forward_seconds: float
    overhead_seconds: float
    kv_bytes_read: int
    kv_bytes_read_per_branch: int
    peak_pages: int
    peak_branches: int
    overhead_us_per_step: float

    @property
    def tokens_per_second(self) -> float:
        """Prefill included."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def decode_seconds(self) -> float:
        """Without prefill."""
        return self.forward_seconds + self.overhead_seconds

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "tokens_per_second": self.tokens_per_second}


@dataclasses.dataclass
class ReplayReport:
    """``tree``: branches in parallel. ``sequential``: the same tokens one branch at a time, if it was asked for."""

    tree: ReplayStats
    sequential: ReplayStats | None
    outputs: list[Output]

    @property
    def step_ratio(self) -> float:
        """Steps of one branch at a time per step of the tree."""
        steps = self.tree.tokens if self.sequential is None else self.sequential.steps
        return steps / self.tree.steps

    @property
    def speedup(self) -> float | None:
        """Decoding time of one branch at a time over that of the tree, prefill left out of both."""
        return None if self.sequential is None else self.sequential.decode_seconds / self.tree.decode_seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            "tree": self.tree.to_dict(),
            "sequential": None if self.sequential is None else self.sequential.to_dict(),
            "step_ratio": self.step_ratio,
            "speedup": self.speedup,
        }


def replay(
    model: Any,
    trees: Sequence[Tree],
    *,
    prompt_tokens: int | Sequence[int] = 32,
    compare: bool = True,
    fork: bool = True,
    max_live_branches: int = DEFAULT_LIVE_BRANCHES,
    page_size: int = DEFAULT_PAGE_SIZE,
    max_pages: int | None = None,
    max_rows: int | None = None,
    prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
    on_event: Callable[[Event], None] | None = None,
    progress: bool | None = None,
) -> ReplayReport:
    """Decode trees of given shapes, all at once as far as there is room.

    Every fork adds a pair of control tokens, and every branch one end token, as a model that writes such a tree does.

    Args:
        model: a causal language model of transformers, trained or not.
        trees: ``[t0, child, t1, child, ..., tn]`` each: numbers of tokens, and between them trees.
        prompt_tokens: tokens of the prompts, one number or one per tree.
        compare: run the sequential twin, too.
        fork: False runs the twin alone.
        max_live_branches, page_size, max_pages, max_rows, prefill_tokens, on_event, progress: as in `apar.generate`.

    Raises:
        ValueError: a tree is malformed, or prompt and tree are longer than the model's positions.
    """
    if not isinstance(trees, Sequence):
        raise TypeError(f"trees: expected a list of trees, got {trees!r}")
    trees = [check_tree(tree, f"trees[{number}]") for number, tree in enumerate(trees)]
    if not trees:
        raise ValueError("trees: expected at least one tree, got none")
    if not isinstance(prompt_tokens, (int, Sequence)):
        raise TypeError(f"prompt_tokens: expected an integer or one per tree, got {prompt_tokens!r}")
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event: expected a function, got {on_event!r}")
    lengths = [prompt_tokens] * len(trees) if isinstance(prompt_tokens, int) else list(prompt_tokens)
    if len(lengths) != len(trees):
        raise ValueError(f"prompt_tokens: expected one number or {len(trees)}, one per tree, got {len(lengths)}")
    for length in lengths:
        check_integer("prompt_tokens", length, 1)
    grammar = replay_grammar(model, trees)
    scripts = [make_script(tree, grammar) for tree in trees]
    options = dict(page_size=page_size, max_pages=max_pages, max_rows=max_rows, prefill_tokens=prefill_tokens)

    def run(live: int, unit: str) -> tuple[ReplayStats, list[Output]]:
        return _run(model, scripts, lengths, grammar, live, options, on_event, (progress, unit))

    if not fork:
        stats, outputs = run(1, "prompts, one branch at a time")
        return ReplayReport(stats, None, outputs)
    stats, outputs = run(max_live_branches, "prompts, branches in parallel")
    return ReplayReport(stats, run(1, "prompts, one branch at a time")[0] if compare else None, outputs)


def replay_grammar(model: Any, trees: Sequence[Tree]) -> Grammar:
    """Any three ids do as control and end tokens, since nothing is read from the model."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if vocabulary < 5:
        raise ValueError(f"model: expected a vocabulary of at least 5 tokens, got {vocabulary}")
    return Grammar(
        fork_id=vocabulary - 1,
        child_id=vocabulary - 2,
        stop_ids=(vocabulary - 3,),
        max_depth=max(map(tree_depth, trees)),
        max_children=max(most_children(tree) for tree in trees),
    )


def _run(
    model: Any,
    scripts: list[dict[BranchId, list[int]]],
    prompt_lengths: list[int],
    grammar: Grammar,
    max_live_branches: int,
    options: dict[str, Any],
    on_event: Callable[[Event], None] | None,
    progress: tuple[bool | None, str],
) -> tuple[ReplayStats, list[Output]]:
    prompts = [[0] * length for length in prompt_lengths]
    limits = []
    for number, (prompt, script) in enumerate(zip(prompts, scripts, strict=True)):
        # One more than is used, so that the end token and not the limit ends the longest branch.
        wanted = longest_path(script, grammar.fork_id) + 1
        limit = path_limits(model, [prompt], wanted + 2, grammar)[0]
        if limit < len(prompt) + wanted:
            raise ValueError(
                f"trees[{number}]: its longest path has {len(prompt) + wanted - 1} tokens with the prompt, "
                "more than the model has positions"
            )
        limits.append(limit)
    room = make_room(model, prompt_lengths, limits, grammar, max_live_branches=max_live_branches, **options)
    recorder = Recorder(len(prompts), room.max_slots, grammar, listening=on_event is not None)
    meter = KvMeter(model, room.page_size)
    decoder = make_decoder(model, grammar, room, recorder, ScriptChooser(scripts), observe=meter)
    requests = [Request(index, ids, limit) for index, (ids, limit) in enumerate(zip(prompts, limits, strict=True))]
    shown, unit = progress
    with apar_attention(model), progress_bar(len(requests), unit, shown) as bar:
        for event in decoder.run(
            requests, lambda: bar.update_to(sum(request.output is not None for request in requests))
        ):
            on_event(event)
    outputs = [request.output for request in requests]
    stats = ReplayStats(
        prompts=len(prompts),
        steps=recorder.step,
        tokens=int(recorder.tokens.sum()),
        seconds=max(output.stats.seconds for output in outputs),
        prefill_seconds=recorder.prefill_seconds,
        forward_seconds=recorder.forward_seconds,
        overhead_seconds=recorder.overhead_seconds,
        kv_bytes_read=meter.entries_read * meter.entry_bytes,
        kv_bytes_read_per_branch=meter.entries_read_per_branch * meter.entry_bytes,
        peak_pages=meter.peak_pages,
        peak_branches=max(output.stats.peak_branches for output in outputs),
        overhead_us_per_step=1e6 * statistics.median(recorder.overhead_of_steps),
    )
    return stats, outputs


def add_stats(parts: Sequence[ReplayStats]) -> ReplayStats:
    """Stats of replays that ran one after the other, as one: sums, and of peaks and medians the largest."""
    peaks = ("peak_pages", "peak_branches", "overhead_us_per_step")
    names = [field.name for field in dataclasses.fields(ReplayStats)]
    return ReplayStats(
        **{name: (max if name in peaks else sum)(getattr(part, name) for part in parts) for name in names}
    )
