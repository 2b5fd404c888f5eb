"""Which prompts are held out: by a hash, with prompts that are nearly the same on one side."""

from __future__ import annotations

import hashlib
import re
import zlib

import numpy as np

UNDECIDED, TRAIN, HELDOUT = 0, 1, 2

PERMUTATIONS = 64
_BANDS = 16
_ROWS = PERMUTATIONS // _BANDS
_SHINGLE_WORDS = 3
_MOST_WORDS = 2000
_FEW_PROMPTS = 20
_USUAL_SHARE = 0.01
_UNSPACED = r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese and Japanese: no spaces between words
_WORD = re.compile(rf"(?=\w)[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_random = np.random.default_rng(20240112)
_FACTORS = _random.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def normalized_words(prompt: str) -> list[str]:
    """The words of a prompt without case, punctuation and spacing; every Chinese or Japanese character is one."""
    return _WORD.findall(prompt.lower())


def prompt_key(words: list[str], seed: int) -> int:
    """64 bits that depend on a prompt's words and the seed."""
    text = " ".join(words).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


def signature(words: list[str]) -> np.ndarray:
    """uint32 [64]: the MinHash of runs of three words. The share of equal places estimates how alike prompts are."""
    hashes = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words[:_MOST_WORDS]], np.uint64)
    if not len(hashes):
        return np.zeros(PERMUTATIONS, np.uint32)
    runs = hashes[: max(1, len(hashes) - _SHINGLE_WORDS + 1)].copy()
    for place in range(1, min(_SHINGLE_WORDS, len(hashes))):
        runs = runs * _MIX + hashes[place : place + len(runs)]
    permuted = (runs[None, :] * _MIX ^ (runs[None, :] >> np.uint64(29))) * _FACTORS[:, None] + _OFFSETS[:, None]
    return (permuted >> np.uint64(32)).min(axis=1).astype(np.uint32)


def near_duplicates(signatures: np.ndarray, similarity: float) -> np.ndarray:
    """Groups prompts that are alike: int32 [n], for each the first member of its group.

    signatures: uint32 [n, 64], may be mapped from a file. similarity: the estimated share of common runs of words from
    which two prompts count as alike, 0 to 1. Of pairs as alike as 0.7 1 % are missed, as alike as 0.8 almost none.
    Where many prompts share much, a preamble, two count as alike only if what else they say is half as much alike, too.
    """
    usual = _usual_places(signatures)
    parent = np.arange(len(signatures), dtype=np.int32)  # narrow types: there may be millions
    for band in range(_BANDS):
        hashes = np.zeros(len(signatures), np.uint32)
        for column in range(band * _ROWS, (band + 1) * _ROWS):
            hashes = (hashes ^ signatures[:, column]) * np.uint32(_MIX >> np.uint64(32))
            hashes ^= hashes >> np.uint32(15)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        starts = np.ones(len(order), bool)
        starts[1:] = hashes[1:] != hashes[:-1]
        same = np.flatnonzero(~starts)
        if not len(same):
            continue
        run_first = np.maximum.accumulate(np.where(starts, np.arange(len(order), dtype=np.int32), np.int32(0)))
        for other in (run_first[same], same - 1):  # with the first of the run, and with the one before
            for begin in range(0, len(same), 1 << 16):
                left, right = order[other[begin : begin + (1 << 16)]], order[same[begin : begin + (1 << 16)]]
                equal = signatures[left] == signatures[right]
                alike = equal.mean(axis=1) >= similarity
                if usual is not None:
                    alike &= _is_content_alike(equal, usual[left] & usual[right], similarity / 2)
                for one, two in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
                    _join(parent, one, two)
    return np.fromiter((_root(parent, place) for place in range(len(parent))), np.int32, len(parent))


def _usual_places(signatures: np.ndarray) -> np.ndarray | None:
    """uint64 [n], a bit for every place of a signature: whether its run of words stands in many prompts.

    Many: so many that their side of the split would decide about its sizes. None: there are no such runs.
    """
    many = max(_FEW_PROMPTS, int(_USUAL_SHARE * len(signatures)))
    usual = None
    for place in range(PERMUTATIONS if len(signatures) > many else 0):
        values = signatures[:, place]
        ordered = np.sort(values)
        frequent = np.unique(ordered[many:][ordered[many:] == ordered[:-many]])
        if len(frequent):
            usual = np.zeros(len(signatures), np.uint64) if usual is None else usual
            usual |= np.isin(values, frequent).astype(np.uint64) << np.uint64(place)
    return usual


def _is_content_alike(equal: np.ndarray, both_usual: np.ndarray, similarity: float) -> np.ndarray:
    """Whether pairs are alike, bool [n], in the places that are not usual in both; where all are, they are."""
    counts = ~np.unpackbits(both_usual.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").view(
        bool
    )
    return (equal & counts).sum(axis=1) >= similarity * counts.sum(axis=1)


def choose_sides(keys: np.ndarray, groups: np.ndarray, fixed: np.ndarray, heldout: float) -> np.ndarray:
    """The side of every prompt, uint8 [n].

    keys: uint64 [n], the hashes of the prompts. groups: int32 [n], of ``near_duplicates``. fixed: uint8 [n], the side
    where it is given already, which the group then follows. heldout: share of prompts.

    The smallest key of a group decides, hashed again: the smallest of many keys is small, whatever the prompts are.
    """
    smallest = np.full(len(keys), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, groups, keys)
    drawn = (smallest ^ (smallest >> np.uint64(32))) * _MIX
    drawn = (drawn ^ (drawn >> np.uint64(29))) * _MIX
    sides = np.where(drawn < np.uint64(min(heldout, 1.0) * float(2**64 - 2**11)), HELDOUT, TRAIN).astype(np.uint8)
    given = np.zeros(len(keys), np.uint8)
    np.maximum.at(given, groups, fixed)
    sides = np.where(given != UNDECIDED, given, sides)[groups]
    return np.where(fixed != UNDECIDED, fixed, sides)


def _root(parent: np.ndarray, place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = parent[place]
    return int(place)


def _join(parent: np.ndarray, one: int, two: int) -> None:
    one, two = _root(parent, one), _root(parent, two)
    if one != two:
        parent[max(one, two)] = min(one, two)
