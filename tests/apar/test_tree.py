"""Text of trees: pieces that join to the whole, details where they were forked, the rule of published models."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from apar.branch_text import BranchText
from apar.grammar import Grammar
from apar.output import Branch, Stats, make_output
from apar.tree import ParagraphTree, split_text
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from tests.apar.tiny_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

TOKENIZERS = {"bytes": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ["🙂", " the dog", "東京", "Größe\n", "  two", "1. Sleep:", "\n\n"]
)


def answer(tokenizer, newlines: str = "exact"):
    """Two points with a detail each; the first detail forks once more."""
    grammar = Grammar.from_tokenizer(tokenizer, newlines=newlines)
    end = grammar.stop_ids[0]

    def ids(text: str) -> list[int]:
        """Tokens of a text that something stands in front of."""
        before = tokenizer("|", add_special_tokens=False)["input_ids"]
        return tokenizer("|" + text, add_special_tokens=False)["input_ids"][len(before) :]

    start = tokenizer("1. Sleep:", add_special_tokens=False)["input_ids"]
    trunk = [*start, grammar.fork_id, *ids("\n2. Food:"), grammar.fork_id, end]
    first = [grammar.child_id, *ids(" go to bed"), grammar.fork_id, *ids(" every day."), end]
    branches = [
        Branch((), None, trunk, finish_reason="stop"),
        Branch((1,), (), [grammar.child_id, *ids(" eat slowly."), end], len(trunk) - 2, "stop"),
        Branch((0,), (), first, trunk.index(grammar.fork_id), "stop"),
        Branch((0, 0), (0,), [grammar.child_id, *ids(" at the same time"), end], first.index(grammar.fork_id), "stop"),
    ]
    return make_output(ids("How?"), branches, Stats(), grammar, tokenizer)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_details_stand_where_they_were_forked(kind: str) -> None:
    output = answer(TOKENIZERS[kind]())
    assert output.text.strip() == "1. Sleep: go to bed at the same time every day.\n2. Food: eat slowly."
    assert [branch.id for branch in output.branches] == [(), (0,), (0, 0), (1,)]
    assert output.tree.depth == 3
    assert output.tree.num_forks == 3
    assert output.tree.detail.own.strip() == "go to bed"
    assert output.tree.detail.detail.text.strip() == "at the same time"
    assert output.tree.next.own == "\n2. Food:"
    assert output.tree.branch_text((0,)).strip() == "go to bed every day."
    assert "".join(node.own for node in output.tree) == output.text


def test_path_ids_are_prompt_ancestors_and_own_tokens() -> None:
    output = answer(byte_level_tokenizer())
    trunk, first, inner, _ = (branch.token_ids for branch in output.branches)
    fork = Grammar.from_tokenizer(byte_level_tokenizer()).fork_id
    expected = output.prompt_ids + trunk[: trunk.index(fork) + 1] + first[: first.index(fork) + 1] + inner
    assert output.path_ids((0, 0)) == expected
    assert output.path_ids(()) == output.prompt_ids + trunk
    with pytest.raises(KeyError, match="branch_id"):
        output.path_ids((7,))


def test_token_ids_are_in_reading_order_and_visible_ids_without_control_tokens() -> None:
    tokenizer = byte_level_tokenizer()
    output = answer(tokenizer)
    grammar = Grammar.from_tokenizer(tokenizer)
    fork, child, end = grammar.fork_id, grammar.child_id, grammar.stop_ids[0]
    assert sorted(output.token_ids) == sorted(token for branch in output.branches for token in branch.token_ids)
    assert [t for t in output.token_ids if t in (fork, child, end)] == [
        fork, child, fork, child, end, end, fork, child, end, end,
    ]  # fmt: skip
    assert output.visible_ids == [token for token in output.token_ids if token not in (fork, child, end)]
    assert tokenizer.decode(output.visible_ids) == output.text


def test_published_models_need_line_breaks_around_details() -> None:
    output = answer(byte_level_tokenizer(), newlines="published")
    # The trunk's empty last paragraph adds nothing.
    assert output.text == "1. Sleep:\n go to bed\n at the same time\n\n every day.\n\n2. Food:\n eat slowly."
    tree = ParagraphTree("a", detail=ParagraphTree("\nb", (0,)), next=ParagraphTree("\n\nc"), newlines="published")
    assert tree.text == "a\nb\n\nc"


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_pieces_join_to_the_whole_wherever_the_cut_is(kind: str, texts: list[str], cuts: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer("".join(texts), add_special_tokens=False)["input_ids"]
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    segments = [ids[begin:end] for begin, end in itertools.pairwise(edges)]
    pieces = split_text(tokenizer, segments)
    assert len(pieces) == len(segments)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=8))
def test_streamed_text_is_the_text(kind: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]()
    text = "".join(texts)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    branch = BranchText(tokenizer)
    assert "".join([branch.add(token) for token in ids]) == whole


def test_long_streams_stay_right_and_cheap() -> None:
    for make in TOKENIZERS.values():
        tokenizer = make()
        ids = tokenizer(" the dog looks 🙂 and 東京 on." * 40, add_special_tokens=False)["input_ids"]
        branch = BranchText(tokenizer)
        assert "".join(branch.add(token) for token in ids) == tokenizer.decode(ids)
        assert len(branch._token_ids) < 80


def test_bytes_that_are_no_text_keep_the_stream_going() -> None:
    tokenizer = byte_level_tokenizer()
    broken = tokenizer.convert_tokens_to_ids("ģ")  # a byte that only continues a character
    branch = BranchText(tokenizer)
    text = "".join(branch.add(token) for token in [broken] * 500 + tokenizer("The dog")["input_ids"])
    assert text.endswith("The dog")
    assert len(branch._token_ids) <= 200


def test_render_shows_ids_and_fits_the_width() -> None:
    output = answer(byte_level_tokenizer())
    lines = output.tree.render(width=40).splitlines()
    assert lines[0] == "1. Sleep:"
    assert lines[1].startswith("├─ 0 ")
    assert lines[2].startswith("│  ├─ 0.0 ")
    assert "every day." in lines[3]
    assert max(map(len, lines)) <= 40


def test_trees_are_plain_data_and_long_chains_are_no_recursion() -> None:
    output = answer(byte_level_tokenizer())
    assert output.tree.to_dict()[0]["detail"][0]["detail"] == [{"text": " at the same time"}]
    chain = ParagraphTree("end")
    for _ in range(5000):
        chain = ParagraphTree("x", next=chain)
    assert chain.text == "x" * 5000 + "end"


@pytest.mark.parametrize(
    ("control", "options", "fork"),
    [
        (("[Fork]", "[Child]"), {}, "[Fork]"),
        (("[SplitMask]", "[SplitSop]"), {}, "[SplitMask]"),
        (("<a>", "<b>"), {"fork": "<a>", "child": "<b>"}, "<a>"),
        ((), {}, None),
    ],
)
def test_control_tokens_are_found_by_name(control: tuple[str, ...], options: dict, fork: str | None) -> None:
    tokenizer = byte_level_tokenizer(control)
    grammar = Grammar.from_tokenizer(tokenizer, **options)
    assert grammar.can_fork == (fork is not None)
    assert grammar.fork_id == (-1 if fork is None else tokenizer.convert_tokens_to_ids(fork))
    assert grammar.stop_ids == (tokenizer.eos_token_id,)


def test_a_model_says_which_tokens_it_was_tuned_with() -> None:
    tokenizer = byte_level_tokenizer(("[Fork]", "[Child]", "<a>", "<b>"))
    fork, child = tokenizer.convert_tokens_to_ids(["<a>", "<b>"])

    def grammar(**ids: int) -> Grammar:
        return Grammar.for_model(SimpleNamespace(generation_config=GenerationConfig(**ids)), tokenizer)

    assert (grammar(fork_token_id=fork, child_token_id=child).fork_id, grammar().fork_id) == (fork, fork - 2)
    assert grammar(fork_token_id=9999, child_token_id=child).fork_id == fork - 2  # of another tokenizer
    named = Grammar.from_tokenizer(
        byte_level_tokenizer(("[SplitMask]", "[SplitSop]")), fork="[SplitMask]", child="[SplitSop]"
    )
    assert named.newlines == "published"


@pytest.mark.parametrize(
    ("control", "options", "message"),
    [
        (("[Fork]",), {}, r"has \[Fork\] but not \[Child\]"),
        (("[SplitSop]",), {}, r"has \[SplitSop\] but not \[SplitMask\]"),
        ((), {"fork": "[X]", "child": "[Y]"}, r"fork='\[X\]' is not a token of the tokenizer"),
        (("[X]",), {"fork": "[X]", "child": "[Y]"}, r"child='\[Y\]' is not a token"),
        (("[X]",), {"fork": "[X]"}, "both fork and child"),
        (("[Fork]", "[Child]"), {"max_depth": 0}, r"max_depth: expected 1 \(the trunk alone\) to 64"),
        (("[Fork]", "[Child]"), {"max_children": -1}, "max_children: expected 0 or more"),
        (("[Fork]", "[Child]"), {"newlines": "none"}, "newlines must be one of exact, published, got 'none'"),
        (("[Fork]", "[Child]"), {"stop_ids": range(9)}, "at most 8 stop_ids"),
    ],
)
def test_bad_grammars_say_what_is_wrong(control: tuple[str, ...], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar.from_tokenizer(byte_level_tokenizer(control), **options)
