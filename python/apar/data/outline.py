"""The outline of a markdown text: its headings, list items and paragraphs, nested, as places in the text.

Only places are noted, nothing is rewritten, so that whatever is cut at them joins to the same text again. What must
stay whole (code, tables, mathematics, quotes) has no structure here and so is never cut.
"""

from __future__ import annotations

import dataclasses
import re

Group = list["Element"]
"""Siblings: the items of one list, the sections under one heading, the paragraphs of one place."""

MAX_NESTING = 64


@dataclasses.dataclass(slots=True)
class Element:
    """A piece of the outline. All places are offsets in the text.

    kind: "heading", "number", "bullet", "bold" (a paragraph that starts with a bold title) or "paragraph".
    begin: start of its first line. body: behind its marker. line_end: end of its first line, without the line break.
    end: behind its last character that is not white space.
    label: the number or letter of an item ("3", "b", "iv"), else "".
    children: the groups inside, in order.
    """

    kind: str
    begin: int
    body: int
    line_end: int
    end: int
    label: str = ""
    children: list[Group] = dataclasses.field(default_factory=list)


def outline(text: str) -> list[Group]:
    """The groups of the text's outermost level."""
    return _groups(text, _lines(text), 0, None, 0)


def begins_whole(text: str, element: Element) -> bool:
    """Whether an item begins with a quote, a table or code, so that its first line has no title."""
    return text.startswith((">", "|", "```", "~~~"), element.body)


@dataclasses.dataclass(slots=True)
class _Line:
    begin: int
    end: int  # without the line break, "\n" or "\r\n"
    kind: str  # "blank", "text", "whole", "break", "heading", "number", "bullet", "bold"
    indent: int = 0
    body: int = 0
    style: str = ""  # items of one list share it
    label: str = ""
    level: int = 0  # of a heading: 1 is the outermost


_MARKER = re.compile(
    r"""[ \t]*(?:
      (?P<fence>`{3,}|~{3,})
    | (?P<quote>>)
    | (?P<break>(?:-[ \t]*){3,}$|(?:\*[ \t]*){3,}$|(?:_[ \t]*){3,}$|={3,}$)
    | (?P<heading>\#{1,6}[ \t]+(?=\S))
    | (?P<number>\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{2,5})[.)](?:[ \t]+(?=\S)|$))
    | (?P<step>(?:Step|Day|Week|Phase|Part|Tip|Stage)[ ]\d{1,3}[ ]?[:.)–—-](?:[ \t]+(?=\S)|$))
    | (?P<bullet>[-*+•–—●▪][ \t]+(?=\S))
    | (?P<bold>\*\*(?=[^\s*])|__(?=[^\s_]))
    | (?P<blank>$)
    )""",
    re.VERBOSE,
)
# No two parts of a pattern can match the same spaces: a line of many would take forever.
_TABLE_RULE = re.compile(r"[ \t]*(?:\|[ \t]*)?:?-+:?[ \t]*(?:\|[ \t:-]*)+$")
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_DIGITS = re.compile(r"\w+")
_FENCE = re.compile(r"`{3,}|~{3,}")
_HTML_BLOCK = re.compile(r"[ ]{0,3}<(pre|table|blockquote|script|style)\b", re.IGNORECASE)
_HTML_END = re.compile(r"</(?:pre|table|blockquote|script|style)>", re.IGNORECASE)
_BEGIN, _END = "\\begin{", "\\end{"
_MATH = (("$$", "$$"), ("\\[", "\\]"), (_BEGIN, _END))
_ROMAN = {"i": 1, "v": 5, "x": 10}
_CLOSING = re.compile(
    r"(?:\*\*)?(?:In conclusion|In summary|In short|Overall|To summari[sz]e|To conclude|By (?:following|using|taking|"
    r"implementing|incorporating|considering|doing)|These (?:are|\w+ are)|With these|I hope|Hope|Please (?:note|let)|"
    r"Remember|Let me know|If you (?:have|need|want|would)|Ultimately|All in all|It(?:'s| is) (?:important|worth)|"
    r"Note that|Note:|Keep in mind|Both|Each of|All of)\b"
)


def _lines(text: str) -> list[_Line]:
    lines: list[_Line] = []
    whole = _WholeBlocks(text, lines)
    begin = 0
    while begin <= len(text):
        line_break = text.find("\n", begin)
        if line_break < 0:
            line_break = len(text)
        end = line_break - 1 if line_break > begin and text[line_break - 1] == "\r" else line_break
        line = _read_line(text, begin, end)
        whole.mark(line)
        lines.append(line)
        begin = line_break + 1
    return lines


class _WholeBlocks:
    """Finds the lines that belong to code, formulas, tables and quotes; is shown one line after the other."""

    def __init__(self, text: str, lines: list[_Line]) -> None:
        self._text = text
        self._lines = lines  # those before the one that is shown
        self._fence = ""  # closes the code that is being read
        self._closes = ""  # closes the formula or the HTML that is being read
        self._environments = 0  # of LaTeX that are open: they nest
        self._quoted = self._in_list = False
        self._tables = "|" in text
        self._formulas = "$$" in text or "\\[" in text or "\\begin{" in text
        self._html_ends = _last_ends(text) if _HTML_BLOCK.search(text) else {}

    def mark(self, line: _Line) -> None:
        """Makes the line's kind "whole" where it is part of such a block."""
        raw = self._text[line.begin : line.end]
        if self._fence:
            if line.kind == "fence" and line.style.startswith(self._fence) and raw.strip() == line.style:
                self._fence = ""
            line.kind = "whole"
        elif self._closes:
            if self._is_closed_by(raw.lower()):
                self._closes = ""
            line.kind = "whole"
        elif line.kind == "fence":
            self._fence, line.kind = line.style, "whole"
        elif line.kind == "quote":
            line.kind, self._quoted = "whole", True
        elif self._quoted and line.kind == "text":
            line.kind = "whole"  # a quote goes on until there is a blank line
        elif line.kind != "blank":
            self._mark_between_blocks(line, raw)
        if line.kind != "whole":
            self._quoted = False

    def _mark_between_blocks(self, line: _Line, raw: str) -> None:
        last = self._lines[-1] if self._lines else None
        if line.indent >= 4 and not self._in_list and last is not None and last.kind in ("blank", "whole"):
            line.kind = "whole"  # code by indentation
            return
        if self._tables and last is not None:
            self._mark_table(line, raw, last)
        if self._formulas and line.kind != "whole":
            for opens, closes in _MATH:
                if _is_left_open(raw, opens, closes):
                    self._closes, line.kind = closes, "whole"
                    self._environments = max(1, raw.count(opens) - raw.count(closes)) if closes == _END else 0
        if self._html_ends and line.kind == "text" and (tag := _HTML_BLOCK.match(raw)):
            closes = f"</{tag[1].lower()}>"
            if closes not in raw.lower() and self._html_ends.get(closes, -1) > line.end:
                self._closes, line.kind = closes, "whole"
        if line.kind in ("number", "bullet"):
            self._in_list = True
            fence = _FENCE.match(self._text, line.body, line.end)
            if fence is not None and fence[0] not in self._text[fence.end() : line.end]:
                self._fence = fence[0]  # the item begins with code
        elif line.kind == "heading" or (line.kind == "text" and not line.indent and _is_blank(last)):
            self._in_list = False

    def _is_closed_by(self, raw: str) -> bool:
        if self._closes != _END:
            return self._closes in raw
        self._environments += raw.count(_BEGIN) - raw.count(_END)
        return self._environments <= 0

    def _mark_table(self, line: _Line, raw: str, last: _Line) -> None:
        if last.kind == "text" and _TABLE_RULE.match(raw):
            last.kind = line.kind = "whole"
        elif "|" in raw and last.kind == "whole" and last.style == "table":
            line.kind = "whole"
        if line.kind == "whole":
            line.style = "table"


def _last_ends(text: str) -> dict[str, int]:
    """Where each closing tag of an HTML block stands last."""
    return {match[0].lower(): match.start() for match in _HTML_END.finditer(text)}


def _read_line(text: str, begin: int, end: int) -> _Line:
    match = _MARKER.match(text, begin, end)
    if match is None:
        body = begin
        while text[body] in " \t":
            body += 1
        return _Line(begin, end, "text", _columns(text, begin, body), body)
    kind = match.lastgroup
    marker = match[kind]
    line = _Line(begin, end, kind, _columns(text, begin, match.start(kind)), match.end(kind))
    if kind == "heading":
        line.level = marker.count("#")
    elif kind == "number":
        line.label = _DIGITS.search(marker)[0]
        line.style = marker.rstrip().replace(line.label, "")
    elif kind == "step":
        line.kind, line.style, line.label = "number", marker.split()[0], marker.split()[1].strip(":.)–—-")
    elif kind == "bullet":
        line.style = marker[0]
    elif kind == "fence":
        line.style = marker
        if marker in text[line.body : end]:
            line.kind = "whole"  # opened and closed on one line
    elif kind == "bold":
        line.body = match.start(kind)
        _read_bold(text, line)
    return line


def _read_bold(text: str, line: _Line) -> None:
    """Tells a line that is all bold, a heading, from a bold title and from a sentence that begins with stress."""
    bold = _BOLD.match(text, line.body, line.end)
    behind = "" if bold is None else text[bold.end() : line.end].strip()
    if bold is not None and behind in ("", ":"):
        line.kind, line.level = "heading", 7
    elif bold is None or not (bold[2].rstrip().endswith(":") or behind.startswith((":", "-", "–", "—"))):
        line.kind = "text"


def _columns(text: str, begin: int, body: int) -> int:
    """How far a line is indented; a tab goes on to the next multiple of four."""
    return len(text[begin:body].expandtabs(4)) if "\t" in text[begin:body] else body - begin


def _is_left_open(raw: str, opens: str, closes: str) -> bool:
    if opens == closes:
        return raw.count(opens) % 2 == 1
    return raw.rfind(opens) > raw.rfind(closes)


def _is_blank(line: _Line | None) -> bool:
    """Also where there is no line: before the first."""
    return line is None or line.kind == "blank"


def _groups(text: str, lines: list[_Line], first: int, last: int | None, nesting: int) -> list[Group]:
    """The groups of lines[first:last]."""
    last = len(lines) if last is None else last
    if nesting >= MAX_NESTING:
        return []
    levels = [line.level for line in lines[first:last] if line.kind == "heading"]
    if not levels:
        return _lists_and_paragraphs(text, lines, first, last, nesting)
    level = min(levels)
    starts = [place for place in range(first, last) if lines[place].kind == "heading" and lines[place].level == level]
    groups = _lists_and_paragraphs(text, lines, first, starts[0], nesting)
    sections = []
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], last], strict=True)):
        if number + 1 == len(starts):
            stop = _without_closing(text, lines, start, stop)
        sections.append(_element(text, lines, "heading", start, stop, nesting))
    groups.append(sections)
    if stop < last:
        groups += _lists_and_paragraphs(text, lines, stop, last, nesting)
    return groups


def _without_closing(text: str, lines: list[_Line], start: int, stop: int) -> int:
    """Where the last section of several ends: not behind a rule, and not with a closing remark on the whole text."""
    for place in range(start + 1, stop):
        if lines[place].kind == "break":
            return place
    paragraph = stop
    while paragraph > start + 1 and lines[paragraph - 1].kind == "blank":
        paragraph -= 1
    while paragraph > start + 1 and lines[paragraph - 1].kind == "text":
        paragraph -= 1
    closes = (
        paragraph > start + 2
        and paragraph < stop
        and lines[paragraph - 1].kind == "blank"
        and _CLOSING.match(text, lines[paragraph].begin)
    )
    return paragraph if closes else stop


def _element(text: str, lines: list[_Line], kind: str, start: int, stop: int, nesting: int) -> Element:
    """The element of lines[start:stop], with what is inside."""
    line = lines[start]
    while stop > start + 1 and not text[lines[stop - 1].begin : lines[stop - 1].end].strip():
        stop -= 1
    element = Element(kind, line.begin, line.body, line.end, _visible_end(text, lines[stop - 1]), line.label)
    if stop > start + 1:
        element.children = _groups(text, lines, start + 1, stop, nesting + 1)
    return element


def _visible_end(text: str, line: _Line) -> int:
    return line.begin + len(text[line.begin : line.end].rstrip())


def _lists_and_paragraphs(text: str, lines: list[_Line], first: int, last: int, nesting: int) -> list[Group]:
    groups: list[Group] = []
    paragraphs: Group = []
    place = first
    while place < last:
        kind = lines[place].kind
        if kind in ("number", "bullet", "bold"):
            starts, stop = _list_items(text, lines, place, last)
            groups.append(
                [
                    _element(text, lines, kind, begin, end, nesting)
                    for begin, end in zip(starts, [*starts[1:], stop], strict=True)
                ]
            )
            place = stop
        elif kind == "text":
            stop = place + 1
            while stop < last and lines[stop].kind == "text":
                stop += 1
            if (stop == last or lines[stop].kind != "whole") and _is_blank(lines[place - 1] if place else None):
                line = lines[place]
                end = _visible_end(text, lines[stop - 1])
                paragraphs.append(Element("paragraph", line.begin, line.body, line.end, end))
            place = stop
        else:
            place += 1
    if paragraphs:
        groups.append(paragraphs)
    return groups


def _list_items(text: str, lines: list[_Line], start: int, last: int) -> tuple[list[int], int]:
    """The list that begins at a line: the lines where its items start, and the line behind its end."""
    head = lines[start]
    starts = [start]
    swallows_whole = swallows_text = False  # whether items before the last had code or text at the margin
    place = start + 1
    while place < last:
        line = lines[place]
        if line.kind == lines[place - 1].kind == "whole":
            pass  # a block goes where its first line went
        elif line.kind == head.kind and abs(line.indent - head.indent) <= 1 and line.style == head.style:
            if not _follows(lines[starts[-1]].label, line.label):
                break
            starts.append(place)
        elif line.kind == "blank" or line.indent > head.indent or lines[place - 1].kind not in ("blank", "whole"):
            if line.kind in ("number", "bold") and line.indent < head.indent:
                break
            if line.kind == "bold" and head.kind == "bullet" and line.indent <= head.indent:
                break
            if line.kind == "number" and head.kind in ("bullet", "bold") and line.indent <= head.indent:
                break
            if line.kind in ("heading", "break"):
                break
        elif line.kind in ("bullet", "number", "bold"):
            # Another list at the same margin: inside the item of a numbered list or under a bold title, else beside.
            if line.indent < head.indent or head.kind == "bullet" or line.kind == "bold" or head.kind == line.kind:
                break
        elif line.kind in ("text", "whole") and head.kind != "bullet":
            following = _next_item(lines, place, last, head, lines[starts[-1]].label)
            if following is None:
                break
            swallows_whole |= line.kind == "whole"
            swallows_text |= line.kind == "text"
            place = following
            continue
        else:
            break
        place += 1
    if swallows_whole or swallows_text:
        place = _after_last_item(text, lines, starts[-1], place, last, swallows_text)
    while place > starts[-1] + 1 and lines[place - 1].kind == "blank":
        place -= 1
    return starts, place


def _next_item(lines: list[_Line], place: int, last: int, head: _Line, label: str) -> int | None:
    """The line where the list goes on behind text at the margin; None: it does not."""
    for following in range(place, last):
        line = lines[following]
        if line.kind in ("heading", "break"):
            return None
        if line.kind == head.kind and line.style == head.style and abs(line.indent - head.indent) <= 1:
            return following if _follows(label, line.label) else None
    return None


def _after_last_item(text: str, lines: list[_Line], item: int, place: int, last: int, swallows_text: bool) -> int:
    """Behind the code or the paragraph that belongs to the last item, since items before it had such, too."""
    has_body = any(line.kind != "blank" for line in lines[item + 1 : place])
    if place >= last or has_body:
        return place
    if lines[place].kind == "text" and not (swallows_text and not _CLOSING.match(text, lines[place].begin)):
        return place
    while place < last and lines[place].kind in ("text", "whole"):
        place += 1
    return place


def _follows(before: str, label: str) -> bool:
    """Whether a label comes next in its list. Markdown also allows a list of nothing but ones."""
    if not label:
        return True
    if label.isdigit() or before.isdigit():
        return label.isdigit() and before.isdigit() and (int(label) == int(before) + 1 or label == before == "1")
    if label.isupper() != before.isupper():
        return False
    one_letter = len(label) == len(before) == 1 and ord(label) == ord(before) + 1
    return one_letter or _roman(label) == _roman(before) + 1 > 1


def _roman(label: str) -> int:
    values = [_ROMAN.get(letter, -1000) for letter in label.lower()]
    return sum(-value if value < after else value for value, after in zip(values, [*values[1:], 0], strict=True))
