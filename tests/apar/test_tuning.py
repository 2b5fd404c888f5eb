"""The README's way from a chat file to parallel decoding works as it stands, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import yaml
from apar.cli import main
from apar.train.config import load_config
from transformers import LlamaConfig, LlamaForCausalLM

from tests.apar.tiny_tokenizers import byte_level_tokenizer
from tests.apar.train.runs import TINY_LLAMA

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
TIPS = """\
1. Food: eat slowly and drink water.
2. Sleep: go to bed at the same time.
3. Room: keep it dark, and keep it cool."""


def test_five_commands_from_a_chat_file_to_parallel_decoding(tmp_path: Path, monkeypatch, capsys) -> None:
    section = re.search(r"## Tuning\n(.*?)\n## ", README, re.DOTALL)[1]
    commands = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].splitlines()
    assert [command.split()[1] for command in commands] == ["data", "data", "train", "eval", "generate"]
    config = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    Path("tune.yaml").write_text(config)
    assert load_config("tune.yaml").model == "Qwen/Qwen3-0.6B", "the README's configuration is read"

    # The same keys for a model that learns in seconds.
    tokenizer = byte_level_tokenizer((), chat=True)
    LlamaForCausalLM(LlamaConfig(**TINY_LLAMA | {"hidden_size": 64}, vocab_size=len(tokenizer))).save_pretrained(
        "plain"
    )
    tokenizer.save_pretrained("plain")
    tiny = {"model": "plain", "length": 256, "rows": 2, "accumulate": 1, "learning_rate": 4e-3, "precision": "float32"}
    Path("tune.yaml").write_text(yaml.safe_dump({**yaml.safe_load(config), **tiny, "epochs": 30, "threads": 1}))
    chats = [{"prompt": shlex.split(commands[-1])[-1], "response": TIPS}] * 8
    for number in range(35):
        question, answer = {"role": "user", "content": f"Is {number} a cat?"}, {"role": "assistant", "content": "No."}
        chats.append({"messages": [question, answer]})
    Path("chat.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))

    shown = []
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
        shown.append(capsys.readouterr())
    assert "43 trees written, 8 of them fork (19%), 2 held out" in shown[0].out
    assert Path("trees.png").exists()
    assert re.search(r"answers that end +100.0% +100.0%", shown[3].out), shown[3].out
    for line in TIPS.splitlines():
        title, _, detail = line.partition(": ")
        assert re.search(rf"^{re.escape(title)}:$", shown[4].out, re.MULTILINE)
        assert re.search(rf"^├─ \d +{re.escape(detail)}$", shown[4].out, re.MULTILINE)
    tokens, steps = map(int, re.match(r"(\d+) tokens in (\d+) steps", shown[4].err).groups())
    assert tokens > 1.3 * steps
