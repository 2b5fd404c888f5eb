"""A checkpoint in the form in which the published models were saved: weights as pytorch_model.bin, whole or in shards,
a sentencepiece tokenizer.model with two tokens added, a configuration of old, no chat template.
"""

from __future__ import annotations

import json
from pathlib import Path

import apar
import pytest
import sentencepiece
import torch
from apar.grammar import Grammar
from apar.loading import load
from transformers import LlamaConfig, LlamaForCausalLM

from tests.apar.tiny_tokenizers import LINES

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def write_tokenizer(folder: Path) -> sentencepiece.SentencePieceProcessor:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 50),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    count = pieces.get_piece_size()

    def token(content: str) -> dict:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        return {"__type": "AddedToken", "content": content, **flags}

    files = {
        "added_tokens.json": {"[SplitMask]": count, "[SplitSop]": count + 1},
        "special_tokens_map.json": {
            "additional_special_tokens": ["[SplitMask]", "[SplitSop]"],
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<unk>",
            "unk_token": "<unk>",
        },
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": token("<s>"),
            "clean_up_tokenization_spaces": False,
            "eos_token": token("</s>"),
            "model_max_length": 2048,
            "pad_token": None,
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": token("<unk>"),
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return pieces


def write_model(folder: Path, vocabulary: int, shards: int) -> dict[str, torch.Tensor]:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "max_sequence_length": 2048,
        "model_type": "llama",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config))
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    # The fork token wins now and then, so that the text is a tree.
    weights["lm_head.weight"][vocabulary - 2] = weights["lm_head.weight"][5] * 3
    saved = dict(weights)
    for layer in range(2):  # a buffer of old
        saved[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    old = {"torch_dtype": "float16", "transformers_version": "4.28.1"}
    (folder / "config.json").write_text(json.dumps(config | old))
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    if shards == 1:
        torch.save(saved, folder / "pytorch_model.bin")
        return weights
    places = {name: f"pytorch_model-{number % shards + 1:05}-of-{shards:05}.bin" for number, name in enumerate(saved)}
    for file in set(places.values()):
        torch.save({name: saved[name] for name, place in places.items() if place == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return weights


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_of_old_are_loaded(tmp_path: Path, shards: int) -> None:
    pieces = write_tokenizer(tmp_path)
    weights = write_model(tmp_path, pieces.get_piece_size() + 2, shards)
    model, _ = load(tmp_path)
    assert model.dtype == torch.float16
    assert model.config._attn_implementation == "apar"
    loaded = model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


def test_the_published_grammar_is_found_and_decodes(tmp_path: Path) -> None:
    pieces = write_tokenizer(tmp_path)
    count = pieces.get_piece_size()
    write_model(tmp_path, count + 2, shards=2)
    model, tokenizer = load(tmp_path, dtype=torch.float32)
    grammar = Grammar.for_model(model, tokenizer)
    assert (grammar.fork_id, grammar.child_id, grammar.stop_ids) == (count, count + 1, (2,))
    assert grammar.newlines == "published"
    assert model.generation_config.fork_token_id == count
    assert Grammar.for_model(model, tokenizer, newlines="exact").newlines == "exact"

    messages = [{"role": "user", "content": "Give tips."}]
    [output] = apar.generate(model, tokenizer, [messages], max_new_tokens=24)
    assert len(output.branches) > 1
    for branch in output.branches[1:]:
        assert branch.token_ids[0] == count + 1
        parent = output.branch(branch.parent)
        assert parent.token_ids[branch.fork_index] == count
    assert output.tree.newlines == "published"
    assert "[SplitMask]" not in output.text
    [twin] = apar.generate(model, tokenizer, [messages], max_new_tokens=24, fork=False)
    assert twin.token_ids == output.token_ids


def test_the_tokenizer_agrees_with_sentencepiece(tmp_path: Path) -> None:
    pieces = write_tokenizer(tmp_path)
    write_model(tmp_path, pieces.get_piece_size() + 2, shards=1)
    _, tokenizer = load(tmp_path)
    for text in [*LINES, "Sleep:\n\n1. go  to bed", "Größe 東京 🙂", "a", "two  spaces ", "\n"]:
        assert tokenizer(text)["input_ids"] == [1, *pieces.encode(text)], text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text), text


def test_prompts_are_vicunas(tmp_path: Path) -> None:
    pieces = write_tokenizer(tmp_path)
    write_model(tmp_path, pieces.get_piece_size() + 2, shards=1)
    _, tokenizer = load(tmp_path)

    def shown(*turns: str) -> str:
        roles = ["system"] if turns[0] == "S" else []
        roles += ["user", "assistant"] * len(turns)
        messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    assert shown("Hi") == f"<s>{SYSTEM} USER: Hi ASSISTANT:"
    assert shown("S", "Hi") == "<s>S USER: Hi ASSISTANT:"
    assert shown("a", "b", "c") == f"<s>{SYSTEM} USER: a ASSISTANT: b</s>USER: c ASSISTANT:"
    template = "{{ messages[0]['content'] }}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert load(tmp_path)[1].chat_template == template  # one that is there stays
