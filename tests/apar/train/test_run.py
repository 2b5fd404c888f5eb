"""Whole runs: what comes out decodes what it learned, and an interrupted run goes on as if it was not."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import apar
import pytest
import torch
import yaml
from apar.cli import main
from apar.data import write_trees
from apar.train import train
from apar.train.log import RunLog, draw_losses, read_log
from apar.train.saving import checkpoints, move_files, write_text_whole
from apar.train.trainer import TreeTrainer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from tests.apar.train.runs import ANSWERS, TINY_LLAMA, TINY_MIXTRAL, records, tiny_run


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(folder / "log.jsonl") if "loss" in line}


@pytest.mark.parametrize("tied", [True, False])
def test_a_trained_model_decodes_its_trees(tmp_path: Path, tied: bool) -> None:
    new = {"config": TINY_LLAMA | {"hidden_size": 64, "tie_word_embeddings": tied}}
    config = tiny_run(tmp_path, model=new, steps=100, learning_rate=4e-3, evaluate_every=20, log_every=20)
    folder = train(config)
    model, tokenizer = apar.load(folder)
    assert model.dtype == torch.float32
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    prompts = [record.messages for record in records()]
    outputs = apar.generate(model, tokenizer, prompts, max_depth=3, max_new_tokens=120)
    for output, answer in zip(outputs, ANSWERS.values(), strict=True):
        assert output.tree.to_dict() == answer
        assert {branch.finish_reason for branch in output.branches} == {"stop"}
    assert model.generation_config.fork_max_depth == 3
    assert model.generation_config.fork_newlines == "exact"
    assert model.generation_config.fork_token_id == tokenizer.convert_tokens_to_ids("[Fork]")

    # The held-out trees are those that were learned.
    heldout = [line["heldout"] for line in read_log(folder / "log.jsonl") if "heldout" in line]
    assert len(heldout) == 5
    assert heldout[0]["token_accuracy"] < 0.9
    last = heldout[-1]
    assert last["fork_precision"] == last["fork_recall"] == last["token_accuracy"] == 1.0
    assert last["trunk_loss"] < heldout[0]["trunk_loss"] / 5
    trunk, detail = last["trunk_loss"], last["detail_loss"]
    assert min(trunk, detail) < last["loss"] < max(trunk, detail)
    assert (folder / "loss.png").stat().st_size > 1000
    assert not checkpoints(folder)
    summary = json.loads((folder / "training.json").read_text())
    assert summary["data"]["train"]["records"] == 3
    assert summary["data"]["train"]["forks"] == 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"config": TINY_MIXTRAL}},
        {"accumulate": 2, "lora": {"rank": 2, "dropout": 0.3}, "precision": "bfloat16"},
    ],
    ids=["whole", "experts", "lora"],
)
def test_an_interrupted_run_goes_on_as_if_it_was_not(tmp_path: Path, monkeypatch, changes: dict) -> None:
    options = dict(steps=8, save_every=3, log_every=2, rows=1, evaluate_every=4, weight_decay=0.1, **changes)
    whole = train(tiny_run(tmp_path, output=str(tmp_path / "whole"), **options))
    config = tiny_run(tmp_path, output=str(tmp_path / "parts"), **options)
    plain_step = TreeTrainer.training_step

    def interrupted_step(self, *args, **kwargs):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return plain_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TreeTrainer, "training_step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    parts = Path(config.output)
    assert [folder.name for folder in checkpoints(parts)] == ["checkpoint-3", "checkpoint-6"]
    assert not (parts / "model.safetensors").exists()
    with pytest.raises(ValueError, match="holds a run already; --resume goes on with it"):
        train(config)
    torch.manual_seed(99)  # what else the process did must not matter
    killed_while_saving = parts / ".checkpoint-8.unfinished" / "checkpoint-8"
    killed_while_saving.mkdir(parents=True)
    (killed_while_saving / "left over").touch()
    train(config, resume=True)
    assert "left over" not in {path.name for path in parts.rglob("*")}
    expected, found = read_log(whole / "log.jsonl"), read_log(parts / "log.jsonl")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(expected, found, strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            assert line.get(name, 0.0) == pytest.approx(other.get(name, 0.0), abs=1e-6)
        for name, value in line.get("heldout", {}).items():
            assert other["heldout"][name] == pytest.approx(value, abs=1e-6)
    models = [apar.load(folder)[0].state_dict() for folder in (whole, parts)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    """Rows of very different numbers of targets: a mean of means would differ."""
    whole = train(tiny_run(tmp_path, output=str(tmp_path / "whole"), rows=2, length=70, weighting="branch"))
    parts = train(
        tiny_run(tmp_path, output=str(tmp_path / "parts"), rows=1, accumulate=2, length=70, weighting="branch")
    )
    for step, loss in losses(whole).items():
        assert losses(parts)[step] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(
    "changes", [{"activation_checkpointing": True}, {"attention": "apar_tiles"}, {"share_prompts": False}], ids=str
)
def test_what_saves_time_or_memory_changes_no_curve(tmp_path: Path, changes: dict) -> None:
    plain = train(tiny_run(tmp_path, output=str(tmp_path / "plain")))
    other = train(tiny_run(tmp_path, output=str(tmp_path / "other"), **changes))
    assert losses(other) == pytest.approx(losses(plain), abs=1e-5)


def test_the_schedule_ends_where_it_should(tmp_path: Path) -> None:
    folder = train(tiny_run(tmp_path, steps=6, min_learning_rate=4e-4, warmup_steps=1))
    rates = [line["learning_rate"] for line in read_log(folder / "log.jsonl") if "learning_rate" in line]
    assert max(rates) == pytest.approx(1e-3)
    assert 4e-4 <= rates[-1] < 5e-4


def test_details_may_weigh_less(tmp_path: Path) -> None:
    """The first step's loss is that of the same weights; with details of no weight it is the trunk's."""
    first = {
        weight: losses(train(tiny_run(tmp_path, output=str(tmp_path / str(weight)), steps=1, detail_weight=weight)))[1]
        for weight in (0.0, 0.5, 1.0)
    }
    assert len({round(loss, 5) for loss in first.values()}) == 3
    assert min(first[0.0], first[1.0]) < first[0.5] < max(first[0.0], first[1.0])


def test_held_out_files_are_read_up_to_their_limit(tmp_path: Path) -> None:
    write_trees(tmp_path / "more.jsonl", records() * 2)
    folder = train(tiny_run(tmp_path, heldout=str(tmp_path / "more.jsonl"), heldout_limit=5))
    assert json.loads((folder / "training.json").read_text())["data"]["heldout"]["trees"] == 5


def test_several_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Two processes of one row each against one of two rows; their rows have different numbers of targets.

    See two_processes.py: two checkpoints fail in one of the processes, and the run is resumed from the fourth step.
    """
    options = {"length": 70, "steps": 6, "evaluate_every": 2, "keep_checkpoints": 10, "threads": 1}
    one = tiny_run(tmp_path, output=str(tmp_path / "one"), rows=2, **options)
    two = dataclasses.replace(one, output=str(tmp_path / "two"), rows=1, save_every=1)
    train(one)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(dataclasses.asdict(two)))
    root = Path(__file__).parents[3]
    script = Path(__file__).with_name("two_processes.py")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(
        [sys.executable, *command, str(tmp_path / "two.yaml")],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'python'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    output = Path(two.output)
    assert [folder.name for folder in checkpoints(output)] == [f"checkpoint-{step}" for step in (1, 4, 5, 6)]
    assert [line["step"] for line in read_log(output / "log.jsonl") if "save_error" in line] == [2, 3]
    assert_same_curve(Path(one.output), output)

    # One process goes on where two were.
    for folder in checkpoints(output)[2:]:
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"is of another run: rows of a step .* was 2, is 1"):
        train(two, resume=True)
    train(dataclasses.replace(two, rows=2), resume=True)
    assert_same_curve(Path(one.output), output)


def assert_same_curve(one: Path, other: Path) -> None:
    expected, found = (
        [line for line in read_log(folder / "log.jsonl") if "save_error" not in line] for folder in (one, other)
    )
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, same in zip(expected, found, strict=True):
        for name in ("loss", "grad_norm"):
            assert same.get(name, 0.0) == pytest.approx(line.get(name, 0.0), abs=1e-5)
        for name, value in line.get("heldout", {}).items():
            assert same["heldout"][name] == pytest.approx(value, abs=1e-5)


def test_only_the_run_of_a_checkpoint_goes_on_from_it(tmp_path: Path) -> None:
    options = {"steps": 2, "save_every": 1, "rows": 2}
    config = tiny_run(tmp_path, **options)
    output = train(config)
    log = (output / "log.jsonl").read_text()
    write_trees(tmp_path / "other.jsonl", records()[:2])
    for changes, message in (
        ({"seed": 1}, "seed was 0, is 1"),
        ({"learning_rate": 0.1, "beta2": 0.9}, r"learning_rate was 0\.001, is 0\.1; beta2 was 0\.999, is 0\.9"),
        ({"length": 90}, "length was 96, is 90"),
        ({"model": {"config": TINY_LLAMA | {"rms_norm_eps": 1e-3}}}, r"model was \{.*, is \{.*'rms_norm_eps': 0.001"),
        ({"fork_token": "<f>", "child_token": "<c>"}, r"control tokens was \['\[Fork\]', .*, is \['<f>'"),
        ({"trainer": {"adam_epsilon": 1e-3}}, r"trainer was \{\}, is \{'adam_epsilon': 0.001\}"),
        ({"rows": 1}, "rows of a step .* was 2, is 1"),
        ({"data": str(tmp_path / "other.jsonl")}, "tokens of data was .*, is "),
        ({"steps": 1}, "has 2 steps behind it, expected at most the 1 of this run"),
    ):
        with pytest.raises(ValueError, match=f"resume: .*{message}"):
            train(tiny_run(tmp_path, **options | changes), resume=True)
    assert (output / "log.jsonl").read_text() == log
    # What may change: how often there is a line, how rows come together to a step, for how long.
    (tmp_path / "trees.jsonl").rename(tmp_path / "moved.jsonl")
    moved = dataclasses.replace(config, data=[str(tmp_path / "moved.jsonl")])
    other = {"trainer": {"dataloader_num_workers": 0, "logging_first_step": True}}
    train(dataclasses.replace(moved, rows=1, accumulate=2, steps=4, log_every=2, **other), resume=True)
    assert sorted(losses(output)) == [1, 2, 3, 4]
    (checkpoints(output)[-1] / "run.json").unlink()
    with pytest.raises(ValueError, match=r"resume: .* does not say which run made it"):
        train(moved, resume=True)


def test_low_rank_additions_go_on_with_their_base(tmp_path: Path) -> None:
    """Checkpoints hold the additions alone: on another base they would be another model."""
    bases = [train(tiny_run(tmp_path, output=str(tmp_path / f"base{seed}"), steps=1, seed=seed)) for seed in (0, 1)]
    options = {"tokenizer": None, "lora": {"rank": 2}, "steps": 2, "save_every": 1}
    train(tiny_run(tmp_path, model=str(bases[0]), **options))
    with pytest.raises(ValueError, match=r"resume: .* is of another run: model was weights \w+, is weights \w+$"):
        train(tiny_run(tmp_path, model=str(bases[1]), **options), resume=True)
    moved = shutil.move(bases[0], tmp_path / "moved")
    train(tiny_run(tmp_path, model=str(moved), **options | {"steps": 3}), resume=True)


def test_a_checkpoint_that_lacks_a_weight_is_none(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, steps=1, save_every=1)
    [checkpoint] = checkpoints(train(config))
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.other.weight"] = weights.pop("model.norm.weight")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    message = r"resume: .* missing model\.norm\.weight, unexpected model\.other\.weight"
    with pytest.raises(ValueError, match=message):
        train(config, resume=True)


def test_without_checkpoints_to_keep_there_is_one_at_a_time(tmp_path: Path, monkeypatch) -> None:
    counts = []
    plain_save = TreeTrainer._save_checkpoint

    def counted_save(self, *args):
        plain_save(self, *args)
        counts.append(len(checkpoints(Path(self.args.output_dir))))

    monkeypatch.setattr(TreeTrainer, "_save_checkpoint", counted_save)
    output = train(tiny_run(tmp_path, steps=3, save_every=1, keep_checkpoints=0))
    assert counts == [1, 1, 1]
    assert not checkpoints(output)


def test_the_command_line(tmp_path: Path, capsys) -> None:
    config = tiny_run(tmp_path)
    values = {
        "model": {"config": TINY_LLAMA},
        "tokenizer": "tokenizer",
        "data": ["trees.jsonl"],
        "output": "here",
        "length": config.length,
        "epochs": 2,
        "learning_rate": "1e-3",
        "fork_token": "<fork>",
        "child_token": "<child>",
        "trainer": {"adam_epsilon": "1e-8"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(tmp_path / "here")
    assert "3 trees, 4 forks" in captured.err
    model, tokenizer = apar.load(tmp_path / "here")
    assert model.dtype == torch.bfloat16
    assert tokenizer.convert_ids_to_tokens(apar.Grammar.for_model(model, tokenizer).fork_id) == "<fork>"
    with safe_open(tmp_path / "here" / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in set(weights.keys())  # tied: one tensor
    assert main(["train", str(tmp_path / "config.yaml")]) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "config.yaml"), "--overwrite"]) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_lora_is_merged_into_the_model_that_comes_out(tmp_path: Path, tied: bool) -> None:
    new = {"config": TINY_LLAMA | {"tie_word_embeddings": tied}}
    base = train(tiny_run(tmp_path, model=new, output=str(tmp_path / "base"), steps=1))
    changes = {"model": str(base), "tokenizer": None, "output": str(tmp_path / "tuned")}
    tuned = train(tiny_run(tmp_path, **changes, lora={"rank": 4}, learning_rate=0.05))
    before, after = apar.load(base)[0].state_dict(), apar.load(tuned)[0].state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("norm" in name for name in changed)
    tokenizer = apar.load(tuned)[1]
    control_ids = tokenizer.convert_tokens_to_ids(["[Fork]", "[Child]"])
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = (before[table] != after[table]).any(1)
        assert rows.nonzero().flatten().tolist() == sorted(control_ids), table


# What goes wrong


def test_a_loss_that_is_no_number_stops_the_run_and_saves_the_step(tmp_path: Path, monkeypatch) -> None:
    config = tiny_run(tmp_path, steps=6, save_every=2, rows=1, accumulate=2)
    plain_step = TreeTrainer.training_step
    calls = []

    def poisoned_step(self, model, *args, **kwargs):
        calls.append(self.state.global_step)
        if calls.count(3) == 2:
            with torch.no_grad():
                next(model.parameters())[5] = torch.nan
        return plain_step(self, model, *args, **kwargs)

    monkeypatch.setattr(TreeTrainer, "training_step", poisoned_step)
    message = r"step 3: the loss is nan, expected a number; the step's data is in .*; the last checkpoint is .*-2\."
    with pytest.raises(FloatingPointError, match=message):
        train(config)
    output = Path(config.output)
    batches = torch.load(output / "not-a-number-step-3" / "batches.pt")
    assert [batch["ends"].shape for batch in batches] == [(1, 96)] * 2
    rows = json.loads((output / "not-a-number-step-3" / "rows.json").read_text())
    assert len(rows) == 2
    assert any("Two tips." in row for row in rows)
    assert checkpoints(output)[-1].name == "checkpoint-2"


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path: Path, monkeypatch) -> None:
    config = tiny_run(tmp_path, steps=6, save_every=1)
    plain_step = TreeTrainer.training_step

    def poisoned_step(self, model, *args, **kwargs):
        loss = plain_step(self, model, *args, **kwargs)
        if self.state.global_step == 2:
            next(model.parameters()).grad[7, 3] = torch.inf
        return loss

    def no_room(self, batches, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TreeTrainer, "training_step", poisoned_step)
    monkeypatch.setattr(TreeTrainer, "_save_batches", no_room)
    with pytest.raises(FloatingPointError, match=r"step 2: the norm of the gradient is (nan|inf).*No space left"):
        train(config)
    assert checkpoints(Path(config.output))[-1].name == "checkpoint-2"


def full_disk(monkeypatch, on_write: int) -> None:
    """From its ``on_write``-th call on, saving tensors fails in the middle of a file as on a full disk."""
    calls = [0]
    plain_save = torch.save

    def save(value, path, *args, **kwargs):
        calls[0] += 1
        if calls[0] < on_write:
            return plain_save(value, path, *args, **kwargs)
        Path(path).write_bytes(b"half a file")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", save)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    config = tiny_run(tmp_path, steps=6, save_every=1, keep_checkpoints=1)
    with monkeypatch.context() as patch:
        full_disk(patch, on_write=11)
        train(config)  # the model itself is written without torch.save
    output = Path(config.output)
    [last] = checkpoints(output)
    assert last.name == "checkpoint-2"
    assert "the checkpoint could not be written (PytorchStreamWriter failed" in capsys.readouterr().err
    assert len(json.loads((output / "training.json").read_text())["save_errors"]) == 4
    assert not [path for path in output.iterdir() if path.name.endswith(".unfinished")]
    train(config, resume=True)
    assert sorted(losses(output)) == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_at_the_end_is_an_error_and_leaves_everything(tmp_path: Path, monkeypatch) -> None:
    config = tiny_run(tmp_path, steps=2, save_every=1)
    train(config)
    output = Path(config.output)
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.suffix in (".safetensors", ".json")}

    plain_save = PreTrainedModel.save_pretrained

    def save_pretrained(self, folder, **kwargs):
        if "checkpoint" in str(folder):
            return plain_save(self, folder, **kwargs)
        (Path(folder) / "model.safetensors").write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)
        with pytest.raises(OSError, match=r"the model could not be written .*No space left on device"):
            train(config, overwrite=True)
    for name, data in before.items():
        if name != "training.json":
            assert (output / name).read_bytes() == data, name
    assert not (output / "model").exists()
    train(config, resume=True)  # there is room again; nothing is left to learn
    assert apar.load(output)[0].config.vocab_size
    assert sorted(losses(output)) == [1, 2]


def test_inputs_that_cannot_be_read(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    with pytest.raises(OSError, match=r"nowhere\.jsonl"):
        train(tiny_run(tmp_path, data=str(tmp_path / "nowhere.jsonl")))
    (tmp_path / "broken.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(ValueError, match=r"broken.jsonl, line 1: expected a tree"):
        train(tiny_run(tmp_path, data=str(tmp_path / "broken.jsonl")))
    write_trees(tmp_path / "empty.jsonl", records("heldout"))
    with pytest.raises(ValueError, match="data: no tree to learn from in"):
        train(tiny_run(tmp_path, data=str(tmp_path / "empty.jsonl")))
    with pytest.raises(ValueError, match="resume: there is no checkpoint in"):
        train(config, resume=True)
    assert not Path(config.output).exists()


def test_what_lies_beside_the_model_is_nobody_elses(tmp_path: Path) -> None:
    """A base model in OUTPUT/model was once taken for a result of the run's own."""
    config = tiny_run(tmp_path, output=str(tmp_path / "base"), steps=1)
    shutil.move(train(config), tmp_path / "output" / "model")
    (tmp_path / "output" / "model" / "mine.txt").write_text("notes")
    before = {path.name: path.read_bytes() for path in (tmp_path / "output" / "model").iterdir()}
    train(tiny_run(tmp_path, model=str(tmp_path / "output" / "model"), tokenizer=None, steps=1))
    assert {path.name: path.read_bytes() for path in (tmp_path / "output" / "model").iterdir()} == before
    assert not list((tmp_path / "output").glob(".*"))


def test_overwriting_removes_nothing_before_the_run_begins(tmp_path: Path) -> None:
    old = tmp_path / "output" / "checkpoint-3"
    old.mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        train(tiny_run(tmp_path, data=str(tmp_path / "typo.jsonl")), overwrite=True)
    for name in ("model", "tokenizer"):
        with pytest.raises(ValueError, match=f"{name}: .*checkpoint-3 lies in the output, which --overwrite replaces"):
            train(tiny_run(tmp_path, **{name: str(old)}), overwrite=True)
    assert old.exists()
    train(tiny_run(tmp_path, steps=1), overwrite=True)
    assert not old.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"config": TINY_LLAMA | {"attention_dropout": 0.1}}}, "llama, attention_dropout: .* dropout 0.1"),
        ({"attention": "flex_attention"}, "attention: flex_attention cannot be trained with on a cpu device"),
        ({"optimizer": "grokadamw"}, "optimizer: it cannot be made"),
    ],
)
def test_what_the_first_step_would_not_do_is_told_before(tmp_path: Path, changes: dict, message: str) -> None:
    if torch.cuda.is_available() and "attention" in changes:
        pytest.skip("this machine has a GPU, which flex_attention is for")
    old = tmp_path / "output" / "checkpoint-3"
    old.mkdir(parents=True)
    (tmp_path / "output" / "log.jsonl").write_text("the log of another run\n")
    with pytest.raises(ValueError, match=message):
        train(tiny_run(tmp_path, **changes), overwrite=True)
    assert old.exists()
    assert (tmp_path / "output" / "log.jsonl").read_text() == "the log of another run\n"


def test_overwriting_waits_for_the_first_step(tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "output"
    (output / "checkpoint-3").mkdir(parents=True)
    (output / "log.jsonl").write_text("the log of another run\n")
    plain_step = TreeTrainer.training_step

    def failing_step(self, model, *args, **kwargs):
        if self.state.global_step == failing_at:
            with torch.no_grad():
                next(model.parameters())[5] = torch.nan
        return plain_step(self, model, *args, **kwargs)

    monkeypatch.setattr(TreeTrainer, "training_step", failing_step)
    failing_at = 0
    with pytest.raises(FloatingPointError, match=r"step 0: .* there is no checkpoint"):
        train(tiny_run(tmp_path), overwrite=True)
    assert (output / "checkpoint-3").exists()
    assert (output / "log.jsonl").read_text() == "the log of another run\n"
    failing_at = 1
    with pytest.raises(FloatingPointError, match=r"step 1: .* there is no checkpoint"):
        train(tiny_run(tmp_path), overwrite=True)
    assert not checkpoints(output)
    assert list(losses(output)) == [1]


def test_a_run_that_is_shorter_than_its_log_has_a_loss(tmp_path: Path) -> None:
    output = train(tiny_run(tmp_path, steps=3, log_every=10))
    assert list(losses(output)) == [3]
    assert (output / "loss.png").exists()


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path, monkeypatch, capsys) -> None:
    log = RunLog(tmp_path, tokens_per_step=1, shown=False)
    arguments, control = TrainingArguments(str(tmp_path)), TrainerControl()
    state = TrainerState(is_world_process_zero=True)
    log.on_train_begin(arguments, state, control)

    def add(step: int) -> None:
        state.global_step = step
        log.on_step_end(arguments, state, control)
        log.on_log(arguments, state, control, {"loss": 1.0})

    add(1)
    plain_open = open

    def full_disk(path, mode="r", **kwargs):
        file = plain_open(path, mode, **kwargs)
        file.write('{"step": 2, "lo')
        file.close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full_disk)
        add(2)
    assert "log.jsonl: [Errno 28] No space left" in capsys.readouterr().err
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1]
    add(3)
    add(4)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_held_out_trees_are_looked_at_in_any_case(tmp_path: Path) -> None:
    folder = train(tiny_run(tmp_path, steps=2))
    assert [line["step"] for line in read_log(folder / "log.jsonl") if "heldout" in line] == [2]


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder, names in ((new, ["config.json", "model.safetensors"]), (old, ["chat_template.jinja", "log.jsonl"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json", "config.json"):
        (old / name).write_text("of a model that was split")
    move_files(new, old)
    assert {path.name for path in old.iterdir()} == {"config.json", "model.safetensors", "log.jsonl"}
    assert (old / "config.json").read_text() == "new"

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*log\.jsonl"):
            write_text_whole(old / "log.jsonl", "another log")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (old / "log.jsonl").read_text() == "old"
    assert len(list(old.iterdir())) == 3


def test_a_folder_is_never_half_of_two_models(tmp_path: Path, monkeypatch) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    for folder in (new, old):
        folder.mkdir()
        for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
            (folder / name).write_text(folder.name)
    plain_replace = os.replace

    def killed(source, target):
        if Path(source).name == "model-2.safetensors":
            raise KeyboardInterrupt
        plain_replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        move_files(new, old)
    assert not (old / "config.json").exists()


def test_a_picture_needs_losses(tmp_path: Path) -> None:
    assert not draw_losses([], tmp_path / "loss.png")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}]
