"""What happens while branches are decoded, one small object per happening."""

from __future__ import annotations

import dataclasses
from typing import Any

from .output import Output
from .tree import BranchId, decode


@dataclasses.dataclass(frozen=True)
class Event:
    """``prompt``: index into the prompts of the call. ``step``: decode step of the call. ``branch``: id of the
    branch."""

    prompt: int
    step: int
    branch: BranchId


@dataclasses.dataclass(frozen=True)
class Started(Event):
    """A prompt was taken up: its trunk is decoded from now on."""


@dataclasses.dataclass(frozen=True)
class Forked(Event):
    """``branch`` was opened by a fork token of ``parent`` and goes on by itself from now on."""

    parent: BranchId


@dataclasses.dataclass(frozen=True)
class Token(Event):
    """``branch`` wrote a token. ``text`` is what became readable by it: characters may need several tokens."""

    token_id: int
    text: str


@dataclasses.dataclass(frozen=True)
class Ended(Event):
    """``branch`` ended: ``reason`` is "stop", "length" or "cancelled"."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Finished(Event):
    """The last branch of a prompt ended; ``output`` is its whole answer."""

    output: Output


class BranchText:
    """Text of a growing list of tokens, handed out as soon as its characters are complete."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._begin = 0  # tokens in front of it are not decoded again
        self._shown = ""  # text of tokens [begin, ...) that was handed out

    def add(self, token_id: int) -> str:
        """The characters that this token completes; "" where it ends inside a character."""
        if self._tokenizer is None:
            return ""
        self._token_ids.append(token_id)
        text = decode(self._tokenizer, self._token_ids[self._begin :])
        if text.endswith("\ufffd") or not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        if len(self._token_ids) - self._begin > 32 and new:
            # Keep one handed-out token in front, so that a space at the start of the next word is not dropped.
            self._begin = len(self._token_ids) - 1
            self._shown = decode(self._tokenizer, self._token_ids[self._begin :])
        return new
