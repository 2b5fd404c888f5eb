"""The text side of a tree of branches: paragraphs with a detail and a next."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

BranchId = tuple[int, ...]


@dataclasses.dataclass
class ParagraphTree:
    """A paragraph: its own text, the *detail* that was forked behind it and the *next* paragraph of the same branch.

    The whole text is own text, detail, next, depth first. ``branch``: id of the branch that wrote the paragraph.
    """

    own: str = ""
    branch: BranchId = ()
    detail: ParagraphTree | None = None
    next: ParagraphTree | None = None
    newlines: str = "exact"

    @property
    def text(self) -> str:
        """Everything in reading order."""
        parts: list[str] = []
        for node, follows_detail, starts_detail in self._in_reading_order():
            own = node.own
            if own and self.newlines == "published" and (starts_detail or follows_detail):
                line_breaks = "\n\n" if follows_detail else "\n"
                if not own.startswith(line_breaks):
                    own = line_breaks + own.lstrip("\n")
            parts.append(own)
        return "".join(parts)

    @property
    def num_forks(self) -> int:
        return sum(node.detail is not None for node in self)

    @property
    def depth(self) -> int:
        """Levels of branches: 1 without a fork."""
        return 1 + max((len(node.branch) for node in self), default=0) - len(self.branch)

    def __iter__(self) -> Iterator[ParagraphTree]:
        """All paragraphs in reading order."""
        return (node for node, _, _ in self._in_reading_order())

    def branch_text(self, branch: BranchId) -> str:
        """What one branch wrote itself, without its details."""
        return "".join(node.own for node in self if node.branch == branch)

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain data: the paragraphs of this branch in order, each with its text and its detail (a list again)."""
        paragraphs = []
        node: ParagraphTree | None = self
        while node is not None:
            paragraph: dict[str, Any] = {"text": node.own}
            if node.detail is not None:
                paragraph["detail"] = node.detail.to_dict()
            paragraphs.append(paragraph)
            node = node.next
        return paragraphs

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, paragraphs: list[dict[str, Any]], *, newlines: str = "exact") -> ParagraphTree:
        """The tree that ``to_dict`` gave. Details are numbered in the order of their forks.

        Raises:
            ValueError: not such a list; the message names the place, as in ``[2].detail[0].text``.
        """
        root = cls(newlines=newlines)
        pending = [(root, paragraphs, "")]
        while pending:
            node, items, place = pending.pop()
            if not isinstance(items, list) or not items:
                raise ValueError(f"tree{place}: expected a list of paragraphs, at least one, got {items!r:.80}")
            forks = 0
            for number, item in enumerate(items):
                here = f"{place}[{number}]"
                if not isinstance(item, dict) or not isinstance(item.get("text"), str):
                    raise ValueError(f"tree{here}: expected an object with a string as text, got {item!r:.80}")
                if number:
                    node.next = cls(branch=node.branch, newlines=newlines)
                    node = node.next
                node.own = item["text"]
                if item.get("detail") is not None:
                    node.detail = cls(branch=(*node.branch, forks), newlines=newlines)
                    pending.append((node.detail, item["detail"], f"{here}.detail"))
                    forks += 1
        return root

    def render(self, *, width: int | None = None, color: bool = False) -> str:
        """The tree for a terminal: the trunk at the left edge, each detail one level further right, with its id.

        width: columns; None: those of the terminal, or 100. color: levels differ in colour, by terminal codes.
        """
        if width is None:
            width = _terminal_width()
        lines: list[str] = []
        for node in self:
            lines.extend(_render_paragraph(node, len(node.branch) - len(self.branch), width, color))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text

    def _in_reading_order(self) -> Iterator[tuple[ParagraphTree, bool, bool]]:
        """(paragraph, comes behind a detail, starts a detail), without recursion: chains of paragraphs can be long."""
        pending: list[tuple[ParagraphTree, bool, bool]] = [(self, False, False)]
        while pending:
            node, follows_detail, starts_detail = pending.pop()
            yield node, follows_detail, starts_detail
            if node.next is not None:
                pending.append((node.next, node.detail is not None, False))
            if node.detail is not None:
                pending.append((node.detail, False, True))


@dataclasses.dataclass(frozen=True)
class Segment:
    """The visible tokens of one branch between two of its forks."""

    branch: BranchId
    token_ids: list[int]


def split_text(tokenizer: Any, segments: list[list[int]]) -> list[str]:
    """Text of each segment, such that the pieces joined are the text of all tokens decoded in one go.

    Segments are not decoded alone: a tokenizer may drop the space in front of the first word it decodes, and a
    character may be spread over tokens on both sides of a boundary (it then counts to the later segment).
    """
    all_ids = [token for segment in segments for token in segment]
    text = decode(tokenizer, all_ids)
    pieces: list[str] = []
    begin = end_ids = 0
    for segment in segments:
        end_ids += len(segment)
        end = (
            len(text)
            if end_ids == len(all_ids)
            else max(begin, _prefix_length(text, decode(tokenizer, all_ids[:end_ids])))
        )
        pieces.append(text[begin:end] if segment else "")
        begin = end if segment else begin
    return pieces


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """Text of token ids: special tokens left out, spaces left as they are."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def build_tree(segments: list[Segment], texts: list[str], newlines: str = "exact") -> ParagraphTree:
    """The tree of segments in reading order. A segment of a longer id starts the detail of the one before it."""
    root = ParagraphTree(texts[0] if texts else "", segments[0].branch if segments else (), newlines=newlines)
    last: dict[BranchId, ParagraphTree] = {root.branch: root}
    for segment, text in zip(segments[1:], texts[1:], strict=True):
        node = ParagraphTree(text, segment.branch, newlines=newlines)
        if segment.branch in last:
            last[segment.branch].next = node
        else:
            last[segment.branch[:-1]].detail = node
        last[segment.branch] = node
    return root


def _prefix_length(text: str, prefix: str) -> int:
    """Length of the part of ``prefix`` that really begins ``text``; characters not complete at its end do not count."""
    while prefix.endswith("\ufffd"):
        prefix = prefix[:-1]
    return len(prefix) if text.startswith(prefix) else _common(text, prefix)


def _common(left: str, right: str) -> int:
    """Length of the common beginning of two texts."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _terminal_width() -> int:
    return shutil.get_terminal_size((100, 30)).columns


def _render_paragraph(node: ParagraphTree, level: int, width: int, color: bool) -> list[str]:
    label = "" if level == 0 else f"{'│  ' * (level - 1)}├─ {branch_name(node.branch)}  "
    indent = "│  " * level
    lines: list[str] = []
    for paragraph in node.own.strip("\n").splitlines() or [""]:
        room = max(10, width - len(label or indent))
        lines.extend(textwrap.wrap(paragraph, room, drop_whitespace=True) or [""])
    shown = [(label if number == 0 else indent) + line for number, line in enumerate(lines)]
    if color:
        hue = 36 - level % 6 if level else 0
        shown = [f"\033[{hue}m{line}\033[0m" if hue else line for line in shown]
    return shown if any(line.strip() for line in lines) or level else []


def branch_name(branch: BranchId) -> str:
    """A branch id for people: "trunk", "2", "2.0"."""
    return ".".join(map(str, branch)) or "trunk"
