"""Prompt sets: question files of benchmarks, files of trees, chat records, plain prompts."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

from apar.data.formats import CONVERSATION_KEYS, MalformedRecord, answers, is_tree_record, role_of
from apar.data.inputs import read_batches, source_name
from apar.data.records import Message, TreeRecord
from apar.prompts import is_whole_text


@dataclasses.dataclass(frozen=True)
class EvalPrompt:
    """messages: what the model is asked. category: of the question, for the report. record: with the right answer, if
    there is one to compare with.
    """

    messages: list[Message]
    category: str = ""
    record: TreeRecord | None = None


def read_prompts(path: str | os.PathLike[str], split: str | None = None) -> Iterator[EvalPrompt]:
    """Reads a prompt set, a file of the forms that `apar data build` reads. What a record is, its keys say:

    - ``turns`` and ``category``: a question of Vicuna-Bench or MT-Bench; the first turn is asked;
    - ``tree``: a record of ``apar data``, whose answer can be checked; its category is its ``kind`` or source;
    - ``prompt`` or ``messages``: the prompt alone, or a chat record, of which the last question is asked.

    A record without ``category``, ``kind``, ``source`` or ``dataset`` has the name of the file as category.

    split: of trees only those of this split.

    Raises:
        ValueError: a record is none of these, or the file cannot be read; the message has path and line.
    """
    path = os.fspath(path)
    for batch in read_batches(path):
        for line, record in zip(batch.lines, batch.records, strict=True):
            try:
                prompt = _prompt(json.loads(record), source_name(path))
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}") from error
            except RecursionError as error:
                raise ValueError(f"{path}, line {line}: the JSON is nested too deeply") from error
            if split is None or prompt.record is None or prompt.record.split == split:
                yield prompt


def _prompt(row: Any, name: str) -> EvalPrompt:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {row!r:.60}")
    category = str(row.get("category") or row.get("kind") or row.get("source") or row.get("dataset") or name)
    if is_tree_record(row):
        record = TreeRecord.from_dict(row)
        return EvalPrompt(_checked(record.messages), category, record)
    if isinstance(row.get("turns"), list) and row["turns"] and isinstance(row["turns"][0], str):
        return EvalPrompt(_checked([{"role": "user", "content": row["turns"][0]}]), category)
    return EvalPrompt(_checked(_asked(row)), category)


def _asked(row: dict[str, Any]) -> list[Message]:
    """The messages up to the last answer of a chat record; all of them where the last question has no answer."""
    key = next((key for key in CONVERSATION_KEYS if row.get(key) is not None), None)
    if key is not None and isinstance(row[key], list) and row[key] and role_of(row[key][-1]) != "assistant":
        row = {**row, key: [*row[key], {"role": "assistant", "content": "-"}]}
    try:
        return answers(row, last_only=True)[0].messages
    except MalformedRecord as error:
        no_answer = error
    try:
        return answers({**row, "response": "-"}, last_only=True)[0].messages
    except MalformedRecord:
        raise ValueError(f"expected turns, a tree, messages or a prompt ({no_answer})") from None


def _checked(messages: list[Message]) -> list[Message]:
    if not any(message["content"].strip() for message in messages):
        raise ValueError("the prompt is empty")
    if not all(is_whole_text(message["content"]) for message in messages):
        raise ValueError("the prompt holds half of a surrogate pair, which no tokenizer takes")
    return messages
