"""Branches growing in a terminal. Nothing is shown when the output is not a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from apar.events import Ended, Event, Finished, Forked, Started, Token
from apar.tree import BranchId, branch_name

REDRAW_SECONDS = 0.05


class LiveBranches:
    """Shows one line per branch of the prompt being decoded; give it as ``on_event``.

    ``show_text``: the end of each branch's text, else a bar as long as the branch has tokens.
    """

    def __init__(self, out: TextIO | None = None, *, show_text: bool = True) -> None:
        self.out = out or sys.stdout
        self.enabled = self.out.isatty()
        self.show_text = show_text
        self._branches: dict[BranchId, _Line] = {}
        self._prompt = -1
        self._drawn_lines = 0
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
            self._prompt, self._drawn_lines = -1, 0
        elif time.perf_counter() - self._drawn_at > REDRAW_SECONDS:
            self._draw()

    def clear(self) -> None:
        """Take the lines off the screen again."""
        if self.enabled and self._drawn_lines:
            self.out.write(f"\033[{self._drawn_lines}A\033[J")
            self.out.flush()
            self._drawn_lines = 0

    def _draw(self) -> None:
        width, height = shutil.get_terminal_size((100, 30))
        names = sorted(self._branches)
        # When the screen is full the branches still growing are the ones to see.
        if len(names) > height - 2:
            growing = [name for name in names if not self._branches[name].ended]
            names = growing[: height - 2]
        lines = [self._branches[name].show(name, width - 1, self.show_text) for name in names]
        self.clear()
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

    def show(self, branch: BranchId, width: int, show_text: bool) -> str:
        label = f"{'  ' * len(branch)}{branch_name(branch)}"
        color = "2" if self.ended else "1;36" if branch else "1"
        head = f"{label:<10}{self.tokens:>5} "
        room = max(10, width - len(head))
        if show_text:
            flat = " ".join(self.text.split())
            body = flat if len(flat) <= room else "…" + flat[1 - room :]
        else:
            body = ("━" * self.tokens)[:room]
        return f"\033[{color}m{head}{body}\033[0m"
