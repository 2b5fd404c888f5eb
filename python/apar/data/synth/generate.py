"""Records of prompts with facts and their right answers, drawn one after the other from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from apar.data.records import TreeRecord
from apar.data.synth.facts import write_facts
from apar.data.synth.requests import KINDS, ORDERED_NAMES, Request
from apar.data.synth.topics import TOPICS
from apar.data.synth.worlds import make_world

SYSTEM_MESSAGES = ("You are a helpful assistant.", "Answer from the facts alone.", "You write clear answers.")


def synth_records(seed: int = 0, **options: Any) -> Iterator[TreeRecord]:
    """`synth_rows` with the same options as records."""
    return (TreeRecord.from_dict(row) for row in synth_rows(seed, **options))


def synth_rows(
    seed: int = 0, *, split: str = "train", kinds: Sequence[str] | None = None, max_items: int | None = None
) -> Iterator[dict[str, Any]]:
    """Endless records as plain data: messages, tree, source, split, and kind (see ``KINDS``) and topic.

    Args:
        seed: the same seed gives the same records. Each is drawn on its own, from seed, split and its number.
        split: "train", or "heldout": names that training never has, and requests in wordings that it never has.
        kinds: of these kinds alone (names of ``KINDS``).
        max_items: at most so many items in a world (in a group, if it has groups).

    Raises ValueError where an argument is not as above.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split: expected train or heldout, got {split!r}")
    if max_items is not None and max_items < 2:
        raise ValueError(f"max_items: expected 2 or more, got {max_items}")
    if unknown := set(kinds or ()) - set(KINDS):
        raise ValueError(f"kinds: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(KINDS)}")
    chosen = list(kinds or KINDS)
    weights = [KINDS[kind].weight or bool(kinds) for kind in chosen]
    number = 0
    while True:
        rng = random.Random(f"{split} {seed} {number}")
        kind = rng.choices(chosen, weights)[0]
        yield _make_row(rng, kind, split, max_items)
        number += 1


def _make_row(rng: random.Random, kind: str, split: str, max_items: int | None) -> dict[str, Any]:
    held_out = split == "heldout"
    items = rng.randint(2, max_items) if max_items else None
    topics = [topic for topic in TOPICS if topic.names in ORDERED_NAMES] if kind == "instructions" else TOPICS
    world = make_world(rng, topics, held_out=held_out, grouped=KINDS[kind].grouped, items=items)
    request = KINDS[kind].make(rng, world, held_out)
    prompt = (
        request.text
        if kind in ("chat", "repeat")
        else _put_together(rng, request, write_facts(rng, world, held_out=held_out))
    )
    messages = [{"role": "user", "content": prompt}]
    if rng.random() < 0.03:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    return {
        "messages": messages,
        "tree": request.answer,
        "source": "synth",
        "split": split,
        "kind": request.kind,
        "topic": world.topic.singular,
    }


def _put_together(rng: random.Random, request: Request, facts: str) -> str:
    """The request below the facts, or above them."""
    if rng.random() < 0.6:
        before = rng.choice(("", "", "Facts:\n", "Here are the facts.\n\n", "Notes:\n\n", "These are the facts:\n"))
        return f"{before}{facts}\n\n{request.text}"
    between = rng.choice(("\n\n", "\n\n", "\n\nFacts:\n", "\n\nHere are the facts:\n\n", "\n\nNotes:\n"))
    return f"{request.text}{between}{facts}"
