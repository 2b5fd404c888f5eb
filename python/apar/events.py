"""What happens while branches are decoded, one small object per happening."""

from __future__ import annotations

import dataclasses

from apar.output import Output
from apar.tree import BranchId


@dataclasses.dataclass(frozen=True)
class Event:
    """``prompt``: index into the prompts of the call. ``step``: decode step of the call, from 0. ``branch``: its id."""

    prompt: int
    step: int
    branch: BranchId


@dataclasses.dataclass(frozen=True)
class Started(Event):
    """A prompt was taken up: its trunk is decoded from now on."""


@dataclasses.dataclass(frozen=True)
class Forked(Event):
    """``branch`` was opened by a fork token of ``parent`` and goes on by itself from now on."""

    parent: BranchId


@dataclasses.dataclass(frozen=True)
class Token(Event):
    """``branch`` wrote a token. ``text`` is what became readable by it: characters may need several tokens."""

    token_id: int
    text: str


@dataclasses.dataclass(frozen=True)
class Ended(Event):
    """``branch`` ended: ``reason`` is "stop", "length" or "cancelled"."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Finished(Event):
    """The last branch of a prompt ended; ``output`` is its whole answer."""

    output: Output
