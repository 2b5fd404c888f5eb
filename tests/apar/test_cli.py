"""The command line as a stranger uses it: help, errors, JSON, plain text; silent bars where nobody watches."""

from __future__ import annotations

import functools
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from apar import random_model
from apar.cli import main
from apar.events import Ended, Forked, Started, Token
from apar.live import LiveBranches

from tests.apar.test_generate import text_model
from tests.apar.tiny_tokenizers import byte_level_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """A model folder."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_level_tokenizer(chat=True)
    model = text_model(tokenizer)
    model.lm_head.bias = None  # is no part of a Llama's file
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_generate_prints_the_text_and_nothing_else(saved, capsys) -> None:
    assert main(["generate", "--model", saved, "--raw", "--max-new-tokens", "8", "The dog"]) == 0
    plain = capsys.readouterr()
    assert plain.err == ""
    assert main(["generate", "--model", saved, "--raw", "--max-new-tokens", "8", "--json", "The dog"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert plain.out == answer["text"] + "\n"
    assert answer["branches"][0]["id"] == "trunk"
    assert answer["stats"]["tokens"] <= 8
    options = ["--max-new-tokens", "8", "--no-fork", "--tree", "--stats", "--system", "Be brief.", "The dog", "2."]
    assert main(["generate", "--model", saved, *options]) == 0
    both = capsys.readouterr()
    assert "── The dog" in both.out
    assert both.err.count(" steps (") == 2


def test_replay_prints_what_was_saved(saved, capsys) -> None:
    trees = str(ROOT / "bench" / "trees" / "vicuna80.jsonl")
    options = ["replay", "--model", saved, "--trees", trees, "--limit", "2", "--max-live-branches", "8"]
    with pytest.raises(SystemExit):
        main([*options, "--rule", "none"])
    capsys.readouterr()
    assert main(options) == 1
    assert "longest path has" in capsys.readouterr().err, "these answers are longer than the tiny model's positions"


def test_replay_of_the_built_in_tree(monkeypatch, capsys) -> None:
    whole = random_model.random_llama
    small = functools.partial(whole, hidden_size=64, layers=1, heads=2)
    monkeypatch.setattr(random_model, "random_llama", small)
    assert main(["replay"]) == 0
    shown = capsys.readouterr().out
    assert "x fewer steps" in shown
    assert "peak pages" in shown
    assert main(["replay", "--json", "--no-compare"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sequential"] is None
    assert report["tree"]["steps"] * 2 < report["tree"]["tokens"]


def test_info(capsys) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["torch"] == torch.__version__
    assert main(["info"]) == 0
    assert torch.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--model", "/nowhere", "hello"], "apar: load: no model found at '/nowhere'"),
        (["replay", "--trees", "/nowhere.jsonl"], "No such file"),
        (["replay", "--trees", "/"], "Is a directory"),
    ],
)
def test_errors_are_one_line(capsys, arguments: list[str], message: str) -> None:
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err


def test_bad_options_name_the_argument(saved, capsys) -> None:
    assert main(["generate", "--model", saved, "--max-new-tokens", "0", "hello"]) == 1
    assert "max_new_tokens: expected at least 1, got 0" in capsys.readouterr().err
    assert main(["generate", "--model", saved, "--raw", "--system", "x", "hello"]) == 1
    assert "--system: needs a model with a chat template" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["generate"], ["replay"], ["info"]])
def test_help(command: list[str]) -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'python']; import runpy; sys.argv = ['apar', *%r]; "
        "runpy.run_module('apar', run_name='__main__')"
    ) % [*command, "--help"]
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: apar")
    assert "-h, --help" in run.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_branches_show_in_a_terminal_alone() -> None:
    events = [
        Started(0, 0, ()),
        Token(0, 0, (), 5, "Sleep:"),
        Forked(0, 1, (0,), ()),
        Token(0, 1, (0,), 6, "go to bed"),
        Ended(0, 2, (0,), "stop"),
    ]
    terminal, pipe = Terminal(), io.StringIO()
    for out in (terminal, pipe):
        live = LiveBranches(out)
        for event in events:
            live._drawn_at = 0.0
            live(event)
        live.clear()
    assert pipe.getvalue() == ""
    assert "trunk" in terminal.getvalue()
    assert "go to bed" in terminal.getvalue()
