"""Records of prompts with facts and their right answers, drawn one after the other from a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from apar.data.records import TreeRecord
from apar.data.synth.facts import write_facts
from apar.data.synth.requests import KINDS, ORDERED_NAMES, WITHOUT_FACTS, Request
from apar.data.synth.topics import TOPICS
from apar.data.synth.worlds import World, make_world

_BEFORE_FACTS = ("", "", "Facts:\n", "Here are the facts.\n\n", "Notes:\n\n", "These are the facts:\n")
MOST_ITEMS = 50
"""In a group: every name of a world begins in its own way, and there are some thousand ways."""
SYSTEM_MESSAGES = ("You are a helpful assistant.", "Answer from the facts alone.", "You write clear answers.")


def synth_records(seed: int = 0, **options: Any) -> Iterator[TreeRecord]:
    """`synth_rows` with the same options as records."""
    return (TreeRecord.from_dict(row) for row in synth_rows(seed, **options))


def synth_rows(
    seed: int = 0,
    *,
    split: str = "train",
    kinds: Sequence[str] | None = None,
    max_items: int | None = None,
    requests: int = 1,
) -> Iterator[dict[str, Any]]:
    """Endless records as plain data: messages, tree, source, split, and kind (see ``KINDS``) and topic.

    Args:
        seed: the same seed gives the same records. Each is drawn on its own, from seed, split and its number.
        split: "train", or "heldout": names that training never has, and requests in wordings that it never has.
        kinds: of these kinds alone (names of ``KINDS``).
        max_items: at most so many items in a world (in a group, if it has groups), 2 to 50.
        requests: so many records in a row are about the same facts, which then come first in their prompts: training
            packs such a beginning once. Kinds without facts are left out.

    Raises ValueError where an argument is not as above.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split: expected train or heldout, got {split!r}")
    if max_items is not None and not 2 <= max_items <= MOST_ITEMS:
        raise ValueError(f"max_items: expected 2 to {MOST_ITEMS}, got {max_items}")
    if requests < 1:
        raise ValueError(f"requests: expected 1 or more, got {requests}")
    if unknown := set(kinds or ()) - set(KINDS):
        raise ValueError(f"kinds: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(KINDS)}")
    chosen = {kind: KINDS[kind].weight or int(bool(kinds)) for kind in kinds or KINDS}
    if requests > 1:
        chosen = {kind: weight for kind, weight in chosen.items() if kind not in WITHOUT_FACTS}
        if not chosen:
            raise ValueError(f"kinds: {', '.join(kinds or ())} need no facts, expected others with requests={requests}")
    for number in itertools.count():
        rng = random.Random(f"{split} {seed} {number}")
        if requests == 1:
            [kind] = rng.choices(list(chosen), list(chosen.values()))
            yield _make_row(rng, kind, split, max_items)
        else:
            yield from _rows_about_a_world(rng, chosen, split, max_items, requests)


def _make_row(rng: random.Random, kind: str, split: str, max_items: int | None) -> dict[str, Any]:
    held_out = split == "heldout"
    world = _make_world(rng, kind, held_out, max_items)
    request = KINDS[kind].make(rng, world, held_out)
    prompt = (
        request.text
        if kind in WITHOUT_FACTS
        else _put_together(rng, request, write_facts(rng, world, held_out=held_out))
    )
    messages = [{"role": "user", "content": prompt}]
    if rng.random() < 0.03:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    return _row(messages, request, world, split)


def _rows_about_a_world(
    rng: random.Random, kinds: dict[str, int], split: str, max_items: int | None, count: int
) -> Iterator[dict[str, Any]]:
    """``count`` requests about one world, of kinds that go with it; the facts are the same to the letter."""
    held_out = split == "heldout"
    [first] = rng.choices(list(kinds), list(kinds.values()))
    world = _make_world(rng, first, held_out, max_items)
    fitting = {
        kind: weight
        for kind, weight in kinds.items()
        if KINDS[kind].grouped == KINDS[first].grouped
        and (kind != "instructions" or world.topic.names in ORDERED_NAMES)
    }
    facts = rng.choice(_BEFORE_FACTS) + write_facts(rng, world, held_out=held_out)
    for number in range(count):
        [kind] = rng.choices(list(fitting), list(fitting.values())) if number else [first]
        request = KINDS[kind].make(rng, world, held_out)
        yield _row([{"role": "user", "content": f"{facts}\n\n{request.text}"}], request, world, split)


def _make_world(rng: random.Random, kind: str, held_out: bool, max_items: int | None) -> World:
    items = rng.randint(2, max_items) if max_items else None
    topics = [topic for topic in TOPICS if topic.names in ORDERED_NAMES] if kind == "instructions" else TOPICS
    return make_world(rng, topics, held_out=held_out, grouped=KINDS[kind].grouped, items=items)


def _row(messages: list[dict[str, str]], request: Request, world: World, split: str) -> dict[str, Any]:
    return {
        "messages": messages,
        "tree": request.answer,
        "source": "synth",
        "split": split,
        "kind": request.kind,
        "topic": world.topic.singular,
    }


def _put_together(rng: random.Random, request: Request, facts: str) -> str:
    """The request below the facts, or above them; all on one line at times, where the facts are."""
    if "\n" not in facts and rng.random() < 0.25:
        return f"{facts} {request.text}" if rng.random() < 0.75 else f"{request.text} {facts}"
    if rng.random() < 0.75:
        return f"{rng.choice(_BEFORE_FACTS)}{facts}\n\n{request.text}"
    between = rng.choice(("\n\n", "\n\n", "\n\nFacts:\n", "\n\nHere are the facts:\n\n", "\n\nNotes:\n"))
    return f"{request.text}{between}{facts}"
