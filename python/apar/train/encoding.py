"""From records of text to packed trees: chat template, tokens of every paragraph, control tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from apar.data import TreeRecord
from apar.grammar import Grammar
from apar.prompts import apply_chat_template, is_whole_text
from apar.train.packing import MAX_BRANCHES, PackedTree, TokenTree, pack_tree
from apar.tree import ParagraphTree, decode

RECORDS_AT_ONCE = 1000
# Written in front of a paragraph so that a SentencePiece tokenizer does not take its first word for the start of a
# text.
LEADS = ("\n", "|", "a", "0")


@dataclasses.dataclass
class EncodingCounts:
    """What came of the records.

    joined_details: details that the grammar has no place for (empty, or right behind a control token) and that became
    part of the text of their parent. changed_texts: answers that the tokenizer does not give back byte for byte.
    unusable: records left out: a prompt that is empty, ends with a control token, or is refused by the chat template
    (``refused`` says how the first was); a paragraph whose tokens hold a control token or cannot be told from those of
    its neighbours; half of a surrogate pair; more branches than a packed tree can have.
    """

    records: int = 0
    joined_details: int = 0
    changed_texts: int = 0
    unusable: int = 0
    refused: str = ""


class TreeEncoder:
    """Encodes records for one tokenizer and its control tokens.

    Paragraphs are encoded one by one, since that is how they are decoded: no token reaches over a fork. Control tokens
    spelled out in a text are encoded as ordinary text.
    """

    def __init__(self, tokenizer: Any, grammar: Grammar) -> None:
        if not grammar.can_fork:
            raise ValueError("grammar: it has no control tokens, expected a fork and a child token")
        if tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: it has no end-of-sequence token, expected one: it ends every branch")
        self._tokenizer = tokenizer
        self._grammar = grammar
        self._end_id = tokenizer.eos_token_id
        self._reserved = grammar.control_ids | {self._end_id}
        self._leads: list[tuple[str, list[int]]] = []
        if not self._paragraphs_join():
            self._leads = [(lead, self._encode([lead])[0]) for lead in LEADS]
        self.counts = EncodingCounts()

    def encode(self, records: Iterable[TreeRecord]) -> Iterator[PackedTree]:
        """One packed tree per record, in order; records that cannot be encoded are counted and left out.

        Raises ValueError for messages when the tokenizer has no chat template.
        """
        records = iter(records)
        while batch := list(islice(records, RECORDS_AT_ONCE)):
            yield from self._encode_batch(batch)

    def _encode_batch(self, records: Sequence[TreeRecord]) -> Iterator[PackedTree]:
        whole = [record for record in records if _is_whole(record)]
        self.counts.records += len(records) - len(whole)
        self.counts.unusable += len(records) - len(whole)
        records = whole
        trees = [self._texts(record.tree) for record in records]
        prompts = self._encode_prompts(records)
        firsts = list(dict.fromkeys(tree[0] for tree in trees))
        first_ids = self._without_reserved(dict(zip(firsts, self._encode(firsts), strict=True)))
        other_ids = self._encode_behind(list(dict.fromkeys(own for tree in trees for own in _own_texts(tree))))
        for record, prompt_ids, tree in zip(records, prompts, trees, strict=True):
            self.counts.records += 1
            ids = _map_tree(tree, first_ids, other_ids)
            usable_prompt = prompt_ids and prompt_ids[-1] not in self._grammar.control_ids
            if not usable_prompt or ids is None or _num_branches(ids) > MAX_BRANCHES:
                self.counts.unusable += 1
                continue
            visible = list(chain.from_iterable(_own_texts(ids, with_first=True)))
            self.counts.changed_texts += decode(self._tokenizer, visible) != record.tree.text
            yield pack_tree(prompt_ids, ids, self._grammar.fork_id, self._grammar.child_id, self._end_id)

    def _encode_prompts(self, records: Sequence[TreeRecord]) -> list[list[int]]:
        """As `apar.generate` encodes them: messages by the chat template, texts as they are where there is none."""
        if getattr(self._tokenizer, "chat_template", None) is None:
            for number, record in enumerate(records):
                if not isinstance(record.prompt, str):
                    raise ValueError(
                        f"chat_template: the tokenizer has no chat template, and record {self.counts.records + number} "
                        'is a list of messages; expected "vicuna" or a file'
                    )
            return self._tokenizer([record.prompt for record in records])["input_ids"]
        texts = [self._prompt_text(record) for record in records]
        ids = iter(self._tokenizer([text for text in texts if text], add_special_tokens=False)["input_ids"])
        return [next(ids) if text else [] for text in texts]

    def _prompt_text(self, record: TreeRecord) -> str:
        """What the chat template makes of it; nothing where it refuses, as templates do with roles they do not know."""
        try:
            return apply_chat_template(self._tokenizer, record.messages, self.counts.records)
        except ValueError as error:
            self.counts.refused = self.counts.refused or str(error.__cause__ or error)
            return ""

    def _texts(self, tree: ParagraphTree) -> list[Any]:
        texts, joined = _text_tree(tree, behind_control=False)
        self.counts.joined_details += joined
        return texts

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _encode_behind(self, texts: list[str]) -> dict[str, list[int] | None]:
        """Tokens of texts that something stands in front of; None where they cannot be told."""
        if not self._leads:
            found: dict[str, list[int] | None] = dict(zip(texts, self._encode(texts), strict=True))
        else:
            found = {"": []}
            missing = [text for text in texts if text]
            for lead, lead_ids in self._leads:
                for text, ids in zip(missing, self._encode([lead + text for text in missing]), strict=True):
                    if ids[: len(lead_ids)] == lead_ids:
                        found[text] = ids[len(lead_ids) :]
                missing = [text for text in missing if text not in found]
            found.update(dict.fromkeys(missing))
        return self._without_reserved(found)

    def _without_reserved(self, found: dict[str, list[int] | None]) -> dict[str, list[int] | None]:
        return {text: None if ids is None or self._reserved & set(ids) else ids for text, ids in found.items()}

    def _paragraphs_join(self) -> bool:
        """Whether texts encoded one by one and decoded together are what they were."""
        for texts in (["a", "b"], ["a", " b"], ["a:", "\nb"]):
            ids = list(chain.from_iterable(self._encode(texts)))
            if decode(self._tokenizer, ids) != "".join(texts):
                return False
        return True


def _is_whole(record: TreeRecord) -> bool:
    return is_whole_text(record.tree.text) and all(is_whole_text(message["content"]) for message in record.messages)


def _text_tree(tree: ParagraphTree, behind_control: bool) -> tuple[list[Any], int]:
    """The tree as ``[text, child, text, ..., text]``, and the number of details that became text of their parent since
    the grammar has no place for them. behind_control: whether a control token stands in front of the first text.
    """
    parts: list[Any] = [""]
    joined = 0
    node: ParagraphTree | None = tree
    while node is not None:
        parts[-1] += node.own
        if node.detail is not None and node.detail.text:
            if parts[-1] or (len(parts) == 1 and not behind_control):
                child, joined_below = _text_tree(node.detail, behind_control=True)
                parts += [child, ""]
            else:
                # No fork token stands right behind a control token: the detail's text goes on in the parent.
                child, joined_below = _text_tree(node.detail, behind_control=True)
                joined += 1
                parts[-1] += child[0]
                parts += child[1:]
            joined += joined_below
        elif node.detail is not None:
            joined += 1
        node = node.next
    return parts, joined


def _own_texts(tree: list[Any], with_first: bool = False) -> Iterator[Any]:
    """Texts (or ids) in reading order; the very first one only if asked for."""
    pending = [(tree, 0)]
    skip = not with_first
    while pending:
        node, place = pending.pop()
        if not skip:
            yield node[place]
        skip = False
        if place + 1 < len(node):
            pending.append((node, place + 2))
            pending.append((node[place + 1], 0))


def _map_tree(tree: list[Any], first: dict[str, list[int]] | None, others: dict[str, list[int] | None]) -> Any:
    """The tree with tokens for texts; None if a text has none."""
    mapped: TokenTree = []
    for place, part in enumerate(tree):
        if place % 2:
            ids = _map_tree(part, None, others)
        else:
            ids = first[part] if place == 0 and first is not None else others[part]
        if ids is None:
            return None
        mapped.append(ids)
    return mapped


def _num_branches(tree: TokenTree) -> int:
    return 1 + sum(map(_num_branches, tree[1::2]))
