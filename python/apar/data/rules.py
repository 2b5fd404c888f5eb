"""Where an element of an outline may fork: behind its title. One small function a rule, the first that answers counts.

A rule takes the text and an element and returns the offset behind the title, where the detail begins, or None.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from apar.data.outline import Element
from apar.data.sentences import first_sentence_end, is_balanced

Rule = Callable[[str, Element], "int | None"]

LONGEST_TITLE = 100  # characters
SHORT_PARAGRAPH = 240  # characters; paragraphs below are left whole

_COLON = re.compile(r":(?:\*\*|__)?(?=\s|$)|：")
_DASH = re.compile(r"[ \t][-–—](?=[ \t])")
_BOLD = re.compile(r"(\*\*|__)(?=\S)(?:.+?)(?<=\S)\1(?:[ \t]*:(?=\s|$)|[ \t]+[-–—](?=[ \t]))?")
_SENTENCE_STOP = re.compile(r"[.!?;][\"')]*\s")


def numbered_bold_title(text: str, element: Element) -> int | None:
    """`3. **Title**: detail`, also with a dash, with the colon inside, or with the detail on the lines below."""
    return _bold_title(text, element) if element.kind == "number" else None


def numbered_title(text: str, element: Element) -> int | None:
    """`3. Title: detail` and `3. Title - detail`."""
    return _plain_title(text, element) if element.kind == "number" else None


def numbered_line(text: str, element: Element) -> int | None:
    """`3. Title` with the detail on the lines below."""
    return _line_title(text, element) if element.kind == "number" else None


def bold_paragraph(text: str, element: Element) -> int | None:
    """`**Title**: detail` as a paragraph of its own."""
    return _bold_title(text, element) if element.kind == "bold" else None


def heading(text: str, element: Element) -> int | None:
    """`## Title`, and a line that is nothing but bold, with what stands under it."""
    return element.line_end if element.kind == "heading" else None


def bullet_bold_title(text: str, element: Element) -> int | None:
    """`- **Title**: detail`."""
    return _bold_title(text, element) if element.kind == "bullet" else None


def bullet_title(text: str, element: Element) -> int | None:
    """`- Title: detail`."""
    return _plain_title(text, element) if element.kind == "bullet" else None


def bullet_line(text: str, element: Element) -> int | None:
    """`- Title` with the detail on the lines below."""
    return _line_title(text, element) if element.kind == "bullet" else None


def first_sentence(text: str, element: Element) -> int | None:
    """A long paragraph, or a long item without a title, behind its first sentence; only where it is a single line."""
    length = element.end - element.body
    if element.kind == "heading" or length < SHORT_PARAGRAPH or element.line_end < element.end:
        return None
    end = first_sentence_end(text[element.body : element.end])
    return None if end is None or length - end < SHORT_PARAGRAPH // 3 else element.body + end


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        numbered_bold_title,
        numbered_title,
        numbered_line,
        bold_paragraph,
        heading,
        bullet_bold_title,
        bullet_title,
        bullet_line,
        first_sentence,
    )
}
"""By name, in the order in which they are tried."""

RULE_GROUPS = {
    "numbered": ("numbered_bold_title", "numbered_title", "numbered_line"),
    "headings": ("bold_paragraph", "heading"),
    "bullets": ("bullet_bold_title", "bullet_title", "bullet_line"),
    "paragraphs": ("first_sentence",),
}
"""Names under which rules are chosen together."""


def rules_named(names: list[str] | tuple[str, ...]) -> dict[str, Rule]:
    """The rules of these names or groups, in the order in which they are tried.

    Raises:
        ValueError: a name that is neither.
    """
    known = {**RULE_GROUPS, **{name: (name,) for name in RULES}}
    for name in names:
        if name not in known:
            raise ValueError(f"rules: expected names among {', '.join(known)}, got {name!r}")
    chosen = {rule for name in names for rule in known[name]}
    return {name: rule for name, rule in RULES.items() if name in chosen}


def _bold_title(text: str, element: Element) -> int | None:
    match = _BOLD.match(text, element.body, element.line_end)
    if match is None or match.end() - element.body > LONGEST_TITLE + 4:
        return None
    title, behind = match[0], text[match.end() : element.line_end].strip()
    words = title.strip("*_")
    if not words.strip(" \t:-–—"):
        return None  # a line to fill in, stars
    if title[-1] in "*_" and behind and words[-1] not in ":.–—-":
        return None  # stressed words at the head of a sentence
    return match.end()


def _plain_title(text: str, element: Element) -> int | None:
    line = text[element.body : min(element.line_end, element.body + LONGEST_TITLE + 8)]
    match = _COLON.search(line) or _DASH.search(line)
    if match is None or not 0 < match.start() <= LONGEST_TITLE:
        return None
    title = line[: match.end()]
    if _SENTENCE_STOP.search(title) or not is_balanced(title):
        return None
    return element.body + match.end()


def _line_title(text: str, element: Element) -> int | None:
    if element.line_end >= element.end or element.line_end - element.body > LONGEST_TITLE:
        return None
    return element.line_end if is_balanced(text[element.body : element.line_end]) else None
