"""Decoding a step ahead of the host, with the CPU in the place of the GPU: the same text, the same events, whatever the
room, and a mirror that is the same bits."""

# ruff: noqa: F811  (fixtures of another file)
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import apar
import pytest
import torch
from apar.buckets import Buckets
from apar.cache import PagedCache
from apar.captured import EagerGraphs
from apar.choosers import ScriptChooser, TokenChooser
from apar.decoder import Decoder
from apar.device_decoder import DeviceDecoder
from apar.prefill import PromptStream, prefill
from apar.random_model import random_llama
from apar.record import Recorder
from apar.replay import replay
from apar.room import make_room
from apar.run import PreparedRun
from apar.sampling import Sampling

from bench.tree_count import TreeCount
from tests.apar.forking import (
    compare_with_plain_model,
    forking_grammar,
    forking_model,
    random_prompts,
)
from tests.apar.test_equality import ROOMS
from tests.apar.test_generate import (  # noqa: F401  the calls that people make, once more
    ctrl_c,
    model,
    test_interruptions_leave_model_and_process_usable,
    test_logits_processors_see_the_branchs_own_path,
    test_stop_strings_end_the_branch_that_writes_one,
    test_stream_tells_the_whole_story,
    test_streams_may_overlap_on_a_model_with_another_attention,
    test_text_and_tree_are_of_the_tokens,
    tokenizer,
)
from tests.apar.tiny_models import VOCABULARY, tiny_model

MAX_NEW_TOKENS = 40
PLACES = [importlib.import_module(name) for name in ("apar.run", "apar.replay")]  # where decoders are made


class KeptGraphs(EagerGraphs):
    """What graphs do, with functions: from its second run on a key keeps the function of that run, and its results stay
    where they are. So a function that takes anything from the host other than at its capture gives wrong results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()
        self.kept: dict[Any, tuple[Callable[[], Any], Any]] = {}

    def run(self, key: Any, function: Callable[[], Any]) -> Any:
        if key not in self.seen:
            self.seen.add(key)
            return function()
        if key not in self.kept:
            result = function()
            self.kept[key] = (function, result.clone() if result is not None else None)
            self.num_captures += 1
        else:
            function, result = self.kept[key]
            again = function()
            if result is not None:
                result.copy_(again)
            self.num_replays += 1
        return self.kept[key][1]


class Checked(DeviceDecoder):
    """Compares mirror and device whenever nothing is under way."""

    made: list[Checked]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options, graphs=KeptGraphs())
        self.compared = self.most_under_way = 0
        Checked.made.append(self)

    def turn(self, intake: Any) -> None:
        super().turn(intake)
        self.most_under_way = max(self.most_under_way, len(self.flights))
        if not self.flights:
            assert torch.equal(self.forest.data, self.on_device.data)
            self.compared += 1

    def _launch(self) -> None:
        super()._launch()
        flight = self.flights[-1]
        assert flight.rows in self.buckets.sizes
        assert flight.row_limit in self.buckets.sizes
        assert self.on_device.num_rows <= flight.row_limit


@pytest.fixture(autouse=True)
def on_device(monkeypatch) -> None:
    Checked.made = []
    for module in PLACES:
        monkeypatch.setattr(module, "make_decoder", Checked)


def directly(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patch:
        for module in PLACES:
            patch.setattr(module, "make_decoder", Decoder)
        return call()


def decode(model: Any, prompts: list[list[int]], grammar: apar.Grammar, **options: Any) -> list[apar.Output]:
    return apar.generate(model, None, prompts, grammar=grammar, **{"max_new_tokens": MAX_NEW_TOKENS, **options})


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma2", "gpt_oss"])
def test_branches_equal_greedy_generation_from_their_own_path(family: str, monkeypatch) -> None:
    grammar = forking_grammar(max_depth=4)
    model = forking_model(family, seed=1)
    prompts = random_prompts(12, seed=1)
    room = {"max_pages": 16, "page_size": 8, "max_rows": 5}
    outputs = decode(model, prompts, grammar, **room)
    comparison = compare_with_plain_model(model, family, outputs, grammar, MAX_NEW_TOKENS)
    assert comparison.trees_with_forks >= 3
    assert comparison.ties <= 1
    assert directly(monkeypatch, lambda: decode(model, prompts, grammar, **room)) == outputs
    [decoder] = Checked.made
    assert decoder.compared
    assert decoder.most_under_way == 1
    assert decoder.graphs.num_replays > decoder.graphs.num_captures > 0


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": 5}])
def test_room_never_changes_what_is_written(sampling: dict[str, Any], monkeypatch) -> None:
    """With the smallest pool branches wait for pages on the device; nothing is lost."""
    grammar = forking_grammar(max_depth=4)
    model = forking_model(seed=2)
    prompts = random_prompts(10, seed=9)
    options = {"max_new_tokens": 48, **sampling}
    expected = directly(monkeypatch, lambda: decode(model, prompts, grammar, **options))
    assert max(output.stats.peak_branches for output in expected) > 2
    for name, room in {"all the room": {}, **ROOMS}.items():
        assert decode(model, prompts, grammar, **options, **room) == expected, name
    assert [decode(model, prompts[:1], grammar, **options)[0]] == expected[:1], "one prompt alone"


def test_waits_for_pages_on_the_device() -> None:
    grammar = forking_grammar(max_depth=3)
    model = forking_model(seed=4, fork_bias=2.0)
    prompts = random_prompts(4, seed=3)
    options = dict(max_new_tokens=60, max_live_branches=8)
    roomy = decode(model, prompts, grammar, **options)
    tight = decode(model, prompts, grammar, **options, page_size=8, max_pages=17)
    assert tight == roomy
    assert max(output.stats.peak_pages for output in tight) <= 17
    assert tight[0].stats.peak_branches < roomy[0].stats.peak_branches


def test_stop_strings_come_a_step_late_and_leave_nothing_behind(model, tokenizer, monkeypatch) -> None:
    """The branch goes on for a step or two on the device, may fork there, and nobody gets to see it."""
    options = dict(max_new_tokens=60, max_depth=3)
    prompts = ["1. Sleep:", "The dog", "eat", "2."]
    free = apar.generate(model, tokenizer, prompts, **options)
    texts = {node.own[at : at + 2] for output in free for node in output.tree for at in range(0, len(node.own) - 2, 3)}
    tried = dropped = 0
    for stop in sorted(text for text in texts if "\ufffd" not in text and text.strip())[:12]:
        events = list(apar.stream(model, tokenizer, prompts, stop=stop, **options))
        stopped = [event.output for event in events if isinstance(event, apar.Finished)]
        expected = directly(
            monkeypatch, lambda stop=stop: list(apar.stream(model, tokenizer, prompts, stop=stop, **options))
        )
        told = {(type(event), event.prompt, event.branch, getattr(event, "token_id", None)) for event in events}
        assert told == {
            (type(event), event.prompt, event.branch, getattr(event, "token_id", None)) for event in expected
        }
        by_prompt = sorted(stopped, key=lambda output: output.prompt_ids)
        assert by_prompt == sorted(
            (event.output for event in expected if isinstance(event, apar.Finished)), key=lambda o: o.prompt_ids
        )
        tried += any(branch.stopped for output in stopped for branch in output.branches)
        dropped += Checked.made[-1].forest.counter("next_branch_id") - sum(len(output.branches) for output in stopped)
    assert tried >= 6
    assert dropped > 0, "some branch was to fork behind its stop string"


def test_stopping_criteria_end_branches() -> None:
    grammar = forking_grammar(max_depth=3)
    model = forking_model(seed=2)
    [prompt] = random_prompts(1, seed=9)
    from transformers import StoppingCriteria, StoppingCriteriaList

    class AtLength(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= len(prompt) + 9])

    answer = model.generate(
        torch.tensor([prompt]),
        custom_generate=apar.custom_generate,
        grammar=grammar,
        max_new_tokens=30,
        stopping_criteria=StoppingCriteriaList([AtLength()]),
        keep_control_tokens=True,
    )
    [free] = decode(model, [prompt], grammar, max_new_tokens=9)
    assert answer[0, len(prompt) :].tolist() == free.token_ids


def test_replays_cost_what_the_trees_say() -> None:
    tree = [3, [5, [2], 4], 2, [9], 6, [1], 3]
    model = random_llama(hidden_size=32, layers=1, heads=1, vocabulary=64)
    report = replay(model, [tree, [12], tree[:5]], prompt_tokens=[9, 700, 3], progress=False)
    direct = TreeCount(tree, 9, 16)
    assert (
        report.outputs[0].stats.tokens
        == report.sequential.tokens - report.outputs[1].stats.tokens - report.outputs[2].stats.tokens
    )
    [alone, _] = (replay(model, [tree], prompt_tokens=9, compare=False, progress=False).tree, None)
    assert alone.peak_pages == direct.peak_pages
    # A branch may wait a step for a row that nobody had foreseen.
    assert direct.steps <= alone.steps <= direct.steps + 2


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 48, 64, 100, 256])
def test_buckets(rows: int) -> None:
    buckets = Buckets(rows)
    assert buckets.sizes[-1] == rows
    assert all(size in (1, 2, 4, 8, 16, 32, 64, 128) for size in buckets.sizes[:-1])
    for wanted in range(1, rows + 3):
        for most in (1, wanted, rows):
            bucket = buckets.ahead(min(wanted, most), most)
            assert bucket in buckets.sizes
            assert bucket >= min(wanted, most, rows)
            assert most > 1 or bucket == 1
    assert buckets.hold(0) == 1


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = forking_model(seed=2)
    with torch.no_grad():
        model.lm_head.bias[5] = torch.nan
    for options in ({}, {"temperature": 1.0, "seed": 0}):
        with pytest.raises(FloatingPointError, match="row 0 of the step"):
            decode(model, random_prompts(2, seed=9), forking_grammar(), **options)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt_oss"])
def test_a_step_asks_the_host_for_nothing(family: str) -> None:
    """On the meta device reading a number, branching on one, or mixing in a tensor of the host is an error."""
    model = tiny_model(family).to("meta", torch.bfloat16)
    model.set_attn_implementation("apar")
    grammar = forking_grammar()
    room = make_room(
        tiny_model(family), [9], [40], grammar, page_size=16, max_pages=20, max_rows=4, max_live_branches=4,
        prefill_tokens=9,
    )  # fmt: skip
    scripts = [{(): [5, grammar.fork_id, 6], (0,): [7]}]
    for choose in (TokenChooser(Sampling()), TokenChooser(Sampling(0.7, 0.9, 5)), ScriptChooser(scripts)):
        recorder = Recorder(1, room.max_slots, grammar, stop=["never"])
        decoder = DeviceDecoder(model, grammar, room, recorder, choose, graphs=EagerGraphs())
        with torch.inference_mode():
            for rows in (1, 4):
                logits = decoder._call_model(rows)
                assert logits.shape == (rows, VOCABULARY)
                decoder._finish(logits, rows, 2)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_prompts_are_written_on_the_device(family: str) -> None:
    """Through the same kernels; only what the host knows about the prompt goes there."""
    model = tiny_model(family).to("meta")
    model.set_attn_implementation("apar")
    cache = PagedCache.for_model(model, 9)
    table, first = torch.zeros(3, 5, dtype=torch.int32, device="meta"), torch.zeros(3, dtype=torch.int32, device="meta")
    prompts = [PromptStream(0, [5] * 20), PromptStream(2, [7] * 9, start=3, context=[(0, 0, 20)])]
    assert prefill(model, cache, prompts, table, first, chunk_size=8) is None


def test_the_meta_device_finds_what_a_gpu_would_wait_for() -> None:
    numbers = torch.zeros(3, device="meta")
    for wait in (
        lambda: numbers.max().item(),
        lambda: numbers.cpu(),
        lambda: numbers.tolist(),
        lambda: bool(numbers[0]),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with pytest.raises((RuntimeError, NotImplementedError)):
        numbers + torch.zeros(3)


@pytest.mark.parametrize("fork", [True, False])
def test_an_answer_is_cut_off_once_its_branches_have_so_many_tokens(fork: bool) -> None:
    model, most = forking_model("llama"), 15

    def tokens_and_branches(max_answer_tokens: int | None) -> list[tuple[int, int]]:
        run = PreparedRun.prepare(
            model,
            None,
            random_prompts(4),
            sampling=Sampling(),
            grammar=forking_grammar(),
            max_new_tokens=MAX_NEW_TOKENS,
            fork=fork,
            max_answer_tokens=max_answer_tokens,
        )
        assert list(run.events()) == []
        assert Checked.made[-1].compared > 0
        return [(output.stats.tokens, len(output.branches)) for output in run.outputs]

    whole, cut = tokens_and_branches(None), tokens_and_branches(most)
    assert max(tokens for tokens, _ in whole) > 3 * most
    for (tokens, _), (kept, branches) in zip(whole, cut, strict=True):
        # A branch that was open writes the token that ends it.
        assert min(tokens, most) <= kept <= most + branches
