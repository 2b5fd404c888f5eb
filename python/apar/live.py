"""Branches growing in a terminal. Nothing is shown when the output is not a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TextIO

from apar.events import Ended, Event, Finished, Forked, Started, Token
from apar.tree import BranchId, branch_name

REDRAW_SECONDS = 0.05


def is_terminal(out: TextIO) -> bool:
    """Whether lines written to ``out`` can be taken back."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def uses_color(out: TextIO) -> bool:
    """Whether ``out`` is a terminal whose owner did not ask for plain text (https://no-color.org)."""
    return is_terminal(out) and not os.environ.get("NO_COLOR")


class LiveBranches:
    """Shows one line per branch of the prompt being decoded; give it as ``on_event``.

    The lines stay when the prompt is finished, until ``clear`` takes them away. ``show_text``: the end of each branch's
    text, else a bar as long as the branch has tokens.
    """

    def __init__(self, out: TextIO | None = None, *, show_text: bool = True) -> None:
        self.out = out or sys.stdout
        self.enabled = is_terminal(self.out)
        self.color = uses_color(self.out)
        self.show_text = show_text
        self._branches: dict[BranchId, _Line] = {}
        self._prompt = -1
        self._drawn_lines = 0
        self._finished_lines = 0
        self._drawn_at = 0.0

    def __call__(self, event: Event) -> None:
        if not self.enabled:
            return
        if isinstance(event, Started) and self._prompt < 0:
            self._prompt, self._branches = event.prompt, {(): _Line()}
        if event.prompt != self._prompt:
            return
        if isinstance(event, Forked):
            self._branches[event.branch] = _Line()
        elif isinstance(event, Token):
            line = self._branches[event.branch]
            line.tokens += 1
            line.text += event.text
        elif isinstance(event, Ended):
            self._branches[event.branch].ended = True
        if isinstance(event, Finished):
            self._draw()
            self._finished_lines += self._drawn_lines
            self._prompt, self._drawn_lines = -1, 0
        elif time.perf_counter() - self._drawn_at > REDRAW_SECONDS:
            self._draw()

    def clear(self) -> None:
        """Take all lines off the screen again."""
        if self.enabled:
            self._take_back(self._drawn_lines + self._finished_lines)
            self._drawn_lines = self._finished_lines = 0

    def _take_back(self, lines: int) -> None:
        if lines:
            self.out.write(f"\033[{lines}A\033[J")
            self.out.flush()

    def _draw(self) -> None:
        width, height = shutil.get_terminal_size((100, 30))
        names = sorted(self._branches)
        # When the screen is full the branches still growing are the ones to see.
        if len(names) > height - 2:
            growing = [name for name in names if not self._branches[name].ended]
            names = growing[: max(1, height - 2)]
        lines = [self._branches[name].show(name, width - 1, self.show_text, self.color) for name in names]
        self._take_back(self._drawn_lines)
        # Wide characters must not wrap a line, or the count of lines to take back would be wrong.
        self.out.write("\033[?7l" + "".join(line + "\n" for line in lines) + "\033[?7h")
        self.out.flush()
        self._drawn_lines = len(lines)
        self._drawn_at = time.perf_counter()


class _Line:
    def __init__(self) -> None:
        self.tokens = 0
        self.text = ""
        self.ended = False

    def show(self, branch: BranchId, width: int, show_text: bool, color: bool) -> str:
        label = f"{'  ' * len(branch)}{branch_name(branch)}"
        head = f"{label:<10}{self.tokens:>5} "
        room = max(10, width - len(head))
        if show_text:
            flat = "".join(part for part in " ".join(self.text.split()) if part.isprintable())
            body = flat if len(flat) <= room else "…" + flat[1 - room :]
        else:
            body = ("━" * self.tokens)[:room]
        if not color:
            return head + body
        style = "2" if self.ended else "1;36" if branch else "1"
        return f"\033[{style}m{head}{body}\033[0m"
