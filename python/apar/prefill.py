"""Prefill: the KV entries of prompts, written through the same kernels that decode.

Every prompt token is a row of the prompt's stream whose range ends with itself. Rows of several prompts travel in one
pass, so short prompts fill a chunk together and a long one is cut into several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from apar.cache import PagedCache, Step


@dataclass(frozen=True)
class PromptStream:
    """Tokens to be written to one stream.

    Attributes:
        stream: row of the page table.
        token_ids: [n] the tokens, n >= 0.
        start: entries that the stream holds already; the first token becomes entry ``start``.
        context: ranges ``(stream, begin, end)`` that every token reads besides its own stream, in reading order. A
            stream that is filled in the same call must stand earlier in the list of prompts.
    """

    stream: int
    token_ids: Sequence[int] | torch.Tensor
    start: int = 0
    context: Sequence[tuple[int, int, int]] = ()


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    cache: PagedCache,
    prompts: Sequence[PromptStream],
    page_table: torch.Tensor,
    first_position: torch.Tensor,
    *,
    chunk_size: int = 512,
    logits: Literal["none", "last", "all"] = "none",
) -> list[torch.Tensor] | None:
    """Write the entries of ``prompts`` to the cache.

    Args:
        model: a causal language model with ``attn_implementation="apar"``.
        cache: the model's cache; its step is replaced.
        prompts: what to write.
        page_table: [S, max_pages] int32, on the device of the model; the pages that the tokens need are in it.
        first_position: [S] int32, same device: position id of each stream's entry 0.
        chunk_size: rows per forward pass, at least 1. It bounds the memory of activations; the entries are the same for
            any value, up to rounding.
        logits: "none" leaves the language-model head out of it, "last" gives those of every prompt's last token,
            "all" those of every token.

    Returns:
        None, or per prompt its logits: [1, V] or [n, V].

    Raises:
        ValueError: a prompt does not fit its row of the page table, a stream is out of range, chunk_size < 1, or logits
            of an empty prompt are wanted.
    """
    if chunk_size < 1:
        raise ValueError(f"prefill: chunk_size is {chunk_size}, expected at least 1")
    if logits not in ("none", "last", "all"):
        raise ValueError(f"prefill: logits is {logits!r}, expected 'none', 'last' or 'all'")
    capacity = page_table.shape[1] * cache.page_size
    for prompt in prompts:
        if not 0 <= prompt.stream < page_table.shape[0]:
            raise ValueError(f"prefill: stream is {prompt.stream}, expected 0 to {page_table.shape[0] - 1}")
        length = prompt.start + len(prompt.token_ids)
        if prompt.start < 0 or length > capacity:
            raise ValueError(
                f"prefill: stream {prompt.stream} would hold {length} entries, the first new one at {prompt.start}, "
                f"expected at most {capacity} (one row of the page table)"
            )
        if logits != "none" and len(prompt.token_ids) == 0:
            raise ValueError(f"prefill: stream {prompt.stream} has no tokens, expected at least 1 to give logits")

    kept: list[list[torch.Tensor]] = [[] for _ in prompts]
    for pieces in _chunks(prompts, chunk_size):
        step, token_ids, positions = _prepare(cache, prompts, pieces, page_table, first_position)
        wanted = _wanted_rows(prompts, pieces, logits)
        inputs = {"input_ids": token_ids, "position_ids": positions, "past_key_values": cache, "use_cache": True}
        with cache.stepping(step):
            if not wanted:
                model.base_model(**inputs)
                continue
            rows = torch.tensor([row for _, row in wanted], device=page_table.device)
            chunk_logits = model(**inputs, logits_to_keep=rows).logits[0]
        for (prompt_index, _), row_logits in zip(wanted, chunk_logits, strict=True):
            kept[prompt_index].append(row_logits)
    return None if logits == "none" else [torch.stack(rows) for rows in kept]


@dataclass(frozen=True)
class _Piece:
    """Tokens [begin, end) of one prompt."""

    prompt: int
    begin: int
    end: int


def _chunks(prompts: Sequence[PromptStream], chunk_size: int) -> list[list[_Piece]]:
    """All tokens in order, cut into runs of at most ``chunk_size``."""
    chunks: list[list[_Piece]] = []
    room = 0
    for index, prompt in enumerate(prompts):
        begin = 0
        while begin < len(prompt.token_ids):
            if room == 0:
                chunks.append([])
                room = chunk_size
            end = min(len(prompt.token_ids), begin + room)
            chunks[-1].append(_Piece(index, begin, end))
            room -= end - begin
            begin = end
    return chunks


def _wanted_rows(prompts: Sequence[PromptStream], pieces: list[_Piece], logits: str) -> list[tuple[int, int]]:
    """(prompt, row of the chunk) of every row whose logits are wanted."""
    wanted: list[tuple[int, int]] = []
    if logits == "none":
        return wanted
    row = 0
    for piece in pieces:
        for index in range(piece.begin, piece.end):
            is_last = index + 1 == len(prompts[piece.prompt].token_ids)
            if logits == "all" or (logits == "last" and is_last):
                wanted.append((piece.prompt, row))
            row += 1
    return wanted


def _prepare(
    cache: PagedCache,
    prompts: Sequence[PromptStream],
    pieces: list[_Piece],
    page_table: torch.Tensor,
    first_position: torch.Tensor,
) -> tuple[Step, torch.Tensor, torch.Tensor]:
    """The step, token ids [1, R] and position ids [1, R] of one chunk."""
    tokens, streams, entries, ranges_per_row, ranges = [], [], [], [], []
    for piece in pieces:
        prompt = prompts[piece.prompt]
        tokens.append(torch.as_tensor(prompt.token_ids[piece.begin : piece.end], dtype=torch.int64).cpu())
        entry = torch.arange(prompt.start + piece.begin, prompt.start + piece.end, dtype=torch.int32)
        streams.append(torch.full_like(entry, prompt.stream))
        entries.append(entry)
        ranges_per_row.append(torch.full_like(entry, len(prompt.context) + 1))
        # Per row the context, then the own stream up to the row itself.
        piece_ranges = torch.tensor([*prompt.context, (prompt.stream, 0, 0)], dtype=torch.int32).repeat(
            len(entry), 1, 1
        )
        piece_ranges[:, -1, 2] = entry + 1
        ranges.append(piece_ranges.view(-1, 3))

    device = page_table.device
    stream = torch.cat(streams).to(device).long()
    entry = torch.cat(entries).to(device)
    page = page_table[stream, (entry // cache.page_size).long()]
    position = entry + first_position[stream]
    row_indptr = torch.nn.functional.pad(torch.cat(ranges_per_row).cumsum(0, dtype=torch.int32), (1, 0))
    range_stream, range_begin, range_end = torch.cat(ranges).to(device).t().contiguous()
    step = cache.make_step(
        page_table,
        page * cache.page_size + entry % cache.page_size,
        position,
        row_indptr.to(device),
        range_stream,
        range_begin,
        range_end,
        first_position,
    )
    return step, torch.cat(tokens).to(device)[None], position.long()[None]
