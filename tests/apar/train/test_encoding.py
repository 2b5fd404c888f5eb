"""Text to tokens and back: what training shows a model is what the decoder would have written."""

from __future__ import annotations

import pytest
from apar.data import TreeRecord
from apar.grammar import Grammar
from apar.output import Branch, Output, Stats, make_output
from apar.prompts import encode_prompts
from apar.train.encoding import TreeEncoder
from apar.train.packing import PackedTree, learned_levels
from apar.tree import ParagraphTree
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.apar.paragraph_trees import paragraph_trees
from tests.apar.tiny_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer

TOKENIZERS = {"bytes": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}
OWN_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    str.strip
) | st.sampled_from(["\n2. Food:", "1. Sleep:", "\n\n", " the dog", "🙂", "Größe\n", "  two", ":", "[Fork]", "</s>"])


def record(paragraphs: list[dict], prompt: str = "How?") -> TreeRecord:
    return TreeRecord([{"role": "user", "content": prompt}], ParagraphTree.from_dict(paragraphs))


def as_output(packed: PackedTree, tokenizer, grammar: Grammar) -> Output:
    """The packed row read as branches of the decoder, and these put together as the decoder does it."""
    number = [~branch if branch < 0 else branch for branch in packed.branch.tolist()]
    prompt = [token for token, branch in zip(packed.token_ids.tolist(), packed.branch, strict=True) if branch < 0]
    branches, ids = [], {0: ()}
    for branch in range(max(number) + 1):
        places = [place for place, of in enumerate(number) if of == branch]
        tokens = [int(packed.token_ids[place]) for place in places][len(prompt) if branch == 0 else 0 :]
        parent, fork_index = None, -1
        if branch:
            above = number[places[0] - 1]
            parent = ids[above]
            ids[branch] = (*parent, sum(other.parent == parent for other in branches))
            before = [place for place, of in enumerate(number) if of == above and place < places[0]]
            fork_index = len(before) - 1 - (len(prompt) if above == 0 else 0)
        branches.append(Branch(ids[branch], parent, tokens, fork_index, "stop"))
    return make_output(prompt, branches, Stats(), grammar, tokenizer)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(paragraphs=paragraph_trees(OWN_TEXTS))
def test_the_decoder_reads_back_what_training_was_given(kind: str, paragraphs: list[dict]) -> None:
    tokenizer = TOKENIZERS[kind](chat=True)
    encoder = TreeEncoder(tokenizer, Grammar.from_tokenizer(tokenizer))
    found = list(encoder.encode([record(paragraphs)]))
    if encoder.counts.unusable or encoder.counts.changed_texts:
        return
    output = as_output(found[0], tokenizer, Grammar.from_tokenizer(tokenizer))
    tree = ParagraphTree.from_dict(paragraphs)
    assert output.text == tree.text
    assert output.tree.num_forks == tree.num_forks
    assert output.tree.to_dict() == tree.to_dict()
    assert output.prompt_ids == encode_prompts(tokenizer, [record(paragraphs).messages])[0]
    assert [branch.finish_reason for branch in output.branches] == ["stop"] * len(output.branches)
    assert all(branch.token_ids[-1] == tokenizer.eos_token_id for branch in output.branches)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ordinary_text_comes_through(kind: str) -> None:
    """The property above passes over texts that a tokenizer changes; these must not be among them."""
    tokenizer = TOKENIZERS[kind](chat=True)
    encoder = TreeEncoder(tokenizer, Grammar.from_tokenizer(tokenizer))
    paragraphs = [
        {"text": "Two tips.\n\n1. Sleep:", "detail": [{"text": " go to bed early."}]},
        {"text": "\n2. **Food**:", "detail": [{"text": " eat", "detail": [{"text": "\n   - slowly"}]}, {"text": "."}]},
        {"text": ""},
    ]
    [found] = encoder.encode([record(paragraphs)])
    assert encoder.counts.changed_texts == encoder.counts.unusable == encoder.counts.joined_details == 0
    assert sorted(learned_levels(found.branch)) == [2, 2, 3]
    output = as_output(found, tokenizer, Grammar.from_tokenizer(tokenizer))
    assert output.tree.to_dict() == ParagraphTree.from_dict(paragraphs).to_dict()


def test_records_that_cannot_be_encoded_are_left_out_and_counted() -> None:
    tokenizer = byte_level_tokenizer(chat=True)
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + tokenizer.chat_template
    )
    encoder = TreeEncoder(tokenizer, Grammar.from_tokenizer(tokenizer))
    good = record([{"text": "So."}])
    refused = TreeRecord([{"role": "system", "content": "Be kind."}, *good.messages], good.tree)
    halves = [record([{"text": "So \ud83d."}]), record([{"text": "So."}], prompt="\ud83d?")]
    packed = list(encoder.encode([refused, good, *halves, refused, good]))
    assert len(packed) == 2
    assert packed[0].token_ids.tolist() == packed[1].token_ids.tolist()
    assert (encoder.counts.records, encoder.counts.unusable) == (6, 4)
    assert encoder.counts.refused == "System role not supported"


def test_control_tokens_spelled_out_are_text() -> None:
    tokenizer = byte_level_tokenizer(chat=True)
    grammar = Grammar.from_tokenizer(tokenizer)
    encoder = TreeEncoder(tokenizer, grammar)
    [found] = encoder.encode([record([{"text": "a [Fork] b [Child] c </s>", "detail": [{"text": "[Child]"}]}])])
    assert encoder.counts.changed_texts == 0
    ids = found.token_ids[found.branch >= 0].tolist()
    assert ids.count(grammar.fork_id) == ids.count(grammar.child_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 2


@pytest.mark.parametrize(
    ("paragraphs", "expected", "joined"),
    [
        # A detail right behind a control token, where the decoder allows no fork.
        (
            [{"text": "a", "detail": [{"text": "", "detail": [{"text": "b"}]}]}],
            [{"text": "a", "detail": [{"text": "b"}]}],
            1,
        ),
        (
            [{"text": "a", "detail": [{"text": "b"}]}, {"text": "", "detail": [{"text": "c"}]}, {"text": "d"}],
            [{"text": "a", "detail": [{"text": "b"}]}, {"text": "cd"}],
            1,
        ),
        # The trunk may fork before it writes; an empty detail is none.
        ([{"text": "", "detail": [{"text": "b"}]}], [{"text": "", "detail": [{"text": "b"}]}], 0),
        ([{"text": "a", "detail": [{"text": ""}]}, {"text": "b"}], [{"text": "ab"}], 1),
    ],
)
def test_details_without_a_place_become_text(paragraphs: list[dict], expected: list[dict], joined: int) -> None:
    tokenizer = byte_level_tokenizer(chat=True)
    grammar = Grammar.from_tokenizer(tokenizer)
    encoder = TreeEncoder(tokenizer, grammar)
    [found] = encoder.encode([record(paragraphs)])
    assert encoder.counts.joined_details == joined
    output = as_output(found, tokenizer, grammar)
    found_tree = [paragraph for paragraph in output.tree.to_dict() if paragraph != {"text": ""}]
    assert found_tree == expected


def test_messages_need_a_chat_template() -> None:
    tokenizer = byte_level_tokenizer()
    encoder = TreeEncoder(tokenizer, Grammar.from_tokenizer(tokenizer))
    with pytest.raises(ValueError, match="chat_template: the tokenizer has no chat template, and record 0 is"):
        list(encoder.encode([record([{"text": "a"}])]))
    # A prompt that is a text needs none.
    [found] = encoder.encode([TreeRecord("How?", ParagraphTree("a"))])
    assert found.token_ids[found.branch < 0].tolist() == tokenizer("How?")["input_ids"]


def test_what_cannot_be_encoded_is_counted() -> None:
    tokenizer = byte_level_tokenizer()
    encoder = TreeEncoder(tokenizer, Grammar.from_tokenizer(tokenizer))
    records = [TreeRecord(prompt, ParagraphTree("a")) for prompt in ("", "How? [Fork]", "How?")]
    assert len(list(encoder.encode(records))) == 1
    assert encoder.counts.unusable == 2
    with pytest.MonkeyPatch.context() as patch:  # 32,767 branches take their time
        patch.setattr("apar.train.encoding.MAX_BRANCHES", 2)
        trees = [[{"text": "a", "detail": [{"text": "b"}]}] * number for number in (1, 2)]
        records = [TreeRecord("How?", ParagraphTree.from_dict(tree)) for tree in trees]
        assert len(list(encoder.encode(records))) == 1
    assert encoder.counts.unusable == 3
    with pytest.raises(ValueError, match="expected a fork and a child token"):
        TreeEncoder(tokenizer, Grammar())
