"""Muon for matrices, AdamW for the rest: who gets what, and that state and schedule reach both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from apar.data import write_trees
from apar.data.synth import synth_records
from apar.data.synth.tokenizer import train_tokenizer
from apar.train.config import TrainConfig
from apar.train.muon import make_muon
from apar.train.run import train
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=tied, **TINY))


def take_steps(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, count: int) -> None:
    tokens = torch.arange(20).reshape(2, 10)
    for _ in range(count):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
def test_tables_and_vectors_are_left_to_adamw(tied: bool) -> None:
    model = tiny_llama(tied)
    optimizer = make_muon(model, learning_rate=0.01, weight_decay=0.1, beta2=0.95)
    matrices, others = (
        {name for name, weight in model.named_parameters() if any(weight is own for own in group["params"])}
        for group in optimizer.param_groups
    )
    assert matrices | others == {name for name, _ in model.named_parameters()}
    assert all("proj" in name for name in matrices)
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= others
    assert ("lm_head.weight" in others) == (not tied)


def test_it_goes_on_where_it_stopped() -> None:
    straight, stopped = tiny_llama(True), tiny_llama(True)
    options = {"learning_rate": 0.01, "weight_decay": 0.1, "beta2": 0.95}
    optimizer = make_muon(straight, **options)
    take_steps(straight, optimizer, 6)
    optimizer = make_muon(stopped, **options)
    take_steps(stopped, optimizer, 3)
    state = optimizer.state_dict()
    optimizer = make_muon(stopped, **options)
    optimizer.load_state_dict(state)
    take_steps(stopped, optimizer, 3)
    for (name, weight), other in zip(straight.named_parameters(), stopped.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_a_schedule_reaches_both_parts() -> None:
    model = tiny_llama(True)
    optimizer = make_muon(model, learning_rate=0.01, weight_decay=0.0, beta2=0.95)
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    before = [weight.clone() for weight in model.parameters()]
    take_steps(model, optimizer, 1)
    after = [weight.clone() for weight in model.parameters()]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
    schedule.step()
    take_steps(model, optimizer, 1)
    assert all(torch.equal(*pair) for pair in zip(after, model.parameters(), strict=True))


def test_a_new_model_learns_made_up_answers_and_resumes(tmp_path: Path) -> None:
    records = [
        record for record, _ in zip(synth_records(0, kinds=["one", "names"], max_items=2), range(60), strict=False)
    ]
    write_trees(tmp_path / "trees.jsonl", records)
    train_tokenizer((record.messages[-1]["content"] for record in records), 400).save_pretrained(tmp_path / "tokenizer")

    def config(output: str, steps: int) -> TrainConfig:
        return TrainConfig(
            model={"config": {"model_type": "llama", "tie_word_embeddings": True, **TINY}},
            tokenizer=str(tmp_path / "tokenizer"),
            data=[str(tmp_path / "trees.jsonl")],
            output=str(tmp_path / output),
            optimizer="muon",
            schedule="constant",
            warmup_steps=0,
            learning_rate=0.01,
            length=512,
            steps=steps,
            save_every=4,
            precision="float32",
            save_precision="float32",
        )

    straight = train(config("straight", 8))
    train(config("resumed", 4))
    resumed = train(config("resumed", 8), resume=True)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (straight, resumed)]
    for (name, weight), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-6, msg=name)
