"""The right answers: what a request about a world is answered with, as a paragraph tree. One request, one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apar.data.synth.facts import say
from apar.data.synth.topics import Attribute
from apar.data.synth.worlds import Item, World

Paragraphs = list[dict[str, Any]]
"""A branch as ``ParagraphTree.to_dict`` has it: texts, each with the branch that is forked behind it, if any."""

STYLES = ("numbered", "bullets", "headings")


def overview(world: World, attributes: Sequence[Attribute], style: str) -> Paragraphs:
    """An entry per item, with a sentence behind it."""
    intro = f"Here is an overview of the {world.topic.plural}:"
    return _list(intro, [(item.name, _line(style, say(item, attributes))) for item in world.items], style)


def instructions(world: World, attributes: Sequence[Attribute], style: str) -> Paragraphs:
    """An entry per step, in order."""
    intro = "Go on in this order:"
    return _list(intro, [(item.name, _line(style, say(item, attributes))) for item in world.items], style)


def comparison(world: World, attributes: Sequence[Attribute], style: str) -> Paragraphs:
    """An entry per attribute, with a sentence about all items behind it."""
    intro = f"Here is a comparison of the {world.topic.plural}:"
    entries = []
    for attribute in attributes:
        said = [f"{item.name} {attribute.say(item.values[attribute.label])}" for item in world.items]
        entries.append((attribute.label, _line(style, ", ".join(said) + ".")))
    return _list(intro, entries, style)


def report(world: World, attributes: Sequence[Attribute], style: str) -> Paragraphs:
    """An entry per item, with a sentence for each attribute behind it."""
    intro = f"Here is a report on the {world.topic.plural}:"
    entries = [
        (item.name, _line(style, " ".join(say(item, [attribute]) for attribute in attributes))) for item in world.items
    ]
    return _list(intro, entries, style)


def by_group(world: World, attributes: Sequence[Attribute], style: str) -> Paragraphs:
    """An entry per group; behind it, on the next level, an entry per item."""
    intro = f"Here is an overview by {world.topic.group}:"
    entries = []
    for name, items in world.groups:
        entries.append((name, _points([(item.name, f" {say(item, attributes)}") for item in items], style)))
    return _list(intro, entries, style)


def by_point(world: World, attributes: Sequence[Attribute], style: str) -> Paragraphs:
    """An entry per item; behind it, on the next level, an entry per attribute."""
    intro = f"Here are all points about the {world.topic.plural}:"
    entries = []
    for item in world.items:
        points = [(attribute.label, f" {say(item, [attribute])}") for attribute in attributes]
        entries.append((item.name, _points(points, style)))
    return _list(intro, entries, style)


def plain(text: str) -> Paragraphs:
    """An answer without branches."""
    return [{"text": text}]


def which(item: Item, attribute: Attribute) -> Paragraphs:
    """The item behind what was asked for, which leads to it."""
    return plain(f"The one that {attribute.say(item.values[attribute.label])} is {item.name}.")


def yes_no(item: Item, attribute: Attribute, true: bool) -> Paragraphs:
    """What the facts say, then what follows."""
    return plain(f"{say(item, [attribute])[:-1]}, so {'yes' if true else 'no'}.")


def paragraph(world: World, attributes: Sequence[Attribute]) -> Paragraphs:
    """All items in one paragraph."""
    return plain(" ".join(say(item, attributes) for item in world.items))


def names(items: Sequence[Item]) -> Paragraphs:
    """The names alone, in one line."""
    return plain(", ".join(item.name for item in items) + ".")


def _list(intro: str, entries: list[tuple[str, Paragraphs]], style: str) -> Paragraphs:
    paragraphs = []
    for number, (title, detail) in enumerate(entries, 1):
        lead = {"numbered": f"{number}. {title}:", "bullets": f"- {title}:", "headings": f"## {title}\n"}[style]
        before = f"{intro}\n\n" if number == 1 else "\n\n" if style == "headings" else "\n"
        paragraphs.append({"text": before + lead, "detail": detail})
    return paragraphs


def _points(entries: list[tuple[str, str]], style: str) -> Paragraphs:
    """The points below an entry: indented bullets, or bullets below a heading."""
    indent = "" if style == "headings" else "   "
    breaks = [""] * (style == "headings") + ["\n"] * len(entries)
    return [
        {"text": f"{line_break}{indent}- {title}:", "detail": plain(detail)}
        for line_break, (title, detail) in zip(breaks, entries, strict=False)
    ]


def _line(style: str, text: str) -> Paragraphs:
    return plain(text if style == "headings" else f" {text}")
