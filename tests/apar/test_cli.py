"""The command line as a stranger uses it: help, errors, JSON, plain text; silent bars where nobody watches."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from apar import random_model
from apar.cache import PAGE_SIZES
from apar.cli import main
from apar.commands import shared
from apar.events import Ended, Finished, Forked, Started, Token
from apar.live import LiveBranches
from apar.startup import is_command_line

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


@pytest.mark.parametrize("arguments", [["info"], ["data", "synth", "--count", "1"]])
def test_a_command_that_was_started_with_its_output_closed(arguments: list[str], monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it then
    assert main(arguments) == 0
    assert capfd.readouterr().err == ""


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
        (["generate", "--model", "/nowhere", "--top-p", "2", "hello"], "top_p: expected a number over 0 and up to 1"),
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
    with pytest.raises(SystemExit):
        main(["generate", "--model", saved, "--max-new-tokens", "0", "hello"])
    assert "--max-new-tokens: expected an integer of at least 1, got '0'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generate", "--model", saved, "--page-size", "12", "hello"])
    assert "--page-size: invalid choice: 12 (choose from 8, 16, 32, 64, 128)" in capsys.readouterr().err
    assert shared.PAGE_SIZES == PAGE_SIZES
    assert main(["generate", "--model", saved, "--raw", "--system", "x", "hello"]) == 1
    assert "--system: needs a model with a chat template" in capsys.readouterr().err


def apar(*arguments: str, **options: object) -> tuple[subprocess.CompletedProcess, set[str]]:
    """`python -m apar` in a process of its own, and the modules that it imported."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    command = [sys.executable, "-X", "importtime", "-m", "apar", *arguments]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, **options
    )
    imports = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    run.stderr = "".join(line + "\n" for line in run.stderr.splitlines() if not line.startswith("import time:"))
    return run, {line.rpartition("|")[2].strip() for line in imports}


COMMANDS = [
    [], ["generate"], ["demo"], ["replay"], ["data"], ["data", "build"], ["data", "stats"], ["data", "synth"],
    ["train"], ["eval"], ["info"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_comes_at_once(command: list[str]) -> None:
    run, imported = apar(*command, "--help")
    assert run.returncode == 0
    assert run.stdout.startswith(" ".join(["usage: apar", *command]))
    assert "-h, --help" in run.stdout
    assert "argparse" in imported
    assert not imported & {"torch", "transformers"}, "they take seconds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["generate", "--max-new-tokens", "few"], "--max-new-tokens: expected an integer of at least 1, got 'few'"),
        (["eval"], "the following arguments are required: FILE"),
        (["train"], "the following arguments are required: CONFIG.yaml"),
        (["replay", "--page-size", "3"], "--page-size: invalid choice: 3"),
    ],
)
def test_a_wrong_command_line_is_refused_at_once(arguments: list[str], message: str) -> None:
    run, imported = apar(*arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert not imported & {"torch", "transformers"}


def test_a_file_that_is_not_there_is_told_at_once() -> None:
    run, imported = apar("eval", "gone.jsonl")
    assert (run.returncode, run.stdout) == (1, "")
    assert "apar: gone.jsonl cannot be read: [Errno 2] No such file" in run.stderr
    assert not imported & {"torch", "transformers"}


def test_data_needs_no_torch(tmp_path: Path) -> None:
    chat, trees = str(tmp_path / "chat.jsonl"), str(tmp_path / "trees.jsonl")
    (tmp_path / "chat.jsonl").write_text('{"prompt": "Tips?", "response": "1. Sleep: go to bed early, every day."}\n')
    for arguments in (["synth", "--count", "2"], ["build", chat, "-o", trees], ["stats", trees]):
        run, imported = apar("data", *arguments)
        assert run.returncode == 0, run.stderr
        assert not imported & {"torch", "transformers"}


def test_the_command_line_alone_can_load_and_decode() -> None:
    """Not in the process of the tests, which has imported all there is."""
    run, imported = apar("generate", "--stats", "--max-new-tokens", "3", "Anna lives in Oslo. Where does Anna live?")
    assert run.returncode == 0, run.stderr
    assert "3 tokens in 3 steps" in run.stderr
    assert "transformers" in imported


@pytest.mark.parametrize(
    ("program", "given", "expected"),
    [
        ("/home/me/.venv/bin/apar", ["/home/me/.venv/bin/python", "/home/me/.venv/bin/apar"], True),
        ("-m", ["python", "-X", "importtime", "-m", "apar", "--help"], True),
        ("-m", ["python", "-m", "another", "-m", "apar"], False),
        ("-m", ["python", "-mapar"], False),  # in doubt all is imported
        ("-c", ["python", "-c", "import apar"], False),
        ("/home/me/apar/train.py", ["python", "/home/me/apar/train.py"], False),
        ("/home/me/src/apar", ["python", "/home/me/src/apar"], False),
    ],
)
def test_what_counts_as_the_command_line(monkeypatch, program: str, given: list[str], expected: bool) -> None:
    monkeypatch.setattr(sys, "argv", [program, "more"])
    monkeypatch.setattr(sys, "orig_argv", given)
    assert is_command_line() is expected


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "apar", "data", "synth", "--count", "3"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write_end)
    assert (run.returncode, run.stderr) == (141, "")


def test_an_interruption_is_one_line(monkeypatch, capsys) -> None:
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("apar.info.collect", interrupted)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "apar: interrupted\n"


def test_the_prompt_may_come_from_the_input(saved, capsys, monkeypatch) -> None:
    command = ["generate", "--model", saved, "--max-new-tokens", "8"]
    assert main([*command, "The dog\njumps"]) == 0
    expected = capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("The dog\njumps\n"))
    assert main(command) == 0
    assert capsys.readouterr() == expected


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        (io.StringIO("\n"), [], "PROMPT: prompt 1 is empty"),
        (io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8"), [], "PROMPT: expected utf-8 on the standard input"),
        (None, [], "PROMPT: expected one, or one on the standard input, which is closed"),
        (None, ["The dog", " "], "PROMPT: prompt 2 is empty"),
    ],
)
def test_prompts_that_are_none(monkeypatch, capsys, given, arguments: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "stdin", given)
    assert main(["generate", "--model", "/nowhere", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_file_without_trees_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "none.jsonl").write_text("")
    assert main(["replay", "--one-by-one", "--trees", str(tmp_path / "none.jsonl")]) == 1
    assert "--trees: expected at least one tree, got none in" in capsys.readouterr().err


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
    assert "\033[1;36m" in terminal.getvalue()


def test_live_branches_without_color_and_on_a_dumb_terminal(monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    LiveBranches(plain)(Started(0, 0, ()))
    assert "trunk" in plain.getvalue()
    assert not re.search(r"\033\[[0-9;]*m", plain.getvalue())
    monkeypatch.setenv("TERM", "dumb")
    dumb = Terminal()
    LiveBranches(dumb)(Started(0, 0, ()))
    assert dumb.getvalue() == ""


def test_live_branches_on_a_narrow_and_low_terminal(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "1")
    terminal = Terminal()
    live = LiveBranches(terminal)
    events = [Started(0, 0, ()), Forked(0, 0, (0,), ()), Token(0, 0, (), 5, "a\033[2J long text without an end")]
    for event in events:
        live._drawn_at = 0.0
        live(event)
    assert "\033[2J" not in terminal.getvalue(), "what a model writes moves no cursor"
    last = terminal.getvalue().rpartition("\033[?7l")[2]
    assert last.count("\n") == 1, "one line at least, whatever the height"
    # Finished lines go, too, when they are cleared.
    live(Finished(0, 1, (), None))
    live.clear()
    assert terminal.getvalue().endswith("\033[1A\033[J")
