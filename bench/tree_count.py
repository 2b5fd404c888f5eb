"""What a tree must cost, counted from its shape alone: nothing waits, every branch writes one token a step."""

from __future__ import annotations

from typing import Any


class TreeCount:
    """Counts for one tree ``[t0, child, t1, ...]`` behind a prompt.

    ``steps``, ``tokens`` (sampled ones), ``peak_branches``, ``peak_pages``; summed over the steps the KV ``entries``
    that branches see, each once per step, and ``entries_per_branch``, each once per step and branch.
    """

    def __init__(self, tree: list[Any], prompt_tokens: int, page_size: int) -> None:
        self.streams: list[tuple[int, int, int, int, int]] = []
        # (first step, entries in the first step, steps, parent, entries of the parent that it reads)
        self._add(tree, 0, prompt_tokens, -1, 0)
        self.steps = max(start + steps for start, _, steps, _, _ in self.streams)
        self.tokens = sum(steps for _, _, steps, _, _ in self.streams)
        self.peak_pages = self.entries = self.entries_per_branch = self.peak_branches = 0
        for step in range(self.steps):
            needed = dict.fromkeys(range(len(self.streams)), 0)
            live = 0
            for number, (start, first, steps, parent, read) in enumerate(self.streams):
                if not start <= step < start + steps:
                    continue
                live += 1
                own = first + step - start
                needed[number] = max(needed[number], own)
                self.entries_per_branch += own
                while parent >= 0:
                    needed[parent] = max(needed[parent], read)
                    self.entries_per_branch += read
                    _, _, _, parent, read = self.streams[parent]
            self.entries += sum(needed.values())
            self.peak_pages = max(self.peak_pages, sum(-(-entries // page_size) for entries in needed.values()))
            self.peak_branches = max(self.peak_branches, live)

    def rows_at(self, step: int) -> list[list[tuple[int, int, int]]]:
        """What each live branch reads in a step, ``(stream, 0, end)`` from the trunk to its own stream; depth first."""
        rows = []
        for number, (start, first, steps, parent, read) in enumerate(self.streams):
            if not start <= step < start + steps:
                continue
            ranges = [(number, 0, first + step - start)]
            while parent >= 0:
                ranges.append((parent, 0, read))
                _, _, _, parent, read = self.streams[parent]
            rows.append(ranges[::-1])
        return rows

    def _add(self, tree: list[Any], start: int, first: int, parent: int, read: int) -> None:
        number = len(self.streams)
        forks = len(tree) // 2
        # Every step samples a token: the numbers of the tree, a fork token for every child, an end token.
        self.streams.append((start, first, sum(tree[::2]) + forks + 1, parent, read))
        sampled = 0
        for place, part in enumerate(tree):
            if place % 2 == 0:
                sampled += part
                continue
            sampled += 1
            # The fork token is fed in the step after the one that sampled it; the child token in the same step.
            self._add(part, start + sampled, 1, number, first + sampled)
