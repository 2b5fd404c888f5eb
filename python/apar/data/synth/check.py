"""Whether an answer says what the facts say: each detail of the right answer is looked for in the text."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from apar.data.records import TreeRecord
from apar.tree import ParagraphTree


@dataclasses.dataclass(frozen=True)
class DetailCheck:
    """``lead`` is the line that the detail follows ("2. Mira:"), ``expected`` the detail.

    ``right``: whether the answer has the one behind the other, to the character but for spaces at the ends of lines,
    and in the right place: below "1. North:", say, and above "2. South:".
    """

    lead: str
    expected: str
    right: bool


@dataclasses.dataclass(frozen=True)
class AnswerCheck:
    """What came of one answer.

    details: those of the right answer; the whole answer is the only detail where the right answer has no branches.
    exact: the whole text is right, to the character.
    expected_forks, forks: the branches of the right answer, and how many of them the answer has in the same places.
    extra_forks: branches of the answer in places where the right answer has none.
    """

    details: tuple[DetailCheck, ...]
    exact: bool
    expected_forks: int
    forks: int
    extra_forks: int

    @property
    def num_right(self) -> int:
        return sum(detail.right for detail in self.details)


class Checker(Protocol):
    """Checks an answer to a record: its text, or its tree, whose branches are compared, too."""

    def __call__(self, record: TreeRecord, answer: str | ParagraphTree) -> AnswerCheck: ...


def check_answer(record: TreeRecord, answer: str | ParagraphTree) -> AnswerCheck:
    """Compare an answer with the right one, ``record.tree``. A text counts as an answer without branches."""
    text = answer if isinstance(answer, str) else answer.text
    expected = _places(record.tree)
    found = collections.Counter() if isinstance(answer, str) else _places(answer)
    whole = record.tree.text
    if expected:
        details = tuple(_check_details(record.tree, whole, 0, [_lines(text)]))
    else:
        details = (DetailCheck("", whole, _lines(text) == _lines(whole)),)
    return AnswerCheck(
        details=details,
        exact=text == whole,
        expected_forks=expected.total(),
        forks=(expected & found).total(),
        extra_forks=(found - expected).total(),
    )


def summarize(checks: Iterable[AnswerCheck]) -> dict[str, int | float]:
    """Shares over many answers, and the counts they are of; a share of nothing is left out.

    details_right: of all details, answers without branches counted as one. answers_right: of all answers, the whole
    text. forked_where_expected: of the branches of the right answers. forked_where_not: answers that fork, of those
    whose right answer has no branches. extra_forks: a count, of all answers.
    """
    checks = list(checks)
    plain = [check for check in checks if not check.expected_forks]
    counts = {
        "answers": len(checks),
        "details": sum(len(check.details) for check in checks),
        "branches": sum(check.expected_forks for check in checks),
        "answers_without_branches": len(plain),
        "extra_forks": sum(check.extra_forks for check in checks),
    }
    shares = {
        "details_right": (sum(check.num_right for check in checks), counts["details"]),
        "answers_right": (sum(check.exact for check in checks), counts["answers"]),
        "forked_where_expected": (sum(check.forks for check in checks), counts["branches"]),
        "forked_where_not": (sum(check.extra_forks > 0 for check in plain), len(plain)),
    }
    return counts | {name: part / whole for name, (part, whole) in shares.items() if whole}


def _check_details(
    branch: ParagraphTree, whole: str, begin: int, sections: Sequence[Sequence[str]]
) -> Iterator[DetailCheck]:
    """Checks the details of a branch that have none themselves, in reading order.

    whole: the right answer. begin: where in it the branch begins. sections: lines of the answer that is checked, where
    what the branch says may stand. A right answer is always found right.
    """
    forks = []
    node: ParagraphTree | None = branch
    while node is not None:
        begin += len(node.own)
        if node.detail is not None:
            forks.append((_begin_of_line(whole, begin), begin, node.detail))
            begin += len(node.detail.text)
        node = node.next
    leads = [whole[line:fork].rstrip() for line, fork, _ in forks]
    for (line, fork, detail), lead in zip(forks, leads, strict=True):
        end = fork + len(detail.text)
        wanted = _lines(whole[line : _end_of_line(whole, end)])
        if detail.num_forks:
            others = tuple(other for other in leads if not any(text.startswith(other) for text in wanted))
            yield from _check_details(detail, whole, fork, list(_sections(sections, lead, others)))
        else:
            right = any(_stands_in(lines, wanted) for lines in sections)
            yield DetailCheck(whole[line:fork], whole[fork:end], right)


def _sections(sections: Sequence[Sequence[str]], lead: str, others: tuple[str, ...]) -> Iterator[Sequence[str]]:
    """The lines from each that begins with ``lead`` to the next one that begins with one of ``others``."""
    for lines in sections:
        for begin, line in enumerate(lines):
            if line.startswith(lead):
                ends = (end for end in range(begin + 1, len(lines)) if lines[end].startswith(others))
                yield lines[begin : next(ends, len(lines))]


def _lead(text: str) -> str:
    """The line that a branch is forked behind."""
    return text.strip("\n").rsplit("\n", 1)[-1]


def _begin_of_line(text: str, end: int) -> int:
    """Where the last line of ``text[:end]`` begins that is not empty."""
    return text.rfind("\n", 0, len(text[:end].rstrip("\n"))) + 1


def _end_of_line(text: str, begin: int) -> int:
    return end if (end := text.find("\n", begin)) >= 0 else len(text)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").split("\n")]


def _stands_in(lines: Sequence[str], wanted: Sequence[str]) -> bool:
    return any(lines[begin : begin + len(wanted)] == wanted for begin in range(len(lines) - len(wanted) + 1))


def _places(tree: ParagraphTree) -> collections.Counter[tuple[str, ...]]:
    """Where the branches are: for each the lines on the way to it."""
    places: collections.Counter[tuple[str, ...]] = collections.Counter()
    pending: list[tuple[ParagraphTree | None, tuple[str, ...]]] = [(tree, ())]
    while pending:
        node, above = pending.pop()
        while node is not None:
            if node.detail is not None:
                place = (*above, _lead(node.own).strip())
                places[place] += 1
                pending.append((node.detail, place))
            node = node.next
    return places
