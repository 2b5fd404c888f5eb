"""Ways to write down the facts of a world: prose, lists, tables."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from apar.data.synth.topics import Attribute
from apar.data.synth.worlds import Item, World

Layout = Callable[[random.Random, World, Sequence[Item], list[Attribute], bool], str]


def write_facts(rng: random.Random, world: World, *, held_out: bool) -> str:
    """All facts of a world in one random layout; groups become sections with a heading each."""
    layout = rng.choices(_LAYOUTS, _WEIGHTS)[0]
    if held_out and rng.random() < 0.25:
        layout = _colon_phrases
    sections = [layout(rng, world, items, world.attributes, held_out) for _, items in world.groups]
    if len(sections) == 1 and not world.groups[0][0]:
        return sections[0]
    heading = rng.choice(_SECTIONS)
    return "\n\n".join(
        heading.format(name=name, full_name=_full_name(world.topic.group, name), facts=facts)
        for (name, _), facts in zip(world.groups, sections, strict=True)
    )


def _full_name(group: str, name: str) -> str:
    """ "Team North", but "Shelf A" and "Bird House": they say already what they are."""
    return name if group in name.lower().split() else f"{group.capitalize()} {name}"


def join(parts: Sequence[str]) -> str:
    """ "a, b and c" """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def say(item: Item, attributes: Sequence[Attribute]) -> str:
    """The item's values in one sentence, in the words of answers: "Mira works as a potter, lives in Varn." """
    return f"{item.name} {', '.join(attribute.say(item.values[attribute.label]) for attribute in attributes)}."


def _also(rng: random.Random) -> str:
    """What may stand between a name and what is said of it: words that say nothing more."""
    return rng.choice(("", "", "", "", "", " also", " now", " still", " really"))


def _phrase(rng: random.Random, attribute: Attribute, held_out: bool) -> int:
    """Which phrase says an attribute: the last one in held-out prompts alone."""
    return rng.randrange(len(attribute.phrases) - (not held_out))


def _sentence_each(
    rng: random.Random, world: World, items: Sequence[Item], attributes: list[Attribute], held_out: bool
) -> str:
    """ "Mira works as a potter, lives in Varn and likes chess." """
    phrases = [_phrase(rng, attribute, held_out) for attribute in attributes]
    vary, also = rng.random() < 0.3, _also(rng)
    sentences = []
    for item in items:
        if vary:
            phrases = [_phrase(rng, attribute, held_out) for attribute in attributes]
        said = [a.say(item.values[a.label], phrase) for a, phrase in zip(attributes, phrases, strict=True)]
        sentences.append(f"{item.name}{also} {join(said)}.")
    return rng.choice((" ", " ", "\n")).join(sentences)


def _sentence_per_fact(
    rng: random.Random, world: World, items: Sequence[Item], attributes: list[Attribute], held_out: bool
) -> str:
    """ "Mira works as a potter. Mira lives in Varn." """
    phrases, also = [_phrase(rng, attribute, held_out) for attribute in attributes], _also(rng)
    return rng.choice((" ", "\n")).join(
        " ".join(
            f"{item.name}{also} {a.say(item.values[a.label], phrase)}."
            for a, phrase in zip(attributes, phrases, strict=True)
        )
        for item in items
    )


def _by_attribute(
    rng: random.Random, world: World, items: Sequence[Item], attributes: list[Attribute], held_out: bool
) -> str:
    """ "Mira works as a potter and Tolan works as a baker. Mira lives in Varn and Tolan lives in Kiel." """
    sentences = []
    for attribute in attributes:
        phrase = _phrase(rng, attribute, held_out)
        sentences.append(
            join([f"{item.name} {attribute.say(item.values[attribute.label], phrase)}" for item in items]) + "."
        )
    return " ".join(sentences)


def _colon_phrases(
    rng: random.Random, world: World, items: Sequence[Item], attributes: list[Attribute], held_out: bool
) -> str:
    """ "- Mira: works as a potter; lives in Varn" """
    phrases = [_phrase(rng, attribute, held_out) for attribute in attributes]
    return "\n".join(
        f"- {item.name}: " + "; ".join(a.say(item.values[a.label], p) for a, p in zip(attributes, phrases, strict=True))
        for item in items
    )


def _table(rng: random.Random, world: World, items: Sequence[Item], attributes: list[Attribute], held_out: bool) -> str:
    head = rng.choice(("Name", world.topic.singular.capitalize()))
    rows = [[head, *(attribute.label for attribute in attributes)], ["---"] * (1 + len(attributes))]
    rows += [[item.name, *(item.values[attribute.label] for attribute in attributes)] for item in items]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _columns(
    rng: random.Random, world: World, items: Sequence[Item], attributes: list[Attribute], held_out: bool
) -> str:
    """ "Name; Job; Home" and below "Mira; potter; Varn" """
    separator = rng.choice(("; ", ", ", " | "))
    rows = [["Name", *(attribute.label for attribute in attributes)]]
    rows += [[item.name, *(item.values[attribute.label] for attribute in attributes)] for item in items]
    return "\n".join(separator.join(row) for row in rows)


def _key_values(
    rng: random.Random, world: World, items: Sequence[Item], attributes: list[Attribute], held_out: bool
) -> str:
    """ "- Mira: job potter, home Varn", "Mira (job: potter, home: Varn)", "Mira - Job: potter; Home: Varn" """
    line, pair, separator = rng.choice(
        (
            ("- {name}: {pairs}", "{label} {value}", ", "),
            ("{name} ({pairs})", "{label}: {value}", ", "),
            ("* {name}: {pairs}", "{label}: {value}", ", "),
            ("{name}: {pairs}.", "{label} {value}", ", "),
            ("- {name}, {pairs}", "{Label}: {value}", "; "),
            ("{name}\n{pairs}", "{Label}: {value}", "\n"),
            ("{name}\n{pairs}", "- {label}: {value}", "\n"),
        )
    )
    return "\n".join(
        line.format(
            name=item.name,
            pairs=separator.join(
                pair.format(label=a.label.lower(), Label=a.label, value=item.values[a.label]) for a in attributes
            ),
        )
        for item in items
    )


_SECTIONS = ("## {name}\n{facts}", "{name}:\n{facts}", "{full_name}:\n{facts}", "# {full_name}\n\n{facts}")
_LAYOUTS: tuple[Layout, ...] = (_sentence_each, _sentence_per_fact, _by_attribute, _table, _columns, _key_values)
_WEIGHTS = (32, 14, 2, 18, 6, 28)
