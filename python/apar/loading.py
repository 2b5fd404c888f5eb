"""Loading a model and its tokenizer, ready to decode as a tree."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from apar.attention import register
from apar.cache import ATTENTION_NAME, UnsupportedModelError, attention_windows
from apar.grammar import PUBLISHED_CONTROL_TOKENS, Grammar
from apar.templates import VICUNA

UNREADABLE_WEIGHTS = (OSError, EOFError, RuntimeError, SafetensorError, UnpicklingError)
"""What reading weights may raise that are broken, missing or of other shapes than the configuration says."""
INVALID_CONFIG = (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError)
"""What transformers may raise for a configuration whose values are of the wrong type or do not fit together."""
DEFAULT_MODEL = Path(__file__).parent / "assets" / "default"
"""The small model that comes with the package: see the README.md in its folder."""


def load(
    path_or_id: str | os.PathLike[str] = DEFAULT_MODEL,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer with the attention of this package.

    Both are plain transformers objects: ``model.generate``, ``save_pretrained`` and the rest work as ever. A tokenizer
    with the control tokens of the published models and no chat template gets Vicuna's.

    Args:
        path_or_id: a folder or a model id of the Hugging Face hub; by default the small model that comes with apar.
        dtype: of the weights; as they were saved if None.
        device: where the model goes; torch's default device if None.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        UnsupportedModelError: an architecture without exchangeable attention, or with layers that keep another state
            than keys and values; found before any weight is read.
        ValueError: there is no model or no tokenizer, its weights cannot be read, the tokenizer knows more tokens than
            the model, or there is no such device.
    """
    if not isinstance(path_or_id, (str, os.PathLike)):
        raise TypeError(f"load: path_or_id is {path_or_id!r}, expected a model folder or a hub id")
    _check_device(device)
    try:
        config = read_config(path_or_id)
    except ValueError as error:
        raise ValueError(f"load: {error}") from error
    check_architecture(config)
    try:
        tokenizer = read_tokenizer(path_or_id)
    except ValueError as error:
        raise ValueError(
            f"load: no tokenizer found at {str(path_or_id)!r}, expected one beside the model ({error})"
        ) from error
    register()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path_or_id, dtype="auto" if dtype is None else dtype, attn_implementation=ATTENTION_NAME
        )
    except (*UNREADABLE_WEIGHTS, *INVALID_CONFIG) as error:
        raise ValueError(f"load: the weights at {str(path_or_id)!r} cannot be read ({error})") from error
    check_tokenizer(model, tokenizer)
    complete_published_tokenizer(tokenizer)
    _note_control_tokens(model, tokenizer)
    if device is not None:
        model.to(device)
    return model.eval(), tokenizer


def read_config(path_or_id: str | os.PathLike[str]) -> PretrainedConfig:
    """The configuration of a model. Raises ValueError: there is none, or its values cannot be those of a model."""
    try:
        return AutoConfig.from_pretrained(path_or_id)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model found at {str(path_or_id)!r}, expected a model folder or a hub id ({error})"
        ) from error
    except INVALID_CONFIG as error:
        raise ValueError(f"the configuration of the model at {str(path_or_id)!r} is not valid ({error})") from error


def read_tokenizer(path_or_id: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """A tokenizer as it was saved. Raises ValueError: there is none, or it cannot be read."""
    try:
        return AutoTokenizer.from_pretrained(path_or_id)
    except Exception as error:  # transformers raises many types here, some of them bare KeyError and TypeError
        # Old folders have a tokenizer.model alone; without these two transformers complains of something else.
        can_read_old = is_sentencepiece_available() and is_protobuf_available()
        hint = "" if can_read_old else '; a tokenizer.model needs `pip install "apar[sentencepiece]"`'
        raise ValueError(f"{error}{hint}") from error


def complete_published_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """The published models come without a chat template; they were tuned on Vicuna's prompt."""
    vocabulary = tokenizer.get_vocab()
    if tokenizer.chat_template is None and all(name in vocabulary for name in PUBLISHED_CONTROL_TOKENS):
        tokenizer.chat_template = VICUNA


def _note_control_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the ids of the control tokens to the generation config, unless it has them: `custom_generate`, which gets
    no tokenizer, looks for them there.
    """
    try:
        grammar = Grammar.for_model(model, tokenizer)
    except ValueError:  # only one of a pair: an error for who wants to fork, not for who wants to load
        return
    if not grammar.can_fork:
        return
    config = model.generation_config
    as_published = getattr(config, "_original_object_hash", None) == hash(config)
    config.fork_token_id, config.child_token_id = grammar.fork_id, grammar.child_id
    if as_published:
        # transformers writes what others published with a warning where a value has no effect (a temperature without
        # sampling), but refuses to once somebody changed it. The ids are no such change: what can be loaded can be
        # saved, and decodes as before.
        config._original_object_hash = hash(config)


def check_model(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError where ``model`` cannot be decoded over a ``PagedCache``.

    Raises ValueError where it could but has another attention implementation set.
    """
    _check_class(type(model), model.config.model_type)
    attention_windows(model.config)
    implementation = model.config.get_text_config(decoder=True)._attn_implementation
    if implementation != ATTENTION_NAME:
        raise ValueError(
            f"model: attn_implementation is {implementation!r}, expected {ATTENTION_NAME!r} "
            f"(model.set_attn_implementation({ATTENTION_NAME!r}))"
        )


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the tokenizer could give ids that the model has no embedding for."""
    num_embeddings, num_tokens = model.get_input_embeddings().weight.shape[0], num_token_ids(tokenizer)
    if num_tokens > num_embeddings:
        raise ValueError(
            f"tokenizer: it knows {num_tokens} tokens, expected at most {num_embeddings}, the rows of the "
            "model's embedding; is it another model's tokenizer, or is model.resize_token_embeddings missing?"
        )


def _check_device(device: torch.device | str | None) -> None:
    """Raise ValueError where nothing can be put on ``device``: before the weights are read, not after."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        raise ValueError(f"device: {str(device)!r} cannot be used ({str(error).splitlines()[0]})") from error


def num_token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The rows that an embedding needs for a tokenizer; more than it has tokens where ids between them are left out."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def check_architecture(config: PretrainedConfig) -> None:
    """Raise UnsupportedModelError for a configuration whose models compute attention by themselves, or keep another
    state than keys and values.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(f"{config.model_type}: transformers has no causal language model of this type")
    attention_windows(config)
    _check_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config.model_type)


def _check_class(model_class: type[PreTrainedModel], model_type: str) -> None:
    # transformers' own test: a class outside the attention interface ignores the name that is set, with a warning.
    if not model_class._can_set_attn_implementation():
        raise UnsupportedModelError(
            f"{model_type}: {model_class.__name__} computes attention by itself, expected a model that uses "
            "transformers' attention interface"
        )
