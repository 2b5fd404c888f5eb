"""The model and the tokenizer that a run starts from: control tokens, their embeddings, a new model, LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from apar.grammar import KNOWN_CONTROL_TOKENS, Grammar
from apar.templates import TEMPLATES
from apar.train.config import LoraConfig, TrainConfig

# What the control tokens stand for; their embeddings start at the mean of these words' embeddings.
RELATED_WORDS = {
    "fork": ("\n", ":", " list", " next", " then", " branch", " also"),
    "child": (":", " detail", " because", " is", " means", " explain", "-"),
}


def load_tokenizer(config: TrainConfig) -> tuple[Any, Grammar]:
    """The tokenizer with control tokens and chat template, and its grammar.

    Raises ValueError: there is none, it cannot take new tokens, it has no end-of-sequence token.
    """
    source = config.tokenizer or config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # transformers raises many types here, some of them bare KeyError and TypeError
        raise ValueError(f"tokenizer: none found at {source!r} ({error})") from error
    names = _control_names(tokenizer, config)
    missing = [name for name in names if name not in tokenizer.get_vocab()]
    if missing:
        _add_tokens(tokenizer, missing)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer: {source!r} has no end-of-sequence token, expected one: it ends every branch")
    if config.chat_template is not None:
        tokenizer.chat_template = _chat_template(config.chat_template)
    return tokenizer, Grammar.from_tokenizer(tokenizer, fork=names[0], child=names[1])


def load_model(config: TrainConfig, tokenizer: Any, grammar: Grammar) -> Any:
    """The model in fp32, on the CPU, with an embedding for every token of the tokenizer.

    Embeddings of control tokens start at the mean of related words' embeddings, in the input and, where it is not the
    same tensor, in the output. A new model is drawn from ``config.seed``.

    Raises ValueError: the model is not found or cannot be as the config asks.
    """
    if isinstance(config.model, dict):
        model = _new_model(config.model["config"], tokenizer, config.seed)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(f"model: none found at {config.model!r} ({error})") from error
        known = model.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > known:
            try:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            except (NotImplementedError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"model: {config.model!r} has {known} embeddings and takes no more, expected room for the "
                    f"{len(tokenizer)} tokens of the tokenizer ({error})"
                ) from error
        _start_control_embeddings(
            model, tokenizer, grammar, AutoTokenizer.from_pretrained(config.tokenizer or config.model)
        )
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and config.length > positions:
        raise ValueError(f"length: {config.length} tokens, expected at most {positions}, the positions of the model")
    model.config.use_cache = False
    if config.lora is not None:
        model = _with_lora(model, config.lora, grammar)
    return model


def prepare_for_saving(model: Any, grammar: Grammar, tokenizer: Any, depth: int) -> None:
    """What whoever loads the model must find in its configurations. depth: levels of branches that it has learned."""
    model.config.use_cache = True
    generation = model.generation_config if model.generation_config is not None else GenerationConfig()
    generation._from_model_config = False  # else loading derives it from the model's configuration once more
    generation.fork_token_id, generation.child_token_id = grammar.fork_id, grammar.child_id
    generation.fork_max_depth = max(depth, 2)
    generation.fork_newlines = "exact"  # whatever the names of the control tokens: separators are tokens here
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    if generation.pad_token_id is None and tokenizer.pad_token_id is not None:
        generation.pad_token_id = tokenizer.pad_token_id
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


def _new_model(values: dict[str, Any], tokenizer: Any, seed: int) -> Any:
    values = dict(values)
    model_type = values.pop("model_type")
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    special["pad_token_id"] = tokenizer.pad_token_id
    vocab_size = values.pop("vocab_size", len(tokenizer))
    if vocab_size < len(tokenizer):
        raise ValueError(
            f"model.config.vocab_size: {vocab_size}, expected at least {len(tokenizer)}, the tokenizer's size"
        )
    try:
        config = AutoConfig.for_model(model_type, **{"vocab_size": vocab_size, **special, **values})
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"model.config: no model can be made of it ({error})") from error


@torch.no_grad()
def _start_control_embeddings(model: Any, tokenizer: Any, grammar: Grammar, before: Any) -> None:
    """Only tokens that the tokenizer ``before`` did not have: a model that knows its control tokens keeps them."""
    known = before.get_vocab()
    output = model.get_output_embeddings()
    for kind, token in (("fork", grammar.fork_id), ("child", grammar.child_id)):
        if tokenizer.convert_ids_to_tokens(token) in known:
            continue
        related = sorted(
            {
                ids[-1]
                for word in RELATED_WORDS[kind]
                if (ids := before(word, add_special_tokens=False)["input_ids"]) and ids[-1] != before.unk_token_id
            }
        )
        weights = [model.get_input_embeddings().weight]
        if output is not None and output.weight is not weights[0]:
            weights.append(output.weight)
        if output is not None and getattr(output, "bias", None) is not None:
            weights.append(output.bias)
        for weight in weights:
            weight[token] = weight[related].mean(0) if related else weight[: len(known)].mean(0)


def _with_lora(model: Any, lora: LoraConfig, grammar: Grammar) -> Any:
    import peft

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
