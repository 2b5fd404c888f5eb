"""An evaluation of a tiny model that has learned its answers by heart: what it must say is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import apar
import pytest
from apar.cli import main
from apar.data import write_trees
from apar.data.synth.check import check_answer
from apar.eval import EvalPrompt, evaluate, read_prompts
from apar.eval.report import BASE, PARALLEL, SEQUENTIAL
from apar.eval.run import EvalOptions
from apar.train.run import train
from apar.tree import ParagraphTree
from transformers import LlamaConfig, LlamaForCausalLM

from tests.apar.data.markdown import SHARED
from tests.apar.tiny_tokenizers import byte_level_tokenizer
from tests.apar.train.runs import TINY_LLAMA, records, tiny_run

OPTIONS = EvalOptions(max_new_tokens=120, max_depth=3, page_size=8)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    new = {"config": TINY_LLAMA | {"hidden_size": 64}}
    return train(tiny_run(folder, model=new, steps=100, learning_rate=4e-3, log_every=50))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A model that was never tuned and has no control tokens."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = byte_level_tokenizer((), chat=True)
    LlamaForCausalLM(LlamaConfig(**TINY_LLAMA | {"hidden_size": 64}, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompts() -> list[EvalPrompt]:
    return [EvalPrompt(record.messages, record.prompt[0]["content"], record) for record in records()]


def test_what_was_learned_is_found_right_and_cheaper(tuned: Path, plain: Path) -> None:
    report = evaluate(*apar.load(tuned), prompts(), base=apar.load(plain), checker=check_answer, options=OPTIONS)
    assert list(report.answers) == [PARALLEL, SEQUENTIAL, BASE]
    for way in (PARALLEL, SEQUENTIAL):
        found = report.summary(way)
        assert found["exact"] == found["fork_recall"] == found["complete"] == 1.0
        assert found["details"] == 3 / 4, "the checker wants whole lines, and one detail here ends within a line"
        assert found["extra_forks"] == found["forked_wrongly"] == 0
        assert found["fork_rate"] == pytest.approx(2 / 3)
        assert found["forks"] == pytest.approx((3 + 1) / 2)
    base = report.summary(BASE)
    assert base["exact"] == base["fork_rate"] == base["fork_recall"] == 0.0
    assert report.agreement(SEQUENTIAL, PARALLEL) == {"same_text": 1.0, "similarity": 1.0}
    assert report.agreement(BASE, PARALLEL)["similarity"] < 0.5
    one, two = report.summary(PARALLEL, "Tips?"), report.summary(SEQUENTIAL, "Tips?")
    assert one["tokens"] == two["tokens"] == two["steps"] > one["steps"]
    ratios = report.ratios(SEQUENTIAL, "Tips?")
    assert ratios["steps"] == two["steps"] / one["steps"]
    assert ratios["pages_read"] > 1
    assert one["pages_held"] > two["pages_held"], "branches at once hold more, details that are done are let go"
    assert report.ratios(SEQUENTIAL, "Yes?")["steps"] == 1.0, "there is nothing to do at once"


def test_pages_read_are_those_of_the_prompt_and_the_tokens_so_far(tuned: Path) -> None:
    model, tokenizer = apar.load(tuned)
    (prompt,) = [prompt for prompt in prompts() if prompt.category == "Yes?"]
    (answer,) = evaluate(model, tokenizer, [prompt], options=OPTIONS).answers[PARALLEL]
    (output,) = apar.generate(model, tokenizer, prompt.messages)
    first = len(output.prompt_ids)
    steps = range(answer.steps)
    # A step reads the prompt, the tokens so far and its own.
    candidates = [sum(-(-(first + step + own) // 8) for step in steps) for own in (0, 1)]
    assert answer.pages_read in candidates
    assert answer.steps == answer.tokens == len(output.token_ids)


def test_wrong_answers_are_counted(tuned: Path) -> None:
    changed = prompts()
    paragraphs = changed[0].record.tree.to_dict()
    paragraphs[0]["detail"][0]["text"] = " stay up."
    changed[0].record.tree = ParagraphTree.from_dict(paragraphs)
    changed[1].record.tree = ParagraphTree.from_dict([{"text": "No:", "detail": [{"text": " never."}]}, {"text": ""}])
    changed[2].record.tree = ParagraphTree.from_dict([{"text": "It jumps: over the fox."}])
    found = evaluate(*apar.load(tuned), changed, checker=check_answer, options=OPTIONS).summary(PARALLEL)
    assert found["exact"] == pytest.approx(1 / 3), "the third has the right text, written with a branch too many"
    assert found["details"] == pytest.approx(1 / 4)
    assert found["fork_recall"] == pytest.approx(3 / 4)
    assert found["forked_wrongly"] == 1.0


def test_prompts_decoded_together_say_the_same(tuned: Path) -> None:
    model = apar.load(tuned)
    one = evaluate(*model, prompts() * 2, options=OPTIONS)
    together = evaluate(*model, prompts() * 2, options=EvalOptions(120, 3, page_size=8, at_once=4))
    texts = [[answer.text for answer in report.answers[PARALLEL]] for report in (one, together)]
    assert texts[0] == texts[1]
    assert one.summary(PARALLEL)["steps"] == together.summary(PARALLEL)["steps"]
    assert "exact" not in one.summary(PARALLEL)


def test_the_command(tuned: Path, plain: Path, tmp_path: Path, capsys) -> None:
    trees = tmp_path / "trees.jsonl"
    write_trees(trees, records() + records("heldout"))
    common = ["eval", str(trees), "--model", str(tuned), "--max-depth", "3", "--max-new-tokens", "100"]
    files = ["--plot", str(tmp_path / "eval.png"), "--out", str(tmp_path / "eval.json")]
    assert main([*common, "--base", str(plain), "--check", "always", "--split", "heldout", *files]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("3 prompts\n")
    assert re.search(r"answers exactly right +100.0% +100.0% +0.0%", shown)
    assert re.search(r"parallel against sequential: 1\.\d\dx fewer steps", shown)
    assert (tmp_path / "eval.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "eval.json").read_text())
    assert [answer["text"] for answer in written["answers"]["parallel"]] == [record.tree.text for record in records()]
    assert main([*common, "--limit", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["prompts"] == 1
    assert "exact" not in report["ways"]["parallel"]["all"], "only made-up answers are compared unless one asks for it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jsonl"], "No such file"),
        (["empty.jsonl"], "no prompt in empty.jsonl"),
        (["bad.jsonl"], r"bad.jsonl, line 2: expected turns, a tree, messages or a prompt"),
        (["good.jsonl", "--at-once", "0"], "at_once: expected at least 1, got 0"),
        (["good.jsonl", "--plot", "nowhere/a.png"], "nowhere/a.png: there is no such folder"),
        (["good.jsonl", "--model", "/nowhere"], "load: no model found at '/nowhere'"),
    ],
)
def test_errors_come_before_the_work(tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "good.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Why?"}\n{"text": "Why?"}\n')
    assert main(["eval", "--model", "/nowhere", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_prompt_sets(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Why?"}
    rows = [
        {"question_id": 1, "category": "generic", "turns": ["Why?", "And then?"]},
        {"prompt": "Why?"},
        {"prompt": "Why?", "response": "So.", "dataset": "chats"},
        {"messages": [user]},
        {"messages": [user, {"role": "assistant", "content": "So."}], "category": "talk"},
        {"instruction": "Why?", "output": "So."},
        records()[0].to_dict() | {"messages": [user], "kind": "list"},
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(read_prompts(tmp_path / "set.jsonl"))
    assert all(prompt.messages == [user] for prompt in found)
    assert [prompt.category for prompt in found] == ["generic", "set", "chats", "set", "talk", "set", "list"]
    assert [prompt.record is not None for prompt in found] == [False] * 6 + [True]


@pytest.mark.skipif(not (SHARED / "questions").is_dir(), reason=f"no questions in {SHARED}")
def test_questions_of_benchmarks() -> None:
    for name, categories in (("vicuna_bench", 9), ("mt_bench", 8)):
        found = list(read_prompts(SHARED / "questions" / f"{name}.jsonl"))
        assert len(found) == 80
        assert len({prompt.category for prompt in found}) == categories
