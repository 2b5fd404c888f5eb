"""The commands that docs/training.md shows, in their order, with a tiny model in place of a real one."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from apar.cli import main

from tests.apar.tiny_tokenizers import byte_level_tokenizer
from tests.apar.train.runs import TINY_LLAMA

DOCUMENT = Path(__file__).parents[3] / "docs" / "training.md"
ANSWER = "1. Sleep: go to bed at the same time every day.\n2. Food: eat slowly and drink a lot of water."


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_from_a_chat_file_to_parallel_decoding(tmp_path: Path, monkeypatch, capsys) -> None:
    commands = [shlex.split(line) for line in blocks("bash")[0].splitlines()]
    assert len(commands) == 5
    assert all(command[0] == "apar" for command in commands)
    prompt = commands[3][-1]
    assert prompt == commands[4][-1]

    monkeypatch.chdir(tmp_path)
    chat = [{"prompt": prompt, "response": ANSWER}, {"prompt": "Does the dog jump?", "response": "Yes."}]
    Path("chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in chat))
    # The shown configuration, with a new model in place of one to be tuned and what goes with that.
    config = yaml.safe_load(blocks("yaml")[0])
    assert set(config) == {"model", "data", "output", "length", "epochs"}
    byte_level_tokenizer((), chat=True).save_pretrained("tokenizer")
    config["model"] = {"config": TINY_LLAMA | {"hidden_size": 64}}
    config |= {"tokenizer": "tokenizer", "length": 256, "epochs": 120, "learning_rate": 4e-3, "log_every": 60}
    Path("tune.yaml").write_text(yaml.safe_dump(config))

    texts = []
    for command in commands:
        assert main(command[1:]) == 0, command
        texts.append(capsys.readouterr())
    parallel, one_by_one = texts[3:]
    assert parallel.out == one_by_one.out
    assert parallel.out.strip() == ANSWER
    steps = [int(re.search(r"in (\d+) steps", text.err)[1]) for text in (parallel, one_by_one)]
    assert steps[0] < steps[1]


@pytest.mark.parametrize("name", ["tune.yaml", "lora.yaml", "new.yaml"])
def test_examples_are_named(name: str) -> None:
    assert name in DOCUMENT.read_text(encoding="utf-8")
    assert (DOCUMENT.parents[1] / "bench" / "train" / name).exists()
