"""Rows of attention for the shapes that are measured: published balanced trees, real answers, flat decoding.

A row is a list of ranges (stream, begin, end), as everywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.common import tree_rows
from bench.tree_count import TreeCount

FOLDER = Path(__file__).parent
HEADS = ((32, 32), (32, 8), (16, 1))
HEAD_DIM = 128

# What the ideal time of a shape assumes (an H200, as others measured it).
IDEAL_BYTES_PER_SECOND, IDEAL_FLOPS = 4.07e12, 650e12

Range = tuple[int, int, int]
Rows = list[list[Range]]


@dataclass(frozen=True)
class KernelShape:
    """One of the 35 shapes that FastTree (F) and PAT (P) published: a row per leaf of a balanced tree."""

    name: str
    nodes_per_level: tuple[int, ...]
    tokens_per_node: tuple[int, ...]

    @property
    def rows(self) -> Rows:
        return tree_rows(list(self.nodes_per_level), list(self.tokens_per_node))

    @property
    def shares_nothing(self) -> bool:
        return len(self.nodes_per_level) == 1


def kernel_shapes() -> list[KernelShape]:
    shapes = json.loads((FOLDER / "shapes" / "kernel_shapes.json").read_text())["shapes"]
    return [KernelShape(s["name"], tuple(s["nodes_per_level"]), tuple(s["tokens_per_node"])) for s in shapes]


def vicuna_rows(requests: int, *, more_prompt: int = 0) -> Rows:
    """Real answers of many models, each caught in the middle of its decoding, at the step with the most branches.

    more_prompt: tokens added to every prompt (as a system prompt of its own).
    """
    lines = (FOLDER / "trees" / "vicuna80.jsonl").read_text().splitlines()
    answers = [answer for answer in map(json.loads, lines) if "apar" in answer]
    rows: Rows = []
    first_stream = 0
    for number in range(requests):
        answer = answers[number * len(answers) // requests]
        count = TreeCount(answer["apar"], answer["prompt_tokens"] + more_prompt, 16)
        widths = [len(count.rows_at(step)) for step in range(count.steps)]
        busiest = max(range(count.steps), key=lambda step: (widths[step], step))
        for row in count.rows_at(busiest):
            rows.append([(first_stream + stream, begin, end) for stream, begin, end in row])
        first_stream += len(count.streams)
    return rows


def flat_rows(requests: int, entries: int) -> Rows:
    """Requests of one branch each, which share nothing."""
    return [[(request, 0, entries)] for request in range(requests)]


def one_request_rows(branches: int, prompt: int, own: int) -> Rows:
    return [[(0, 0, prompt), (1 + branch, 0, own)] for branch in range(branches)]


def unique_entries(rows: Rows) -> int:
    """Entries that any row reads, each counted once; ranges begin at 0, as they do here."""
    longest: dict[int, int] = {}
    for row in rows:
        for stream, _, end in row:
            longest[stream] = max(longest.get(stream, 0), end)
    return sum(longest.values())


def unique_bytes(rows: Rows, num_heads: int, num_kv_heads: int, *, kv_bytes: int = 2, head_dim: int = HEAD_DIM) -> int:
    """KV that any row reads, queries and outputs (of 16 bits)."""
    return unique_entries(rows) * 2 * num_kv_heads * head_dim * kv_bytes + 2 * len(rows) * num_heads * head_dim * 2


def flops(rows: Rows, num_heads: int, head_dim: int = HEAD_DIM) -> int:
    """Multiplications and additions of both products over what rows read."""
    return 4 * num_heads * head_dim * sum(end - begin for row in rows for _, begin, end in row)


def ideal_us(rows: Rows, num_heads: int, num_kv_heads: int) -> float:
    """The published goal for an H200: each byte once, or the arithmetic, whichever takes longer."""
    memory = unique_bytes(rows, num_heads, num_kv_heads) / IDEAL_BYTES_PER_SECOND
    return 1e6 * max(memory, flops(rows, num_heads) / IDEAL_FLOPS)
