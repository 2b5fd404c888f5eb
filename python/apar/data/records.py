"""Files of paragraph trees: one JSON object a line, also compressed."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from apar.files import written_whole
from apar.tree import ParagraphTree

Message = dict[str, str]
SPLITS = ("train", "heldout")


@dataclasses.dataclass
class TreeRecord:
    """A prompt and the tree of its answer.

    prompt: the text of the prompt, or the messages up to the answer, [{"role": ..., "content": ...}, ...].
    tree: the answer. source: name of the data set that it comes from. split: "train" or "heldout".
    extra: whatever else the file says about the record; kept when it is written again.
    """

    prompt: str | list[Message]
    tree: ParagraphTree
    source: str = ""
    split: str = "train"
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def messages(self) -> list[Message]:
        """The prompt as messages; a text is what a user says."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt

    @property
    def num_forks(self) -> int:
        return self.tree.num_forks

    def value(self, key: str) -> str | None:
        """``source``, ``split`` or an extra value as it stands in the file, texts without quotes: "true", "7"."""
        value = {"source": self.source, "split": self.split, **self.extra}.get(key)
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the object that stands in a file."""
        known = {"messages": self.messages, "tree": self.tree.to_dict(), "source": self.source, "split": self.split}
        return {**known, **self.extra}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> TreeRecord:
        """The record of an object of a file. "prompt" (a text) may stand in place of "messages".

        Raises:
            ValueError: a key is missing or has a value of the wrong kind.
        """
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, got {record!r:.80}")
        extra = dict(record)
        prompt = extra.pop("messages", None)
        if prompt is None:
            prompt = extra.pop("prompt", None)
            if not isinstance(prompt, str):
                raise ValueError(f"expected messages or a text as prompt, got the keys {sorted(record)}")
        elif not _are_messages(prompt):
            raise ValueError(f"messages: expected objects with role and content, got {prompt!r:.80}")
        if "tree" not in extra:
            raise ValueError(f"expected a tree, got the keys {sorted(record)}")
        tree = ParagraphTree.from_dict(extra.pop("tree"))
        source, split = extra.pop("source", ""), extra.pop("split", "train")
        if not isinstance(source, str):
            raise ValueError(f"source: expected a text, got {source!r:.80}")
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r:.80}")
        return cls(prompt, tree, source, split, extra)


def read_trees(path: str | os.PathLike[str]) -> Iterator[TreeRecord]:
    """Reads a file that `apar data build` wrote, line by line; one that ends in .gz is decompressed.

    Raises:
        ValueError: a line that is no record; the message has the path and the number of the line.
        OSError: the file cannot be read.
    """
    number = 0
    with open_bytes(path) as lines:
        try:
            for number, line in enumerate(lines, 1):  # noqa: B007 (the errors below name it)
                if line.strip():
                    yield TreeRecord.from_dict(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"{os.fspath(path)} ends or breaks behind line {number}: {error}") from error
        except RecursionError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: the JSON is nested too deeply") from error


def write_trees(path: str | os.PathLike[str], records: Iterable[TreeRecord]) -> int:
    """Writes records, compressed where the path ends in .gz. Returns their number.

    The file appears whole or not at all: an error on the way leaves what was there before.
    """
    count = 0
    with written_whole(path) as file:
        for record in records:
            file.write(json_line(record.to_dict()))
            count += 1
    return count


def json_line(value: Any) -> bytes:
    """One line of a JSONL file. Text that UTF-8 cannot carry (half a surrogate pair) is written escaped."""
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()


def open_bytes(path: str | os.PathLike[str]) -> BinaryIO:
    """A file for reading, decompressed where its name ends in .gz."""
    return gzip.open(path, "rb") if os.fspath(path).endswith(".gz") else open(path, "rb")


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in value
    )
