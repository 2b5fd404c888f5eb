"""Replay: branches get the lengths of the tree, and what it reports is what can be counted from the tree itself."""

from __future__ import annotations

import json
from pathlib import Path

import apar
import numpy as np
import pytest
from apar.random_model import random_llama
from apar.replay import replay
from apar.shapes import DEMO_TREE, check_tree, read_shapes
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.tree_count import TreeCount

TREES = Path(__file__).parents[2] / "bench" / "trees" / "vicuna80.jsonl"


@pytest.fixture(scope="module")
def model():
    return random_llama(hidden_size=64, layers=2, heads=2, kv_heads=1, vocabulary=50, positions=4096)


def check(model, tree, prompt_tokens: int, page_size: int) -> None:
    report = replay(model, [tree], prompt_tokens=prompt_tokens, page_size=page_size, max_live_branches=64)
    count = TreeCount(tree, prompt_tokens, page_size)
    stats = report.tree
    assert stats.steps == count.steps
    assert stats.tokens == count.tokens
    assert stats.peak_branches == count.peak_branches
    assert stats.peak_pages == count.peak_pages == report.outputs[0].stats.peak_pages
    config = model.config
    entry_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert stats.kv_bytes_read == count.entries * entry_bytes
    assert stats.kv_bytes_read_per_branch == count.entries_per_branch * entry_bytes
    assert report.sequential.steps == report.sequential.tokens == count.tokens
    assert report.sequential.peak_branches == 1
    assert report.step_ratio == count.tokens / count.steps


def trees(depth: int) -> st.SearchStrategy:
    child = st.deferred(lambda: trees(depth - 1)) if depth else st.nothing()
    forks = st.lists(st.tuples(st.integers(1, 20), child), max_size=4) if depth else st.just([])
    return st.builds(
        lambda parts, last: [*(part for pair in parts for part in pair), last or (0 if parts else 1)],
        forks,
        st.integers(0, 20),
    )


@settings(max_examples=40, deadline=None)
@given(tree=trees(2), prompt_tokens=st.integers(1, 40), page_size=st.sampled_from([8, 16, 32]))
def test_costs_are_those_counted_from_the_tree(model, tree, prompt_tokens: int, page_size: int) -> None:
    check(model, tree, prompt_tokens, page_size)


@pytest.mark.parametrize("rule", ["apar", "nested"])
def test_costs_of_real_trees(model, rule: str) -> None:
    records = [record for record in read_shapes(TREES, rule) if len(record["tree"]) > 5][::97][:4]
    assert len(records) == 4
    for record in records:
        check(model, record["tree"], record["prompt_tokens"], 16)


def test_branches_have_the_lengths_of_the_tree(model) -> None:
    [output] = replay(model, [[3, [2, [4], 1], 5, [6], 0]], compare=False).outputs
    control = apar.Grammar(fork_id=49, child_id=48, stop_ids=(47,))
    visible = {branch.id: len([token for token in branch.token_ids if token < 47]) for branch in output.branches}
    assert visible == {(): 8, (0,): 3, (0, 0): 4, (1,): 6}
    assert output.branch((0,)).token_ids[:1] == [control.child_id]
    assert {branch.finish_reason for branch in output.branches} == {"stop"}


def test_many_trees_in_a_small_pool_take_the_same_tokens(model) -> None:
    records = [record["tree"] for record in read_shapes(TREES) if sum(record["tree"][::2]) < 120][:12]
    free = replay(model, records, compare=False)
    tight = replay(model, records, compare=False, max_pages=24, max_rows=6, max_live_branches=3)
    assert tight.outputs == free.outputs
    assert tight.tree.peak_pages <= 24 < free.tree.peak_pages
    assert tight.tree.steps > free.tree.steps
    assert tight.tree.tokens == free.tree.tokens


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], r"trees\[0\]: expected \[t0, child"),
        ([3, [2]], r"trees\[0\]: expected \[t0, child"),
        ([3, 2, 1], r"trees\[0\]\[1\]: expected \[t0, child"),
        ([0, [2], 1], r"trees\[0\]\[0\]: expected a number of tokens, at least 1 in front of a fork, got 0"),
        ([3, [-2], 1], r"trees\[0\]\[1\]\[0\]: expected a number of tokens"),
        ([3, [2], True], r"trees\[0\]\[2\]: expected a number"),
        ([5000], r"trees\[0\]: its longest path has 5033 tokens with the prompt, more than the model has positions"),
    ],
)
def test_bad_trees_are_named(model, bad, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(model, [bad])


def test_bad_arguments_and_files_are_named(model, tmp_path) -> None:
    with pytest.raises(ValueError, match="trees: expected at least one tree"):
        replay(model, [])
    with pytest.raises(ValueError, match="prompt_tokens: expected one number or 1"):
        replay(model, [[3]], prompt_tokens=[1, 2])
    with pytest.raises(ValueError, match="prompt_tokens: expected at least 1, got 0"):
        replay(model, [[3]], prompt_tokens=0)
    with pytest.raises(TypeError, match="trees: expected a list of trees, got 5"):
        replay(model, 5)
    with pytest.raises(TypeError, match=r"prompt_tokens: expected an integer or one per tree, got 1\.5"):
        replay(model, [[3]], prompt_tokens=1.5)
    with pytest.raises(TypeError, match="on_event: expected a function, got 5"):
        replay(model, [[3]], on_event=5)
    with pytest.raises(ValueError, match="rule: expected 'apar' or 'nested', got 'x'"):
        list(read_shapes(TREES, "x"))
    broken = tmp_path / "trees.jsonl"
    broken.write_text('{"response_tokens": 5}\n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"trees: line 2 of .* is no record of a tree"):
        list(read_shapes(broken))


def test_reports_are_plain_data(model) -> None:
    report = json.loads(json.dumps(replay(model, [DEMO_TREE]).to_dict()))
    assert report["step_ratio"] > 2
    assert report["tree"]["steps"] < report["sequential"]["steps"]
    assert check_tree(DEMO_TREE) == DEMO_TREE
    assert np.isfinite(report["speedup"])
