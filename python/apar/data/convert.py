"""One batch of records into lines of trees: what the worker processes do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from apar.data.forks import ForkOptions, paragraphs
from apar.data.formats import Answer, MalformedRecord, answers
from apar.data.inputs import Batch
from apar.data.records import Message, TreeRecord, json_line
from apar.data.splits import HELDOUT, PERMUTATIONS, TRAIN, UNDECIDED, normalized_words, prompt_key, signature

LINE_START = b'{"split": "train", '
HELDOUT_START = b'{"split": "heldout", '

INDEX = np.dtype(
    [("key", np.uint64), ("record", np.uint64), ("forked", np.bool_), ("side", np.uint8), ("kept", np.bool_)]
)
"""What is noted of a record besides its line: hashes of prompt and of the whole, and what is decided already."""


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    forks: ForkOptions
    last_only: bool
    seed: int


@dataclasses.dataclass(frozen=True)
class Converted:
    """lines: one a record, all as if for training. index: INDEX [n]. signatures: uint32 [n, 64].

    malformed: (line, what is wrong). records: how many were read.
    """

    lines: list[bytes]
    index: np.ndarray
    signatures: np.ndarray
    malformed: list[tuple[int, str]]
    records: int


def convert(batch: Batch, options: ConvertOptions) -> Converted:
    """The trees of a batch of chat records."""
    lines: list[bytes] = []
    rows: list[tuple[int, int, bool, int, bool]] = []
    signatures: list[np.ndarray] = []
    malformed: list[tuple[int, str]] = []
    for line, raw in zip(batch.lines, batch.records, strict=True):
        try:
            found = answers(json.loads(raw), last_only=options.last_only)
        except MalformedRecord as error:
            malformed.append((line, str(error)))
            continue
        except (ValueError, RecursionError) as error:
            malformed.append((line, f"no JSON: {error}"))
            continue
        opening = _opening(found[0].messages)
        words = normalized_words(opening)
        key, places = prompt_key(words, options.seed), signature(words)
        for answer in found:
            tree = _tree(answer, options.forks, f"{batch.path}, line {line}")
            lines.append(_line(answer, tree, batch.source))
            rows.append((key, _record_hash(answer.messages, answer.text), len(tree) > 1, UNDECIDED, False))
            signatures.append(places)
    return _converted(lines, rows, signatures, malformed, len(batch.records))


def keep(batch: Batch, options: ConvertOptions) -> Converted:
    """The records of a file of trees, which stay as they are."""
    lines, rows, signatures = [], [], []
    for line, raw in zip(batch.lines, batch.records, strict=True):
        try:
            record = TreeRecord.from_dict(json.loads(raw))
        except ValueError as error:
            raise ValueError(f"{batch.path}, line {line}: {error}") from error
        words = normalized_words(_opening(record.messages))
        side = HELDOUT if record.split == "heldout" else TRAIN
        lines.append(raw if raw.endswith(b"\n") else raw + b"\n")
        forked = record.tree.next is not None
        rows.append(
            (prompt_key(words, options.seed), _record_hash(record.messages, record.tree.text), forked, side, True)
        )
        signatures.append(signature(words))
    return _converted(lines, rows, signatures, [], len(batch.records))


def _converted(
    lines: list[bytes], rows: list[Any], signatures: list[np.ndarray], malformed: list[tuple[int, str]], records: int
) -> Converted:
    stacked = np.stack(signatures) if signatures else np.zeros((0, PERMUTATIONS), np.uint32)
    return Converted(lines, np.array(rows, INDEX), stacked, malformed, records)


def _opening(messages: list[Message]) -> str:
    """What the conversation was opened with: all its turns go to the same side."""
    return next((message["content"] for message in messages if message["role"] == "user"), "")


def _tree(answer: Answer, options: ForkOptions, place: str) -> list[dict[str, Any]]:
    prompt = "\n".join(message["content"] for message in answer.messages)
    tree = paragraphs(answer.text, prompt, options)
    if _joined(tree) != answer.text:
        raise RuntimeError(f"{place}: the tree does not give the answer back; this is a fault of the rules")
    return tree


def _joined(tree: list[dict[str, Any]]) -> str:
    return "".join(piece["text"] + (_joined(piece["detail"]) if "detail" in piece else "") for piece in tree)


def _line(answer: Answer, tree: list[dict[str, Any]], source: str) -> bytes:
    extra = {key: value for key, value in answer.extra.items() if key != "source"}
    record = {"split": "train", "messages": answer.messages, "tree": tree, "source": source, **extra}
    return json_line(record)


def _record_hash(messages: list[Message], text: str) -> int:
    plain = json.dumps([[message["role"], message["content"]] for message in messages] + [text])
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")
