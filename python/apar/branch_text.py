"""Text of a branch while its tokens come in one by one."""

from __future__ import annotations

from typing import Any

from apar.tree import decode

SHORT_WINDOW, LONG_WINDOW = 32, 128  # tokens decoded again for every new one: as a rule, and where bytes are no text


class BranchText:
    """Text of a growing list of tokens, handed out as soon as its characters are complete."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._broken_for = 0  # tokens since the text last ended with a whole character
        self._shown = 0  # characters of these tokens that were handed out

    def add(self, token_id: int) -> str:
        """The characters that this token completes; "" where it ends inside a character."""
        if self._tokenizer is None:
            return ""
        self._token_ids.append(token_id)
        text = decode(self._tokenizer, self._token_ids)
        broken = len(text) - len(text.rstrip("\ufffd"))
        self._broken_for = self._broken_for + 1 if broken else 0
        if 0 < self._broken_for <= 3:
            return ""  # up to three bytes may yet become a character; more of them were no text to begin with
        readable = len(text) - min(broken, 3)
        new, self._shown = text[self._shown : readable], max(self._shown, readable)
        if len(self._token_ids) > SHORT_WINDOW and (not broken or len(self._token_ids) > LONG_WINDOW):
            self._shorten(text)
        return new

    def _shorten(self, text: str) -> None:
        """Forget all tokens but the last, which stays so that a space at the start of the next word is not dropped."""
        last = decode(self._tokenizer, self._token_ids[-1:])
        is_part_of_character = "\ufffd" in last or not last or not text.endswith(last)
        if not is_part_of_character or len(self._token_ids) > LONG_WINDOW:
            self._token_ids = self._token_ids[-1:]
            self._shown = len(last)
