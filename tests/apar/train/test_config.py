"""Configurations: what a file may say, and what a person who mistyped is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from apar.cli import main
from apar.train import load_config, train
from apar.train.config import LoraConfig, TrainConfig, from_dict
from apar.train.log import read_log

from tests.apar.train.runs import TINY_LLAMA, tiny_run

LEAST = {"model": "some/model", "data": "trees.jsonl", "output": "out", "steps": 10}
EXAMPLES = sorted((Path(__file__).parents[3] / "bench" / "train").rglob("*.yaml"))


def written(folder: Path, values: object) -> Path:
    (folder / "config.yaml").write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return folder / "config.yaml"


def test_a_file_becomes_a_config(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    values = LEAST | {"tokenizer": "local", "learning_rate": "2e-5", "epochs": 1.5, "steps": None, "lora": {"rank": 4}}
    config = load_config(written(tmp_path, values))
    assert config.data == [str(tmp_path / "trees.jsonl")]
    assert config.output == str(tmp_path / "out")
    assert config.model == "some/model"  # no such folder: an id of the hub
    assert config.tokenizer == str(tmp_path / "local")
    assert config.learning_rate == 2e-5
    assert (config.steps, config.epochs) == (None, 1.5)
    assert config.lora == LoraConfig(rank=4)


def test_changes_stand_in_place_of_what_the_file_says(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    path = written(tmp_path, LEAST | {"lora": {"rank": 4}, "min_learning_rate": 1e-6})
    changes = ["rows=3", "learning_rate=1e-4", "steps=null", "epochs=2", "output=local", "data=[a, b]"]
    config = load_config(path, changes)
    assert (config.rows, config.learning_rate, config.steps, config.epochs) == (3, 1e-4, None, 2.0)
    assert (config.output, config.data) == ("local", ["a", "b"])
    assert (config.lora, config.min_learning_rate) == (LoraConfig(rank=4), 1e-6)
    for change, message in (
        ("rows", "rows: expected KEY=VALUE"),
        ("rwos=3", "rwos: unknown key, did you mean rows"),
        ("rows=many", "rows: expected"),
        ("rows={", "rows={: the value is not YAML"),
    ):
        with pytest.raises(ValueError, match=message):
            load_config(path, [change])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_configs(path: Path) -> None:
    assert isinstance(load_config(path), TrainConfig)


def test_there_are_examples() -> None:
    assert {"train/tune.yaml", "default/first.yaml"} <= {"/".join(path.parts[-2:]) for path in EXAMPLES}


def test_numbers_that_yaml_reads_as_texts(tmp_path: Path) -> None:
    model = TINY_LLAMA | {"rms_norm_eps": "1e-6", "hidden_size": "256", "rope_parameters": {"rope_theta": "1e4"}}
    values = LEAST | {"model": {"config": model}, "tokenizer": "t", "schedule_options": {"min_lr": "1e-5", "a": "b"}}
    config = load_config(written(tmp_path, values))
    found = config.model["config"]
    assert (found["rms_norm_eps"], found["rope_parameters"]["rope_theta"]) == (1e-6, 1e4)
    assert type(found["hidden_size"]) is int
    assert config.schedule_options == {"min_lr": 1e-5, "a": "b"}


def test_a_template_is_not_the_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "vicuna").mkdir()
    assert load_config(written(tmp_path, LEAST | {"chat_template": "vicuna"})).chat_template == "vicuna"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 1}, r"lerning_rate: unknown key, did you mean learning_rate\?"),
        ({"lora": {"rnak": 1}}, r"lora.rnak: unknown key, did you mean rank\?"),
        ({"qqq": 1}, "qqq: unknown key, expected one of .*accumulate, activation_checkpointing"),
        ({"model": None}, "model: expected a text or keys and values, got None"),
        ({"steps": "many"}, "steps: expected an integer, got 'many'"),
        ({"steps": 2.5}, "steps: expected an integer, got 2.5"),
        ({"learning_rate": True}, "learning_rate: expected a number, got True"),
        ({"learning_rate": ".nan"}, "learning_rate: expected a number"),
        ({"compile": "yes please"}, "compile: expected true or false"),
        ({"data": [1]}, r"data: expected a list of texts, got \[1\]"),
        ({"data": []}, "data: expected at least one file"),
        ({"weighting": "row"}, "weighting: expected one of token, branch, got 'row'"),
        ({"too_long": "cut"}, "too_long: expected one of split, drop, got 'cut'"),
        ({"precision": "float16"}, "precision: expected one of float32, bfloat16"),
        ({"length": 0}, "length: expected 1 or more, got 0"),
        ({"save_every": -1}, "save_every: expected 0 or more, got -1"),
        ({"steps": None}, "steps, epochs: expected one of them, got steps=None, epochs=None"),
        ({"epochs": 1}, "steps, epochs: expected one of them, got steps=10, epochs=1.0"),
        ({"steps": 0}, "steps: expected more than 0, got 0"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"seed": 2**32}, "seed: expected less than 4294967296"),
        ({"learning_rate": "-1e-3"}, r"learning_rate: expected 0 or more, got -0\.001"),
        ({"warmup_steps": -5}, "warmup_steps: expected 0 or more, got -5"),
        ({"beta2": 1}, r"beta2: expected less than 1, got 1\.0"),
        (
            {"min_learning_rate": 1e-6, "schedule": "linear"},
            "min_learning_rate: .* schedule cosine; got 1e-06",
        ),
        ({"min_learning_rate": 1}, r"min_learning_rate: expected at most learning_rate, .* got 1\.0"),
        ({"lora": {"rank": 0}}, r"lora\.rank: expected 1 or more, got 0"),
        ({"lora": {"dropout": 1}}, r"lora\.dropout: expected 0 or more and less than 1"),
        ({"lora": True}, "lora: expected keys and values, got True"),
        ({"fork_token": "<f>"}, "fork_token, child_token: expected both or neither"),
        ({"model": {"config": TINY_LLAMA}}, "tokenizer: expected a folder, since a new model brings none"),
        ({"model": {"konfig": {}}}, r"model.konfig: unknown key, did you mean config\?"),
        ({"model": {"config": {"hidden_size": 3}}}, "model.config.model_type: missing"),
        ({"optimizer": "muon", "lora": {"rank": 2}}, "optimizer: muon is for whole matrices, .* with lora"),
    ],
)
def test_a_bad_file_is_told_by_its_key(tmp_path: Path, changes: dict, message: str) -> None:
    path = written(tmp_path, LEAST | changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data, output: missing, expected them to be given"):
        load_config(written(tmp_path, {"model": "m", "steps": 1}))
    with pytest.raises(ValueError, match="output: missing, expected it to be given"):
        from_dict(TrainConfig, {"model": "m", "data": "d", "steps": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nlength: 2\nsteps: 1", r"not a YAML file \(steps: is there twice"),
        ("lora: {rank: 1, rank: 2}", "rank: is there twice"),
        ("- model: m", "config: expected keys and values, got"),
        ("", "config: expected keys and values, got None"),
    ],
)
def test_mappings_have_each_key_once(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize("text", ["a: [", "just text", "\udcff"])
def test_files_that_are_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(path)
    with pytest.raises(OSError, match="nowhere"):
        load_config(tmp_path / "nowhere.yaml")


def test_the_extra_is_named_where_it_is_missing(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["train", "config.yaml"]) == 1
    assert 'accelerate and yaml not found; expected the extra: pip install "apar[train]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"fsdpp": "full_shard"}}, r"trainer.fsdpp: unknown key, did you mean fsdp\?"),
        ({"trainer": {"learning_rate": 1}}, "trainer.learning_rate: is set by the keys of the config itself"),
        ({"trainer": {"num_train_epochs": 1}}, r"trainer\.num_train_epochs: cannot be followed here"),
        ({"trainer": {"adam_epsilon": "tiny"}}, r"trainer\.adam_epsilon: expected a number, got 'tiny'"),
        ({"trainer": {"ignore_data_skip": True}}, r"trainer\.ignore_data_skip: cannot be followed here"),
        ({"trainer": {"fp16": True}}, r"trainer\.fp16: cannot be followed here"),
        ({"trainer": {"log_level": "verbose"}}, r"trainer\.log_level: expected one of .*info.*, got 'verbose'"),
        ({"schedule": "warmup_stable_decay"}, "schedule, schedule_options: .*num_decay_steps"),
        ({"schedule_options": {"cycles": 2}}, "schedule, schedule_options: .*cycles"),
        ({"schedule": "constant", "schedule_options": {"a": 2}}, "schedule, schedule_options: constant takes none"),
        ({"model": {"config": TINY_LLAMA | {"hidden_act": 3}}}, "model.config: no model can be made of it"),
        ({"model": {"config": TINY_LLAMA | {"hidden_size": 33}}}, "model.config: no model can be made of it"),
        ({"model": {"config": TINY_LLAMA | {"dtype": "foo"}}}, "model.config: no model can be made of it"),
        ({"lora": {"rank": 2}, "trainer": {"fsdp": "full_shard"}}, "lora: cannot be merged from shards"),
        ({"optimizer": "muon", "trainer": {"fsdp": "full_shard"}}, "optimizer: muon needs whole matrices"),
        (
            {"model": {"config": TINY_LLAMA | {"num_hidden_layer": 1}}},
            r"model\.config\.num_hidden_layer: unknown key, did you mean num_hidden_layers\?",
        ),
        ({"model": {"config": {"model_type": "falcon", "hidden_size": 32}}}, "falcon: .* computes attention by itself"),
        ({"schedule": "cosin"}, "config: transformers.TrainingArguments does not take it"),
        ({"optimizer": "adam?"}, "config: transformers.TrainingArguments does not take it"),
        ({"length": 257}, "length: 257 tokens, expected at most 256, the positions of the model"),
        ({"model": {"config": TINY_LLAMA | {"vocab_size": 30}}}, "model.config.vocab_size: 30, expected at least"),
        ({"model": {"config": TINY_LLAMA | {"num_attention_heads": 0}}}, "model.config: no model can be made of it"),
        ({"model": {"config": {"model_type": "lama"}}}, "model.config: no model can be made of it"),
        ({"model": "/nowhere/model"}, "model: no model found at '/nowhere/model'"),
        ({"tokenizer": "/nowhere/tokenizer"}, "tokenizer: none found at '/nowhere/tokenizer'"),
        ({"chat_template": "/nowhere"}, "chat_template: expected one of vicuna or a file, got '/nowhere'"),
    ],
)
def test_what_only_a_run_can_know_is_an_error_before_anything_is_written(
    tmp_path: Path, changes: dict, message: str
) -> None:
    config = tiny_run(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not Path(config.output).exists()


def test_a_schedule_gets_its_options(tmp_path: Path) -> None:
    options = {"num_decay_steps": 2, "min_lr_ratio": 0.5}
    changes = {"schedule": "warmup_stable_decay", "schedule_options": options, "warmup_steps": 0, "steps": 4}
    output = train(tiny_run(tmp_path, **changes))
    rates = [line["learning_rate"] for line in read_log(output / "log.jsonl") if "loss" in line]
    assert rates[:2] == [1e-3] * 2
    assert 5e-4 <= rates[-1] < 1e-3
