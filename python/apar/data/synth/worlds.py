"""Worlds: what prompts are about. A world is a few named things of one topic, each with a value for every attribute."""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Sequence

from apar.data.synth.names import draw_names
from apar.data.synth.topics import TOPICS, Attribute, Topic
from apar.data.synth.words import DAYS


@dataclasses.dataclass
class Item:
    name: str
    values: dict[str, str]
    """Attribute label to value."""


@dataclasses.dataclass
class World:
    """Items of one topic. ``groups``: the items in named groups, or all of them in one group without a name.

    ``attributes`` are in the order of the facts, which is that of the answers, too.
    """

    topic: Topic
    attributes: list[Attribute]
    groups: list[tuple[str, list[Item]]]

    @property
    def items(self) -> list[Item]:
        return [item for _, items in self.groups for item in items]


def make_world(
    rng: random.Random,
    topics: Sequence[Topic] = TOPICS,
    *,
    held_out: bool,
    grouped: bool = False,
    items: int | None = None,
) -> World:
    """A world of one of the topics. ``items``: how many things, or of every group if ``grouped``; by default 2 to 5."""
    topic = rng.choice(topics)
    num_groups = rng.choice((2, 2, 2, 3)) if grouped else 1
    sizes = [
        items or (rng.choice((2, 2, 2, 3)) if grouped else rng.choice((2, 3, 3, 3, 4, 4, 5))) for _ in range(num_groups)
    ]
    if not isinstance(topic.names, str):
        while sum(sizes) > len(topic.names):
            sizes[sizes.index(max(sizes))] -= 1
    num_attributes = rng.choice((2, 2, 3) if grouped else (2, 2, 3, 3, 4))
    chosen = rng.sample(range(len(topic.attributes)), num_attributes)
    attributes = [topic.attributes[index] for index in (chosen if rng.random() < 0.5 else sorted(chosen))]
    counts = collections.Counter()
    for kind, count in [(topic.names, sum(sizes)), (topic.group_names, num_groups if grouped else 0)]:
        counts.update({kind: count} if isinstance(kind, str) else {})
    for attribute in attributes:
        counts.update({attribute.values: sum(sizes)} if isinstance(attribute.values, str) else {})
    names = draw_names(rng, counts, held_out=held_out)
    item_names = _names(rng, topic.names, sum(sizes), names)
    made = [
        Item(name, {attribute.label: _value(rng, attribute, names) for attribute in attributes}) for name in item_names
    ]
    group_names = _names(rng, topic.group_names, num_groups, names) if grouped else [""]
    groups, begin = [], 0
    for name, size in zip(group_names, sizes, strict=True):
        groups.append((name, made[begin : begin + size]))
        begin += size
    return World(topic, attributes, groups)


def _names(rng: random.Random, source: str | tuple[str, ...], count: int, names: dict[str, list[str]]) -> list[str]:
    if isinstance(source, str):
        return [names[source].pop() for _ in range(count)]
    chosen = rng.sample(source, count)
    return sorted(chosen, key=source.index) if source is DAYS else chosen


def _value(rng: random.Random, attribute: Attribute, names: dict[str, list[str]]) -> str:
    if isinstance(attribute.values, str):
        return names[attribute.values].pop()
    return str(rng.choice(attribute.values))
