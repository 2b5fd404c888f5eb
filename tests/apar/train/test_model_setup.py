"""Control tokens: where they come from, what their embeddings start from, who has no room for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from apar.grammar import MAX_DEPTH, Grammar
from apar.templates import TEMPLATES
from apar.train.model_setup import RELATED_WORDS, load_model, load_tokenizer, prepare_generation
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.apar.tiny_tokenizers import byte_level_tokenizer, sentencepiece_tokenizer
from tests.apar.train.runs import TINY_LLAMA, tiny_run

MAKERS = {"bytes": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}


def saved_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, tied: bool = True, spare: int = 0
) -> LlamaForCausalLM:
    torch.manual_seed(0)
    values = {name: value for name, value in TINY_LLAMA.items() if name != "model_type"}
    config = LlamaConfig(vocab_size=len(tokenizer) + spare, **values | {"tie_word_embeddings": tied})
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 7])
def test_control_tokens_start_at_the_mean_of_related_words(tmp_path: Path, kind: str, tied: bool, spare: int) -> None:
    before = MAKERS[kind]((), chat=True)
    old = saved_model(tmp_path, before, tied, spare)
    config = tiny_run(tmp_path, model=str(tmp_path), tokenizer=None)
    tokenizer, grammar = load_tokenizer(config)
    model = load_model(config, tokenizer, grammar)
    assert (grammar.fork_id, grammar.child_id) == (len(before), len(before) + 1)
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == (len(before) + 7 if spare else len(before) + 2)  # padding is room enough

    matrices = [(model.get_input_embeddings().weight, old.get_input_embeddings().weight)]
    matrices.append((model.get_output_embeddings().weight, old.get_output_embeddings().weight))
    assert (matrices[0][0] is matrices[1][0]) == tied
    for new, plain in matrices:
        assert torch.equal(new[: len(before)], plain[: len(before)])
        for token, kind_of_word in ((grammar.fork_id, "fork"), (grammar.child_id, "child")):
            ids = {before(word, add_special_tokens=False)["input_ids"][-1] for word in RELATED_WORDS[kind_of_word]}
            assert len(ids) > 2
            assert torch.allclose(new[token], plain[sorted(ids)].mean(0), atol=1e-6)


def test_a_model_that_knows_its_control_tokens_keeps_them(tmp_path: Path) -> None:
    known = byte_level_tokenizer(("[SplitMask]", "[SplitSop]"), chat=True)
    old = saved_model(tmp_path, known)
    config = tiny_run(tmp_path, model=str(tmp_path), tokenizer=None)
    tokenizer, grammar = load_tokenizer(config)
    assert len(tokenizer) == len(known)
    assert tokenizer.convert_ids_to_tokens([grammar.fork_id, grammar.child_id]) == ["[SplitMask]", "[SplitSop]"]
    assert torch.equal(
        load_model(config, tokenizer, grammar).get_input_embeddings().weight, old.get_input_embeddings().weight
    )


def test_control_tokens_that_only_the_tokenizer_knows_are_new(tmp_path: Path) -> None:
    before = byte_level_tokenizer((), chat=True)
    old = saved_model(tmp_path / "base", before)
    byte_level_tokenizer(chat=True).save_pretrained(tmp_path / "knows")
    config = tiny_run(tmp_path, model=str(tmp_path / "base"), tokenizer=str(tmp_path / "knows"))
    tokenizer, grammar = load_tokenizer(config)
    embeddings = load_model(config, tokenizer, grammar).get_input_embeddings().weight
    assert grammar.fork_id == len(before)
    ids = {before(word, add_special_tokens=False)["input_ids"][-1] for word in RELATED_WORDS["fork"]}
    expected = old.get_input_embeddings().weight[sorted(ids)].mean(0)
    assert torch.allclose(embeddings[grammar.fork_id], expected, atol=1e-6)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_the_generation_config_can_be_written(tmp_path: Path, lora: dict | None) -> None:
    saved_model(tmp_path / "base", byte_level_tokenizer((), chat=True))
    published = {"temperature": 0.9, "top_p": 0.6, "pad_token_id": -1}  # as vicuna-7b-v1.5 has it
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(published))
    config = tiny_run(tmp_path, model=str(tmp_path / "base"), tokenizer=None, lora=lora)
    tokenizer, grammar = load_tokenizer(config)
    model = load_model(config, tokenizer, grammar)
    prepare_generation(model, grammar, tokenizer, depth=MAX_DEPTH + 1)
    base = model.get_base_model() if lora else model
    base.generation_config.save_pretrained(tmp_path)
    found = GenerationConfig.from_pretrained(tmp_path)
    assert (found.temperature, found.top_p, found.do_sample, found.pad_token_id) == (0.9, 0.6, True, None)
    assert found.fork_token_id == grammar.fork_id
    assert Grammar.for_model(base, tokenizer).max_depth == MAX_DEPTH
    base.generation_config.num_return_sequences = 3
    base.generation_config.do_sample = base.generation_config.temperature = base.generation_config.top_p = None
    with pytest.raises(ValueError, match=r"model: its generation config cannot be written .*num_return_sequences"):
        prepare_generation(model, grammar, tokenizer, depth=2)


def test_published_models_have_vicunas_prompt(tmp_path: Path) -> None:
    byte_level_tokenizer(("[SplitMask]", "[SplitSop]")).save_pretrained(tmp_path)
    tokenizer, _ = load_tokenizer(tiny_run(tmp_path, tokenizer=str(tmp_path)))
    assert tokenizer.chat_template == TEMPLATES["vicuna"]


def test_names_of_ones_own(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, fork_token="<fork>", child_token="<child>")
    tokenizer, grammar = load_tokenizer(config)
    assert tokenizer.convert_ids_to_tokens([grammar.fork_id, grammar.child_id]) == ["<fork>", "<child>"]
    assert tokenizer("a<fork>b")["input_ids"].count(grammar.fork_id) == 1


def test_ids_behind_a_gap_have_embeddings(tmp_path: Path) -> None:
    """A tokenizer's highest id may be above the number of its tokens."""
    plain = byte_level_tokenizer((), chat=True)
    description = json.loads(plain.backend_tokenizer.to_str())
    last = max(description["model"]["vocab"], key=description["model"]["vocab"].get)
    description["model"]["vocab"][last] = 350
    gap = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)), eos_token="</s>", chat_template="{{ messages }}"
    )
    saved_model(tmp_path, gap)
    config = tiny_run(tmp_path, model=str(tmp_path), tokenizer=None)
    tokenizer, grammar = load_tokenizer(config)
    rows = load_model(config, tokenizer, grammar).get_input_embeddings().weight.shape[0]
    assert max(tokenizer.get_vocab().values()) < rows
    tokenizer, grammar = load_tokenizer(new := tiny_run(tmp_path, tokenizer=str(tmp_path)))
    assert load_model(new, tokenizer, grammar).config.vocab_size == rows


def test_low_rank_additions_follow_the_seed(tmp_path: Path) -> None:
    saved_model(tmp_path, byte_level_tokenizer((), chat=True), tied=False)
    config = tiny_run(tmp_path, model=str(tmp_path), tokenizer=None, lora={"rank": 2})
    tokenizer, grammar = load_tokenizer(config)
    models = []
    for other in range(2):
        torch.manual_seed(other)
        models.append(
            {name: value.clone() for name, value in load_model(config, tokenizer, grammar).named_parameters()}
        )
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_low_rank_additions_need_peft(tmp_path: Path, monkeypatch) -> None:
    config = tiny_run(tmp_path, lora={"rank": 2})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"lora: peft not found .* pip install \"apar\[train\]\""):
        load_model(config, *load_tokenizer(config))


def test_a_new_model_follows_the_seed(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    tokenizer, grammar = load_tokenizer(config)
    models = [load_model(config, tokenizer, grammar) for _ in range(2)]
    other = load_model(tiny_run(tmp_path, seed=1), tokenizer, grammar)
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (*models, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[0].config.vocab_size == len(tokenizer)
    assert models[0].config.eos_token_id == tokenizer.eos_token_id


def test_templates_by_name_and_file(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "Hi"}]
    tokenizer, _ = load_tokenizer(tiny_run(tmp_path, chat_template="vicuna"))
    assert tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True).endswith(
        "USER: Hi ASSISTANT:"
    )
    (tmp_path / "template.jinja").write_text("{{ messages[0]['content'] }}!")
    tokenizer, _ = load_tokenizer(tiny_run(tmp_path, chat_template=str(tmp_path / "template.jinja")))
    assert tokenizer.apply_chat_template(message, tokenize=False) == "Hi!"


def test_a_tokenizer_without_room(tmp_path: Path, monkeypatch) -> None:
    config = tiny_run(tmp_path)
    monkeypatch.setattr(PreTrainedTokenizerFast, "add_tokens", lambda self, *args, **kwargs: 0)
    with pytest.raises(ValueError, match=r"tokenizer: it takes no new tokens, expected room for \[Fork\], \[Child\]"):
        load_tokenizer(config)


def test_a_model_without_room(tmp_path: Path, monkeypatch) -> None:
    saved_model(tmp_path, byte_level_tokenizer((), chat=True))
    config = tiny_run(tmp_path, model=str(tmp_path), tokenizer=None)
    tokenizer, grammar = load_tokenizer(config)

    def resize(self, *args, **kwargs):
        raise NotImplementedError("cannot")

    monkeypatch.setattr(LlamaForCausalLM, "resize_token_embeddings", resize)
    with pytest.raises(ValueError, match=r"has 300 embeddings and takes no more, expected room for the 302 tokens"):
        load_model(config, tokenizer, grammar)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    model = saved_model(tmp_path, byte_level_tokenizer((), chat=True))
    config = tiny_run(tmp_path, model=str(tmp_path), tokenizer=None)
    unreadable = pytest.raises(ValueError, match=r"model: the weights at .* cannot be read")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with unreadable:
        load_model(config, *load_tokenizer(config))
    (tmp_path / "model.safetensors").unlink()
    weights = model.state_dict()
    torch.save(weights | {"model.norm.weight": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    with unreadable:
        load_model(config, *load_tokenizer(config))
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes()[:-1000])
    with unreadable:
        load_model(config, *load_tokenizer(config))


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer((), chat=True)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    plain.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="has no end-of-sequence token"):
        load_tokenizer(tiny_run(tmp_path, tokenizer=str(tmp_path / "endless")))


def test_a_saved_model_is_untouched(tmp_path: Path) -> None:
    old = saved_model(tmp_path, byte_level_tokenizer((), chat=True))
    config = tiny_run(tmp_path, model=str(tmp_path), tokenizer=None)
    tokenizer, grammar = load_tokenizer(config)
    load_model(config, tokenizer, grammar)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.get_input_embeddings().weight, old.get_input_embeddings().weight)
