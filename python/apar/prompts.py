"""From what people pass as prompts to token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Prompts = (
    str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]] | Sequence[int] | Sequence[Sequence[int]]
)


def encode_prompts(tokenizer: Any, prompts: Prompts) -> list[list[int]]:
    """Token ids of every prompt.

    ``prompts``: a text, a list of texts, a conversation (list of messages ``{"role": ..., "content": ...}``), a list of
    conversations, token ids, or a list of token ids. Conversations go through the tokenizer's chat template; texts are
    encoded as they are. Raises TypeError for anything else, ValueError for an empty prompt.
    """
    encoded = [_encode(tokenizer, prompt, number) for number, prompt in enumerate(_as_list(prompts))]
    if not encoded:
        raise ValueError("prompts: expected at least one prompt, got an empty list")
    return encoded


def _as_list(prompts: Prompts) -> list[Any]:
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, (bytes, bytearray)):
        raise TypeError(
            f"prompts: expected a text, messages, token ids, or a list of these, got {type(prompts).__name__}"
        )
    one_prompt = bool(prompts) and all(isinstance(part, (Mapping, int)) for part in prompts)
    return [prompts] if one_prompt else list(prompts)


def _encode(tokenizer: Any, prompt: Any, number: int) -> list[int]:
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, str):
        ids = _tokenize(tokenizer, prompt, number, add_special_tokens=True) if prompt else []
    elif isinstance(prompt, (bytes, bytearray)):
        raise TypeError(f"prompts: prompt {number} is bytes, expected text (decode it first)")
    elif isinstance(prompt, Sequence) and all(isinstance(part, int) and not isinstance(part, bool) for part in prompt):
        ids = list(prompt)
    elif isinstance(prompt, Sequence) and all(isinstance(part, Mapping) for part in prompt):
        ids = _tokenize(tokenizer, apply_chat_template(tokenizer, prompt, number), number, add_special_tokens=False)
    else:
        raise TypeError(
            f"prompts: prompt {number} is a {type(prompt).__name__}; expected a text, a list of messages or a list of "
            "token ids"
        )
    if not ids:
        raise ValueError(f"prompts: prompt {number} is empty, expected at least one token")
    return ids


def _tokenize(tokenizer: Any, text: str, number: int, *, add_special_tokens: bool) -> list[int]:
    if tokenizer is None:
        raise ValueError(f"tokenizer: prompt {number} is text, so a tokenizer is needed, got None")
    if not is_whole_text(text):
        raise ValueError(f"prompts: prompt {number} holds half of a surrogate pair, which no tokenizer takes")
    return list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])


def is_whole_text(text: str) -> bool:
    """Whether a text can be written down: half of a surrogate pair, as a cut JSON escape leaves it, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def apply_chat_template(tokenizer: Any, messages: Sequence[Message], number: int) -> str:
    """The text that a model reads where it is asked these messages. number: of the prompt, for errors.

    Raises:
        ValueError: there is no chat template, it refuses the messages, or a message lacks its role or content.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"prompts: prompt {number} is a list of messages, but the tokenizer has no chat template; "
            "set tokenizer.chat_template or pass the prompt as text"
        )
    for message in messages:
        if "role" not in message or "content" not in message:
            raise ValueError(
                f"prompts: a message of prompt {number} has the keys {sorted(message)}, expected role and content"
            )
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # of jinja2: templates refuse roles and orders that their model does not know
        raise ValueError(f"prompts: the chat template refuses prompt {number}: {error}") from error
