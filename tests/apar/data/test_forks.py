"""Answers as trees: every rule on its own, what is never cut, what stays unforked, and not a byte lost."""

from __future__ import annotations

import itertools
import time

import pytest
from apar.data.forks import MAX_FORKS, ForkOptions, paragraph_tree
from apar.data.rules import RULE_GROUPS, RULES
from apar.data.sentences import first_sentence_end
from apar.tree import ParagraphTree
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.apar.data.markdown import MARKDOWN, PLAIN_MARKDOWN, WHOLE_BLOCKS, chat_records, needs_shared_data

LONG = "It keeps the mind clear and the body ready for the day."


def details(text: str, prompt: str = "", **options) -> list[str]:
    """The outermost details of an answer."""
    tree = paragraph_tree(text, prompt, ForkOptions(**options))
    assert tree.text == text
    return details_of(tree)


def details_of(node: ParagraphTree | None) -> list[str]:
    found = []
    while node is not None:
        if node.detail is not None:
            found.append(node.detail.text)
        node = node.next
    return found


@pytest.mark.parametrize(
    ("rule", "title", "marker"),
    [
        ("numbered_title", "Sleep:", "{}. "),
        ("numbered_title", "Sleep:", "{}) "),
        ("numbered_title", "Sleep:", "({}) "),
        ("numbered_title", "Sleep -", "{}. "),
        ("numbered_title", "Sleep:", "Step {}: "),
        ("numbered_bold_title", "**Sleep**:", "{}. "),
        ("numbered_bold_title", "**Sleep:**", "{}. "),
        ("numbered_bold_title", "__Sleep__ –", "{}. "),
        ("numbered_bold_title", "**Sleep.**", "{}. "),
        ("numbered_line", "Go to bed\n  ", "{}. "),
        ("numbered_line", "Go to bed\n\n", "{}. "),
        ("numbered_line", "Go to bed\n- so:", "{}. "),
        ("bold_paragraph", "**Sleep {}:**", ""),
        ("bold_paragraph", "**Sleep {}** -", ""),
        ("heading", "Sleep\n", "## {}. "),
        ("heading", "Sleep {}**\n", "**"),
        ("heading", "Sleep {}:**\n", "**"),
        ("bullet_title", "Sleep:", "- "),
        ("bullet_title", "Sleep –", "* "),
        ("bullet_bold_title", "**Sleep**:", "• "),
        ("bullet_line", "Go to bed\n    ", "- "),
    ],
)
def test_every_rule_forks_behind_its_titles(rule: str, title: str, marker: str) -> None:
    items = [f"{marker}{title}".format(*[number] * 2) for number in (1, 2, 3)]
    text = "Three things help.\n\n" + "\n\n".join(f"{item} {LONG}" for item in items)
    found = details(text, rules=(rule,))
    assert len(found) == 3, text
    assert {detail.removeprefix("\n").lstrip(" -").removeprefix("so: ").strip() for detail in found} == {LONG}
    others = tuple(name for name in RULES if name not in (rule, "numbered_line", "bullet_line", "heading"))
    tree = paragraph_tree(text, "", ForkOptions())
    assert details_of(tree) == found, "with all rules it is the same"
    if rule.startswith("numbered_t"):
        assert details(text, rules=tuple(name for name in others if not name.startswith("numbered"))) == []


def test_separators_stay_with_the_parent() -> None:
    text = f"Intro.\n\n1. Sleep: {LONG}\n\n2. Food: {LONG} \n\nThat is all.\n"
    assert paragraph_tree(text).to_dict() == [
        {"text": "Intro.\n\n1. Sleep:", "detail": [{"text": f" {LONG}"}]},
        {"text": "\n\n2. Food:", "detail": [{"text": f" {LONG}"}]},
        {"text": " \n\nThat is all.\n"},
    ]


def test_headings_and_lists_nest() -> None:
    item = f"1. One: {LONG}\n   - **Why**: {LONG}\n   - **How**: {LONG}\n2. Two: {LONG}"
    text = f"# Guide\n\n## First\n\n{item}\n\n## Second\n\n{LONG}\n\n{item}\n\n---\n\nThe end."
    tree = paragraph_tree(text, options=ForkOptions(max_depth=9))
    assert tree.text == text
    assert (tree.depth, tree.num_forks) == (4, 10)
    assert len(details_of(tree)) == 2, "the only heading of its level is no fork, those inside are"
    assert details_of(tree)[1].endswith(f"2. Two: {LONG}"), "the rule ends the last section"
    for max_depth in (1, 2, 3):
        tree = paragraph_tree(text, options=ForkOptions(max_depth=max_depth))
        assert (tree.text, tree.depth) == (text, max_depth + 1)


def test_lists_under_numbers_without_indentation() -> None:
    text = f"1. One\n- a: {LONG}\n- b: {LONG}\n\n2. Two\n- c: {LONG}\n- d: {LONG}\n\nIn conclusion, sleep."
    assert details(text) == [f"\n- a: {LONG}\n- b: {LONG}", f"\n- c: {LONG}\n- d: {LONG}"]


def test_code_between_items_belongs_to_them_and_the_last_has_it_too() -> None:
    text = "".join(
        f"{number}. Call {name}:\n\n```\nrun {name}\n\n1. no: item\n```\n\n" for number, name in ((1, "a"), (2, "b"))
    )
    assert details(text + "Done.") == ["\n\n```\nrun a\n\n1. no: item\n```", "\n\n```\nrun b\n\n1. no: item\n```"]


def test_a_new_count_is_a_new_list() -> None:
    text = f"Pros:\n\n1. Fast: {LONG}\n2. Small: {LONG}\n\nCons:\n\n1. New: {LONG}\n2. Odd: {LONG}"
    assert details(text) == [f" {LONG}"] * 4
    assert len(details(f"1. A: {LONG}\n5. B: {LONG}")) == 0


@pytest.mark.parametrize(
    "block",
    [
        "```\n{}\n```",
        "~~~text\n{}\n~~~",
        "$$\n{}\n$$",
        "\\[\n{}\n\\]",
        "\\begin{{align}}\n{}\n\\end{{align}}",
        "\\begin{{align}}\n\\begin{{aligned}}\nx\n\\end{{aligned}}\n{}\n\\end{{align}}",
        "\\begin{{align}}\\begin{{aligned}}\nx\n\\end{{aligned}}\n{}\n\\end{{align*}}",
    ],
)
def test_code_and_formulas_are_never_cut(block: str) -> None:
    inside = f"1. Sleep: {LONG}\n2. Food: {LONG}\n## A\n{LONG}\n## B\n{LONG}\n- c: {LONG}\n- d: {LONG}"
    assert details(block.format(inside), short_text=0) == []
    assert details(block.format(inside) + "\n\n" + inside, short_text=0), "without the block it is cut"
    assert details("Text\n" + block.format(inside).rpartition("\n")[0]) == [], "nor where the end is missing"


def test_quotes_tables_and_indented_code_are_never_cut() -> None:
    inside = [f"1. Sleep: {LONG}", f"2. Food: {LONG}"]
    assert details("\n".join(f"> {line}" for line in inside)) == []
    assert details("Code:\n\n" + "\n".join(f"    {line}" for line in inside)) == []
    table = "| what | why |\n|---|---|\n" + "\n".join(f"| **{line}** | {LONG * 9} {LONG} |" for line in inside)
    assert details(table, short_text=0) == []


@pytest.mark.parametrize("tag", ["pre", "table", "blockquote"])
def test_blocks_of_html_are_never_cut(tag: str) -> None:
    inside = f"1. Sleep: {LONG}\n\n2. Food: {LONG}"
    assert details(f"<{tag}>\n{inside}\n</{tag}>") == []
    assert len(details(f"The tag `<{tag}>` opens:\n\n{inside}")) == 2, "named in a sentence"
    assert len(details(f"<{tag}>\n{inside}")) == 2, "never closed"
    assert len(details(f"<{tag}>x</{tag}>\n\n{inside}")) == 2


def test_items_that_begin_with_code_quotes_or_tables_stay_whole() -> None:
    code = f"   ```python\n   # a: {LONG}\n   - b: {LONG}\n   - c: {LONG}\n   ```"
    text = "\n".join(f"{number}. {code.lstrip()}" for number in (1, 2))
    assert details(text) == []
    more = f"\n3. Sleep: {LONG}\n4. Food: {LONG}"
    assert details(text + more) == [f" {LONG}"] * 2, "the code is closed where it ends"
    assert details("\n".join(f"- > Sleep: {LONG}" for _ in range(2))) == []
    assert details("\n".join(f"{number}. | a | b |\n   |---|---|\n   | {LONG} | c |" for number in (1, 2))) == []


def test_code_indented_by_tabs_is_never_cut() -> None:
    lines = ["x = 1", f"1. Sleep: {LONG}", f"2. Food: {LONG}"]
    assert details("Code:\n\n" + "\n".join(f"\t{line}" for line in lines)) == []


def test_titles_do_not_end_inside_quotes_code_or_links() -> None:
    for title in ('"Sleep: well', "`a: b` or c", "see https://a.b", "(Sleep: well", "$x: y", "He said so. And: then"):
        assert details(f"1. {title} {LONG}\n2. {title} {LONG}", rules=("numbered",)) == [], title


def test_windows_line_breaks_change_nothing() -> None:
    text = f"Intro.\n\n1. Sleep: {LONG}\n\n2. Food:\n\n   {LONG}\n\nIn conclusion, sleep.\n"
    found = details(text.replace("\n", "\r\n"))
    assert found == [f" {LONG}", f"\r\n\r\n   {LONG}"]


@settings(max_examples=60, deadline=None)
@given(text=MARKDOWN.filter(lambda text: "\r" not in text), fork_references=st.booleans())
def test_any_markdown_is_cut_alike_with_windows_line_breaks(text: str, fork_references: bool) -> None:
    options = ForkOptions(max_depth=3, min_detail=1, short_text=0, fork_references=fork_references)
    expected = [(node.branch, node.own.replace("\n", "\r\n")) for node in paragraph_tree(text, "", options)]
    tree = paragraph_tree(text.replace("\n", "\r\n"), "", options)
    assert [(node.branch, node.own) for node in tree] == expected


@pytest.mark.parametrize(
    "text",
    [
        f"- Sleep: as above and in step 3, {LONG}\n" * 15000,
        f"1. Sleep: as in step 1, {LONG}\n" * 15000,
        f"Two ways:\n\n- One: use `one`. {LONG}\n- Two: use 12 = `two`. {LONG}\n\n" * 2000,
        f"- Sleep: {LONG}\n- Food: x ={' ' * 60000}y, {LONG}",
        f"a | b\n-{'|  ' * 19}x\n",
        f"{' ' * 60000}x | y\n{' ' * 60000}x\n",
        f"{LONG}\n\n" * 10000,
        "<pre>\n" * 50000,
    ],
    ids=["above", "ones", "names", "spaces", "table", "indented", "paragraphs", "html"],
)
def test_long_answers_take_time_in_proportion(text: str) -> None:
    begin = time.process_time()
    assert paragraph_tree(text).text == text
    assert time.process_time() - begin < 5, "a fraction of a second where nothing is quadratic"


@pytest.mark.parametrize("blank", ["_____", "__________", "*****", "******* ", "_____ -", "_____:"])
@pytest.mark.parametrize("marker", ["1. ", "- ", ""])
def test_lines_to_fill_in_and_stars_are_no_titles(blank: str, marker: str) -> None:
    lines = [
        f"{marker.replace('1', str(number))}{blank} is the capital of a country in the south." for number in (1, 2)
    ]
    text = "\n".join(lines) if marker else "\n\n".join(lines)
    tree = paragraph_tree(text)
    assert tree.text == text
    assert tree.num_forks == 0 or ":" in blank or "-" in blank


def test_short_details_and_single_ones_do_not_fork() -> None:
    assert details("1. One: short\n2. Two: short") == []
    assert details("1. One: short\n2. Two: short", min_detail=5) == [" short", " short"]
    assert details(f"1. One: {LONG}") == []
    assert details(f"1. One: {LONG}\n2. Two: short") == []


def test_at_most_as_many_forks_as_the_decoder_has() -> None:
    text = "\n".join(f"{number}. Point: {LONG}" for number in range(1, 100))
    assert len(details(text)) == MAX_FORKS


def test_paragraphs_of_long_answers_are_split_after_their_first_sentence() -> None:
    paragraph = f"Dr. Lee asks for sleep, e.g. eight hours of it. {LONG} " + f"{LONG} " * 5
    text = "\n\n".join([paragraph.strip()] * 3)
    assert len(text) > 1000
    assert details(text) == [paragraph.strip()[47:]] * 3
    assert details(text, short_text=len(text) + 1) == [], "a short text"
    assert details("\n\n".join([f"{LONG} {LONG}"] * 20)) == [], "short paragraphs"
    assert details(text, rules=("numbered", "headings", "bullets")) == []
    for block in ("```\nx\n```", "$$\nx\n$$"):
        assert details(f"{text}\n\n{block}") == [], "prose around code and formulas is one line of thought"
    assert details(text.replace(LONG, LONG + "\n", 1), short_text=0) == [paragraph.strip()[47:]] * 2


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("It works. Then it rests.", "It works."),
        ("Dr. Lee works. He rests.", "Dr. Lee works."),
        ("It costs 3.5 dollars, i.e. little. Good.", "It costs 3.5 dollars, i.e. little."),
        ("Really?! Yes.", "Really?!"),
        ('She said "Go. Now." He went.', 'She said "Go. Now."'),
        ("Use `a. B` here. Then there.", "Use `a. B` here."),
        ("睡觉很重要。吃饭也是。", "睡觉很重要。"),
        ("One sentence only.", None),
        ("", None),
        ("no end", None),
    ],
)
def test_first_sentences(text: str, first: str | None) -> None:
    end = first_sentence_end(text)
    assert (None if end is None else text[:end]) == first


@pytest.mark.parametrize(
    ("second", "third", "left"),
    [
        ("As described above, rest matters to everyone.", LONG, {2}),
        (LONG, "Take the result of step 1 and go on from there.", {1}),
        (LONG, "Use the second one, if there is time for it.", {0}),
        (LONG, "Repeat the process until it is good and ready.", {0}),
        ("Similarly, eat well and drink enough water, too.", LONG, {2}),
        (LONG, "Compare it with the previous step, and go on then.", {0}),
        (
            "Open `main.cfg` and look for the line that is wrong.",
            "Close `main.cfg` again when you are done with it.",
            {0},
        ),
        ("The sum is 12 x 4 = 48, as anyone can see at once.", "So the half of 48 is what remains in the end.", {0}),
        ("There are 72 years in such a life, more or less.", "That makes 72 * 365 = 26,280 days in the end.", {0}),
        (LONG, LONG, {0, 1, 2}),
    ],
)
def test_details_that_need_a_sibling_stay_in_the_trunk(second: str, third: str, left: set[int]) -> None:
    all_details = [LONG.replace("mind", "head"), second, third]
    text = "\n".join(
        f"{number}. {title}: {detail}" for number, title, detail in zip("123", "ABC", all_details, strict=True)
    )
    # One that is left alone does not fork either, so two more items stand at the end.
    more = f"\n4. D: {LONG} Yes.\n5. E: {LONG} No."
    found = [detail.strip() for detail in details(text + more)]
    assert found == [all_details[number] for number in sorted(left)] + [f"{LONG} Yes.", f"{LONG} No."]
    assert len(details(text + more, fork_references=True)) == 5


def test_what_the_prompt_names_makes_no_dependence() -> None:
    text = f"1. Open: Open `main.cfg` first. {LONG}\n2. Close: Close `main.cfg` then. {LONG}"
    assert details(text) == []
    assert len(details(text, "What do I do with `main.cfg`?")) == 2


def test_a_reference_is_looked_for_where_it_is_meant() -> None:
    inner = f"- a: {LONG}\n- b: As above, {LONG}\n- c: {LONG} Yes.\n- d: {LONG} No."
    text = f"## One\n\n{inner}\n\n## Two\n\n{inner}"
    tree = paragraph_tree(text, options=ForkOptions(max_depth=2))
    assert (len(details_of(tree)), tree.num_forks) == (2, 6), "the items that refer stay, the sections fork"


@settings(max_examples=200, deadline=None)
@given(
    text=MARKDOWN,
    rules=st.sets(st.sampled_from(sorted(RULE_GROUPS)), min_size=1),
    max_depth=st.integers(1, 5),
    fork_references=st.booleans(),
)
def test_nothing_is_lost_of_any_markdown(text: str, rules: set[str], max_depth: int, fork_references: bool) -> None:
    options = ForkOptions(tuple(rules), max_depth, min_detail=1, short_text=0, fork_references=fork_references)
    check_tree(text, paragraph_tree(text, "prompt", options), options)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_nothing_is_lost_of_any_text(text: str) -> None:
    check_tree(text, paragraph_tree(text), ForkOptions())


def check_tree(text: str, tree: ParagraphTree, options: ForkOptions) -> None:
    assert tree.text == text
    assert tree.depth <= options.max_depth + 1
    for node in tree:
        if node.detail is not None:
            assert node.own.strip(), "a branch writes something before it forks"
            assert node.next is not None, "as the decoder's trees, where a branch goes on behind a fork"
            assert len(node.detail.text.strip()) >= options.min_detail
            assert node.detail.text == node.detail.text.rstrip()


@settings(max_examples=150, deadline=None)
@given(before=PLAIN_MARKDOWN, block=st.sampled_from(WHOLE_BLOCKS), after=MARKDOWN, max_depth=st.integers(1, 4))
def test_whole_blocks_are_never_cut_wherever_they_stand(before: str, block: str, after: str, max_depth: int) -> None:
    before += "\n\n" if block.startswith(("|", ">")) else "\n"
    options = ForkOptions(max_depth=max_depth, min_detail=1, short_text=0, fork_references=True)
    tree = paragraph_tree(before + block + after, "", options)
    edges = itertools.accumulate(len(node.own) for node in tree)
    assert not [edge for edge in edges if len(before) < edge < len(before + block) - 1]


@needs_shared_data
def test_nothing_is_lost_of_real_answers() -> None:
    options = [ForkOptions(), ForkOptions(max_depth=9, min_detail=1, short_text=0, fork_references=True)]
    forks = [0, 0]
    for record in chat_records():
        for number, chosen in enumerate(options):
            tree = paragraph_tree(record["response"], record["prompt"], chosen)
            assert tree.text == record["response"]
            forks[number] += tree.num_forks > 0
    assert 1500 < forks[0] < forks[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rules": ("numbers",)}, "rules: expected names among numbered, .*, got 'numbers'"),
        ({"max_depth": 0}, "max_depth: expected at least 1, got 0"),
        ({"min_detail": 0}, "min_detail: expected at least 1, got 0"),
        ({"short_text": -1}, "short_text: expected at least 0, got -1"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ForkOptions(**options)
