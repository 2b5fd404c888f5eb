"""From the text of an answer to its paragraph tree."""

from __future__ import annotations

import dataclasses
from typing import Any

from apar.data.outline import Group, begins_whole, outline
from apar.data.references import frozen
from apar.data.rules import RULES, Rule, rules_named
from apar.tree import ParagraphTree

MAX_FORKS = 64  # of one branch: what the decoder allows by default
_WORKED_OUT = ("```", "~~~", "$$", "\\[")  # prose around code and formulas is one line of thought


@dataclasses.dataclass(frozen=True)
class ForkOptions:
    """How answers are cut.

    rules: names of rules or of groups of rules (see ``apar.data.rules``).
    max_depth: levels of details, 1 as in the paper (the decoder's own ``max_depth`` counts the trunk, too: one more).
    min_detail: characters that a detail must have, the white space around it not counted.
    short_text: answers of fewer characters have no paragraph split after its first sentence; nor have those with blocks
        of code or formulas, whose paragraphs lead from one to the next.
    fork_references: fork also details that refer to a sibling (see ``apar.data.references``).
    """

    rules: tuple[str, ...] = tuple(RULES)
    max_depth: int = 2
    min_detail: int = 24
    short_text: int = 1000
    fork_references: bool = False

    def __post_init__(self) -> None:
        rules_named(self.rules)
        for name, least in (("max_depth", 1), ("min_detail", 1), ("short_text", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


Cut = tuple[int, int, list["Cut"]]
"""Where a detail begins, where it ends, and the cuts inside."""


def paragraph_tree(text: str, prompt: str = "", options: ForkOptions | None = None) -> ParagraphTree:
    """The tree of an answer. Its text is ``text``, character by character.

    prompt: helps to tell whether details depend on each other.
    """
    return ParagraphTree.from_dict(paragraphs(text, prompt, options or ForkOptions()))


def paragraphs(text: str, prompt: str, options: ForkOptions) -> list[dict[str, Any]]:
    """The tree as plain data, as ``ParagraphTree.to_dict`` gives it."""
    groups = outline(text)
    if not groups:
        return [{"text": text}]
    still = set() if options.fork_references else frozen(text, prompt, groups)
    rules = rules_named(options.rules)
    if len(text) < options.short_text or any(mark in text for mark in _WORKED_OUT):
        rules.pop("first_sentence", None)
    cuts = _Cutter(text, list(rules.values()), options, still).cuts(groups, 0)
    return _pieces(text, 0, len(text), cuts)


class _Cutter:
    def __init__(self, text: str, rules: list[Rule], options: ForkOptions, frozen: set[int]) -> None:
        self._text = text
        self._rules = rules
        self._options = options
        self._frozen = frozen

    def cuts(self, groups: list[Group], depth: int) -> list[Cut]:
        """The forks of one branch, in order."""
        found: list[Cut] = []
        for group in groups:
            places = self._fork_places(group) if depth < self._options.max_depth else {}
            for number, element in enumerate(group):
                if number in places:
                    inner = self.cuts(element.children, depth + 1)
                    found.append((places[number], element.end, inner))
                elif id(element) not in self._frozen and element.children:
                    found += self.cuts(element.children, depth)
        found.sort(key=lambda cut: cut[0])
        return found[:MAX_FORKS]

    def _fork_places(self, group: Group) -> dict[int, int]:
        """Number in the group: offset, for those that fork; a single one gains nothing and does not."""
        if len(group) < 2:
            return {}
        places = {}
        for number, element in enumerate(group):
            if id(element) in self._frozen or begins_whole(self._text, element):
                continue
            for rule in self._rules:
                place = rule(self._text, element)
                if place is not None:
                    if len(self._text[place : element.end].strip()) >= self._options.min_detail:
                        places[number] = place
                    break
        return places if len(places) > 1 else {}


def _pieces(text: str, begin: int, end: int, cuts: list[Cut]) -> list[dict[str, Any]]:
    pieces: list[dict[str, Any]] = []
    for fork, detail_end, inner in cuts:
        pieces.append({"text": text[begin:fork], "detail": _pieces(text, fork, detail_end, inner)})
        begin = detail_end
    pieces.append({"text": text[begin:end]})
    return pieces
