"""Made-up records: a seed gives the same ones, held out stays held out, and the checker finds planted faults."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from apar.cli import main
from apar.data import TreeRecord, read_trees
from apar.data.synth import KINDS, check_answer, summarize, synth_records, synth_rows, wordings
from apar.data.synth.answers import STYLES
from apar.data.synth.facts import write_facts
from apar.data.synth.names import draw_names, is_held_out
from apar.data.synth.topics import TOPICS
from apar.data.synth.worlds import make_world
from apar.tree import ParagraphTree
from hypothesis import given
from hypothesis import strategies as st

from tests.apar.paragraph_trees import paragraph_trees

SPLITS = ("train", "heldout")
WORDINGS = {
    name: value
    for name, value in {**vars(wordings), **wordings.IN_STYLE}.items()
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(side, tuple) for side in value)
}
WORDINGS["CHAT"] = tuple(
    tuple(itertools.chain.from_iterable(said[side] for said, _ in wordings.CHAT)) for side in (0, 1)
)


def take(count: int, seed: int = 0, **options) -> list[TreeRecord]:
    return list(itertools.islice(synth_records(seed, **options), count))


@pytest.mark.parametrize("split", SPLITS)
def test_a_seed_gives_the_same_records(split: str) -> None:
    first = list(itertools.islice(synth_rows(5, split=split), 40))
    assert first == list(itertools.islice(synth_rows(5, split=split), 60))[:40]
    others = list(itertools.islice(synth_rows(6, split=split), 40))
    assert not [row for row in first if row in others and row["kind"] != "chat"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_branches_that_it_should_have(kind: str, split: str) -> None:
    for record in take(40, kinds=[kind], split=split):
        assert record.split == split
        assert (record.num_forks > 0) == KINDS[record.extra["kind"]].forks
        assert record.tree.depth == (3 if kind in ("by_group", "by_point") else 2 if record.num_forks else 1)
        assert all(node.own for node in record.tree)  # no fork right behind a control token
        assert ParagraphTree.from_dict(record.tree.to_dict()).text == record.tree.text
        assert check_answer(record, record.tree).exact


@pytest.mark.parametrize("held_out", [False, True])
def test_names_stay_on_their_side(held_out: bool) -> None:
    rng = random.Random(1)
    for _ in range(200):
        world = make_world(rng, held_out=held_out, grouped=rng.random() < 0.5)
        names = [item.name for item in world.items] if isinstance(world.topic.names, str) else []
        for attribute in world.attributes:
            if isinstance(attribute.values, str):
                names += [item.values[attribute.label] for item in world.items]
        assert {is_held_out(name) for name in names} <= {held_out}
        assert len({name[:2] for name in names}) == len(names)


def test_names_can_be_drawn_until_real_ones_are_used_up() -> None:
    names = draw_names(random.Random(0), {"person": 200, "place": 200}, held_out=True)
    assert len({*names["person"], *names["place"]}) == 400


@pytest.mark.parametrize("name", WORDINGS)
def test_held_out_wordings_are_new_and_of_known_words(name: str) -> None:
    for_training, held_out = WORDINGS[name]
    assert held_out
    # An empty opening is no wording.
    assert not {*for_training} & ({*held_out} - {""})
    assert {word for text in held_out for word in words_of(text)} <= known_words()


def test_held_out_phrases_are_new_and_of_known_words() -> None:
    known = known_words()
    for topic in TOPICS:
        for attribute in topic.attributes:
            *for_training, held_out = attribute.phrases
            assert held_out not in for_training
            assert {*words_of(held_out)} <= known, held_out
        # What says one thing in training must not say another one when it is held out.
        for one, other in itertools.permutations(topic.attributes, 2):
            assert one.phrases[-1] not in other.phrases, (topic.singular, one.label)


def known_words() -> set[str]:
    """The words of training texts, spelled as they are there: with a capital a word has other tokens."""
    texts = [text for for_training, _ in WORDINGS.values() for text in for_training if text]
    texts += [text[0].upper() + text[1:] for text in texts]
    texts += [phrase for topic in TOPICS for attribute in topic.attributes for phrase in attribute.phrases[:-1]]
    return {word for text in texts for word in words_of(text)}


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", text))


def test_held_out_phrases_are_not_trained_on() -> None:
    rng = random.Random(2)
    for topic in TOPICS:
        for _ in range(20):
            world = make_world(rng, [topic], held_out=False)
            facts = write_facts(rng, world, held_out=False)
            for attribute, item in itertools.product(world.attributes, world.items):
                new = attribute.say(item.values[attribute.label], len(attribute.phrases) - 1)
                assert f"{item.name} {new}" not in facts


def test_every_fact_of_an_answer_stands_in_the_prompt() -> None:
    rng = random.Random(3)
    for _ in range(200):
        world = make_world(rng, held_out=False, grouped=rng.random() < 0.3)
        facts = write_facts(rng, world, held_out=False)
        for item in world.items:
            assert item.name in facts
            assert all(value in facts for value in item.values.values())


def test_headings_of_groups_say_what_they_are_once() -> None:
    rng = random.Random(5)
    texts = [write_facts(rng, make_world(rng, held_out=False, grouped=True), held_out=False) for _ in range(300)]
    assert any(line == "Shelf A:" for text in texts for line in text.splitlines())
    assert any("Team North" in text for text in texts)
    assert not any(re.search(r"Shelf Shelf|House \w+ House", text) for text in texts)


def test_some_prompts_are_one_line() -> None:
    prompts = [record.messages[-1]["content"] for record in take(300, seed=8, kinds=["overview"])]
    one_line = sum("\n" not in prompt for prompt in prompts)
    assert 5 < one_line < 60


def test_the_checker_counts_what_is_wrong() -> None:
    for record in take(60, seed=7, kinds=["overview", "comparison", "report", "by_group", "by_point"]):
        right = check_answer(record, record.tree)
        assert right.num_right == len(right.details) == sum(1 for _ in details_of(record.tree))
        assert (right.forks, right.extra_forks) == (right.expected_forks, 0) == (record.num_forks, 0)
        # Of a text nothing is known about branches.
        text = check_answer(record, record.tree.text)
        assert text.exact
        assert text.num_right == right.num_right
        assert text.forks == 0

        number = len(right.details) - 1
        wrong = copy_of(record.tree)
        details_of(wrong)[number].own = details_of(wrong)[number].own.replace(".", " too.", 1)
        found = check_answer(record, wrong)
        assert [detail.right for detail in found.details] == [True] * number + [False]
        assert not found.exact
        assert found.forks == record.num_forks


def test_the_checker_sees_details_that_changed_places() -> None:
    [record] = take(1, seed=1, kinds=["overview"])
    tree = copy_of(record.tree)
    first, second, *_ = details_of(tree)
    first.own, second.own = second.own, first.own
    assert [detail.right for detail in check_answer(record, tree).details[:2]] == [False, False]


@pytest.mark.parametrize("kind", ["by_group", "by_point"])
@pytest.mark.parametrize("style", STYLES)
def test_the_checker_sees_entries_that_changed_places(kind: str, style: str) -> None:
    """All lines are there, but Mira, who is in the North, stands below the South."""
    record = next(record for record in synth_records(1, kinds=[kind]) if _style(record.tree.text) == style)
    tree = copy_of(record.tree)
    first, second, *_ = [node for node in tree if node.detail is not None and node.detail.num_forks]
    first.detail, second.detail = second.detail, first.detail
    changed = len(details_of(first.detail)) + len(details_of(second.detail))
    found = check_answer(record, ParagraphTree.from_dict(tree.to_dict()))
    assert [detail.right for detail in found.details].count(False) == changed


def _style(text: str) -> str:
    [line] = [line for line in text.split("\n")[1:] if line][:1]
    return "headings" if line.startswith("#") else "bullets" if line.startswith("-") else "numbered"


@given(paragraph_trees(st.text("ab: -\n", min_size=1, max_size=6)))
def test_every_tree_is_the_right_answer_to_itself(paragraphs: list[dict]) -> None:
    """Also where a detail begins or ends in the middle of a line, and where the same lines stand twice."""
    tree = ParagraphTree.from_dict(paragraphs)
    record = TreeRecord("How?", tree)
    for answer in (tree, tree.text):
        found = check_answer(record, answer)
        assert found.exact
        assert found.num_right == len(found.details)


def test_the_checker_sees_branches_that_are_missing_or_too_many() -> None:
    [record] = take(1, seed=1, kinds=["overview"])
    missing = copy_of(record.tree)
    missing.own, missing.detail = missing.own + missing.detail.text, None
    found = check_answer(record, missing)
    assert found.exact
    assert (found.forks, found.extra_forks) == (record.num_forks - 1, 0)
    more = copy_of(record.tree)
    details_of(more)[0].detail = ParagraphTree(own="More.")
    found = check_answer(record, more)
    assert (found.forks, found.extra_forks) == (record.num_forks, 1)
    assert not found.exact


def test_a_share_of_nothing_is_left_out() -> None:
    [record] = take(1, seed=3, kinds=["one"])
    found = summarize([check_answer(record, record.tree)])
    assert found["details_right"] == found["answers_right"] == 1.0
    assert found["forked_where_not"] == 0.0
    assert "forked_where_expected" not in found
    assert summarize([]) == dict.fromkeys(
        ("answers", "details", "branches", "answers_without_branches", "extra_forks"), 0
    )


def test_an_answer_without_branches_is_one_detail() -> None:
    [record] = take(1, seed=3, kinds=["one"])
    assert check_answer(record, record.tree).num_right == 1
    assert check_answer(record, record.tree.text + " More.").num_right == 0
    forked = ParagraphTree(own="", detail=ParagraphTree(own=record.tree.text))
    assert check_answer(record, forked).extra_forks == 1


def details_of(tree: ParagraphTree) -> list[ParagraphTree]:
    return [node.detail for node in tree if node.detail is not None and not node.detail.num_forks]


def copy_of(tree: ParagraphTree) -> ParagraphTree:
    return ParagraphTree.from_dict(tree.to_dict())


def test_the_command_writes_what_the_function_gives(tmp_path, capsysbinary) -> None:
    path = tmp_path / "trees.jsonl.gz"
    assert main(["data", "synth", "--count", "20", "--seed", "4", "--split", "heldout", "-o", str(path)]) == 0
    assert list(read_trees(path)) == take(20, seed=4, split="heldout")
    capsysbinary.readouterr()
    assert main(["data", "synth", "--count", "3", "--kinds", "one", "names"]) == 0
    lines = capsysbinary.readouterr().out.splitlines()
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--count", "-1"], "--count"),
        (["--kinds", "poem"], "poem"),
        (["--max-items", "1"], "max_items"),
        (["--max-items", "51"], "max_items: expected 2 to 50"),
        (["-o", "/no/such/folder/x.jsonl"], "/no/such/folder"),
    ],
)
def test_the_command_names_what_is_wrong(arguments: list[str], named: str, capsys) -> None:
    assert main(["data", "synth", *arguments]) == 1
    assert named in capsys.readouterr().err


def test_several_requests_are_about_the_same_facts() -> None:
    kinds = ["overview", "by_group", "instructions", "which", "one"]
    records = take(120, seed=3, requests=4, kinds=kinds)
    assert {record.extra["kind"] for record in records} == {*kinds}
    for begin in range(0, 120, 4):
        prompts = [record.messages[-1]["content"] for record in records[begin : begin + 4]]
        facts = {prompt.rpartition("\n\n")[0] for prompt in prompts}
        assert len(facts) == 1
        together = [record.extra["kind"] for record in records[begin : begin + 4]]
        assert len({kind == "by_group" for kind in together}) == 1
        if "instructions" in together:
            assert records[begin].extra["topic"] in ("step", "day")
    assert all(record.extra["kind"] not in ("chat", "repeat") for record in take(50, requests=2))
    assert records == take(120, seed=3, requests=4, kinds=kinds)
    with pytest.raises(ValueError, match="requests: expected 1 or more, got 0"):
        take(1, requests=0)
    with pytest.raises(ValueError, match="chat need no facts"):
        take(1, requests=2, kinds=["chat"])
