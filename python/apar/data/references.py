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
_RESULT = re.compile(r"=[ \t]*[$€£]?[ \t]*(\d+(?:,\d{3})*(?:\.\d+)?)")
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_WORD = re.compile(r"\w{3,}")


def frozen(text: str, prompt: str, groups: list[Group]) -> set[int]:
    """The elements that must not fork, and whose contents must not, by their ``id``."""
    found: set[int] = set()
    for place, meant in _references(text):
        _resolve(groups, place, meant, found)
    _find_openings(text, groups, found)
    if "`" in text or "=" in text:
        _find_uses(text, prompt, groups, found)
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


def _resolve(groups: list[Group], place: int, meant: int | str, found: set[int]) -> None:
    """Freeze who refers and what is meant, in the innermost group where there is such a sibling."""
    for group, number in reversed(_path(groups, place)):
        if isinstance(meant, int):
            others = [
                other
                for other, element in enumerate(group)
                if other != number
                and (element.label == str(meant) or (not element.label and other + 1 == meant))
                and element.kind != "paragraph"
            ]
        else:
            others = list(range(number - 1 if meant == "previous" else 0, number)) if number else []
        if others:
            found.update(id(group[other]) for other in (*others, number))
            return


def _path(groups: list[Group], place: int) -> list[tuple[Group, int]]:
    """The elements around a place as (group, number in the group), the outermost first."""
    path: list[tuple[Group, int]] = []
    level: list[Group] = groups
    while level:
        around = next(
            (
                (group, number)
                for group in level
                for number, element in enumerate(group)
                if element.body <= place < element.end
            ),
            None,
        )
        if around is None:
            break
        path.append(around)
        level = around[0][around[1]].children
    return path


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
            while begin < element.end and text[begin] in " \n\t*_":
                begin += 1
            if _OPENING.match(text, begin, element.end):
                found.update((id(group[number - 1]), id(element)))


def _find_uses(text: str, prompt: str, groups: list[Group], found: set[int]) -> None:
    """Names and numbers that a later sibling uses."""
    for group in groups:
        if len(group) > 1 and group[0].kind != "paragraph":
            _find_uses_in_group(text, prompt, group, found)
        for element in group:
            if element.children:
                _find_uses(text, prompt, element.children, found)


def _find_uses_in_group(text: str, prompt: str, group: Group, found: set[int]) -> None:
    if not any(text.find(mark, group[0].body, group[-1].end) >= 0 for mark in "`="):
        return
    common = _seen_by_all(text, prompt, group)
    introduced: dict[str, int] = {}  # names and results: the item that has them first
    numbers: dict[str, int] = {}
    for number, element in enumerate(group):
        detail = text[element.body : element.end]
        names = _names(detail)
        digits = {value for value in _NUMBER.findall(detail) if len(value) > 1 and value not in common}
        results = digits & set(_RESULT.findall(detail))
        used = {introduced[name] for name in (names | digits) & introduced.keys()}
        if results:
            used |= {numbers[value] for value in digits & numbers.keys()}
        if used:
            found.update(id(group[other]) for other in (*used, number))
        for name in (names - common) | results:
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


def _seen_by_all(text: str, prompt: str, group: Group) -> set[str]:
    """Names and numbers that every branch sees: those of the prompt, of the text before the list, and of the titles."""
    seen = "\n".join([prompt, text[: group[0].begin], *(_title(text, element) for element in group)])
    return _names(seen) | set(_NUMBER.findall(seen)) | set(_WORD.findall(seen))


def _title(text: str, element: Element) -> str:
    longest = min(element.line_end, element.body + LONGEST_TITLE)
    colon = text.find(":", element.body, longest)
    return text[element.body : longest if colon < 0 else colon]
