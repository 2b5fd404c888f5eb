"""The grammar of branches: which tokens open a branch, which end one, and the static limits of a tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from apar_ext import FOREST_MAX_STOP_TOKENS

PUBLISHED_CONTROL_TOKENS = ("[SplitMask]", "[SplitSop]")
KNOWN_CONTROL_TOKENS = (("[Fork]", "[Child]"), PUBLISHED_CONTROL_TOKENS)
"""Pairs of names under which models know their control tokens; the first pair that a tokenizer has is used."""

DEFAULT_MAX_DEPTH = 2
MAX_DEPTH = 64  # levels of branches, as the forest has them
NEWLINE_RULES = ("exact", "published")


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Token ids and static rules of a tree of branches.

    ``fork_id`` opens a branch, whose stream starts with the forced ``child_id``; both are -1 for a model that has no
    such tokens (it decodes as a single branch). ``stop_ids`` end a branch. ``max_depth`` counts levels (2: the trunk
    may fork, its details may not), ``max_children`` the forks of one branch. ``newlines`` says how texts are put
    together:

    - ``"exact"``: as decoded, the separators are tokens like any other;
    - ``"published"``: a detail starts on a line of its own and what follows a detail after a blank line, as the
      published models need it, which were tuned on text whose separators were cut off.
    """

    fork_id: int = -1
    child_id: int = -1
    stop_ids: tuple[int, ...] = ()
    max_depth: int = DEFAULT_MAX_DEPTH
    max_children: int = 64
    newlines: str = "exact"

    def __post_init__(self) -> None:
        for name in ("fork_id", "child_id", "max_depth", "max_children"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"grammar: {name} must be an integer, got {value!r}")
        object.__setattr__(self, "stop_ids", tuple(int(token) for token in self.stop_ids))
        if (self.fork_id < 0) != (self.child_id < 0):
            raise ValueError(
                "grammar: expected both fork_id and child_id, or neither; "
                f"got fork_id={self.fork_id}, child_id={self.child_id}"
            )
        if self.fork_id >= 0 and self.fork_id == self.child_id:
            raise ValueError(f"grammar: fork_id and child_id must differ, both are {self.fork_id}")
        if len(self.stop_ids) > FOREST_MAX_STOP_TOKENS:
            raise ValueError(f"grammar: expected at most {FOREST_MAX_STOP_TOKENS} stop_ids, got {len(self.stop_ids)}")
        if min(self.stop_ids, default=0) < 0:
            raise ValueError(f"grammar: stop_ids must not be negative, got {self.stop_ids}")
        if {self.fork_id, self.child_id} & set(self.stop_ids):
            raise ValueError(f"grammar: a control token cannot be a stop token, got {self.stop_ids}")
        if not 1 <= self.max_depth <= MAX_DEPTH:
            raise ValueError(f"max_depth: expected 1 (the trunk alone) to {MAX_DEPTH}, got {self.max_depth}")
        if self.max_children < 0:
            raise ValueError(f"max_children: expected 0 or more, got {self.max_children}")
        if self.newlines not in NEWLINE_RULES:
            raise ValueError(f"grammar: newlines must be one of {', '.join(NEWLINE_RULES)}, got {self.newlines!r}")

    @property
    def can_fork(self) -> bool:
        """Whether a tree can have more than its trunk."""
        return self.fork_id >= 0 and self.max_depth > 1 and self.max_children > 0

    @property
    def control_ids(self) -> frozenset[int]:
        """The fork and the child token; empty for a model without them."""
        return frozenset({self.fork_id, self.child_id} - {-1})

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        *,
        fork: str | None = None,
        child: str | None = None,
        stop_ids: Iterable[int] | None = None,
        max_depth: int = DEFAULT_MAX_DEPTH,
        max_children: int = 64,
        newlines: str | None = None,
    ) -> Grammar:
        """Find the control tokens by name.

        ``fork`` and ``child`` name them; without names the known pairs are tried, and a tokenizer that has none of them
        gives a grammar of a single branch. ``stop_ids`` are by default the tokenizer's end of sequence, ``newlines``
        ``"published"`` where the names of the published models are found, else ``"exact"``.

        Raises ValueError when a named token is not one token of the tokenizer, or when it has only one of a known pair.
        """
        if (fork is None) != (child is None):
            raise ValueError(f"grammar: expected both fork and child, or neither; got fork={fork!r}, child={child!r}")
        fork_id = child_id = -1
        names: tuple[str, str] | None = None
        if fork is not None and child is not None:
            names = fork, child
            fork_id, child_id = _required_id(tokenizer, "fork", fork), _required_id(tokenizer, "child", child)
        else:
            for fork_name, child_name in KNOWN_CONTROL_TOKENS:
                found = _token_id(tokenizer, fork_name), _token_id(tokenizer, child_name)
                if (found[0] is None) != (found[1] is None):
                    has, lacks = (fork_name, child_name) if found[0] is not None else (child_name, fork_name)
                    raise ValueError(f"grammar: the tokenizer has {has} but not {lacks}; expected both or neither")
                if found[0] is not None and found[1] is not None:
                    names = fork_name, child_name
                    fork_id, child_id = found
                    break
        if newlines is None:
            newlines = "published" if names == PUBLISHED_CONTROL_TOKENS else "exact"
        if stop_ids is None:
            end_of_sequence = getattr(tokenizer, "eos_token_id", None)
            stop_ids = () if end_of_sequence is None else (end_of_sequence,)
        return cls(fork_id, child_id, tuple(stop_ids), max_depth, max_children, newlines)

    @classmethod
    def for_model(cls, model: Any, tokenizer: Any, *, max_depth: int | None = None, **options: Any) -> Grammar:
        """``from_tokenizer`` with the stop tokens of the tokenizer and of the model's generation config together.

        The control tokens are `fork_token_id` and `child_token_id` of the generation config, where it has them and no
        names are given: a model may have been tuned with tokens of any name. Its `fork_newlines` says how the model
        was tuned to put texts together, its `fork_max_depth` how deep it was tuned to fork: that is ``max_depth``
        where it is None, else 2.
        """
        config = getattr(model, "generation_config", None)
        if getattr(config, "fork_newlines", None) is not None:
            options = {"newlines": config.fork_newlines, **options}
        if max_depth is None:
            max_depth = getattr(config, "fork_max_depth", None) or DEFAULT_MAX_DEPTH
        options["max_depth"] = max_depth
        if tokenizer is None:
            named = {
                "fork_id": getattr(config, "fork_token_id", None),
                "child_id": getattr(config, "child_token_id", None),
            }
            grammar = cls(**{name: -1 if token is None else token for name, token in named.items()}, **options)
        else:
            if options.get("fork") is None and options.get("child") is None:
                options |= _configured_names(config, tokenizer)
            grammar = cls.from_tokenizer(tokenizer, **options)
        if "stop_ids" in options:
            return grammar
        configured = getattr(config, "eos_token_id", None)
        configured = () if configured is None else (configured,) if isinstance(configured, int) else tuple(configured)
        return dataclasses.replace(grammar, stop_ids=tuple(dict.fromkeys((*grammar.stop_ids, *configured))))


def _configured_names(config: Any, tokenizer: Any) -> dict[str, str]:
    """``fork`` and ``child``, as the tokenizer names the control tokens of a generation config; empty without them."""
    ids = {name: getattr(config, f"{name}_token_id", None) for name in ("fork", "child")}
    names = {token: name for name, token in tokenizer.get_vocab().items() if token in ids.values()}
    return {name: names[token] for name, token in ids.items()} if all(token in names for token in ids.values()) else {}


def _token_id(tokenizer: Any, name: str) -> int | None:
    """Id of the token with exactly this name, or None (an unknown name must not become the unknown token)."""
    token_id = tokenizer.get_vocab().get(name)
    return None if token_id is None else int(token_id)


def _required_id(tokenizer: Any, argument: str, name: str) -> int:
    token_id = _token_id(tokenizer, name)
    if token_id is None:
        raise ValueError(f"grammar: {argument}={name!r} is not a token of the tokenizer ({len(tokenizer)} tokens)")
    return token_id
