"""What prompts ask for, in many wordings, and what the right answer is."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from apar.data.synth import answers
from apar.data.synth.facts import join
from apar.data.synth.names import draw_words
from apar.data.synth.topics import Attribute
from apar.data.synth.wordings import (
    ABOUT,
    ALL,
    BY_GROUP,
    BY_POINT,
    CHAT,
    COMPARE,
    COUNT,
    DEFAULT_STYLE,
    IN_STYLE,
    INSTRUCT,
    NAMES,
    ONE,
    OPENINGS,
    OVERVIEW,
    PARAGRAPH,
    REPORT,
    WHICH,
    WITH_LABELS,
    YES_NO,
    Wordings,
)
from apar.data.synth.words import DAYS, STEPS
from apar.data.synth.worlds import Item, World


@dataclasses.dataclass(frozen=True)
class Request:
    """``text`` asks; ``answer`` is a paragraph tree in plain data. ``kind`` names the entry of ``KINDS``."""

    kind: str
    text: str
    answer: answers.Paragraphs


@dataclasses.dataclass(frozen=True)
class Kind:
    """``weight``: how often, compared with the others. ``grouped``: whether it needs a world in groups."""

    make: Callable[[random.Random, World, bool], Request]
    weight: int
    forks: bool
    grouped: bool = False


def pick(rng: random.Random, wordings: Wordings, held_out: bool) -> str:
    return rng.choice(wordings[held_out])


def _all(rng: random.Random, world: World) -> str:
    return _fill(rng.choice(ALL[0]), world)


def _fill(text: str, world: World, **more: str) -> str:
    return text.format(
        singular=world.topic.singular, plural=world.topic.plural, group=world.topic.group, all="{all}", **more
    )


def _some(rng: random.Random, world: World) -> tuple[list[Attribute], bool]:
    """The attributes asked for, in the order of the facts, and whether the request has to name them."""
    if rng.random() < 0.55:
        return world.attributes, rng.random() < 0.3
    count = rng.randint(1, len(world.attributes))
    chosen = set(rng.sample(range(len(world.attributes)), count))
    return [attribute for index, attribute in enumerate(world.attributes) if index in chosen], True


def _sentence(opening: str, text: str) -> str:
    if not opening:
        text = text[0].upper() + text[1:]
    question = opening.startswith(("Could", "Can", "Would"))
    return f"{opening}{text}{'?' if question and '. ' not in text else '.'}"


def _listing(
    kind: str, wordings: Wordings, answer: Callable[[World, Sequence[Attribute], str], answers.Paragraphs]
) -> Callable[[random.Random, World, bool], Request]:
    def make(rng: random.Random, world: World, held_out: bool) -> Request:
        attributes, named = _some(rng, world)
        # Of a held-out request the verb, or what it is about, or how it should look is in a held-out wording.
        new = {rng.choice(("verb", "labels", "style")), rng.choice(("verb", "all", "opening"))} if held_out else set()
        text = _fill(pick(rng, wordings, "verb" in new), world)
        text = text.replace("{all}", _fill(pick(rng, ALL, "all" in new), world))
        style = DEFAULT_STYLE[kind]
        if named:
            labels = join([f"the {attribute.label.lower()}" for attribute in attributes])
            text += pick(rng, WITH_LABELS, "labels" in new).format(labels=labels)
        if rng.random() < 0.5:
            style = rng.choice(answers.STYLES)
            text += pick(rng, IN_STYLE[style], "style" in new)
        return Request(kind, _sentence(pick(rng, OPENINGS, "opening" in new), text), answer(world, attributes, style))

    return make


def _one(rng: random.Random, world: World, held_out: bool) -> Request:
    item, attribute = rng.choice(world.items), rng.choice(world.attributes)
    text = pick(rng, ONE, held_out).format(label=attribute.label.lower(), name=item.name)
    return Request("one", text, answers.plain(answers.say(item, [attribute])))


def _about(rng: random.Random, world: World, held_out: bool) -> Request:
    item = rng.choice(world.items)
    return Request(
        "about", pick(rng, ABOUT, held_out).format(name=item.name), answers.plain(answers.say(item, world.attributes))
    )


def _names(rng: random.Random, world: World, held_out: bool) -> Request:
    return Request("names", _fill(pick(rng, NAMES, held_out), world), answers.names(world.items))


def _count(rng: random.Random, world: World, held_out: bool) -> Request:
    answer = answers.plain(f"There are {len(world.items)} {world.topic.plural}.")
    return Request("count", _fill(pick(rng, COUNT, held_out), world), answer)


def _which(rng: random.Random, world: World, held_out: bool) -> Request:
    # Only a value that one item alone has makes a question with one answer.
    unique: list[tuple[Item, Attribute]] = []
    for attribute in world.attributes:
        values = [item.values[attribute.label] for item in world.items]
        unique += [(item, attribute) for item in world.items if values.count(item.values[attribute.label]) == 1]
    if not unique:
        return _one(rng, world, held_out)
    item, attribute = rng.choice(unique)
    said = attribute.say(item.values[attribute.label], rng.randrange(len(attribute.phrases) - (not held_out)))
    return Request("which", _fill(pick(rng, WHICH, held_out), world, said=said), answers.which(item, attribute))


def _yes_no(rng: random.Random, world: World, held_out: bool) -> Request:
    item, other, attribute = rng.choice(world.items), rng.choice(world.items), rng.choice(world.attributes)
    claimed = item if rng.random() < 0.5 else other
    said = attribute.say(claimed.values[attribute.label], rng.randrange(len(attribute.phrases) - (not held_out)))
    true = claimed.values[attribute.label] == item.values[attribute.label]
    text = pick(rng, YES_NO, held_out).format(name=item.name, said=said)
    return Request("yes_no", text, answers.yes_no(item, attribute, true))


def _paragraph(rng: random.Random, world: World, held_out: bool) -> Request:
    text = pick(rng, PARAGRAPH, held_out).replace("{all}", _all(rng, world))
    return Request("paragraph", _sentence(pick(rng, OPENINGS, False), text), answers.paragraph(world, world.attributes))


def _chat(rng: random.Random, world: World, held_out: bool) -> Request:
    wordings, answer = rng.choice(CHAT)
    text = pick(rng, wordings, held_out)
    return Request("chat", text[0].upper() + text[1:], answers.plain(answer))


def _repeat(rng: random.Random, world: World, held_out: bool) -> Request:
    words = draw_words(rng, rng.randint(6, 40), held_out=held_out)
    separator = rng.choice((" ", " ", ", ", "; ", "\n"))
    # From the start, or from a word that occurs once.
    once = [place for place, word in enumerate(words) if words.count(word) == 1]
    begin = rng.choice(once) if once and rng.random() < 0.5 else 0
    first = f" from {words[begin]}" if begin else ""
    text = f"Repeat{first}:\n{separator.join(words)}"
    return Request("repeat", text, answers.plain(separator.join(words[begin:])))


KINDS: dict[str, Kind] = {
    "overview": Kind(_listing("overview", OVERVIEW, answers.overview), 22, True),
    "instructions": Kind(_listing("instructions", INSTRUCT, answers.instructions), 5, True),
    "comparison": Kind(_listing("comparison", COMPARE, answers.comparison), 14, True),
    "report": Kind(_listing("report", REPORT, answers.report), 10, True),
    "by_group": Kind(_listing("by_group", BY_GROUP, answers.by_group), 10, True, grouped=True),
    "by_point": Kind(_listing("by_point", BY_POINT, answers.by_point), 7, True),
    "one": Kind(_one, 8, False),
    "about": Kind(_about, 8, False),
    "names": Kind(_names, 10, False),
    "count": Kind(_count, 5, False),
    "which": Kind(_which, 0, False),
    "yes_no": Kind(_yes_no, 0, False),
    "paragraph": Kind(_paragraph, 10, False),
    "chat": Kind(_chat, 3, False),
    "repeat": Kind(_repeat, 0, False),
}
"""What a prompt can ask for, by name. Kinds of weight 0 are drawn only when asked for: "which" and "yes_no" go from a
value to the thing that has it, "repeat" is copying, to begin a training with.
"""

WITHOUT_FACTS = ("chat", "repeat")

ORDERED_NAMES = (STEPS, DAYS)
"""Topics of these names are what instructions and plans are about."""
