"""An evaluation of a tiny model that has learned its answers by heart: what it must say is known."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import json
import re
import time
from pathlib import Path

import apar
import pytest
from apar.cli import main
from apar.commands.eval import _read, _Results
from apar.data import write_trees
from apar.data.synth.check import check_answer
from apar.eval import EvalPrompt, evaluate, read_prompts
from apar.eval.report import BASE, PARALLEL, SEQUENTIAL, EvalReport, table
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
        assert found["answers_right"] == found["details_right"] == found["forked_where_expected"] == 1.0
        assert found["complete"] == 1.0
        assert found["extra_forks"] == found["forked_where_not"] == 0
        assert found["fork_rate"] == pytest.approx(2 / 3)
        assert found["forks"] == pytest.approx((3 + 1) / 2)
    base = report.summary(BASE)
    assert base["answers_right"] == base["fork_rate"] == base["forked_where_expected"] == 0.0
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
    assert found["answers_right"] == pytest.approx(1 / 3), "the third has the right text, with a branch too many"
    assert found["details_right"] == pytest.approx(2 / 4)
    assert found["forked_where_expected"] == pytest.approx(3 / 4)
    assert found["forked_where_not"] == 1.0


def test_prompts_decoded_together_say_the_same(tuned: Path) -> None:
    model = apar.load(tuned)
    one = evaluate(*model, prompts() * 2, options=OPTIONS)
    together = evaluate(*model, prompts() * 2, options=EvalOptions(120, max_depth=3, page_size=8, at_once=4))
    texts = [[answer.text for answer in report.answers[PARALLEL]] for report in (one, together)]
    assert texts[0] == texts[1]
    assert one.summary(PARALLEL)["steps"] == together.summary(PARALLEL)["steps"]
    assert "answers_right" not in one.summary(PARALLEL)


def test_times_of_prompts_decoded_together_add_up_to_what_the_clock_says(tuned: Path) -> None:
    model = apar.load(tuned)
    started_at = time.perf_counter()
    report = evaluate(*model, prompts() * 2, options=EvalOptions(120, max_depth=3, page_size=8, at_once=6))
    passed = time.perf_counter() - started_at
    assert report.summary(PARALLEL)["seconds"] + report.summary(SEQUENTIAL)["seconds"] <= passed


def test_an_answer_that_does_not_end_is_cut_off(tuned: Path) -> None:
    model, tokenizer = apar.load(tuned)
    (prompt,) = [prompt for prompt in prompts() if prompt.category == "Tips?"]
    options = EvalOptions(max_depth=3, max_answer_tokens=10)
    report = evaluate(model, tokenizer, [prompt], options=options)
    whole = evaluate(model, tokenizer, [prompt], options=EvalOptions(max_depth=3))
    for way in (PARALLEL, SEQUENTIAL):
        ((answer,), (other,)) = report.answers[way], whole.answers[way]
        assert not answer.complete
        assert other.complete
        # Each of the branches there are writes the token that ends it.
        assert 10 <= answer.tokens < 10 + 4 < other.tokens


def test_prompts_longer_than_the_models_positions_are_left_out_and_counted(tuned: Path, plain: Path) -> None:
    long = EvalPrompt([{"role": "user", "content": "word " * 300}], "long")
    report = evaluate(*apar.load(tuned), [long, *prompts(), long], base=apar.load(plain), options=OPTIONS)
    assert [prompt.category for prompt in report.prompts] == [prompt.category for prompt in prompts()]
    assert (report.planned, report.left_out) == (3, 2)
    assert "2 left out, longer than the model's positions" in table(report)
    with pytest.raises(ValueError, match="expected at least one shorter than the 256 positions of the model, got 1"):
        evaluate(*apar.load(tuned), [long], options=OPTIONS)


def test_a_category_may_have_any_name(tuned: Path) -> None:
    named = [EvalPrompt(prompt.messages, name) for prompt, name in zip(prompts(), ("all", "b", "b"), strict=True)]
    report = evaluate(*apar.load(tuned), named, options=OPTIONS)
    found = report.to_dict()["ways"][PARALLEL]
    assert found["all"]["prompts"] == 3
    assert {name: summary["prompts"] for name, summary in found["by_category"].items()} == {"all": 1, "b": 2}


def test_a_chat_template_that_refuses_is_named(tuned: Path) -> None:
    model, tokenizer = apar.load(tuned)
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ValueError, match="the chat template refuses prompt 0: no such role"):
        evaluate(model, tokenizer, prompts(), options=OPTIONS)


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
    assert [answer["parallel"]["text"] for answer in written["answers"]] == [record.tree.text for record in records()]
    assert [answer["messages"] for answer in written["answers"]] == [record.messages for record in records()]
    assert written["options"]["base"] == str(plain)
    assert main([*common, "--limit", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prompts"], report["options"]["limit"]) == (1, 1)
    assert "answers_right" not in report["ways"]["parallel"]["all"], "only made-up answers are compared unasked"


def test_an_interruption_leaves_what_was_answered(tuned: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    calls = []

    def check_two(record, answer):
        calls.append(record)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return check_answer(record, answer)

    monkeypatch.setattr("apar.data.synth.check.check_answer", check_two)
    monkeypatch.setattr("apar.commands.eval.SAVED_EVERY_SECONDS", -1)
    write_trees(tmp_path / "trees.jsonl", records())
    command = ["eval", str(tmp_path / "trees.jsonl"), "--model", str(tuned), "--max-depth", "3", "--check", "always"]
    assert main([*command, "--out", str(tmp_path / "eval.json")]) == 130
    shown = capsys.readouterr()
    assert shown.out.startswith("2 prompts of 3\n")
    assert "parallel against sequential" in shown.out
    assert shown.err.endswith("apar: interrupted\n")
    assert len(json.loads((tmp_path / "eval.json").read_text())["answers"]) == 2


def test_a_terminal_that_went_away_does_not_cost_the_file(tmp_path: Path, monkeypatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    results = _Results(argparse.Namespace(out=str(tmp_path / "eval.json"), plot=None, json=False))
    results.update(EvalReport([], {PARALLEL: []}))
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        results.finish()
    assert json.loads((tmp_path / "eval.json").read_text())["prompts"] == 0


def test_only_made_up_answers_are_checked_unless_one_asks_for_it(tmp_path: Path) -> None:
    (chat,), (synth,) = records()[:1], records()[1:2]
    synth.source = "synth"
    write_trees(tmp_path / "trees.jsonl", [chat, synth])
    for check, expected in (("auto", [False, True]), ("always", [True, True]), ("never", [False, False])):
        options = argparse.Namespace(prompts=[str(tmp_path / "trees.jsonl")], split=None, limit=None, check=check)
        assert [prompt.record is not None for prompt in _read(options)] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jsonl"], "No such file"),
        (["."], "Is a directory"),
        (["empty.jsonl"], "FILE: expected at least one prompt, got none in empty.jsonl"),
        (["good.jsonl", "empty.jsonl"], "got none in empty.jsonl"),
        (["trees.jsonl", "--split", "heldout"], "at least one prompt of the split heldout, got none in trees.jsonl"),
        (["torn.jsonl.gz"], "torn.jsonl.gz cannot be read to its end"),
        (["silent.jsonl"], "silent.jsonl, line 1: the prompt is empty"),
        (["bad.jsonl"], r"bad.jsonl, line 2: expected turns, a tree, messages or a prompt"),
        (["good.jsonl", "--check", "always"], "--check always: expected files of trees"),
        (["good.jsonl", "--plot", "nowhere/a.png"], "--plot: nowhere/a.png: there is no such folder"),
        (["good.jsonl", "--out", "."], "--out: expected a file, but . is a folder"),
        (["good.jsonl", "--out", "/proc/eval.json"], "--out: nothing can be written to the folder of /proc/eval.json"),
        (["good.jsonl", "--model", "/nowhere"], "load: no model found at '/nowhere'"),
    ],
)
def test_errors_come_before_the_work(tmp_path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "good.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "silent.jsonl").write_text('{"turns": [" "]}\n')
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "Why?"}\n' * 9)[:-9])
    write_trees("trees.jsonl", records("train"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Why?"}\n{"text": "Why?"}\n')
    assert main(["eval", "--model", "/nowhere", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--limit", "--at-once", "--max-new-tokens", "--max-answer-tokens", "--page-size"])
def test_numbers_that_make_no_sense_are_refused_by_name(option: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "good.jsonl", option, "0"])
    assert f"argument {option}: " in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_at_once(tmp_path: Path, monkeypatch, capsys) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert main(["eval", "--model", "/nowhere", "good.jsonl", "--plot", str(tmp_path / "a.png")]) == 1
    assert "--plot: a picture needs the package matplotlib" in capsys.readouterr().err


def test_a_device_is_no_place_for_results_and_is_refused_at_once(capsys) -> None:
    assert main(["eval", "--model", "/nowhere", "good.jsonl", "--out", "/dev/null"]) == 1
    assert "--out: /dev/null is a device or a pipe" in capsys.readouterr().err


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
    (tmp_path / "array.json").write_text(json.dumps(rows, indent=1))
    assert [prompt.messages for prompt in read_prompts(tmp_path / "array.json")] == [[user]] * 7


def test_the_last_question_of_a_conversation_is_asked(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    rows = [
        {"messages": [user, answer, user]},
        {"prompt": [user, answer, user]},
        {"messages": [user, answer, user, answer]},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}, user]},
        {"conversation": [{"from": "human", "value": "Why?"}], "system": "Be kind."},
        {"messages": [user], "system": "Be kind."},
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [prompt.messages for prompt in read_prompts(tmp_path / "set.jsonl")]
    assert asked == [[user, answer, user]] * 4 + [[{"role": "system", "content": "Be kind."}, user]] * 2


def test_a_table_with_the_columns_of_several_forms(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "tree": None, "messages": None}
    (tmp_path / "set.jsonl").write_text(json.dumps(row) + "\n" + "[" * 100_000)
    prompts = read_prompts(tmp_path / "set.jsonl")
    assert next(prompts) == EvalPrompt([{"role": "user", "content": "Why?"}], "set")
    with pytest.raises(ValueError, match=r"set.jsonl, line 2: the JSON is nested too deeply"):
        next(prompts)


def test_half_a_character_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "bad \\ud83d half"}\n')
    with pytest.raises(ValueError, match=r"set.jsonl, line 2: the prompt holds half of a surrogate pair"):
        list(read_prompts(tmp_path / "set.jsonl"))


@pytest.mark.parametrize("options", [["--out", "SET"], ["--plot", "SET"], ["--out", "SET.a", "--plot", "SET.a"]])
def test_results_do_not_take_the_place_of_another_file(tmp_path: Path, options: list[str], capsys) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "Why?"}\n')
    options = [option.replace("SET", str(path)) for option in options]
    assert main(["eval", "--model", "/nowhere", str(path), *options]) == 1
    assert "is another file of this command, too" in capsys.readouterr().err
    assert path.read_text() == '{"prompt": "Why?"}\n'


@pytest.mark.skipif(not (SHARED / "questions").is_dir(), reason=f"no questions in {SHARED}")
def test_questions_of_benchmarks() -> None:
    for name, categories in (("vicuna_bench", 9), ("mt_bench", 8)):
        found = list(read_prompts(SHARED / "questions" / f"{name}.jsonl"))
        assert len(found) == 80
        assert len({prompt.category for prompt in found}) == categories
