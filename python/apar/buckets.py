"""Row counts that steps are captured for, and how many rows the step after next may have."""

from __future__ import annotations

MOST_SPARE_ROWS = 64
"""Up to so many rows a step costs what reading the weights costs, and padded rows are nearly free."""


class Buckets:
    """1, 2, 4, 8 ... and ``max_rows``."""

    def __init__(self, max_rows: int) -> None:
        self.sizes = [1 << power for power in range(max_rows.bit_length()) if 1 << power < max_rows] + [max_rows]

    def hold(self, rows: int) -> int:
        """The smallest bucket for ``rows`` rows, 0 to max_rows."""
        return next(size for size in self.sizes if size >= rows)

    def ahead(self, rows: int, most: int) -> int:
        """The bucket of the step after next, from what is known now.

        Two steps may fork before that one runs, and a branch that finds no row waits a step. So there are spare rows,
        as long as they cost little: one for every four, at least one.

        Args:
            rows: branches that want a row now.
            most: rows that there can be at all.
        """
        bucket = self.hold(min(rows, self.sizes[-1]))
        spare = self.hold(min(rows + max(1, rows // 4), most, self.sizes[-1]))
        return max(bucket, spare) if spare <= MOST_SPARE_ROWS else bucket
