"""The model and the tokenizer that a run starts from: control tokens, their embeddings, a new model, LoRA."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig

from apar.grammar import KNOWN_CONTROL_TOKENS, MAX_DEPTH, Grammar
from apar.loading import (
    INVALID_CONFIG,
    UNREADABLE_WEIGHTS,
    check_architecture,
    complete_published_tokenizer,
    num_token_ids,
    read_config,
    read_tokenizer,
)
from apar.templates import TEMPLATES
from apar.train.config import LoraConfig, TrainConfig, nearest

# What the control tokens stand for; their embeddings start at the mean of these words' embeddings.
RELATED_WORDS = {
    "fork": ("\n", ":", " list", " next", " then", " branch", " also"),
    "child": (":", " detail", " because", " is", " means", " explain", "-"),
}

# Keys that models look for in a configuration whose class does not have them.
READ_WHERE_GIVEN = {"head_dim"}

# What shapes sampling, with the values that do not, as transformers has them.
SAMPLING_VALUES = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def load_tokenizer(config: TrainConfig) -> tuple[Any, Grammar]:
    """The tokenizer with control tokens and chat template, and its grammar.

    Raises ValueError: there is none, it cannot take new tokens, it has no end-of-sequence token.
    """
    source = config.tokenizer or config.model
    with _errors_as(f"tokenizer: none found at {source!r}", ValueError):
        tokenizer = read_tokenizer(source)
    names = _control_names(tokenizer, config)
    missing = [name for name in names if name not in tokenizer.get_vocab()]
    if missing:
        _add_tokens(tokenizer, missing)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer: {source!r} has no end-of-sequence token, expected one: it ends every branch")
    complete_published_tokenizer(tokenizer)
    if config.chat_template is not None:
        tokenizer.chat_template = _chat_template(config.chat_template)
    return tokenizer, Grammar.from_tokenizer(tokenizer, fork=names[0], child=names[1])


def load_model(config: TrainConfig, tokenizer: Any, grammar: Grammar) -> Any:
    """The model in fp32, on the CPU, with an embedding for every token of the tokenizer.

    Embeddings of control tokens start at the mean of related words' embeddings, in the input and, where it is not the
    same tensor, in the output. A new model is drawn from ``config.seed``.

    Raises:
        ValueError: the model is not found or cannot be as the config asks.
        UnsupportedModelError: an architecture without exchangeable attention, found before any weight is read.
    """
    torch.manual_seed(config.seed)  # whatever is drawn: a new model, rows of the embedding, low-rank additions
    if isinstance(config.model, dict):
        model = _new_model(config.model["config"], tokenizer)
    else:
        model = _saved_model(config.model)
        saved_rows = model.get_input_embeddings().weight.shape[0]
        _make_room(model, num_token_ids(tokenizer), config.model)
        before = read_tokenizer(config.tokenizer or config.model)
        _start_control_embeddings(model, tokenizer, grammar, before, saved_rows)
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and config.length > positions:
        raise ValueError(f"length: {config.length} tokens, expected at most {positions}, the positions of the model")
    model.config.use_cache = False
    if config.lora is not None:
        model = _with_lora(model, config.lora, grammar)
    return model


def prepare_generation(model: Any, grammar: Grammar, tokenizer: Any, depth: int) -> None:
    """Write what whoever loads the model must find in its generation config. depth: levels of branches that it learns.

    What others published with values that have no effect, transformers refuses to write once it is changed: a
    temperature or the like says that the model is to be sampled from; a negative id stands for no padding token.

    Raises ValueError: it could not be written even so.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    generation = model.generation_config if model.generation_config is not None else GenerationConfig()
    generation._from_model_config = False  # else loading derives it from the model's configuration once more
    generation.fork_token_id, generation.child_token_id = grammar.fork_id, grammar.child_id
    generation.fork_max_depth = min(max(depth, 2), MAX_DEPTH)
    generation.fork_newlines = "exact"  # whatever the names of the control tokens: separators are tokens here
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    if generation.pad_token_id is None or generation.pad_token_id < 0:
        generation.pad_token_id = tokenizer.pad_token_id
    values = {name: getattr(generation, name, None) for name in SAMPLING_VALUES}
    if any(value is not None and value != SAMPLING_VALUES[name] for name, value in values.items()):
        generation.do_sample = True
    with _errors_as("model: its generation config cannot be written", ValueError):
        generation.validate(strict=True)
    model.generation_config = generation


def _control_names(tokenizer: Any, config: TrainConfig) -> tuple[str, str]:
    if config.fork_token is not None and config.child_token is not None:
        return config.fork_token, config.child_token
    vocabulary = tokenizer.get_vocab()
    return next((pair for pair in KNOWN_CONTROL_TOKENS if pair[0] in vocabulary), KNOWN_CONTROL_TOKENS[0])


def _add_tokens(tokenizer: Any, names: list[str]) -> None:
    try:
        added = tokenizer.add_tokens(names, special_tokens=True)
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"tokenizer: it takes no new tokens, expected room for {', '.join(names)} ({error})"
        ) from error
    for name in names:
        if added < len(names) or tokenizer(name, add_special_tokens=False)["input_ids"] != [
            tokenizer.convert_tokens_to_ids(name)
        ]:
            raise ValueError(f"tokenizer: it takes no new tokens, expected room for {', '.join(names)}")


def _chat_template(name_or_path: str) -> str:
    if name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    try:
        return Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"chat_template: expected one of {', '.join(TEMPLATES)} or a file, got {name_or_path!r} ({error})"
        ) from error


def _saved_model(path_or_id: str) -> Any:
    try:
        config = read_config(path_or_id)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    check_architecture(config)
    with _errors_as(f"model: the weights at {path_or_id!r} cannot be read", *INVALID_CONFIG, *UNREADABLE_WEIGHTS):
        return AutoModelForCausalLM.from_pretrained(path_or_id, dtype=torch.float32)


def _make_room(model: Any, num_tokens: int, path_or_id: str) -> None:
    """See that there are at least ``num_tokens`` embeddings: spare ones are kept."""
    known = model.get_input_embeddings().weight.shape[0]
    if num_tokens <= known:
        return
    no_room = (
        f"model: {path_or_id!r} has {known} embeddings and takes no more, expected room for the "
        f"{num_tokens} tokens of the tokenizer"
    )
    with _errors_as(no_room, NotImplementedError, ValueError, RuntimeError):
        model.resize_token_embeddings(num_tokens, mean_resizing=False)


def _new_model(values: dict[str, Any], tokenizer: Any) -> Any:
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    num_tokens = num_token_ids(tokenizer)
    values = {"vocab_size": num_tokens, **special, **values}
    if not isinstance(values["vocab_size"], int) or values["vocab_size"] < num_tokens:
        raise ValueError(
            f"model.config.vocab_size: {values['vocab_size']}, expected at least {num_tokens}, the tokenizer's size"
        )
    cannot = "model.config: no model can be made of it"
    with _errors_as(cannot, *INVALID_CONFIG):
        config = AutoConfig.for_model(**values)
    _check_config_keys(config, values)
    check_architecture(config)
    with _errors_as(cannot, RuntimeError, *INVALID_CONFIG):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _check_config_keys(config: PretrainedConfig, values: dict[str, Any]) -> None:
    """A configuration of transformers takes any key, and keeps what it does not know as an attribute."""
    known = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map) | READ_WHERE_GIVEN
    for key in values:
        if key not in known and key in vars(config):
            raise ValueError(f"model.config.{key}: unknown key{nearest(key, known)}")


@contextlib.contextmanager
def _errors_as(text: str, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ValueError(f"{text} ({error})") from error


@torch.no_grad()
def _start_control_embeddings(model: Any, tokenizer: Any, grammar: Grammar, before: Any, saved_rows: int) -> None:
    """Only tokens that are new: a model that knows its control tokens keeps them.

    before: the tokenizer as it was saved. saved_rows: of the embedding, as it was saved.
    """
    known = before.get_vocab()
    output = model.get_output_embeddings()
    for kind, token in (("fork", grammar.fork_id), ("child", grammar.child_id)):
        if token < saved_rows and tokenizer.convert_ids_to_tokens(token) in known:
            continue
        related = sorted(
            {
                ids[-1]
                for word in RELATED_WORDS[kind]
                if (ids := before(word, add_special_tokens=False)["input_ids"])
                and ids[-1] != before.unk_token_id
                and ids[-1] < saved_rows
            }
        )
        weights = [model.get_input_embeddings().weight]
        if output is not None and output.weight is not weights[0]:
            weights.append(output.weight)
        if output is not None and getattr(output, "bias", None) is not None:
            weights.append(output.bias)
        for weight in weights:
            weight[token] = weight[related].mean(0) if related else weight[: min(len(known), saved_rows)].mean(0)


def _with_lora(model: Any, lora: LoraConfig, grammar: Grammar) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(f'lora: peft not found ({error}); expected the extra: pip install "apar[train]"') from error

    tied = model.get_output_embeddings() is not None and (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    modules = lora.modules or "all-linear"
    names = {id(module): name for name, module in model.named_modules()}
    embedding = names[id(model.get_input_embeddings())].rsplit(".", 1)[-1]
    tokens = {embedding: [grammar.fork_id, grammar.child_id]}
    if not tied and model.get_output_embeddings() is not None:
        tokens[names[id(model.get_output_embeddings())].rsplit(".", 1)[-1]] = tokens[embedding]
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        trainable_token_indices=tokens,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"lora: the model takes no such additions ({error})") from error
