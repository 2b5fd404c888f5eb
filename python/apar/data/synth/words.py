"""Closed lists of words that worlds draw values from."""

from __future__ import annotations


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


JOBS = _list(
    "baker, potter, nurse, teacher, farmer, sailor, painter, tailor, lawyer, driver, gardener, singer, writer, doctor, "
    "pilot, barber, plumber, miller, dancer, fisher, engineer, actor, editor, hunter, carpenter, clerk, cook, judge"
)
HOBBIES = _list(
    "chess, rowing, hiking, knitting, sailing, reading, cycling, dancing, fishing, painting, singing, climbing, "
    "running, yoga, gardening, skating, swimming, poetry, archery, tennis, drawing, jazz, pottery, riding"
)
PETS = _list("cat, dog, parrot, rabbit, goat, horse, turtle, hamster, snake, owl, donkey, ferret, duck, pony, iguana")
DISHES = _list(
    "noodles, dumplings, fish soup, plum cake, roast lamb, bean stew, apple pie, fried rice, onion tart, goat cheese, "
    "rye bread, baked trout, lentil soup, honey cake, potato salad, pancakes, curry, pasta, stuffed peppers, ice cream"
)
MONTHS = _list("January, February, March, April, May, June, July, August, September, October, November, December")
COLOURS = _list("red, blue, green, yellow, black, white, grey, brown, orange, purple, pink, silver, gold, ivory")
MATERIALS = _list("oak, steel, glass, leather, cotton, bamboo, copper, wool, plastic, stone, paper, rubber, clay, iron")
SPECIES = _list("tiger, otter, lynx, camel, bear, heron, wolf, zebra, seal, gecko, eagle, panda, lemur, badger, stork")
FOODS = _list(
    "grass, fish, fruit, seeds, hay, carrots, worms, berries, nuts, leaves, mice, corn, bread, roots, insects"
)
GENRES = _list("novel, thriller, comedy, tragedy, memoir, fable, romance, mystery, satire, western, biography, epic")
CARGOES = _list("coal, grain, timber, spices, tea, salt, cars, wine, sugar, coffee, silk, bricks, sand, oil, cattle")
TOOLS = _list(
    "brush, hammer, saw, ladder, bucket, knife, drill, rope, sponge, spade, needle, wrench, pump, file, torch"
)
ROOMS = _list("kitchen, garden, cellar, garage, attic, yard, workshop, hall, barn, shed, studio, bathroom, office")
SUBJECTS = _list(
    "Algebra, Botany, Chemistry, Drama, Economics, French, Geography, History, Italian, Law, Music, Physics, Russian, "
    "Statistics, Zoology, Logic, Painting, Rhetoric, Sculpture, Grammar"
)
STEPS = _list(
    "Washing, Sanding, Painting, Drying, Cutting, Measuring, Packing, Drilling, Digging, Planting, Watering, Mixing, "
    "Baking, Cooling, Sorting, Cleaning, Polishing, Folding, Stacking, Labelling, Grinding, "
    "Testing, Sealing, Heating, Peeling"
)
PHASES = _list("Preparation, Assembly, Finish, Delivery, Repair, Storage, Setup, Review")
DAYS = _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
TEAMS = _list("North, South, East, West, Alpha, Beta, Gamma, Delta, Red, Blue, Green, Silver")
SHELVES = _list("Shelf A, Shelf B, Shelf C, Shelf D, Shelf E, Shelf F, Shelf G, Shelf H")
HOUSES = _list("River House, Bird House, Night House, Desert House, Forest House, Ice House, Farm House, Old House")

ALL = tuple(sorted({word for words in list(globals().values()) if isinstance(words, tuple) for word in words}))
"""All of them, each once."""
