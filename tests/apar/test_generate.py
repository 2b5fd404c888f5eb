"""The calls that people make: prompts of all kinds, events, stop strings, processors, bad input, interruptions."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator

import apar
import pytest
import torch
from apar import Ended, Finished, Forked, Grammar, Started, Token
from transformers import LlamaConfig, LlamaForCausalLM

from tests.apar.forking import FORK, forking_grammar, forking_model, random_prompts
from tests.apar.tiny_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

POSITIONS = 256


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(chat=True)


@pytest.fixture(scope="module")
def model(tokenizer):
    return text_model(tokenizer)


def text_model(tokenizer, seed: int = 1) -> LlamaForCausalLM:
    """A random model that writes text of its tokenizer and forks now and then."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    bias = torch.zeros(config.vocab_size)
    bias[tokenizer.convert_tokens_to_ids("[Fork]")] = 3.0
    bias[tokenizer.eos_token_id] = 1.0
    bias[len(tokenizer) :] = -100.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    model.set_attn_implementation("apar")
    return model


MESSAGES = [{"role": "user", "content": "How do I sleep?"}]


def test_prompts_of_all_kinds(model, tokenizer) -> None:
    def answers(prompts):
        return apar.generate(model, tokenizer, prompts, max_new_tokens=12)

    text = "1. Sleep: go"
    ids = tokenizer(text)["input_ids"]
    [expected] = answers(text)
    assert expected.prompt_ids == ids
    assert answers([text, text]) == [expected, expected]
    assert answers(ids) == answers([ids]) == answers(torch.tensor([ids])) == [expected]
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    [chat] = answers(MESSAGES)
    assert tokenizer.decode(chat.prompt_ids) == rendered
    assert answers([MESSAGES, MESSAGES]) == [chat, chat]


def test_text_and_tree_are_of_the_tokens(model, tokenizer) -> None:
    outputs = apar.generate(model, tokenizer, ["1. Sleep:", "The dog", "eat", "2."], max_new_tokens=40, max_depth=3)
    assert sum(len(output.branches) > 1 for output in outputs) >= 2
    for output in outputs:
        assert output.text == tokenizer.decode(output.visible_ids, skip_special_tokens=True)
        assert output.text == output.tree.text
        assert output.tree.num_forks == len(output.branches) - 1
        assert "[Fork]" not in output.text
        for branch in output.branches:
            assert branch.start_step <= branch.end_step < output.stats.steps
        assert output.stats.seconds >= output.stats.forward_seconds > 0
        assert output.to_json().startswith('{"text": ')


def test_stream_tells_the_whole_story(model, tokenizer) -> None:
    prompts = ["1. Sleep:", "The dog"]
    expected = apar.generate(model, tokenizer, prompts, max_new_tokens=40, max_depth=3)
    told: list[apar.Event] = []
    outputs = apar.generate(model, tokenizer, prompts, max_new_tokens=40, max_depth=3, on_event=told.append)
    assert outputs == expected
    events = list(apar.stream(model, tokenizer, prompts, max_new_tokens=40, max_depth=3))
    assert [(type(event), event.branch) for event in events] == [(type(event), event.branch) for event in told]
    for number, output in enumerate(expected):
        own = [event for event in events if event.prompt == number]
        assert isinstance(own[0], Started)
        assert isinstance(own[-1], Finished)
        assert own[-1].output == output
        opened = {(): None} | {event.branch: event.parent for event in own if isinstance(event, Forked)}
        assert opened == {branch.id: branch.parent for branch in output.branches}
        assert {event.branch: event.reason for event in own if isinstance(event, Ended)} == {
            branch.id: branch.finish_reason for branch in output.branches
        }
        for branch in output.branches:
            tokens = [event for event in own if isinstance(event, Token) and event.branch == branch.id]
            assert [event.token_id for event in tokens] == branch.token_ids[branch.parent is not None :]
            assert [event.step for event in tokens] == sorted(event.step for event in tokens)


def test_stop_strings_end_the_branch_that_writes_one(model, tokenizer) -> None:
    [free] = apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=40)
    texts = {branch.id: free.tree.branch_text(branch.id) for branch in free.branches}
    victim, stop = next(
        (node.branch, node.own[begin : begin + 2])
        for node in free.tree
        for begin in range(len(node.own) - 2)
        if node.branch != () and "\ufffd" not in node.own[begin : begin + 2]
        # Written once, and by this branch alone.
        if sum(text.count(node.own[begin : begin + 2]) for text in texts.values()) == 1
    )
    written = texts[victim]
    [stopped] = apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=40, stop=["never written", stop])
    assert stopped.branch(victim).finish_reason == "stop"
    assert stopped.tree.branch_text(victim) == written[: written.index(stop)]
    assert stop not in stopped.text
    for branch in stopped.branches:
        if branch.id[: len(victim)] != victim:
            assert branch == free.branch(branch.id)
    assert apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=40, stop="never written") == [free]


def test_logits_processors_see_the_branchs_own_path() -> None:
    model = forking_model(seed=2)
    prompts = random_prompts(3, seed=3)
    grammar = forking_grammar(max_depth=3)
    seen: list[tuple[int, ...]] = []

    def ban_the_last_token_and_allow_everything_else(input_ids, scores):
        seen.append(tuple(input_ids[0].tolist()))
        scores = scores.clone()
        scores[scores == -torch.inf] = 1e9  # the grammar's masks still hold
        scores[:, input_ids[0, -1]] = -torch.inf
        return scores

    options = dict(grammar=grammar, max_new_tokens=24)
    outputs = apar.generate(
        model, None, prompts, logits_processor=ban_the_last_token_and_allow_everything_else, **options
    )
    paths = set()
    for output in outputs:
        for branch in output.branches:
            path = output.path_ids(branch.id)
            own = branch.token_ids[branch.parent is not None :]
            paths |= {tuple(path[:end]) for end in range(len(path) - len(own), len(path))}
            assert grammar.child_id not in own
            assert all(a != b for a, b in zip(path[-len(own) - 1 :], path[-len(own) :], strict=False))
    assert set(seen) == paths
    assert outputs != apar.generate(model, None, prompts, **options)
    same = apar.generate(model, None, prompts, logits_processor=[lambda ids, scores: scores], **options)
    assert same == apar.generate(model, None, prompts, **options)


def test_the_attention_that_the_model_had_comes_back(tokenizer) -> None:
    model = text_model(tokenizer)
    [expected] = apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=8)
    model.set_attn_implementation("sdpa")
    assert apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=8) == [expected]
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(RuntimeError, match="enough"):
        apar.generate(model, tokenizer, "1. Sleep:", on_event=_raise)
    assert model.config._attn_implementation == "sdpa"


def test_streams_may_overlap_on_a_model_with_another_attention(tokenizer) -> None:
    model = text_model(tokenizer)
    expected = apar.generate(model, tokenizer, ["1. Sleep:", "The dog"], max_new_tokens=12)
    model.set_attn_implementation("sdpa")
    streams = [apar.stream(model, tokenizer, prompt, max_new_tokens=12) for prompt in ("1. Sleep:", "The dog")]
    next(streams[1])
    first, second = [list(events)[-1].output for events in streams]  # the first ends while the second is under way
    assert [first, second] == expected
    assert model.config._attn_implementation == "sdpa"


def test_a_huge_limit_costs_no_room(model, tokenizer) -> None:
    few = apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=8)
    assert apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=8, max_live_branches=2**40) == few


@pytest.mark.parametrize("returned", [None, torch.zeros(1, 3)])
def test_logits_processors_must_return_scores(model, tokenizer, returned) -> None:
    with pytest.raises(ValueError, match=r"logits_processor: .* returned .*, expected scores"):
        apar.generate(model, tokenizer, "1. Sleep:", logits_processor=lambda ids, scores: returned)


@pytest.mark.parametrize("numbers", [{"max_depth": "2"}, {"fork_id": "a", "child_id": "b"}, {"max_children": True}])
def test_a_grammar_takes_integers(numbers) -> None:
    with pytest.raises(TypeError, match=r"grammar: .* must be an integer"):
        Grammar(**numbers)


def _raise(event: apar.Event) -> None:
    if event.step > 3:
        raise RuntimeError("enough")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as Python has it by default: a process that a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["callback", "processor", "signal", "closed stream"])
def test_interruptions_leave_model_and_process_usable(model, tokenizer, how: str, ctrl_c) -> None:
    expected = apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=40)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    if how == "closed stream":
        events = apar.stream(model, tokenizer, ["1. Sleep:", "The dog"])
        for _ in range(7):
            next(events)
        events.close()
    elif how == "signal":
        timer = threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            apar.generate(model, tokenizer, ["1. Sleep:", "The dog"] * 100, max_new_tokens=200)
    else:
        name = {"callback": "on_event", "processor": "logits_processor"}[how]
        with pytest.raises(KeyboardInterrupt):
            apar.generate(model, tokenizer, "1. Sleep:", **{name: interrupt})
    assert apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=40) == expected
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompts": ""}, ValueError, "prompts: prompt 0 is empty"),
        ({"prompts": []}, ValueError, "prompts: expected at least one prompt"),
        ({"prompts": ["a", ""]}, ValueError, "prompts: prompt 1 is empty"),
        ({"prompts": [[3], []]}, ValueError, "prompts: prompt 1 is empty"),
        ({"prompts": 5}, TypeError, "prompts: expected a text.*got int"),
        ({"prompts": ["a", 1.5]}, TypeError, "prompts: prompt 1 is a float"),
        ({"prompts": [4, 100_000]}, ValueError, "prompts: prompt 0 has token id 100000, expected 0 to"),
        ({"prompts": [4, -1]}, ValueError, "prompts: prompt 0 has token id -1"),
        ({"prompts": [5] * POSITIONS}, ValueError, f"prompt 0 has {POSITIONS} tokens, expected at most 255"),
        ({"prompts": "hello [Fork]"}, ValueError, "prompt 0 ends with a control token"),
        ({"prompts": [{"role": "user"}]}, ValueError, r"keys \['role'\], expected role and content"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected at least 1, got 0"),
        ({"max_new_tokens": -3}, ValueError, "max_new_tokens: expected at least 1, got -3"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens: expected an integer, got 2.0"),
        ({"temperature": -0.1}, ValueError, "temperature: expected a finite number, 0 or more, got -0.1"),
        ({"temperature": math.nan}, ValueError, "temperature: .* got nan"),
        ({"temperature": math.inf}, ValueError, "temperature: .* got inf"),
        ({"top_p": 0.0}, ValueError, "top_p: expected a number over 0 and up to 1, got 0.0"),
        ({"top_p": 1.1}, ValueError, "top_p: .* got 1.1"),
        ({"top_p": math.nan}, ValueError, "top_p: .* got nan"),
        ({"top_k": -1}, ValueError, "top_k: expected an integer, 0 .* got -1"),
        ({"top_k": 1.5}, ValueError, "top_k: expected an integer"),
        ({"seed": "x"}, ValueError, "seed: expected an integer or None, got 'x'"),
        ({"max_depth": 0}, ValueError, "max_depth: expected at least 1, got 0"),
        ({"max_children": -1}, ValueError, "max_children: expected at least 0, got -1"),
        ({"max_live_branches": 0}, ValueError, "max_live_branches: expected at least 1, got 0"),
        ({"max_rows": 0}, ValueError, "max_rows: expected at least 1, got 0"),
        ({"max_pages": 0}, ValueError, "max_pages: expected at least 1, got 0"),
        ({"max_pages": 3, "max_new_tokens": 60}, ValueError, "max_pages: prompt 0 .* needs 6 pages of 16; .* got 3"),
        ({"page_size": 12}, ValueError, "page_size: expected one of 8, 16, 32, 64, 128, got 12"),
        ({"prefill_tokens": 0}, ValueError, "prefill_tokens: expected at least 1, got 0"),
        ({"stop": ""}, ValueError, "stop: expected a text or a list of texts, none of them empty"),
        ({"stop": [3]}, ValueError, "stop: expected a text or a list of texts"),
        ({"logits_processor": 3}, TypeError, "logits_processor: expected functions"),
        ({"on_event": 3}, TypeError, "on_event: expected a function, got 3"),
        ({"stop": 5}, TypeError, "stop: expected a text or a list of texts, got 5"),
        ({"fork": "yes"}, TypeError, "fork: expected True or False, got 'yes'"),
        ({"page_size": 16.0}, TypeError, "page_size: expected an integer, got 16.0"),
        ({"max_depth": 65}, ValueError, "max_depth: expected 1 .* to 64, got 65"),
        ({"prompts": b"1. Sleep"}, TypeError, "prompts: expected a text.* got bytes"),
        ({"prompts": ["a", b"b"]}, TypeError, "prompts: prompt 1 is bytes"),
        ({"model": "gpt2"}, TypeError, "model: expected a transformers model, got 'gpt2'"),
        ({"tokenizer": "gpt2"}, TypeError, "tokenizer: expected a transformers tokenizer or None, got 'gpt2'"),
        ({"grammar": "forks"}, TypeError, "grammar: expected an apar.Grammar, got 'forks'"),
        ({"grammar": Grammar(fork_id=9_999, child_id=4)}, ValueError, "fork_id is 9999, expected less than"),
        ({"grammar": Grammar(stop_ids=(9_999,))}, ValueError, r"stop_ids are \(9999,\), expected less than"),
        ({"tokenizer": sentencepiece_tokenizer()}, ValueError, "tokenizer: it knows 402 tokens, expected at most"),
        ({"tokenizer": None}, ValueError, "tokenizer: prompt 0 is text, so a tokenizer is needed"),
        ({"tokenizer": byte_level_tokenizer(("[Fork]",))}, ValueError, r"has \[Fork\] but not \[Child\]"),
        ({"tokenizer": byte_level_tokenizer(), "prompts": MESSAGES}, ValueError, "the tokenizer has no chat template"),
        ({"kv_dtype": "int4"}, ValueError, "kv_dtype: expected None or one of 'fp8', got 'int4'"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_anything_runs(model, tokenizer, monkeypatch, options, error, message) -> None:
    monkeypatch.setattr(type(model), "forward", lambda *arguments, **named: pytest.fail("the model ran"))
    model, tokenizer = options.pop("model", model), options.pop("tokenizer", tokenizer)
    prompts = options.pop("prompts", "1. Sleep: go to bed")
    with pytest.raises(error, match=message):
        apar.generate(model, tokenizer, prompts, **options)


def test_stream_checks_at_the_call(model, tokenizer) -> None:
    with pytest.raises(ValueError, match="max_new_tokens"):
        apar.stream(model, tokenizer, "a", max_new_tokens=0)
    with pytest.raises(TypeError, match="on_event: not an argument of stream"):
        apar.stream(model, tokenizer, "a", on_event=print)


def test_logits_that_are_no_numbers_are_an_error(tokenizer) -> None:
    model = text_model(tokenizer)
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    with pytest.raises(FloatingPointError, match="the model gave NaN"):
        apar.generate(model, tokenizer, "1. Sleep:")


def test_paths_end_at_the_models_last_position(model) -> None:
    grammar = Grammar(fork_id=300, child_id=301, stop_ids=())
    prompts = [[7] * (POSITIONS - 1), [7] * (POSITIONS - 20)]
    outputs = apar.generate(model, None, prompts, max_new_tokens=500, grammar=grammar)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert {branch.finish_reason for branch in output.branches} == {"length"}
        assert all(len(output.path_ids(branch.id)) == POSITIONS for branch in output.branches)
        assert output.stats.prompt_tokens == len(prompt)


def test_a_long_prompt_does_not_hold_up_those_who_decode() -> None:
    model = forking_model(seed=2)
    grammar = Grammar(stop_ids=())
    prompts = [random_prompts(1, seed=1)[0], [5 + number * 7 % 80 for number in range(300)]]
    options = dict(grammar=grammar, max_new_tokens=40, page_size=8)
    events = list(apar.stream(model, None, prompts, prefill_tokens=32, **options))
    [started] = [number for number, event in enumerate(events) if isinstance(event, Started) and event.prompt == 1]
    written_before = [event for event in events[:started] if isinstance(event, Token)]
    assert len(written_before) >= 299 // 32
    outputs = [event.output for event in events if isinstance(event, Finished)]
    short, long = sorted(outputs, key=lambda output: len(output.prompt_ids))
    assert [short, long] == apar.generate(model, None, prompts, **options)
    # Its stream of its own takes no page more.
    alone = [apar.generate(model, None, [prompts[1]], prefill_tokens=n, **options)[0] for n in (32, 512)]
    assert alone[0] == alone[1]
    assert alone[0].stats.peak_pages == alone[1].stats.peak_pages == -(-339 // 8)
    tight = apar.generate(model, None, prompts[::-1] + prompts, prefill_tokens=32, max_pages=-(-339 // 8), **options)
    assert tight == [long, short, short, long]


def test_8_bit_caches_change_no_more_than_the_rounding(model, tokenizer) -> None:
    """The same with any load, and another text than that of a plain cache may be."""
    prompts = ["1. Sleep:", "2. Eat well and", "3."]
    options = dict(kv_dtype="fp8", max_new_tokens=40, page_size=8)
    outputs = apar.generate(model, tokenizer, prompts, **options)
    assert outputs == apar.generate(model, tokenizer, prompts, max_rows=2, max_pages=12, **options)
    assert any(len(output.token_ids) > 5 for output in outputs)


def test_one_new_token(model, tokenizer) -> None:
    [output] = apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=1)
    assert len(output.token_ids) == 1
    assert output.token_ids != [FORK]
    assert output.stats.steps == 1
