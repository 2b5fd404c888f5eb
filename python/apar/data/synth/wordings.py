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
OVERVIEW: Wordings = _together(
    _combined(
        ("give", "give me", "write", "put together", "make", "show me", "prepare", "I need"),
        (" an overview of {all}", " a summary of {all}", " a list of {all}", " a list with {all}"),
    ),
    _combined(
        (
            "list",
            "describe",
            "introduce",
            "present",
            "show me",
            "go through",
            "sum up",
            "tell me about",
            "say something about",
            "write something about",
            "tell me something about",
        ),
        (" {all}", " {all}, one by one", " {all}, one after the other"),
    ),
    (
        ("explain who or what is who: {all}", "write an entry for {all}", "give me an entry for {all}"),
        ("make an entry for {all}",),
    ),
)
REPORT: Wordings = _together(
    _combined(
        ("write", "give", "give me", "make", "prepare", "put together", "show me"),
        (" a report", " a full report", " a short report"),
        (" on {all}", " about {all}", " with a part for each {singular}"),
    ),
    (("report on {all}", "report about {all}", "please report on {all}"), ("please report about {all}",)),
)
COMPARE: Wordings = _together(
    _combined(
        ("give me", "write", "make", "put together", "present", "show me", "prepare"),
        (" a comparison of {all}", " a full comparison of {all}", " a short comparison of {all}"),
    ),
    _combined(
        ("tell me", "explain", "list", "show me", "say", "describe", "write down"),
        (" how {all} differ", " how {all} compare", " where {all} differ"),
    ),
    (
        ("compare {all}", "set {all} side by side", "compare {all} side by side", "put {all} side by side"),
        ("present {all} side by side",),
    ),
)
INSTRUCT: Wordings = _together(
    _combined(
        ("give me", "write", "write down", "put together", "show me", "make", "list"),
        (" instructions", " the instructions", " a plan", " the plan"),
        ("", " step by step", ", one by one", ", one after the other", " in order"),
    ),
    _combined(
        ("tell me", "explain", "show me", "write down", "list", "say"),
        (" what to do", " how to do it"),
        ("", ", step by step", " in order", ", one after the other"),
    ),
)
BY_GROUP: Wordings = _together(
    _combined(
        (
            "give an overview of",
            "write an overview of",
            "make a list of",
            "put together a list of",
            "list",
            "describe",
            "present",
            "sum up",
            "go through",
            "tell me about",
        ),
        (
            " {all} by {group}",
            " {all}, sorted by {group}",
            " {all}, {group} by {group}",
            " {all}, one {group} after the other",
            " {all} in each {group}",
        ),
    ),
    _combined(
        ("for each {group},", "for every {group},", "go through each {group} and", "go {group} by {group} and"),
        (
            " tell me about its {plural}",
            " describe its {plural}",
            " list its {plural}",
            " sum up its {plural}",
            " present its {plural}",
        ),
    ),
    (
        ("sum up every {group} and its {plural}", "list each {group} with its {plural}"),
        ("describe every {group} and its {plural}",),
    ),
)
BY_POINT: Wordings = _together(
    _combined(
        ("list", "write down", "give me", "present", "show me", "go through"),
        (" all points", " every point"),
        (" about {all}", " for {all}", " on {all}"),
    ),
    _combined(
        ("go through", "describe", "list", "present", "sum up", "tell me about", "tell me everything about"),
        (" {all} point by point", " {all}, point by point", " {all} with a point for each fact", " {all} by points"),
    ),
    (
        ("make a list with points for {all}", "write a list with points for {all}"),
        ("make a list with points on {all}",),
    ),
)
WITH_LABELS: Wordings = _together(
    _combined(
        (
            " with",
            ", with",
            ", covering",
            " covering",
            " and give",
            " and say",
            " and mention",
            ". Give",
            ". Give me",
            ". Mention",
            ". Say",
            ". I need",
            ". Write down",
        ),
        (" {labels}", " only {labels}"),
    ),
    ((": {labels}", ", only {labels}", ": only {labels}"), (". Only {labels}",)),
)
IN_STYLE: dict[str, Wordings] = {
    "numbered": _together(
        _combined(
            (" as", ", as", " in", ", in", ". Use", ". Write", ". Make"),
            (" a numbered list", " a list with numbers"),
        ),
        (
            (". Use numbers", ". Number the entries", " with numbers", ", with numbers", ", numbered"),
            (". Give numbers", ". Make numbers"),
        ),
    ),
    "bullets": _together(
        _combined(
            (" as", ", as", " in", ", in", " with", ", with", ". Use"),
            (" bullet points", " bullets", " a bullet list"),
        ),
        ((". Write bullet points", ". Make a bullet list"), (". Make bullet points",)),
    ),
    "headings": _together(
        _combined(
            (" with", ", with", ". Use", ". Write"),
            (" headings", " a heading for each", " a heading each"),
        ),
        (
            (" under headings", ", under headings", ". Give each a heading", ", each under a heading"),
            (", each with a heading",),
        ),
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
CHAT: tuple[tuple[Wordings, str], ...] = (
    (
        _combined(
            ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Hello there", "Hi there"),
            ("!", ".", ", how are you?", ". How are you?", ", are you there?"),
        ),
        "Hello! Give me some facts and say what to write about them.",
    ),
    (
        _combined(
            ("Thanks", "Thank you", "Thanks a lot", "Thank you very much", "Many thanks", "Good, thanks"),
            ("!", ".", ", that is good.", ". That is all."),
        ),
        "You are welcome.",
    ),
    (
        _together(
            _combined(
                ("", "Tell me: ", "A question: ", "Please say: ", "Hello! "),
                ("who are you?", "what are you?", "what can you do?", "how can you help me?", "what do you do?"),
            ),
            _combined(("Tell me", "Say", "Explain"), (" who you are.", " what you are.", " what you can do.")),
        ),
        "I am a small model that writes about facts: overviews, comparisons, reports and instructions.",
    ),
    (
        _combined(("Goodbye", "Bye", "See you", "Good night", "Thanks, bye", "Bye, see you"), ("!", ".", " then.")),
        "Goodbye!",
    ),
)
