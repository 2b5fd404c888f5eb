"""The wordings of requests."""

from __future__ import annotations

import itertools

# Wordings come in pairs: those for training and those that are held out. The words of a held-out wording all occur in
# other wordings; it is their order that is new.
Wordings = tuple[tuple[str, ...], tuple[str, ...]]

OPENINGS: Wordings = (
    (
        "",
        "",
        "",
        "",
        "Please ",
        "Now ",
        "Could you ",
        "Can you ",
        "I want you to ",
        "I would like you to ",
        "Your task: ",
    ),
    ("", "Now please ", "Could you please ", "I need you to "),
)
ALL: Wordings = (
    (
        "all {plural}",
        "the {plural}",
        "each {singular}",
        "every {singular}",
        "these {plural}",
        "all the {plural}",
        "the {plural} here",
        "the {plural} in the facts",
    ),
    ("all of the {plural}", "each of these {plural}", "every one of the {plural}"),
)
OVERVIEW: Wordings = (
    (
        "give an overview of {all}",
        "give me an overview of {all}",
        "write an overview of {all}",
        "list {all}",
        "describe {all}",
        "introduce {all}",
        "present {all}",
        "tell me about {all}",
        "make a list of {all}",
        "go through {all}",
        "say something about {all}",
        "sum up {all}",
        "write a list with {all}",
        "put together an overview of {all}",
        "explain who or what is who: {all}",
        "give me a summary of {all}",
        "show me {all}",
    ),
    (
        "put together a list of {all}",
        "make an overview of {all}",
        "give a summary of {all}",
        "write something about {all}",
    ),
)
REPORT: Wordings = (
    (
        "write a report on {all}",
        "give me a report on {all}",
        "make a report about {all}",
        "report on {all}",
        "write a report with a part for each {singular}",
        "put together a report about {all}",
        "prepare a full report on {all}",
    ),
    ("prepare a report about {all}", "give a full report on {all}", "put together a full report on {all}"),
)
COMPARE: Wordings = (
    (
        "compare {all}",
        "give me a comparison of {all}",
        "write a comparison of {all}",
        "set {all} side by side",
        "make a comparison of {all}",
        "tell me how {all} differ",
        "explain how {all} differ",
        "list how {all} differ",
        "show me a comparison of {all}",
    ),
    ("put together a comparison of {all}", "show me how {all} differ", "present a comparison of {all}"),
)
INSTRUCT: Wordings = (
    (
        "give me instructions",
        "write instructions",
        "tell me what to do, one after the other",
        "tell me how to do it, step by step",
        "give me a plan",
        "write a plan",
        "explain how to do it",
        "list what to do in order",
        "show me the plan, one by one",
        "write down the instructions step by step",
    ),
    ("write down a plan", "explain what to do, step by step", "list the instructions one by one"),
)
BY_GROUP: Wordings = (
    (
        "give an overview of {all} by {group}",
        "list {all} by {group}",
        "describe {all}, one {group} after the other",
        "go through each {group} and tell me about its {plural}",
        "write an overview of {all}, sorted by {group}",
        "for each {group}, describe its {plural}",
        "tell me about {all} in each {group}",
        "sum up every {group} and its {plural}",
        "present {all} by {group}",
        "make a list of {all}, {group} by {group}",
    ),
    (
        "for every {group}, list its {plural}",
        "go through {all}, {group} by {group}",
        "write a list of {all}, sorted by {group}",
        "make an overview of {all} by {group}",
    ),
)
BY_POINT: Wordings = (
    (
        "list all points about {all}",
        "go through {all} point by point",
        "describe {all} point by point",
        "give me every point about {all}",
        "write down all points for {all}",
        "tell me everything about {all}, point by point",
        "present {all} with a point for each fact",
        "make a list with points for {all}",
    ),
    ("list {all} point by point", "write down every point about {all}", "present all points about {all}"),
)
WITH_LABELS: Wordings = (
    (
        " with {labels}",
        ", with {labels}",
        ", covering {labels}",
        ": {labels}",
        ". Give {labels}",
        ". Mention {labels}",
        ", only {labels}",
        " and say {labels}",
        ". I need {labels}",
    ),
    (" and give {labels}", ". Give me {labels}", ". Say {labels}", " covering {labels}"),
)
IN_STYLE: dict[str, Wordings] = {
    "numbered": (
        (
            " as a numbered list",
            ", as a numbered list",
            ", in a numbered list",
            ". Use numbers",
            ". Number the entries",
            " with numbers",
        ),
        (" in a numbered list", ". Use a numbered list", ". Give numbers"),
    ),
    "bullets": (
        (
            " as bullet points",
            ", as a bullet list",
            ", in bullet points",
            ". Use bullets",
            ". Use bullet points",
            " with bullets",
        ),
        (" in bullet points", ". Use a bullet list", " as a bullet list"),
    ),
    "headings": (
        (
            " with headings",
            ", with a heading for each",
            ", under headings",
            ". Use headings",
            ". Give each a heading",
            ", each under a heading",
        ),
        (" under headings", ". Use a heading for each", ", with headings"),
    ),
}
DEFAULT_STYLE = {
    "overview": "numbered",
    "instructions": "numbered",
    "comparison": "bullets",
    "report": "headings",
    "by_group": "numbered",
    "by_point": "numbered",
}

ONE: Wordings = (
    (
        "What is the {label} of {name}?",
        "Tell me the {label} of {name}.",
        "I only want to know the {label} of {name}.",
        "{name}: what is the {label}?",
        "Say the {label} of {name}.",
        "Look up {name}. What is the {label}?",
        "Give me the {label} of {name}.",
        "Which {label} do the facts give for {name}?",
        "What do the facts say about {name} and the {label}?",
    ),
    (
        "I want to know the {label} of {name}.",
        "Look up the {label} of {name}.",
        "What {label} do the facts give for {name}?",
    ),
)
ABOUT: Wordings = (
    (
        "Tell me about {name}.",
        "Describe {name} in one sentence.",
        "Who or what is {name}?",
        "What do you know about {name}?",
        "Sum up {name}.",
        "Say something about {name} alone.",
        "One sentence about {name}, please.",
        "Introduce {name}.",
        "What is said about {name}?",
        "Describe only {name}.",
        "Tell me something about {name} in one sentence.",
        "What do you find about {name} in the facts?",
        "Give me one sentence about {name}.",
    ),
    ("Sum up {name} in one sentence.", "What do the facts say about {name}?", "Describe {name} alone."),
)
NAMES: Wordings = (
    (
        "Which {plural} are there?",
        "Just name the {plural}.",
        "Give me only the names of the {plural}.",
        "Name the {plural} in one line.",
        "What are the names of the {plural}?",
        "Which {plural} do the facts name?",
        "Only the names of the {plural}, please.",
        "List only the names of the {plural}.",
        "Write down the names of all {plural}, nothing else.",
        "Name the {plural}.",
        "Name all {plural} in the facts.",
        "Tell me the names of the {plural}.",
        "Which {plural} do you find in the facts?",
        "The {plural} in one line, only the names.",
        "I only want to know the names of the {plural}.",
    ),
    ("Name all {plural} in one line.", "Just give me the names of the {plural}.", "Which {plural} are in the facts?"),
)
COUNT: Wordings = (
    (
        "How many {plural} are there?",
        "Count the {plural}.",
        "How many {plural} do the facts name?",
        "Tell me how many {plural} there are.",
        "What is the number of {plural}?",
        "How many {plural} do you find here?",
        "I want to know how many {plural} there are.",
        "How many {plural} are there in the facts?",
    ),
    ("How many {plural} are in the facts?", "Say how many {plural} there are."),
)
WHICH: Wordings = (
    (
        "Which {singular} {said}?",
        "Which of the {plural} {said}?",
        "Tell me which {singular} {said}.",
        "Find the {singular} that {said}.",
        "Of the {plural}, which {said}?",
        "Look at the {plural}. Which {said}?",
        "Which {singular} in the facts {said}?",
        "I want to know which {singular} {said}.",
    ),
    ("Which of these {plural} {said}?", "Say which {singular} {said}.", "Find which of the {plural} {said}."),
)
YES_NO: Wordings = (
    (
        "Is it true that {name} {said}?",
        "Is it right that {name} {said}?",
        "True or not: {name} {said}?",
        "{name} {said}. Is that right?",
        "Can you say that {name} {said}?",
        "Is this true: {name} {said}?",
        "{name} {said}, is that so?",
        "{name} {said}. True or not?",
        "Tell me: is it true that {name} {said}?",
    ),
    ("{name} {said}. Is that true?", "Is it true or not that {name} {said}?"),
)
_IN_WORDS = (
    "describe {all}",
    "write about {all}",
    "tell me about {all}",
    "sum up {all}",
    "say something about {all}",
    "give me an overview of {all}",
    "introduce {all}",
    "present {all}",
)
_NOT_AS_LIST = (
    " in one paragraph",
    " in a single paragraph",
    ", without a list",
    ", no list",
    ", not a list",
    " in plain text",
    " in one paragraph, no list",
    " in plain text, without a list",
    " in a short text",
)
_PARAGRAPHS = [
    (number % 5 == 3, verb + way) for number, (verb, way) in enumerate(itertools.product(_IN_WORDS, _NOT_AS_LIST))
]
PARAGRAPH: Wordings = (
    (
        *(text for is_new, text in _PARAGRAPHS if not is_new),
        "write one paragraph about {all}",
        "write a short text about {all}",
        "put {all} into one paragraph",
        "write one paragraph about {all}, no list",
        "write a short text about {all}, not a list",
        "write a single paragraph on {all}",
    ),
    (*(text for is_new, text in _PARAGRAPHS if is_new), "write a single paragraph about {all}"),
)
CHAT: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        ("Hello!", "Hi.", "Hi there!", "Good morning.", "Hello, how are you?", "Hello there."),
        ("Good morning!", "Hi, how are you?"),
        "Hello! Give me some facts and say what to write about them.",
    ),
    (
        ("Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot.", "That is good, thanks."),
        ("Thanks very much!", "Thank you, that is good."),
        "You are welcome.",
    ),
    (
        ("Who are you?", "What are you?", "What can you do?", "How can you help me?", "Tell me what you can do."),
        ("What can you help me with?", "Tell me who you are."),
        "I am a small model that writes about facts: overviews, comparisons, reports and instructions.",
    ),
    (("Goodbye.", "Bye!", "See you.", "Good night."), ("Goodbye!", "Bye. See you!"), "Goodbye!"),
)
