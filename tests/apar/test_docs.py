"""README and docs: commands parse, targets, files and links are there, Python compiles."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from apar.cli import _parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
FILE = re.compile(r"(?:bench|csrc|docs|python|tests|apar|apar_ext)/[\w./-]+\.(?:py|h|cpp|cuh?|md|jsonl|sh|yaml)\b")


def code_lines(text: str) -> Iterator[str]:
    """Lines of blocks of code, those that go on behind a backslash as one."""
    blocks = [block for _, block in FENCE.findall(text)]
    blocks += re.findall(r"^\n((?: {4}\S.*\n)+)", FENCE.sub("", text), re.M)
    for block in blocks:
        yield from (line.strip() for line in block.replace("\\\n", "").splitlines())


def inline_code(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def text(request) -> str:
    return request.param.read_text(encoding="utf-8")


def test_the_examples_are_found() -> None:
    assert "apar data stats trees.jsonl --plot trees.png" in code_lines(PAGES[0].read_text(encoding="utf-8"))
    assert "make demo" in inline_code(" `make demo` ")


def test_commands_parse(text: str) -> None:
    for line in code_lines(text):
        words = shlex.split(line, comments=True)
        if words[:1] == ["apar"]:
            _parser(words[1:]).parse_args(words[1:])  # SystemExit names what is wrong


def test_options_that_are_named_exist(text: str, capsys) -> None:
    for code in inline_code(text):
        words = code.split()
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[:1] == ["apar"] and options:
            command = words[1:3] if words[1] == "data" else words[1:2]
            with pytest.raises(SystemExit):
                _parser(command).parse_args([*command, "--help"])
            known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
            assert options <= known, code


def test_targets_and_modules_exist(text: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for code in [*code_lines(text), *inline_code(text)]:
        if found := re.match(r"make ([a-z-]+)", code):
            assert re.search(rf"^{found[1]}:", makefile, re.M), code
        for module in re.findall(r"python -m (bench[\w.]+)", code):
            assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), code


def test_files_and_links_exist(text: str) -> None:
    for path in FILE.findall(text):
        assert any((root / path).exists() for root in (ROOT, ROOT / "python", ROOT / "docs")), path
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", text):
        if not link.startswith("http"):
            assert (ROOT / link).exists() or (ROOT / "docs" / link).exists(), link
    for page, anchor in re.findall(r"\]\(([\w.]+\.md)#([\w-]+)\)", text):
        heads = re.findall(r"^#+ (.+)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M)
        anchors = [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads]
        assert anchor in anchors, f"{page}#{anchor}"


def test_python_compiles(text: str) -> None:
    for language, block in FENCE.findall(text):
        if language == "python":
            ast.parse(block)
