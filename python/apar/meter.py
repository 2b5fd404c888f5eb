"""Counts what attention reads of the KV cache, and what of it is held, from the ranges of every step."""

from __future__ import annotations

from typing import Any

import numpy as np

from apar.decoder import Decoder
from apar.room import page_bytes


class KvMeter:
    """To be given to a decoder as ``observe``.

    entries_read, pages_read: of every step, each entry or page once for all branches of a prompt.
    entries_read_per_branch: once for every branch, as attention reads them that shares only the storage of a prefix.
    peak_pages: most pages held at once. entry_bytes: of one entry, all layers and heads.
    """

    def __init__(self, model: Any, page_size: int) -> None:
        self.page_size = page_size
        self.entry_bytes = page_bytes(model, page_size) // page_size
        self.entries_read = 0
        self.entries_read_per_branch = 0
        self.pages_read = 0
        self.peak_pages = 0

    def __call__(self, decoder: Decoder) -> None:
        forest = decoder.forest
        num_ranges = int(forest.row_indptr[forest.num_rows])
        streams = forest.range_stream[:num_ranges].numpy()
        ends = forest.range_end[:num_ranges].numpy()
        # All ranges begin at 0, so what any row reads of a stream is the longest range of it.
        longest = np.zeros(len(forest.num_pages), dtype=np.int64)
        np.maximum.at(longest, streams, ends)
        self.entries_read += int(longest.sum())
        self.entries_read_per_branch += int(ends.sum())
        self.pages_read += int((-(-longest // self.page_size)).sum())
        self.peak_pages = max(self.peak_pages, int(forest.num_pages.sum()))
