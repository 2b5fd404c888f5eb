"""The wordings of requests."""

from __future__ import annotations

import itertools

# Wordings come in pairs: those for training and those that are held out. The words of a held-out wording all occur in
# other wordings; it is their order that is new.
Wordings = tuple[tuple[str, ...], tuple[str, ...]]


def _combined(*parts: tuple[str, ...]) -> Wordings:
    """Every first part with every second part and so on. One combination in seven is held out."""
    texts = ["".join(texts) for texts in itertools.product(*parts)]
    return (
        tuple(text for number, text in enumerate(texts) if number % 7 != 3),
        tuple(text for number, text in enumerate(texts) if number % 7 == 3),
    )


def _together(*wordings: Wordings) -> Wordings:
    return (
        tuple(text for for_training, _ in wordings for text in for_training),
        tuple(text for _, held_out in wordings for text in held_out),
    )


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
        "Please now ",
        "Would you ",
        "Would you please ",
        "I need this: ",
        "Next, ",
        "Then please ",
        "Look at the facts and ",
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

ONE: Wordings = _together(
    _combined(
        ("Tell me", "Give me", "Say", "I want to know", "I only want to know", "Look up", "Find", "Write down"),
        (" the {label} of {name}", " only the {label} of {name}", " what the facts say about the {label} of {name}"),
        (".", ", please.", ", nothing else.", " and nothing else."),
    ),
    _combined(
        ("", "Look at the facts. ", "Please tell me: ", "A question: ", "Look up {name}. "),
        (
            "What is the {label} of {name}?",
            "{name}: what is the {label}?",
            "Which {label} do the facts give for {name}?",
        ),
    ),
    (
        ("What do the facts say about {name} and the {label}?", "What about the {label} of {name}?"),
        ("What {label} do the facts give for {name}?",),
    ),
)
ABOUT: Wordings = _together(
    _combined(
        ("Tell me about", "Describe", "Introduce", "Sum up", "Say something about", "Write about", "Tell me all about"),
        (" {name}", " only {name}"),
        (".", " in one sentence.", " alone.", ", please.", ", nothing else.", " in a sentence."),
    ),
    _combined(
        ("", "Look at the facts. ", "A question: "),
        (
            "Who or what is {name}?",
            "What do you know about {name}?",
            "What do the facts say about {name}?",
            "What is said about {name}?",
            "What do you find about {name}?",
        ),
    ),
    (
        (
            "One sentence about {name}, please.",
            "Give me one sentence about {name}.",
            "Say something about {name} alone.",
        ),
        ("Write one sentence about {name}.",),
    ),
)
NAMES: Wordings = _together(
    _combined(
        ("List", "Give me", "Write down", "Tell me", "Just give me", "Show me", "Say", "I want"),
        (" the names of the {plural}", " the names of all {plural}", " only the names of the {plural}"),
        (".", " in one line.", ", nothing else.", " and nothing else.", ", just the names."),
    ),
    _combined(
        ("Just name", "Name", "Only name", "Please name"),
        (" the {plural}", " all {plural}", " all {plural} in the facts"),
        (".", " in one line.", ", nothing else."),
    ),
    _combined(
        ("Which {plural} ", "A question: which {plural} "),
        ("are there", "are in the facts", "do the facts name", "do you find", "do you see", "are named"),
        ("?", " here?", "? Just the names.", "? Only name them."),
    ),
    _combined(
        ("What are the names of the {plural}", "What are the names of all {plural}"),
        ("?", " here?", " in the facts?", "? Write them in one line."),
    ),
)
COUNT: Wordings = _together(
    _combined(
        ("How many {plural} ", "A question: how many {plural} ", "Tell me how many {plural} "),
        ("are there", "are in the facts", "do the facts name", "do you find", "do you see", "are named"),
        ("?", " here?", "? Count them."),
    ),
    _combined(
        ("Count", "Please count", "Give me the number of", "What is the number of", "Tell me the number of"),
        (" the {plural}", " all {plural}"),
        (".", ", please.", " in the facts."),
    ),
)
WHICH: Wordings = _together(
    _combined(
        ("", "Look at the {plural}. ", "Look at the facts. ", "A question: "),
        ("Which {singular} {said}?", "Which of the {plural} {said}?", "Which one of the {plural} {said}?"),
    ),
    _combined(
        ("Tell me", "Find out", "Say", "I want to know", "Look up", "Please say"),
        (" which {singular}", " which of the {plural}", " which one of the {plural}"),
        (" {said}.", " {said}, please."),
    ),
    (
        ("Find the {singular} that {said}.", "Name the {singular} that {said}.", "Of the {plural}, which {said}?"),
        ("Look up the {singular} that {said}.",),
    ),
)
YES_NO: Wordings = _together(
    _combined(
        ("Is it true that", "Is it right that", "Can you say that", "Do the facts say that", "Is it so that"),
        (" {name} {said}?", " {name} {said}, yes or no?"),
    ),
    _combined(
        ("", "Look at the facts. ", "A question: "),
        ("{name} {said}",),
        (". Is that right?", ". Is that true?", ". True or not?", ", is that so?", ". Yes or no?", ", right?"),
    ),
    _combined(("Tell me if", "Say if", "I want to know if"), (" {name} {said}.", " it is true that {name} {said}.")),
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
PARAGRAPH: Wordings = _together(
    _combined(_IN_WORDS, _NOT_AS_LIST),
    (
        (
            "write one paragraph about {all}",
            "write a short text about {all}",
            "put {all} into one paragraph",
            "write one paragraph about {all}, no list",
            "write a short text about {all}, not a list",
            "write a single paragraph on {all}",
        ),
        ("write a single paragraph about {all}",),
    ),
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
