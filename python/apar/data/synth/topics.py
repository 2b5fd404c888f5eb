"""What worlds are made of: kinds of things, what there is to know of each, and ways to say it."""

from __future__ import annotations

import dataclasses

from apar.data.synth import words


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One thing to know of every item.

    ``label`` heads a table column and a point of an answer. ``values`` is a tuple of words, a range of numbers, or the
    kind of a name. ``phrases`` say it behind the item's name: the first is how answers say it, prompts use any; the
    last is held out. ``{v}`` stands for the value, ``{a}`` for the value with its article.
    """

    label: str
    values: tuple[str, ...] | range | str
    phrases: tuple[str, ...]

    def say(self, value: str, phrase: int = 0) -> str:
        """The value as a verb phrase."""
        return self.phrases[phrase].format(v=value, a=with_article(value))


@dataclasses.dataclass(frozen=True)
class Topic:
    """A kind of things. ``names``: the kind of their names, or a tuple of names; ``group``: of what groups are made."""

    singular: str
    plural: str
    names: str | tuple[str, ...]
    attributes: tuple[Attribute, ...]
    group: str
    group_names: str | tuple[str, ...]


def with_article(value: str) -> str:
    return f"an {value}" if value[0] in "aeiou" else f"a {value}"


TOPICS: tuple[Topic, ...] = (
    Topic(
        "person",
        "people",
        "person",
        (
            Attribute(
                "Job",
                words.JOBS,
                ("works as {a}", "is {a} by trade", "has a job as {a}", "is employed as {a}", "works by trade as {a}"),
            ),
            Attribute(
                "Home",
                "place",
                ("lives in {v}", "has a home in {v}", "is at home in {v}", "resides in {v}", "resides at home in {v}"),
            ),
            Attribute(
                "Hobby",
                words.HOBBIES,
                ("likes {v}", "enjoys {v}", "loves {v}", "is keen on {v}", "likes and enjoys {v}"),
            ),
            Attribute(
                "Age",
                range(18, 90),
                ("is {v} years old", "is {v}", "is aged {v}", "has an age of {v}", "is at the age of {v}"),
            ),
            Attribute("Pet", words.PETS, ("keeps {a}", "owns {a}", "has {a}", "has {a} at home", "keeps {a} at home")),
        ),
        "team",
        words.TEAMS,
    ),
    Topic(
        "town",
        "towns",
        "place",
        (
            Attribute(
                "River",
                "place",
                (
                    "lies on the river {v}",
                    "is on the river {v}",
                    "sits by the river {v}",
                    "was built on the river {v}",
                    "is at the river {v}",
                ),
            ),
            Attribute(
                "Dish",
                words.DISHES,
                (
                    "is known for {v}",
                    "is famous for its {v}",
                    "serves {v}",
                    "is loved for its {v}",
                    "is known for its {v}",
                ),
            ),
            Attribute(
                "Mayor",
                "person",
                ("is led by {v}", "has {v} as mayor", "is run by {v}", "is governed by {v}", "is led by mayor {v}"),
            ),
            Attribute(
                "Bridges",
                range(2, 60),
                (
                    "has {v} bridges",
                    "counts {v} bridges",
                    "owns {v} bridges",
                    "is crossed by {v} bridges",
                    "has its {v} bridges",
                ),
            ),
            Attribute(
                "Festival",
                words.MONTHS,
                (
                    "celebrates in {v}",
                    "has a festival in {v}",
                    "holds a festival in {v}",
                    "meets to celebrate in {v}",
                    "has its festival in {v}",
                ),
            ),
        ),
        "region",
        "place",
    ),
    Topic(
        "product",
        "products",
        "thing",
        (
            Attribute(
                "Price",
                range(5, 1000),
                (
                    "costs {v} euros",
                    "is sold for {v} euros",
                    "has a price of {v} euros",
                    "sells for {v} euros",
                    "is sold at {v} euros",
                ),
            ),
            Attribute(
                "Weight",
                range(5, 1000),
                (
                    "weighs {v} grams",
                    "has a weight of {v} grams",
                    "comes to {v} grams",
                    "is {v} grams in weight",
                    "has {v} grams",
                ),
            ),
            Attribute(
                "Colour",
                words.COLOURS,
                ("comes in {v}", "is {v}", "is painted {v}", "is sold in {v}", "is painted in {v}"),
            ),
            Attribute(
                "Material",
                words.MATERIALS,
                ("is made of {v}", "consists of {v}", "is built from {v}", "was made from {v}", "is built of {v}"),
            ),
            Attribute(
                "Maker",
                "person",
                ("is built by {v}", "is made by {v}", "comes from {v}", "was designed by {v}", "was built by {v}"),
            ),
        ),
        "shelf",
        words.SHELVES,
    ),
    Topic(
        "animal",
        "animals",
        "person",
        (
            Attribute(
                "Species",
                words.SPECIES,
                (
                    "is {a}",
                    "belongs to the {v} family",
                    "was born as {a}",
                    "is known as {a}",
                    "was born into the {v} family",
                ),
            ),
            Attribute(
                "Food",
                words.FOODS,
                ("eats {v}", "likes to eat {v}", "is fed with {v}", "lives on {v}", "is fed on {v}"),
            ),
            Attribute(
                "Keeper",
                "person",
                (
                    "is cared for by {v}",
                    "has {v} as keeper",
                    "is fed by {v}",
                    "is looked after by {v}",
                    "is looked after by keeper {v}",
                ),
            ),
            Attribute(
                "Age",
                range(1, 60),
                (
                    "is {v} years old",
                    "is aged {v}",
                    "was born {v} years ago",
                    "has an age of {v}",
                    "is at the age of {v}",
                ),
            ),
            Attribute(
                "Origin",
                "place",
                (
                    "comes from {v}",
                    "was born in {v}",
                    "was found near {v}",
                    "was brought from {v}",
                    "was brought in from {v}",
                ),
            ),
        ),
        "house",
        words.HOUSES,
    ),
    Topic(
        "book",
        "books",
        "thing",
        (
            Attribute(
                "Author",
                "person",
                ("was written by {v}", "is by {v}", "comes from {v}", "has {v} as author", "was written by author {v}"),
            ),
            Attribute(
                "Genre",
                words.GENRES,
                ("is {a}", "is read as {a}", "is sold as {a}", "belongs to the {v} shelf", "is on the {v} shelf"),
            ),
            Attribute(
                "Pages",
                range(60, 1000),
                ("has {v} pages", "runs to {v} pages", "fills {v} pages", "counts {v} pages", "comes to {v} pages"),
            ),
            Attribute(
                "Year",
                range(1900, 2025),
                ("appeared in {v}", "came out in {v}", "was printed in {v}", "dates from {v}", "was out in {v}"),
            ),
            Attribute(
                "Setting",
                "place",
                ("is set in {v}", "takes place in {v}", "tells of {v}", "plays in {v}", "takes its place in {v}"),
            ),
        ),
        "shelf",
        words.SHELVES,
    ),
    Topic(
        "ship",
        "ships",
        "thing",
        (
            Attribute(
                "Captain",
                "person",
                (
                    "is steered by {v}",
                    "has {v} as captain",
                    "sails under {v}",
                    "is led by {v}",
                    "is led by captain {v}",
                ),
            ),
            Attribute(
                "Harbour",
                "place",
                (
                    "is based in {v}",
                    "has its harbour in {v}",
                    "sails from {v}",
                    "comes from {v}",
                    "is based in the harbour of {v}",
                ),
            ),
            Attribute(
                "Cargo",
                words.CARGOES,
                (
                    "carries {v}",
                    "is loaded with {v}",
                    "brings {v}",
                    "is filled with {v}",
                    "is loaded and filled with {v}",
                ),
            ),
            Attribute(
                "Crew",
                range(3, 90),
                (
                    "has a crew of {v}",
                    "needs {v} sailors",
                    "is run by {v} sailors",
                    "sails with a crew of {v}",
                    "has {v} sailors",
                ),
            ),
            Attribute(
                "Colour",
                words.COLOURS,
                ("is painted {v}", "is {v}", "has a {v} hull", "shows a {v} hull", "was painted {v}"),
            ),
        ),
        "fleet",
        words.TEAMS,
    ),
    Topic(
        "restaurant",
        "restaurants",
        "thing",
        (
            Attribute(
                "Chef",
                "person",
                ("has {v} as chef", "is run by {v}", "is led by {v}", "belongs to {v}", "is run by chef {v}"),
            ),
            Attribute(
                "Dish",
                words.DISHES,
                (
                    "serves {v}",
                    "is known for {v}",
                    "is famous for its {v}",
                    "is loved for its {v}",
                    "is known for its {v}",
                ),
            ),
            Attribute(
                "Seats",
                range(8, 100),
                (
                    "has {v} seats",
                    "seats {v} guests",
                    "has room for {v} guests",
                    "offers {v} seats",
                    "has seats for {v} guests",
                ),
            ),
            Attribute(
                "Closes",
                range(14, 24),
                (
                    "closes at {v}",
                    "is open until {v}",
                    "shuts at {v}",
                    "serves until {v}",
                    "is open and serves until {v}",
                ),
            ),
            Attribute(
                "Town",
                "place",
                ("lies in {v}", "is in {v}", "can be found in {v}", "is located in {v}", "is to be found in {v}"),
            ),
        ),
        "street",
        "place",
    ),
    Topic(
        "course",
        "courses",
        words.SUBJECTS,
        (
            Attribute(
                "Teacher",
                "person",
                (
                    "is taught by {v}",
                    "has {v} as teacher",
                    "is led by {v}",
                    "is given by {v}",
                    "is led by teacher {v}",
                ),
            ),
            Attribute(
                "Room",
                range(1, 400),
                (
                    "meets in room {v}",
                    "is held in room {v}",
                    "takes place in room {v}",
                    "uses room {v}",
                    "is taught in room {v}",
                ),
            ),
            Attribute(
                "Day",
                words.DAYS,
                ("is on {v}", "takes place on {v}", "is held on {v}", "meets on {v}", "is taught on {v}"),
            ),
            Attribute(
                "Credits",
                range(2, 20),
                (
                    "gives {v} credits",
                    "is worth {v} credits",
                    "brings {v} credits",
                    "earns {v} credits",
                    "comes with {v} credits",
                ),
            ),
            Attribute(
                "Start",
                range(8, 20),
                ("starts at {v}", "begins at {v}", "opens at {v}", "is open from {v}", "is open at {v}"),
            ),
        ),
        "school",
        "place",
    ),
    Topic(
        "step",
        "steps",
        words.STEPS,
        (
            Attribute(
                "Tool",
                words.TOOLS,
                ("needs {a}", "calls for {a}", "is done with {a}", "requires {a}", "is a task that needs {a}"),
            ),
            Attribute(
                "Minutes",
                range(2, 90),
                (
                    "takes {v} minutes",
                    "lasts {v} minutes",
                    "is done in {v} minutes",
                    "requires {v} minutes",
                    "needs {v} minutes",
                ),
            ),
            Attribute(
                "Place",
                words.ROOMS,
                (
                    "is done in the {v}",
                    "takes place in the {v}",
                    "happens in the {v}",
                    "belongs in the {v}",
                    "has its place in the {v}",
                ),
            ),
            Attribute(
                "Helper",
                "person",
                (
                    "is done by {v}",
                    "is a task for {v}",
                    "belongs to {v}",
                    "falls to {v}",
                    "is a task that falls to {v}",
                ),
            ),
        ),
        "phase",
        words.PHASES,
    ),
    Topic(
        "day",
        "days",
        words.DAYS,
        (
            Attribute(
                "Stop",
                "place",
                ("leads to {v}", "is spent in {v}", "takes place in {v}", "brings us to {v}", "leads us to {v}"),
            ),
            Attribute(
                "Activity",
                words.HOBBIES,
                ("is for {v}", "offers {v}", "is spent on {v}", "is all about {v}", "is all for {v}"),
            ),
            Attribute(
                "Start",
                range(5, 13),
                ("starts at {v}", "begins at {v}", "opens at {v}", "is open from {v}", "is open at {v}"),
            ),
            Attribute(
                "Guide",
                "person",
                ("is led by {v}", "has {v} as guide", "is guided by {v}", "is run by {v}", "is led by guide {v}"),
            ),
            Attribute(
                "Meal",
                words.DISHES,
                ("ends with {v}", "comes with {v}", "includes {v}", "closes with {v}", "ends and closes with {v}"),
            ),
        ),
        "week",
        words.TEAMS,
    ),
)
