"""Shapes of trees, counted by hand; the table, the picture, and what the rules find on real answers."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
from apar.cli import main
from apar.data import TreeRecord, write_trees
from apar.data.build import BuildOptions, build
from apar.data.forks import ForkOptions
from apar.data.records import read_trees
from apar.data.shape import estimate_tokens, tree_shape
from apar.data.stats import measure
from apar.tree import ParagraphTree

from tests.apar.data.markdown import SHARED, needs_shared_data


def words(count: int) -> str:
    return "word " * count


def tree(*parts: int | list) -> ParagraphTree:
    """[2, [5], 1]: two words, a detail of five, one word."""
    return ParagraphTree.from_dict(paragraphs(list(parts)))


def paragraphs(parts: list) -> list[dict]:
    found: list[dict] = []
    for part in parts:
        if isinstance(part, list):
            found[-1]["detail"] = paragraphs(part)
        else:
            found.append({"text": words(part)})
    return found


@pytest.mark.parametrize(
    ("parts", "tokens", "steps", "width", "depth", "details"),
    [
        ([7], 7, 7, 1, 1, []),
        ([0], 0, 0, 0, 1, []),
        ([2, [5], 1], 8, 7, 2, 2, [5]),
        ([2, [1], 9], 12, 11, 2, 2, [1]),
        ([2, [5], 2, [5], 2, [5], 0], 21, 11, 3, 2, [5, 5, 5]),
        ([2, [2], 2, [2], 0], 8, 6, 2, 2, [2, 2]),  # the first detail ends when the second begins
        ([1, [1, [8], 1, [3], 1], 1], 16, 10, 3, 3, [14, 8, 3]),
    ],
)
def test_shapes(parts: list, tokens: int, steps: int, width: int, depth: int, details: list[int]) -> None:
    shape = tree_shape(tree(*parts), lambda text: len(text.split()))
    assert (shape.tokens, shape.steps, shape.forks, shape.width, shape.depth) == (
        tokens,
        steps,
        len(details),
        width,
        depth,
    )
    assert list(shape.details) == details
    assert shape.speedup == (tokens / steps if steps else 1.0)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a word", 2), ("Internationalization", 3), ("1.5\n\n", 5), ("東京!", 3), ("snake_case", 3)],
)
def test_estimated_tokens(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def records() -> list[TreeRecord]:
    return [
        TreeRecord("a", tree(2, [6], 2, [6], 0), "x", "train", {"model": "m", "good": True}),
        TreeRecord("b", tree(10), "x", "heldout", {"model": "n"}),
        TreeRecord("c", tree(10), "y", "train", {"model": "n"}),
    ]


def test_summaries() -> None:
    found = {name: shapes.summary() for name, shapes in measure(records()).items()}
    assert list(found) == ["x", "y", "all"]
    one = found["x"]
    assert (one.records, one.heldout, one.forked, one.forked_share, one.tokens) == (2, 1, 1, 0.5, 26)
    assert one.speedup == pytest.approx({"mean": 1.3, "median": 1.3, "p90": 1.54})
    assert one.speedup_of_forked["mean"] == pytest.approx(1.6)
    assert one.speedup_by_tokens == pytest.approx(26 / 20)
    assert (one.children["mean"], one.width["mean"], one.detail_tokens["mean"], one.depth) == (2, 2, 6, {1: 1, 2: 1})
    assert found["y"].speedup == {"mean": 1, "median": 1, "p90": 1}
    assert found["y"].forked_share == 0
    assert set(measure(records(), by="model")) == {"m", "n", "all"}
    assert set(measure([])) == {"all"}


def test_the_command_prints_a_table_or_json_and_draws(tmp_path, capsys) -> None:
    path = tmp_path / "trees.jsonl"
    write_trees(path, records())
    assert main(["data", "stats", str(path), "--plot", str(tmp_path / "shapes.png")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^x +2 +50% +2.0 / 2.0 / 2.0", shown, re.MULTILINE)
    assert (tmp_path / "shapes.png").read_bytes().startswith(b"\x89PNG")
    assert main(["data", "stats", str(path), "--by", "model", "--only", "source=x", "--json"]) == 0
    assert {name: one["records"] for name, one in json.loads(capsys.readouterr().out).items()} == {
        "m": 1,
        "n": 1,
        "all": 2,
    }
    assert main(["data", "stats", str(path), "--by", "good", "--only", "good=true", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["true"], "a value has one name"
    assert main(["data", "stats", str(path), "--only", "x"]) == 1
    assert "--only: expected KEY=VALUE, got 'x'" in capsys.readouterr().err
    assert main(["data", "stats", str(path), "--only", "source=z"]) == 1
    assert "--only: no record has source=z" in capsys.readouterr().err
    assert main(["data", "stats", str(path), "--by", "modle"]) == 1
    assert "--by: no record has a value 'modle'" in capsys.readouterr().err
    assert main(["data", "stats", str(path), "--tokenizer", "/nowhere"]) == 1
    assert "tokenizer: none found at '/nowhere'" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert main(["data", "stats", str(empty), "--plot", str(tmp_path / "empty.png")]) == 0


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys) -> None:
    assert main(["data", "stats", "nowhere.jsonl", "--plot", str(tmp_path / "none" / "a.png")]) == 1
    assert "there is no such folder" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert main(["data", "stats", "nowhere.jsonl", "--plot", str(tmp_path / "a.png")]) == 1
    assert "--plot: a picture needs the package matplotlib" in capsys.readouterr().err


def test_a_source_may_be_called_all() -> None:
    records = [TreeRecord("Why?", tree(2), name) for name in ("all", "all", "other")]
    found = measure(records)
    assert {name: one.summary().records for name, one in found.items()} == {"all (source)": 2, "other": 1, "all": 3}


def test_a_picture_does_not_take_the_place_of_the_trees(tmp_path, capsys) -> None:
    path = str(tmp_path / "trees.jsonl")
    write_trees(path, [TreeRecord("Why?", tree(2))])
    before = (tmp_path / "trees.jsonl").read_bytes()
    assert main(["data", "stats", path, "--plot", path]) == 1
    assert f"--plot: {path} is another file of this command, too" in capsys.readouterr().err
    assert (tmp_path / "trees.jsonl").read_bytes() == before


def test_values_are_named_as_they_stand_in_the_file(tmp_path, capsys) -> None:
    path = tmp_path / "trees.jsonl"
    write_trees(path, [TreeRecord("Why?", tree(2), extra={"good": good, "id": 7}) for good in (True, False, True)])
    for only, count in (("good=true", 2), ("good=false", 1), ("id=7", 3)):
        assert main(["data", "stats", str(path), "--only", only, "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out).values()
        assert found["records"] == count


def test_a_tokenizer_counts_in_place_of_the_estimate(tmp_path, capsys) -> None:
    from tests.apar.tiny_tokenizers import byte_level_tokenizer

    byte_level_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_trees(tmp_path / "trees.jsonl", records()[2:])
    expected = len(byte_level_tokenizer()(words(10), add_special_tokens=False)["input_ids"])
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--json"]
    assert main(["data", "stats", str(tmp_path / "trees.jsonl"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["y"]["tokens"] == expected != 10


@needs_shared_data
def test_numbered_lists_alone_fork_half_of_the_answers_of_gpt_4(tmp_path) -> None:
    options = BuildOptions(ForkOptions(("numbered_title",), max_depth=1))
    build([str(SHARED / "chat" / "vicuna_bench.jsonl")], tmp_path / "trees", options)
    found = measure(read_trees(tmp_path / "trees"), by="model")["gpt-4-20230520"].summary()
    assert found.records == 80
    assert 0.45 < found.forked_share < 0.6
    assert 1.7 < found.speedup["mean"] < 2.0
