"""How much room a decoding run gets: KV pages, slots and rows, and what happens when the prompts cannot fit."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch

from apar.cache import KV_DTYPES, check_kv_dtype
from apar.grammar import Grammar
from apar.page_sizes import PAGE_SIZES

MEMORY_SHARE = 0.25  # of the free memory, for pages, unless the caller says how many
DEFAULT_ROWS = 256
DEFAULT_LIVE_BRANCHES = 16  # real answers are 4 to 5 branches wide, 14 at most
DEFAULT_SLOTS = 4096
DEFAULT_PREFILL_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Room:
    """What a decoder may use. None of it changes what is written, only how much of it is written at once.

    ``max_pages`` KV pages of ``page_size`` tokens; ``max_rows`` branches fed in one step; ``max_slots`` branches
    alive, waiting or still read; ``max_live_branches`` branches of one prompt fed in one step; ``prefill_tokens``
    prompt tokens fed in one forward pass; ``stream_pages`` pages of the longest stream. ``kv_dtype`` alone is no
    matter of room only: what is rounded when it is stored may change a text.
    """

    max_pages: int
    max_rows: int
    max_slots: int
    stream_pages: int
    page_size: int
    max_live_branches: int
    prefill_tokens: int
    kv_dtype: str | None = None


def make_room(
    model: Any,
    prompt_lengths: list[int],
    limits: list[int],
    grammar: Grammar,
    *,
    page_size: int,
    max_pages: int | None,
    max_rows: int | None,
    max_live_branches: int,
    prefill_tokens: int,
    kv_dtype: str | None = None,
) -> Room:
    """Room for prompts of these lengths whose paths end at these positions.

    Raises ValueError if an argument is out of range or if one prompt alone does not fit into ``max_pages``.
    """
    check_integer("page_size", page_size, 1)
    if page_size not in PAGE_SIZES:
        raise ValueError(f"page_size: expected one of {', '.join(map(str, PAGE_SIZES))}, got {page_size!r}")
    check_kv_dtype(kv_dtype)
    check_integer("max_live_branches", max_live_branches, 1)
    check_integer("prefill_tokens", prefill_tokens, 1)
    live = max_live_branches if grammar.can_fork else 1
    depth = grammar.max_depth if grammar.can_fork else 1
    if max_rows is None:
        max_rows = min(DEFAULT_ROWS, live * len(limits))
    check_integer("max_rows", max_rows, 1)
    live, max_live_branches = min(live, max_rows), min(max_live_branches, max_rows)
    # Each live branch may hold up the streams of its ancestors, and the ancestors themselves wait.
    # One more for the stream of a long prompt.
    slots_per_prompt = live * max(1, depth - 1) + depth + 1
    max_slots = min(max(DEFAULT_SLOTS, slots_per_prompt), slots_per_prompt * min(len(limits), max_rows))
    stream_pages = max(pages_for(limit - 1, page_size) for limit in limits)  # the last token is never fed
    if max_pages is None:
        wanted = sum(
            pages_for(length, page_size) + live * (pages_for(limit - length, page_size) + depth)
            for length, limit in zip(prompt_lengths, limits, strict=True)
        )
        least = stream_pages + depth - 1
        affordable = int(MEMORY_SHARE * free_memory_bytes(model) / page_bytes(model, page_size, kv_dtype))
        max_pages = max(least, min(wanted, affordable))
    check_integer("max_pages", max_pages, 1)
    for prompt, limit in enumerate(limits):
        needed = pages_for(limit - 1, page_size) + depth - 1
        if needed > max_pages:
            raise ValueError(
                f"max_pages: prompt {prompt} has {prompt_lengths[prompt]} tokens and may grow to {limit}, which needs "
                f"{needed} pages of {page_size}; expected max_pages of at least that, got {max_pages}"
            )
    return Room(max_pages, max_rows, max_slots, stream_pages, page_size, max_live_branches, prefill_tokens, kv_dtype)


def pages_for(tokens: int, page_size: int) -> int:
    return -(-tokens // page_size)


def page_bytes(model: Any, page_size: int, kv_dtype: str | None = None) -> int:
    """Bytes of one page over all layers, keys and values."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    element_bytes = KV_DTYPES.get(kv_dtype, model.dtype).itemsize
    return 2 * config.num_hidden_layers * kv_heads * head_dim * page_size * element_bytes


def free_memory_bytes(model: Any) -> int:
    """Free memory of the device the model is on."""
    if model.device.type == "cuda":
        return torch.cuda.mem_get_info(model.device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not every system tells
        return 4 << 30


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Raises TypeError or ValueError, naming the argument, unless ``value`` is an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
