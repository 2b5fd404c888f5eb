"""Prompt sets: question files of benchmarks, files of trees, chat records, plain prompts."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apar.data.formats import MalformedRecord, answers
from apar.data.records import Message, TreeRecord, open_bytes


@dataclasses.dataclass(frozen=True)
class EvalPrompt:
    """messages: what the model is asked. category: of the question, for the report. record: with the right answer, if
    there is one to compare with.
    """

    messages: list[Message]
    category: str = ""
    record: TreeRecord | None = None


def read_prompts(path: str | os.PathLike[str], split: str | None = None) -> Iterator[EvalPrompt]:
    """Reads a prompt set, JSON lines, also .gz. What a line is, its keys say:

    - ``turns`` and ``category``: a question of Vicuna-Bench or MT-Bench; the first turn is asked;
    - ``tree``: a record of ``apar data``, whose answer can be checked; its category is its ``kind`` or source;
    - ``prompt`` or ``messages``: the prompt alone, or a chat record, of which the last question is asked.

    split: of trees only those of this split.

    Raises:
        ValueError: a line is none of these; the message has path and line.
    """
    name = Path(path).name.removesuffix(".gz").removesuffix(".jsonl")
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                prompt = _prompt(json.loads(line), name)
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
            if split is None or prompt.record is None or prompt.record.split == split:
                yield prompt


def _prompt(row: Any, name: str) -> EvalPrompt:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {row!r:.60}")
    category = str(row.get("category") or row.get("kind") or row.get("source") or row.get("dataset") or name)
    if "tree" in row:
        record = TreeRecord.from_dict(row)
        return EvalPrompt(record.messages, category, record)
    if isinstance(row.get("turns"), list) and row["turns"] and isinstance(row["turns"][0], str):
        return EvalPrompt([{"role": "user", "content": row["turns"][0]}], category)
    return EvalPrompt(_asked(row), category)


def _asked(row: dict[str, Any]) -> list[Message]:
    """The messages up to the last answer of a chat record; of a prompt without an answer all of them."""
    try:
        return answers(row, last_only=True)[0].messages
    except MalformedRecord as error:
        no_answer = error
    completed = {**row, "response": "-"}
    if isinstance(row.get("messages"), list):
        completed = {"messages": [*row["messages"], {"role": "assistant", "content": "-"}]}
    try:
        return answers(completed, last_only=True)[0].messages
    except MalformedRecord:
        raise ValueError(f"expected turns, a tree, messages or a prompt ({no_answer})") from None
