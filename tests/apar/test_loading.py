"""Loading from a folder: what comes back, and what a stranger is told when something is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from apar.cache import UnsupportedModelError
from apar.loading import check_model, check_tokenizer, load
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    JambaConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
    T5Config,
    ViTConfig,
)

from tests.apar.tiny_models import VOCABULARY, tiny_model


def tokenizer_with(num_tokens: int) -> PreTrainedTokenizerFast:
    words = {"[UNK]": 0} | {f"w{i}": i for i in range(1, num_tokens)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model("llama").train()
    model.set_attn_implementation("sdpa")
    model.save_pretrained(folder)
    tokenizer_with(VOCABULARY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("as_path", [True, False], ids=["Path", "str"])
def test_load(folder, as_path):
    model, tokenizer = load(folder if as_path else str(folder))
    assert model.config._attn_implementation == "apar"
    assert not model.training
    assert model.dtype == torch.float32
    check_model(model)

    input_ids = tokenizer("w5 w6 w7", return_tensors="pt").input_ids
    assert input_ids.tolist() == [[5, 6, 7]]
    expected = tiny_model("llama")
    with torch.no_grad():
        assert torch.equal(model(input_ids).logits, expected(input_ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_dtype_and_device(folder, dtype):
    model, _ = load(folder, dtype=dtype, device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.device.type == "cpu"


def test_saved_dtype_is_kept(folder, tmp_path):
    model, tokenizer = load(folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path)[0].dtype == torch.bfloat16


def test_a_loaded_model_can_be_saved_and_used_without_this_package(folder, tmp_path):
    load(folder)[0].save_pretrained(tmp_path)
    assert "apar" not in (tmp_path / "config.json").read_text()


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match=f"load: no model found at '{tmp_path}/nowhere'"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-9]), Path.unlink])
def test_weights_that_cannot_be_read(folder, tmp_path, damage):
    shutil.copytree(folder, tmp_path / "model")
    damage(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=f"load: the weights at '{tmp_path}/model' cannot be read"):
        load(tmp_path / "model")


def test_no_such_device(tmp_path):
    with pytest.raises(ValueError, match="device: 'xpu:99' cannot be used"):
        load(tmp_path / "nowhere", device="xpu:99")


def test_no_path():
    with pytest.raises(TypeError, match="load: path_or_id is None, expected a model folder or a hub id"):
        load(None)


def test_no_tokenizer(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"load: no tokenizer found at '{tmp_path}'"):
        load(tmp_path)


def test_tokenizer_of_another_model(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer_with(VOCABULARY + 3).save_pretrained(tmp_path)
    message = f"tokenizer: it knows {VOCABULARY + 3} tokens, expected at most {VOCABULARY}"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    tokenizer = tokenizer_with(VOCABULARY - 3)
    check_tokenizer(tiny_model("llama"), tokenizer)  # an embedding may well be padded
    tokenizer.add_tokens(["[Fork]", "[Child]", "a", "b"])
    with pytest.raises(ValueError, match=f"it knows {VOCABULARY + 1} tokens"):
        check_tokenizer(tiny_model("llama"), tokenizer)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MambaConfig(), "mamba: the model has no attention heads, expected attention in every layer"),
        (
            JambaConfig(),
            "jamba: a layer is of type 'linear_attention', expected 'full_attention' or 'sliding_attention'",
        ),
        (BloomConfig(), "bloom: BloomForCausalLM computes attention by itself"),
        (T5Config(), "t5: transformers has no causal language model of this type"),
        (ViTConfig(), "vit: transformers has no causal language model of this type"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_unsupported_models_are_refused_before_weights_are_read(tmp_path, config, message):
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=message):
        load(tmp_path)


def test_check_model():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(UnsupportedModelError, match="bloom"):
        check_model(bloom)
    model = tiny_model("llama")
    check_model(model)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation is 'eager', expected 'apar'"):
        check_model(model)
