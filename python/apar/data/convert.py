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
    [("key", np.uint64), ("record", np.uint64), ("levels", np.uint8), ("side", np.uint8), ("kept", np.bool_)]
)
"""What is noted of a record besides its line: hashes of prompt and of the whole, levels of branches (1: no fork), and
what is decided already."""


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    forks: ForkOptions
    last_only: bool
    seed: int
    source: str | None


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
    rows: list[tuple[int, int, int, int, bool]] = []
    signatures: list[np.ndarray] = []
    malformed: list[tuple[int, str]] = []
    for line, raw in zip(batch.lines, batch.records, strict=True):
        try:
            found = answers(json.loads(raw, object_pairs_hook=_object), last_only=options.last_only)
            trees = [_tree(answer, options.forks) for answer in found]
        except MalformedRecord as error:
            malformed.append((line, str(error)))
            continue
        except ValueError as error:
            malformed.append((line, f"no JSON: {error}"))
            continue
        except RecursionError:
            malformed.append((line, "the JSON is nested too deeply"))
            continue
        opening = _opening(found[0].messages)
        words = normalized_words(opening)
        key, places = prompt_key(words, options.seed), signature(words)
        for answer, tree in zip(found, trees, strict=True):
            lines.append(_line(answer, tree, _source(answer, options.source, batch)))
            rows.append((key, _record_hash(answer.messages, answer.text), _levels(tree), UNDECIDED, False))
            signatures.append(places)
    return _converted(lines, rows, signatures, malformed, len(batch.records))


def keep(batch: Batch, options: ConvertOptions) -> Converted:
    """The records of a file of trees, which stay as they are."""
    lines, rows, signatures = [], [], []
    for line, raw in zip(batch.lines, batch.records, strict=True):
        try:
            plain = json.loads(raw)
            record = TreeRecord.from_dict(plain)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{batch.path}, line {line}: {error}") from error
        words = normalized_words(_opening(record.messages))
        side = HELDOUT if record.split == "heldout" else TRAIN
        raw = raw.strip()
        lines.append(json_line(plain) if b"\n" in raw else raw + b"\n")
        whole = _record_hash(record.messages, record.tree.text)
        rows.append((prompt_key(words, options.seed), whole, min(record.tree.depth, 255), side, True))
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a record. Of a key that stands twice Python would drop the first value without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise MalformedRecord(f"the key {twice!r:.40} stands twice in an object")
    return found


def _tree(answer: Answer, options: ForkOptions) -> list[dict[str, Any]]:
    """The answer, cut. Raises MalformedRecord where the rules, or the sentence splitter, have a fault."""
    prompt = "\n".join(message["content"] for message in answer.messages)
    try:
        tree = paragraphs(answer.text, prompt, options)
    except MemoryError:
        raise
    except Exception as error:  # one answer in a million must not end the work of hours
        raise MalformedRecord(f"a fault of the rules: {type(error).__name__}: {error}") from error
    if _joined(tree) != answer.text:
        raise MalformedRecord("a fault of the rules: the tree does not give the answer back")
    return tree


def _levels(tree: list[dict[str, Any]]) -> int:
    """Levels of branches, the trunk counted, as in ``ParagraphTree.depth``."""
    return 1 + max((_levels(piece["detail"]) for piece in tree if "detail" in piece), default=0)


def _joined(tree: list[dict[str, Any]]) -> str:
    return "".join(piece["text"] + (_joined(piece["detail"]) if "detail" in piece else "") for piece in tree)


def _source(answer: Answer, chosen: str | None, batch: Batch) -> str:
    """The source that was asked for, else the record's own, else that of its file."""
    own = answer.extra.get("source")
    return chosen if chosen is not None else own if isinstance(own, str) and own else batch.source


def _line(answer: Answer, tree: list[dict[str, Any]], source: str) -> bytes:
    extra = {key: value for key, value in answer.extra.items() if key != "source"}
    record = {"split": "train", "messages": answer.messages, "tree": tree, "source": source, **extra}
    return json_line(record)


def _record_hash(messages: list[Message], text: str) -> int:
    plain = json.dumps([[message["role"], message["content"]] for message in messages] + [text])
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "little")
