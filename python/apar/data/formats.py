"""Chat records as people have them, and the answers in them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from apar.data.records import Message

_ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "bot": "assistant", "system": "system", "tool": "tool", "function": "tool",
}  # fmt: skip
CONVERSATION_KEYS = ("messages", "conversations", "conversation")
_PROMPT_KEYS = ("prompt", "instruction", "question")
_ANSWER_KEYS = ("response", "output", "completion", "answer")
_CONTEXT_KEYS = ("input", "context")
_USED = {*CONVERSATION_KEYS, "system", "tree", "split", *_PROMPT_KEYS, *_ANSWER_KEYS}


class MalformedRecord(ValueError):
    """A record that is in none of the formats, has no answer, or one that the rules cannot cut."""


@dataclasses.dataclass(slots=True)
class Answer:
    """messages: what was said before it. text: the answer. extra: the record's other plain values."""

    messages: list[Message]
    text: str
    extra: dict[str, Any]


def answers(record: Any, *, last_only: bool = False) -> list[Answer]:
    """The answers of a record, one per turn of the assistant (or the last one alone), each with what came before.

    Formats, told by their keys: ``messages`` or ``conversations`` with role and content, or with from and value as
    ShareGPT has them; ``prompt`` or ``instruction`` (with ``input`` or ``context``) and ``response`` or ``output``,
    where the prompt may be a list of messages. Turns of the assistant before anything was asked are no answers.

    Raises:
        MalformedRecord: says what is wrong.
    """
    if not isinstance(record, dict):
        raise MalformedRecord(f"expected an object, got {type(record).__name__}")
    if is_tree_record(record):
        raise MalformedRecord("it is a tree already; what OUT holds is kept with --append")
    extra = {key: value for key, value in record.items() if key not in _USED and _is_plain(value)}
    for key in CONVERSATION_KEYS:
        if record.get(key) is not None:
            found = _turns(_messages(record[key], key, record.get("system")), extra)
            break
    else:
        found = [_pair(record, {key: value for key, value in extra.items() if key not in _CONTEXT_KEYS})]
    if not found:
        raise MalformedRecord("there is no answer of the assistant")
    return found[-1:] if last_only else found


def is_tree_record(record: dict[str, Any]) -> bool:
    """Whether a record is one of ``apar data``; tables with the columns of several forms have null as ``tree``."""
    return isinstance(record.get("tree"), list)


def _turns(messages: list[Message], extra: dict[str, Any]) -> list[Answer]:
    found = []
    asked = False
    for number, message in enumerate(messages):
        asked |= message["role"] == "user" and bool(message["content"].strip())
        if message["role"] == "assistant" and asked:
            if not message["content"].strip():
                raise MalformedRecord(f"message {number + 1}: the answer is empty")
            found.append(Answer(messages[:number], message["content"], extra))
    return found


def _messages(items: Any, key: str, system: Any = None) -> list[Message]:
    if not isinstance(items, list) or not items:
        raise MalformedRecord(f"{key}: expected a list of messages, got {_kind(items)}")
    messages: list[Message] = []
    if isinstance(system, str) and system:
        messages.append({"role": "system", "content": system})
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise MalformedRecord(f"{key}: message {number} is {_kind(item)}, expected an object")
        role = role_of(item)
        if role is None:
            name = _first(item, "role", "from")
            raise MalformedRecord(f"{key}: message {number} has the role {name!r:.40}, expected user, assistant, ...")
        if item.get("tool_calls") or item.get("function_call"):
            raise MalformedRecord(f"{key}: message {number} calls a tool, which is more than its text")
        content = _first(item, "content", "value")
        messages.append({"role": role, "content": _text(content, f"{key}: message {number}")})
    return messages


def role_of(item: Any) -> str | None:
    """ "user", "assistant", "system" or "tool", whatever a format calls it; None for anything that is no message."""
    name = _first(item, "role", "from") if isinstance(item, dict) else None
    return _ROLES.get(name.lower()) if isinstance(name, str) else None


def _first(item: dict[str, Any], *keys: str) -> Any:
    """The value of the first key that has one: tables with the columns of several formats fill the others with null."""
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _is_plain(value: Any) -> bool:
    """Whether a value can stand in any JSON file: not NaN, which Python alone writes and reads."""
    return math.isfinite(value) if isinstance(value, float) else isinstance(value, (str, int))


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    raise MalformedRecord(f"{place}: expected text, got {_kind(content)}")


def _pair(record: dict[str, Any], extra: dict[str, Any]) -> Answer:
    prompt_key = next((key for key in _PROMPT_KEYS if record.get(key) is not None), None)
    answer_key = next((key for key in _ANSWER_KEYS if record.get(key) is not None), None)
    if prompt_key is None or answer_key is None:
        raise MalformedRecord(
            "expected messages, conversations, or prompt|instruction with response|output; "
            f"got the keys {', '.join(map(str, record)) or 'none'}"[:300]
        )
    text = _text(record[answer_key], answer_key)
    if not text.strip():
        raise MalformedRecord(f"{answer_key}: the answer is empty")
    asked = record[prompt_key]
    if not isinstance(asked, list):
        asked = [{"role": "user", "content": _text(asked, prompt_key)}]
    messages = _messages(asked, prompt_key, record.get("system"))
    last = next((message for message in reversed(messages) if message["role"] == "user"), messages[-1])
    last["content"] += "".join("\n\n" + _text(record[key], key) for key in _CONTEXT_KEYS if record.get(key))
    if not last["content"].strip():
        raise MalformedRecord(f"{prompt_key}: the prompt is empty")
    return Answer(messages, text, extra)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
