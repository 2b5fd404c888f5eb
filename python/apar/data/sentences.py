"""Where the first sentence of a paragraph ends."""

from __future__ import annotations

import functools
import re
from typing import Any

_LONGEST = 400  # characters; a first sentence that is longer is no title of anything
_END = re.compile(r"[.!?][\"'”’)\]*_]*(?=\s+\S)|[。！？][”’」』）]*(?=\S)")
_PLAIN_WORD = re.compile(r"[a-z]{4,}$")
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"), ("「", "」"))
_MARKS = ('"', "`", "$", "**")


def first_sentence_end(text: str) -> int | None:
    """Offset behind the first sentence of a text, without the white space behind it; None: there is no second one.

    Clear cases (a plain word before the stop, a capital behind it) are decided here; where an abbreviation, a number
    or a name could stand, pysbd decides, which is slower. A sentence is never cut inside quotation marks, brackets,
    code or a formula.

    Raises:
        RuntimeError: pysbd is needed and not installed.
    """
    head = text[:_LONGEST]
    for match in _END.finditer(head):
        end = match.end()
        if not is_balanced(head[:end]):
            continue
        stop = head[match.start()]
        behind = head[end:].lstrip()[:1]
        if stop in "。！？" or (stop in "!?" and behind.isupper()):
            return end
        if stop == "." and behind.isupper() and _PLAIN_WORD.search(head, max(0, match.start() - 12), match.start()):
            return end
        return _library_end(head)
    return None


def is_balanced(text: str) -> bool:
    """Whether no bracket, quotation mark, code or formula is left open."""
    return all(text.count(opens) == text.count(closes) for opens, closes in _PAIRS) and all(
        text.count(mark) % 2 == 0 for mark in _MARKS
    )


def _library_end(text: str) -> int | None:
    sentences = _segmenter().segment(text)
    end = len(sentences[0].sent.rstrip()) if len(sentences) > 1 and sentences[0].start == 0 else None
    return end if end is not None and text.startswith(sentences[0].sent) and is_balanced(text[:end]) else None


@functools.cache
def _segmenter() -> Any:
    try:
        import pysbd
    except ImportError as error:
        raise RuntimeError(
            "the rule first_sentence needs the package pysbd: pip install 'apar[data]', or choose rules without it"
        ) from error
    return pysbd.Segmenter(language="en", clean=False, char_span=True)
