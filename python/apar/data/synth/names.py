"""Names of people, places and things: real ones and made-up ones, each either for training or held out.

A name belongs to a split by its own hash, so that no list has to be kept and no name is ever on both sides.
"""

from __future__ import annotations

import random
import zlib

from apar.data.synth import words

HELD_OUT_SHARE = 8
"""One name in so many is held out."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PERSONS = _words(
    "Ada Adam Agnes Aisha Alba Alice Amir Amy Ana Anders Anna Anton Arjun Aya Bea Ben Bianca Boris Bruno Cara Carl "
    "Cem Chen Chloe Clara Colin Cora Dalia Dan Dario David Dina Diego Dora Edgar Elena Eli Elif Ella Emil Emma Erik "
    "Esra Eva Fatima Felix Fiona Frank Frida Gabriel George Gina Greta Hana Hans Hassan Helen Henry Hugo Ida Igor "
    "Ines Ingrid Irene Ivan Jack Jan Jana Jin Joana John Jonas Jorge Julia Kai Karin Kate Kenji Kim Klara Kofi Lara "
    "Lars Laura Lea Leo Lena Lin Linda Lisa Luca Lucy Luis Maja Malik Marco Maria Mark Marta Mary Max Mei Mia Mila "
    "Milan Mira Mona Nadia Nate Nina Noah Nora Olga Oliver Omar Oscar Otto Pablo Paul Paula Pavel Peter Petra Pia "
    "Priya Quinn Ralf Ravi Rita Robin Rosa Ruben Ruth Sami Samuel Sara Selma Sofia Stefan Sven Tara Theo Tim Tina "
    "Tom Uma Vera Victor Wanda Will Yara Yuki Yusuf Zara Zoe"
)
PLACES = _words(
    "Aarhus Accra Ankara Athens Baku Basel Bergen Berlin Bilbao Bogota Bonn Boston Bremen Bristol Brno Cairo "
    "Cardiff Chicago Cork Dakar Delhi Denver Dublin Dundee Essen Fez Galway Geneva Genoa Ghent Graz Hanoi Havana "
    "Helsinki Hull Izmir Jena Kiel Kyoto Lagos Leeds Leipzig Lima Linz Lisbon London Lund Lyon Madrid Mainz Malaga "
    "Malmo Manila Miami Milan Minsk Munich Nairobi Nantes Naples Nice Odessa Oslo Oxford Padua Paris Perth Pisa "
    "Porto Prague Quito Riga Rome Rouen Salem Seoul Seville Siena Sofia Split Sydney Tallinn Tampere Tokyo Toledo "
    "Turin Turku Utrecht Venice Verona Vienna Vilnius Warsaw York Zagreb Zurich"
)

_ONSETS = _words("b br c ch d dr f fl g gr h j k kr l m n p pl qu r s sh sk st t th tr v w y z")
_VOWELS = _words("a a e e i i o o u ai ea ee ia io ou")
_CODAS = ("", "", "", "l", "m", "n", "r", "s", "x", "ck", "nd", "nt", "rn", "sk", "t", "v", "d", "lm", "p", "g")
_REAL = {"person": PERSONS, "place": PLACES}
_ENDINGS = {
    "person": ("a", "o", "in", "el", "us", "ina", "ek", "y", "is", "an"),
    "place": ("ton", "burg", "field", "mouth", "dale", "ford", "stad", "ville", "a", "en", "ow", "by"),
    "thing": ("x", "o", "on", "ex", "ar", "ium", "ix", "um", "et", "ic"),
}


def is_held_out(name: str) -> bool:
    """Whether a name belongs to the held-out split."""
    return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0


def draw_names(rng: random.Random, counts: dict[str, int], *, held_out: bool) -> dict[str, list[str]]:
    """Names of one split by kind ("person", "place" or "thing"), ``counts[kind]`` of each.

    No two of them, of whatever kind, begin with the same two letters; three, if more than 60 are drawn.
    """
    letters = 2 if sum(counts.values()) <= 60 else 3
    beginnings: set[str] = set()
    names: dict[str, list[str]] = {}
    for kind in sorted(counts):
        # A prompt has names that people know, names that nobody has ever heard, or names of any spelling.
        style = rng.random()
        real = list(_REAL.get(kind, ())) if style < 0.4 else []
        rng.shuffle(real)
        names[kind] = []
        while len(names[kind]) < counts[kind]:
            name = real.pop() if real else _spell(rng) if style > 0.92 else _make_up(rng, kind)
            if is_held_out(name) == held_out and name[:letters] not in beginnings:
                names[kind].append(name)
                beginnings.add(name[:letters])
    return names


def draw_words(rng: random.Random, count: int, *, held_out: bool) -> list[str]:
    """Names, numbers and the words that worlds are made of, in no order; some of them twice."""
    kinds = rng.choices(("person", "place", "thing", "number", "word", "again"), (3, 3, 3, 2, 6, 1), k=count)
    names = draw_names(rng, {kind: kinds.count(kind) for kind in ("person", "place", "thing")}, held_out=held_out)
    drawn: list[str] = []
    for kind in kinds:
        if kind == "again" and drawn:
            drawn.append(rng.choice(drawn))
        elif kind in names:
            drawn.append(names[kind].pop())
        elif kind == "number":
            drawn.append(str(rng.choice((rng.randrange(100), rng.randrange(3000)))))
        else:
            drawn.append(rng.choice(words.ALL))
    return drawn


def _make_up(rng: random.Random, kind: str) -> str:
    syllables = [
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(1 + (rng.random() < 0.1))
    ]
    return ("".join(syllables) + rng.choice(_ENDINGS[kind])).capitalize()


def _spell(rng: random.Random) -> str:
    """Letters in almost any order, so that a model learns to copy more than the syllables above."""
    letters, vowel = [], rng.random() < 0.4
    for _ in range(rng.randint(3, 8)):
        letters.append(rng.choice("aeiouy" if vowel else "bcdfghjklmnpqrstvwxyz"))
        vowel ^= rng.random() < 0.75
    return "".join(letters).capitalize()
