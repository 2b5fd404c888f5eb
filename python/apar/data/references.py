"""Details that cannot be written on their own: they refer to a sibling, or use what a sibling introduced.

A heuristic. A branch does not see the details of its siblings, and neither does what its parent writes later. So the
detail that refers is left unforked, and so is the sibling that it refers to, if that is clear, else all before it:

- words: "as above", "the previous step", "the former", "the second one", "step 3", a detail that begins with
  "Similarly" or "In contrast";
- names: code that one detail introduces (an inline code span, a definition or assignment in a code block) and a later
  one uses, unless prompt or titles have it;
- numbers: one that stands in a detail and again in a later one that calculates, and the result of a calculation that
  stands again in any later one.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterator

from apar.data.outline import Element, Group
from apar.data.rules import LONGEST_TITLE

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_NUMBERED = ("step", "point", "item", "option", "method", "section", "part", "number", "tip", "example", "equation")
_THING = r"(?:steps?|points?|items?|options?|methods?|approach(?:es)?|ideas?|examples?|sections?|rules?|parts?|ones?)\b"

# (words of which one must be there at all, pattern, what is meant: "number", "ordinal", "previous" or "any" before).
# Patterns are for lower-case text; looking for the plain words first is what makes this fast.
_REFERENCES = [
    (_NUMBERED, re.compile(rf"\b(?:{'|'.join(_NUMBERED)})s? #?(\d{{1,2}})\b(?!\s*[:%])"), "number"),
    (_ORDINALS, re.compile(rf"\bthe ({'|'.join(_ORDINALS)}) {_THING}"), "ordinal"),
    (
        ("above", "earlier", "previously"),
        re.compile(r"\b(?:as|from|like|see|than|with|to|of) (?:\w+ ){0,2}(?:above|earlier|previously)\b"),
        "any",
    ),
    (
        ("above", "earlier", "before", "previously"),
        re.compile(
            r"\b(?:mentioned|described|discussed|shown|noted|listed|outlined|defined|created|given) "
            r"(?:above|earlier|before|previously)\b"
        ),
        "any",
    ),
    (
        ("above", "aforementioned", "preceding", "former", "latter"),
        re.compile(r"\b(?:the|these|those) (?:above|aforementioned|preceding|former|latter)\b"),
        "any",
    ),
    (
        ("previous", "prior", "preceding", "last"),
        re.compile(rf"\b(?:the|your|our|this) (?:previous|prior|preceding|last) {_THING}"),
        "previous",
    ),
    (("the same",), re.compile(r"\bthe same (?:steps?|process|procedure|method|approach)\b"), "previous"),
    (("repeat",), re.compile(r"\brepeat (?:the|this|these|steps?)(?: process| steps?)?\b"), "previous"),
]
_OPENING = re.compile(
    r"(?:Similarly|Likewise|In contrast|By contrast|On the other hand|Conversely|Again|Unlike|Instead|Alternatively|"
    r"Also|Additionally|Furthermore|Moreover|Next|Then|Now|After (?:that|this)|Once)\b"
)
_INLINE_CODE = re.compile(r"(?<!`)`([^`\n]{3,60})`(?!`)")
_DEFINED = re.compile(
    r"^[ \t]*(?:(?:def|class|function|const|let|var|func|fn|struct|interface)[ ]+(\w{3,})|(\w{3,})[ ]*=(?!=))",
    re.MULTILINE,
)
_RESULT = re.compile(r"=[ \t]*(?:[$€£][ \t]*)?(\d+(?:,\d{3})*(?:\.\d+)?)")
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_WORD = re.compile(r"\w{3,}")


def frozen(text: str, prompt: str, groups: list[Group]) -> set[int]:
    """The elements that must not fork, and whose contents must not, by their ``id``."""
    found: set[int] = set()
    level = _Level(groups)
    for place, meant in _references(text):
        # In the innermost group that has such a sibling.
        any(siblings.freeze(number, meant, found) for siblings, number in reversed(level.path(place)))
    _find_openings(text, groups, found)
    if "`" in text or "=" in text:
        _find_uses(text, _Seen(text, prompt), groups, found)
    return found


def _references(text: str) -> Iterator[tuple[int, int | str]]:
    """(place, what is meant: the number of a sibling, "previous" or "any")."""
    lower = text.lower()
    if len(lower) != len(text):
        lower = text  # a letter that changes its length in lower case would move all places
    for words, pattern, meant in _REFERENCES:
        if any(word in lower for word in words):
            for match in pattern.finditer(lower):
                if meant == "number":
                    yield match.start(), int(match[1])
                elif meant == "ordinal":
                    yield match.start(), _ORDINALS.index(match[1]) + 1
                else:
                    yield match.start(), meant


class _Siblings:
    """A group, and what of it is frozen: each element is touched once, however many references there are."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._frozen_before = 0
        self._frozen_labels: set[int] = set()

    def freeze(self, number: int, meant: int | str, found: set[int]) -> bool:
        """Adds the element that refers, and those that it means, to ``found``. False: there are none of these."""
        if isinstance(meant, int):
            labelled = self._numbers.get(meant, [])
            if not labelled or labelled == [number]:
                return False
            others = [] if meant in self._frozen_labels else labelled
            self._frozen_labels.add(meant)
        elif not number:
            return False
        elif meant == "previous":
            others = [number - 1]
        else:
            others = range(self._frozen_before, number)
            self._frozen_before = max(self._frozen_before, number)
        found.update(id(self._group[other]) for other in (*others, number))
        return True

    @functools.cached_property
    def _numbers(self) -> dict[int, list[int]]:
        """Which elements a number means: those with this label, or without labels the one in this place."""
        numbers: dict[int, list[int]] = {}
        for place, element in enumerate(self._group):
            if element.kind != "paragraph" and (not element.label or element.label.isdigit()):
                numbers.setdefault(int(element.label) if element.label else place + 1, []).append(place)
        return numbers


class _Level:
    """The elements of one level by their places, so that the one around a place is found without looking at all."""

    def __init__(self, groups: list[Group]) -> None:
        siblings = [_Siblings(group) for group in groups]
        elements = [
            (element, of, number)
            for group, of in zip(groups, siblings, strict=True)
            for number, element in enumerate(group)
        ]
        self._elements = sorted(elements, key=lambda entry: entry[0].body)
        self._begins = [element.body for element, _, _ in self._elements]
        self._inner: dict[int, _Level] = {}

    def path(self, place: int) -> list[tuple[_Siblings, int]]:
        """The elements around a place as (siblings, number among them), the outermost first."""
        path: list[tuple[_Siblings, int]] = []
        level = self
        while True:
            at = bisect.bisect_right(level._begins, place) - 1
            if at < 0 or place >= level._elements[at][0].end:
                return path
            element, siblings, number = level._elements[at]
            path.append((siblings, number))
            if at not in level._inner:
                level._inner[at] = _Level(element.children)
            level = level._inner[at]


def _find_openings(text: str, groups: list[Group], found: set[int]) -> None:
    """Details that begin with a word that ties them to the one before."""
    for group in groups:
        for number, element in enumerate(group):
            if element.children:
                _find_openings(text, element.children, found)
            if not number or element.kind == "paragraph":
                continue
            colon = text.find(":", element.body, min(element.line_end, element.body + LONGEST_TITLE))
            begin = colon + 1 if colon >= 0 else element.line_end
            while begin < element.end and text[begin] in " \r\n\t*_":
                begin += 1
            if _OPENING.match(text, begin, element.end):
                found.update((id(group[number - 1]), id(element)))


def _find_uses(text: str, seen: _Seen, groups: list[Group], found: set[int]) -> None:
    """Names and numbers that a later sibling uses."""
    for group in groups:
        if len(group) > 1 and group[0].kind != "paragraph":
            _find_uses_in_group(text, seen, group, found)
        for element in group:
            if element.children:
                _find_uses(text, seen, element.children, found)


def _find_uses_in_group(text: str, seen: _Seen, group: Group, found: set[int]) -> None:
    if not any(text.find(mark, group[0].body, group[-1].end) >= 0 for mark in "`="):
        return
    titles = _terms("\n".join(_title(text, element) for element in group))
    introduced: dict[str, int] = {}  # names and results: the item that has them first
    numbers: dict[str, int] = {}
    for number, element in enumerate(group):
        detail = text[element.body : element.end]
        names = _names(detail)
        digits = {value for value in _NUMBER.findall(detail) if len(value) > 1}
        digits = {value for value in digits if value not in titles and not seen.before(group[0].begin, value)}
        results = digits & set(_RESULT.findall(detail))
        used = {introduced[name] for name in (names | digits) & introduced.keys()}
        if results:
            used |= {numbers[value] for value in digits & numbers.keys()}
        if used:
            found.update(id(group[other]) for other in (*used, number))
        new_names = {name for name in names if name not in titles and not seen.before(group[0].begin, name)}
        for name in new_names | results:
            introduced.setdefault(name, number)
        for value in digits:
            numbers.setdefault(value, number)


def _names(detail: str) -> set[str]:
    if "`" not in detail:
        return set()
    names = set(_INLINE_CODE.findall(detail))
    if "```" in detail:
        names.update(name or other for name, other in _DEFINED.findall(detail))
    return names


class _Seen:
    """Names, numbers and words that every branch of a group sees: in the prompt, or in the text before the group."""

    def __init__(self, text: str, prompt: str) -> None:
        self._text = text
        self._prompt = prompt

    def before(self, place: int, term: str) -> bool:
        return self._first_places.get(term, place) < place

    @functools.cached_property
    def _first_places(self) -> dict[str, int]:
        return {**_terms(self._text), **dict.fromkeys(_terms(self._prompt), -1)}


def _terms(text: str) -> dict[str, int]:
    """Where each inline code, number and word of a text stands first."""
    first: dict[str, int] = {}
    for pattern in (_INLINE_CODE, _NUMBER, _WORD):
        for match in pattern.finditer(text):
            term = match[match.lastindex or 0]
            first[term] = min(match.start(), first.get(term, len(text)))
    return first


def _title(text: str, element: Element) -> str:
    longest = min(element.line_end, element.body + LONGEST_TITLE)
    colon = text.find(":", element.body, longest)
    return text[element.body : longest if colon < 0 else colon]
