"""Files of trees: what is written is read again, and what is broken says where."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from apar.data import TreeRecord, read_trees, write_trees
from apar.tree import ParagraphTree
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = st.text(max_size=6)
PARAGRAPHS = st.recursive(
    st.lists(st.fixed_dictionaries({"text": TEXTS}), min_size=1, max_size=3),
    lambda inner: st.lists(st.fixed_dictionaries({"text": TEXTS}, optional={"detail": inner}), min_size=1, max_size=4),
    max_leaves=8,
)


def tree_of(paragraphs: list[dict]) -> ParagraphTree:
    return ParagraphTree.from_dict(paragraphs)


@settings(deadline=None)
@given(PARAGRAPHS)
def test_trees_come_back(paragraphs: list[dict]) -> None:
    tree = tree_of(paragraphs)
    assert tree.to_dict() == paragraphs
    assert tree == tree_of(tree.to_dict())
    assert all(node.next is None or node.next.branch == node.branch for node in tree)
    forks: dict[tuple[int, ...], int] = {}
    for node in tree:
        if node.detail is not None:
            assert node.detail.branch == (*node.branch, forks.get(node.branch, 0))
            forks[node.branch] = forks.get(node.branch, 0) + 1


def test_deep_and_long_trees_are_no_recursion() -> None:
    paragraphs = [{"text": "end"}]
    for _ in range(3000):
        paragraphs = [{"text": "x", "detail": paragraphs}]
    assert tree_of(paragraphs).num_forks == 3000
    assert tree_of([{"text": "x"}] * 5000).text == "x" * 5000


@pytest.mark.parametrize(
    ("paragraphs", "message"),
    [
        ([], r"tree: expected a list of paragraphs, at least one, got \[\]"),
        ("text", "tree: expected a list"),
        ([{"text": "a"}, {"detail": []}], r"tree\[1\]: expected an object with a string as text"),
        ([{"text": "a", "detail": [{"text": 3}]}], r"tree\[0\].detail\[0\]: expected an object"),
        ([{"text": "a", "detail": []}], r"tree\[0\].detail: expected a list"),
    ],
)
def test_bad_trees_name_the_place(paragraphs: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParagraphTree.from_dict(paragraphs)


@pytest.mark.parametrize("name", ["trees.jsonl", "trees.jsonl.gz"])
@settings(max_examples=30, deadline=None)
@given(trees=st.lists(st.tuples(PARAGRAPHS, TEXTS), max_size=4))
def test_files_come_back(tmp_path_factory, name: str, trees: list) -> None:
    path = tmp_path_factory.mktemp("trees") / name
    records = [
        TreeRecord([{"role": "user", "content": text}], tree_of(paragraphs), text, "heldout", {"id": text})
        for paragraphs, text in trees
    ]
    assert write_trees(path, records) == len(records)
    assert list(read_trees(path)) == records
    assert [entry.name for entry in path.parent.iterdir()] == [name]


def test_half_a_character_survives(tmp_path: Path) -> None:
    record = TreeRecord([], tree_of([{"text": "\ud83d"}]))
    write_trees(tmp_path / "trees.jsonl", [record])
    assert next(read_trees(tmp_path / "trees.jsonl")) == record


def test_a_text_as_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Why?", "tree": [{"text": "So."}], "id": 3}\n\n')
    (record,) = read_trees(tmp_path / "a.jsonl")
    assert (record.prompt, record.split, record.extra) == ("Why?", "train", {"id": 3})
    assert record.messages == [{"role": "user", "content": "Why?"}]
    assert (record.num_forks, record.tree.text) == (0, "So.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: expected an object"),
        ('{"tree": [{"text": ""}]}', "line 2: expected messages or a text as prompt"),
        ('{"messages": [{"role": "user"}], "tree": []}', "line 2: messages: expected objects with role and content"),
        ('{"messages": []}', "line 2: expected a tree"),
        ('{"messages": [], "tree": [{"text": ""}], "split": "test"}', "line 2: split: expected one of train, heldout"),
        ('{"messages": [], "tree": [{"text": ""}], "source": 1}', "line 2: source: expected a text"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps(TreeRecord("a", tree_of([{"text": "b"}])).to_dict())
    (tmp_path / "trees.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        list(read_trees(tmp_path / "trees.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.jsonl.gz", b"plain", OSError, "a.jsonl.gz ends or breaks behind line 0: Not a gzipped file"),
        ("a.jsonl", b"\n" + b"[" * 100_000, ValueError, "a.jsonl, line 2: the JSON is nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, error: type, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        list(read_trees(tmp_path / name))


def test_a_torn_archive_gives_what_is_whole(tmp_path: Path) -> None:
    records = [TreeRecord(str(number), tree_of([{"text": str(number**9)}])) for number in range(20000)]
    path = tmp_path / "trees.jsonl.gz"
    write_trees(path, records)
    path.write_bytes(path.read_bytes()[:-2000])
    reading = read_trees(path)
    with pytest.raises(OSError, match="ends or breaks behind line"):
        list(reading)
    assert len(list(itertools.islice(read_trees(path), 100))) == 100


def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    path.touch(mode=0o600)
    write_trees(path, [])
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    path.write_text("before")

    def records():
        yield TreeRecord("a", tree_of([{"text": "b"}]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_trees(path, records())
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["trees.jsonl"]
