"""Loading from a folder: what comes back, and what a stranger is told when something is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from apar.cache import UnsupportedModelError
from apar.loading import check_model, check_tokenizer, load
from safetensors.torch import load_file
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


def test_weights_of_old_that_cannot_be_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    weights = weights.with_name("pytorch_model.bin")
    assert load(tmp_path / "model")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"load: the weights at '{tmp_path}/model' cannot be read"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"intermediate_size": 95}, "load: the weights at .* cannot be read"),
        ({"hidden_size": "96"}, "load: the configuration of the model at .*is not valid .*hidden_size"),
        ({"dtype": "foo"}, "load: .*foo"),
        ({"num_attention_heads": 5, "head_dim": None}, r"load: the configuration (?s:.*)number of attention heads"),
    ],
)
def test_a_configuration_that_does_not_fit(folder, tmp_path, changes, message):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model")


def test_a_published_generation_config_stays_what_it_is(folder, tmp_path):
    """Values without effect, as vicuna-7b-v1.5 has them: transformers writes them as long as nobody changed them."""
    published = {"temperature": 0.9, "top_p": 0.6, "pad_token_id": -1}
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = tokenizer_with(VOCABULARY - 2)
    tokenizer.add_tokens(["[Fork]", "[Child]"])
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(published))
    model, _ = load(tmp_path / "model")
    assert model.generation_config.fork_token_id == VOCABULARY - 2
    assert not model.generation_config.do_sample
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert saved | published | {"child_token_id": VOCABULARY - 1} == saved


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
