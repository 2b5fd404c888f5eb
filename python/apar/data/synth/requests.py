"""What prompts ask for, in many wordings, and what the right answer is."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from apar.data.synth import answers
from apar.data.synth.facts import join
from apar.data.synth.words import DAYS, STEPS
from apar.data.synth.worlds import Attribute, Item, World


@dataclasses.dataclass(frozen=True)
class Request:
    """``text`` asks; ``answer`` is a paragraph tree in plain data. ``kind`` names the entry of ``KINDS``."""

    kind: str
    text: str
    answer: answers.Paragraphs


@dataclasses.dataclass(frozen=True)
class Kind:
    """``weight``: how often among 100 prompts. ``grouped``: whether it needs a world in groups."""

    make: Callable[[random.Random, World, bool], Request]
    weight: int
    forks: bool
    grouped: bool = False


# Wordings come in pairs: those for training and those that are held out. The words of a held-out wording all occur in
# other wordings; it is their order that is new.
_Wordings = tuple[tuple[str, ...], tuple[str, ...]]

_OPENINGS: _Wordings = (
    ("", "", "", "", "Please ", "Now ", "Could you ", "Can you ", "I want you to ", "I would like you to ", "Your task: "),
    ("", "Now please ", "Could you please ", "I need you to "),
)
_ALL: _Wordings = (
    ("all {plural}", "the {plural}", "each {singular}", "every {singular}", "these {plural}", "all the {plural}", "the {plural} here", "the {plural} in the facts"),
    ("all of the {plural}", "each of these {plural}", "every one of the {plural}"),
)  # fmt: skip
_OVERVIEW: _Wordings = (
    (
        "give an overview of {all}", "give me an overview of {all}", "write an overview of {all}", "list {all}", "describe {all}",
        "introduce {all}", "present {all}", "tell me about {all}", "make a list of {all}", "go through {all}",
        "say something about {all}", "sum up {all}", "write a list with {all}", "put together an overview of {all}",
        "explain who or what is who: {all}", "give me a summary of {all}", "show me {all}",
    ),
    ("put together a list of {all}", "make an overview of {all}", "give a summary of {all}", "write something about {all}"),
)  # fmt: skip
_REPORT: _Wordings = (
    (
        "write a report on {all}", "give me a report on {all}", "make a report about {all}", "report on {all}",
        "write a report with a part for each {singular}", "put together a report about {all}", "prepare a full report on {all}",
    ),
    ("prepare a report about {all}", "give a full report on {all}", "put together a full report on {all}"),
)  # fmt: skip
_COMPARE: _Wordings = (
    (
        "compare {all}", "give me a comparison of {all}", "write a comparison of {all}", "set {all} side by side",
        "make a comparison of {all}", "tell me how {all} differ", "explain how {all} differ", "list how {all} differ",
        "show me a comparison of {all}",
    ),
    ("put together a comparison of {all}", "show me how {all} differ", "present a comparison of {all}"),
)  # fmt: skip
_INSTRUCT: _Wordings = (
    (
        "give me instructions", "write instructions", "tell me what to do, one after the other", "tell me how to do it, step by step",
        "give me a plan", "write a plan", "explain how to do it", "list what to do in order", "show me the plan, one by one",
        "write down the instructions step by step",
    ),
    ("write down a plan", "explain what to do, step by step", "list the instructions one by one"),
)  # fmt: skip
_BY_GROUP: _Wordings = (
    (
        "give an overview of {all} by {group}", "list {all} by {group}", "describe {all}, one {group} after the other",
        "go through each {group} and tell me about its {plural}", "write an overview of {all}, sorted by {group}",
        "for each {group}, describe its {plural}", "tell me about {all} in each {group}", "sum up every {group} and its {plural}",
        "present {all} by {group}", "make a list of {all}, {group} by {group}",
    ),
    (
        "for every {group}, list its {plural}", "go through {all}, {group} by {group}", "write a list of {all}, sorted by {group}",
        "make an overview of {all} by {group}",
    ),
)  # fmt: skip
_BY_POINT: _Wordings = (
    (
        "list all points about {all}", "go through {all} point by point", "describe {all} point by point", "give me every point about {all}",
        "write down all points for {all}", "tell me everything about {all}, point by point", "present {all} with a point for each fact",
        "make a list with points for {all}",
    ),
    ("list {all} point by point", "write down every point about {all}", "present all points about {all}"),
)  # fmt: skip
_WITH_LABELS: _Wordings = (
    (" with {labels}", ", with {labels}", ", covering {labels}", ": {labels}", ". Give {labels}", ". Mention {labels}", ", only {labels}", " and say {labels}", ". I need {labels}"),
    (" and mention {labels}", ". Give me {labels}", ". Say {labels}", " covering {labels}"),
)  # fmt: skip
_IN_STYLE: dict[str, _Wordings] = {
    "numbered": (
        (" as a numbered list", ", as a numbered list", ", in a numbered list", ". Use numbers", ". Number the entries", " with numbers"),
        (" in a numbered list", ". Use a numbered list", ". Give numbers"),
    ),
    "bullets": (
        (" as bullet points", ", as a bullet list", ", in bullet points", ". Use bullets", ". Use bullet points", " with bullets"),
        (" in bullet points", ". Use a bullet list", " as a bullet list"),
    ),
    "headings": (
        (" with headings", ", with a heading for each", ", under headings", ". Use headings", ". Give each a heading", ", each under a heading"),
        (" under headings", ". Use a heading for each", ", with headings"),
    ),
}  # fmt: skip
_DEFAULT_STYLE = {"overview": "numbered", "instructions": "numbered", "comparison": "bullets", "report": "headings", "by_group": "numbered", "by_point": "numbered"}

_ONE: _Wordings = (
    (
        "What is the {label} of {name}?", "Tell me the {label} of {name}.", "I only want to know the {label} of {name}.",
        "{name}: what is the {label}?", "Say the {label} of {name}.", "Look up {name}. What is the {label}?", "Give me the {label} of {name}.",
        "Which {label} do the facts give for {name}?", "What do the facts say about {name} and the {label}?",
    ),
    ("I want to know the {label} of {name}.", "Look up the {label} of {name}.", "What {label} do the facts give for {name}?"),
)  # fmt: skip
_ABOUT: _Wordings = (
    (
        "Tell me about {name}.", "Describe {name} in one sentence.", "Who or what is {name}?", "What do you know about {name}?",
        "Sum up {name}.", "Say something about {name} alone.", "One sentence about {name}, please.", "Introduce {name}.", "What is said about {name}?",
    ),
    ("Sum up {name} in one sentence.", "What do the facts say about {name}?", "Describe {name} alone."),
)  # fmt: skip
_NAMES: _Wordings = (
    (
        "Which {plural} are there?", "Just name the {plural}.", "Give me only the names of the {plural}.", "Name the {plural} in one line.",
        "What are the names of the {plural}?", "Which {plural} do the facts name?", "Only the names of the {plural}, please.",
        "List only the names of the {plural}.", "Write down the names of all {plural}, nothing else.",
    ),
    ("Name all {plural} in one line.", "Just give me the names of the {plural}.", "Which {plural} are in the facts?"),
)  # fmt: skip
_COUNT: _Wordings = (
    ("How many {plural} are there?", "Count the {plural}.", "How many {plural} do the facts name?", "Tell me how many {plural} there are.", "What is the number of {plural}?"),
    ("How many {plural} are in the facts?", "Say how many {plural} there are."),
)  # fmt: skip
_WHICH: _Wordings = (
    ("Which {singular} {said}?", "Which of the {plural} {said}?", "Tell me which {singular} {said}.", "Find the {singular} that {said}.", "Of the {plural}, which {said}?"),
    ("Which of these {plural} {said}?", "Say which {singular} {said}.", "Find out which {singular} {said}."),
)  # fmt: skip
_YES_NO: _Wordings = (
    ("Is it true that {name} {said}?", "Is it right that {name} {said}?", "True or not: {name} {said}?", "{name} {said}. Is that right?", "Can you say that {name} {said}?"),
    ("{name} {said}. Is that true?", "Is it true or not that {name} {said}?"),
)  # fmt: skip
_PARAGRAPH: _Wordings = (
    (
        "describe {all} in one paragraph", "write one paragraph about {all}, no list", "tell me about {all}, without a list", "sum up {all} in a single paragraph",
        "write a short text about {all}, not a list", "describe {all} in plain text, without a list", "put {all} into one paragraph",
        "give me an overview of {all} in one paragraph",
    ),
    ("sum up {all} in one paragraph", "describe {all}, no list", "write a single paragraph about {all}"),
)  # fmt: skip
_CHAT: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("Hello!", "Hi.", "Hi there!", "Good morning.", "Hello, how are you?", "Hello there."), ("Good morning!", "Hi, how are you?"), "Hello! Give me some facts and say what to write about them."),
    (("Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot.", "That is good, thanks."), ("Thanks very much!", "Good, thank you."), "You are welcome."),
    (("Who are you?", "What are you?", "What can you do?", "How can you help me?", "Tell me what you can do."), ("What can you help me with?", "Tell me who you are."), "I am a small model that writes about facts: overviews, comparisons, reports and instructions."),
    (("Goodbye.", "Bye!", "See you.", "Good night."), ("Goodbye!", "Bye, see you."), "Goodbye!"),
)  # fmt: skip


def pick(rng: random.Random, wordings: _Wordings, held_out: bool) -> str:
    return rng.choice(wordings[held_out])


def _all(rng: random.Random, world: World) -> str:
    return _fill(rng.choice(_ALL[0]), world)


def _fill(text: str, world: World, **more: str) -> str:
    return text.format(singular=world.topic.singular, plural=world.topic.plural, group=world.topic.group, all="{all}", **more)


def _some(rng: random.Random, world: World) -> tuple[list[Attribute], bool]:
    """The attributes asked for, in the topic's order, and whether the request has to name them."""
    if rng.random() < 0.55:
        return world.attributes, rng.random() < 0.3
    count = rng.randint(1, len(world.attributes))
    chosen = set(rng.sample(range(len(world.attributes)), count))
    return [attribute for index, attribute in enumerate(world.attributes) if index in chosen], True


def _sentence(opening: str, text: str) -> str:
    if not opening:
        text = text[0].upper() + text[1:]
    question = opening.startswith(("Could", "Can"))
    return f"{opening}{text}{'?' if question and '. ' not in text else '.'}"


def _listing(
    kind: str, wordings: _Wordings, answer: Callable[[World, Sequence[Attribute], str], answers.Paragraphs]
) -> Callable[[random.Random, World, bool], Request]:
    def make(rng: random.Random, world: World, held_out: bool) -> Request:
        attributes, named = _some(rng, world)
        # Of a held-out request the verb, or what it is about, or how it should look is in a held-out wording.
        new = {rng.choice(("verb", "labels", "style")), rng.choice(("verb", "all", "opening"))} if held_out else set()
        text = _fill(pick(rng, wordings, "verb" in new), world)
        text = text.replace("{all}", _fill(pick(rng, _ALL, "all" in new), world))
        style = _DEFAULT_STYLE[kind]
        if named:
            labels = join([f"the {attribute.label.lower()}" for attribute in attributes])
            text += pick(rng, _WITH_LABELS, "labels" in new).format(labels=labels)
        if rng.random() < 0.5:
            style = rng.choice(answers.STYLES)
            text += pick(rng, _IN_STYLE[style], "style" in new)
        return Request(kind, _sentence(pick(rng, _OPENINGS, "opening" in new), text), answer(world, attributes, style))

    return make


def _one(rng: random.Random, world: World, held_out: bool) -> Request:
    item, attribute = rng.choice(world.items), rng.choice(world.attributes)
    text = pick(rng, _ONE, held_out).format(label=attribute.label.lower(), name=item.name)
    return Request("one", text, answers.plain(answers.say(item, [attribute])))


def _about(rng: random.Random, world: World, held_out: bool) -> Request:
    item = rng.choice(world.items)
    return Request("about", pick(rng, _ABOUT, held_out).format(name=item.name), answers.plain(answers.say(item, world.attributes)))


def _names(rng: random.Random, world: World, held_out: bool) -> Request:
    return Request("names", _fill(pick(rng, _NAMES, held_out), world), answers.names(world.items))


def _count(rng: random.Random, world: World, held_out: bool) -> Request:
    answer = answers.plain(f"There are {len(world.items)} {world.topic.plural}.")
    return Request("count", _fill(pick(rng, _COUNT, held_out), world), answer)


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
    return Request("which", _fill(pick(rng, _WHICH, held_out), world, said=said), answers.plain(answers.say(item, [attribute])))


def _yes_no(rng: random.Random, world: World, held_out: bool) -> Request:
    item, other, attribute = rng.choice(world.items), rng.choice(world.items), rng.choice(world.attributes)
    claimed = item if rng.random() < 0.5 else other
    said = attribute.say(claimed.values[attribute.label], rng.randrange(len(attribute.phrases) - (not held_out)))
    true = claimed.values[attribute.label] == item.values[attribute.label]
    answer = f"{'Yes' if true else 'No'}, {answers.say(item, [attribute])}"
    return Request("yes_no", pick(rng, _YES_NO, held_out).format(name=item.name, said=said), answers.plain(answer))


def _paragraph(rng: random.Random, world: World, held_out: bool) -> Request:
    text = pick(rng, _PARAGRAPH, held_out).replace("{all}", _all(rng, world))
    return Request("paragraph", _sentence(pick(rng, _OPENINGS, False), text), answers.paragraph(world, world.attributes))


def _chat(rng: random.Random, world: World, held_out: bool) -> Request:
    said, new, answer = rng.choice(_CHAT)
    return Request("chat", rng.choice(new if held_out else said), answers.plain(answer))


KINDS: dict[str, Kind] = {
    "overview": Kind(_listing("overview", _OVERVIEW, answers.overview), 22, True),
    "instructions": Kind(_listing("instructions", _INSTRUCT, answers.instructions), 6, True),
    "comparison": Kind(_listing("comparison", _COMPARE, answers.comparison), 12, True),
    "report": Kind(_listing("report", _REPORT, answers.report), 10, True),
    "by_group": Kind(_listing("by_group", _BY_GROUP, answers.by_group), 10, True, grouped=True),
    "by_point": Kind(_listing("by_point", _BY_POINT, answers.by_point), 8, True),
    "one": Kind(_one, 7, False),
    "about": Kind(_about, 7, False),
    "names": Kind(_names, 4, False),
    "count": Kind(_count, 3, False),
    "which": Kind(_which, 4, False),
    "yes_no": Kind(_yes_no, 3, False),
    "paragraph": Kind(_paragraph, 3, False),
    "chat": Kind(_chat, 1, False),
}
"""What a prompt can ask for, by name."""

ORDERED_NAMES = (STEPS, DAYS)
"""Topics of these names are what instructions and plans are about."""
