"""Random markdown, and where the real chat data lies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"

needs_shared_data = pytest.mark.skipif(not (SHARED / "chat").is_dir(), reason=f"no chat data in {SHARED}")


def chat_records() -> Iterator[dict[str, Any]]:
    for path in sorted((SHARED / "chat").glob("*.jsonl")):
        with open(path, encoding="utf-8") as lines:
            yield from map(json.loads, lines)


_WORDS = st.sampled_from(
    [
        "sleep",
        "Dr. Lee",
        "water",
        "3.5",
        "e.g. this",
        "as above",
        "step 2",
        "`code`",
        "x = 42",
        "**bold**",
        "$a+b$",
        "“no”",
    ]
)
_SENTENCES = st.lists(_WORDS, min_size=1, max_size=30).map(lambda words: " ".join(words).capitalize() + ". ")
_TEXTS = st.lists(_SENTENCES, max_size=4).map("".join) | st.text(max_size=12)
_MARKERS = st.sampled_from(
    [
        "",
        "1. ",
        "2. ",
        "3) ",
        "(a) ",
        "b. ",
        "iv. ",
        "- ",
        "* ",
        "• ",
        "# ",
        "## ",
        "### 4. ",
        "Step 1: ",
        "> ",
        "    ",
        "\t",
    ]
)
_TITLES = st.sampled_from(
    ["", "Title: ", "**Title**: ", "**Title:** ", "**Title**", "__Title__ - ", "Title - ", "https://a: "]
)
_INDENTS = st.sampled_from(["", "", "", "  ", "   ", "    ", "\t"])
_ENDINGS = st.sampled_from(["\n", "\n\n", " \n", "\r\n", "\n\n\n", "\n \n", ""])
WHOLE_BLOCKS = (
    "```python\n1. a: b\n- c\n\n# d\n```\n",
    "~~~\n# x\n\n## y\n~~~\n",
    "| a | b |\n|---|---|\n| 1. x: y | 2 |\n",
    "$$\n1. x: y\n$$\n",
    "> 1. a: b\n> 2. c: d\n",
    "\\[\n- a: b\n\\]\n",
)
_BLOCKS = st.sampled_from([*WHOLE_BLOCKS, "~~~\n# open\n", "---\n", "```not code``` text\n", "Title\n=====\n"])
_LINES = st.tuples(_INDENTS, _MARKERS, _TITLES, _TEXTS, _ENDINGS).map("".join)
MARKDOWN = st.lists(_LINES | _BLOCKS, max_size=14).map("".join)

PLAIN_MARKDOWN = (
    st.lists(_LINES, max_size=8)
    .map("".join)
    .filter(lambda text: not any(mark in text for mark in ("```", "~~~", "$$", "\\")))
)
