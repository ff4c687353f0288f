"""The vocabulary of the planted dumps: eight themes that every domain's titles are made of.

A theme's nouns and adjectives occur in no other theme, so a title shows its theme; a domain's
patterns show the domain. All of it is invented.
"""

import itertools

import numpy as np

# theme -> (nouns, adjectives)
THEMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dragon": (("Dragon", "Wyvern", "Drake", "Griffin"), ("Fiery", "Scaled", "Winged")),
    "ocean": (("Whale", "Dolphin", "Lighthouse", "Harbor"), ("Salty", "Deep", "Tidal")),
    "space": (("Rocket", "Comet", "Planet", "Astronaut"), ("Lunar", "Stellar", "Orbital")),
    "garden": (("Rose", "Tulip", "Orchard", "Butterfly"), ("Blooming", "Mossy", "Leafy")),
    "winter": (("Snowman", "Penguin", "Glacier", "Sleigh"), ("Frosty", "Icy", "Frozen")),
    "music": (("Violin", "Piano", "Drummer", "Trumpet"), ("Melodic", "Jazzy", "Singing")),
    "desert": (("Camel", "Cactus", "Oasis", "Pyramid"), ("Sandy", "Dusty", "Scorched")),
    "railway": (("Train", "Locomotive", "Station", "Tunnel"), ("Steam", "Rusty", "Express")),
}

_PLACES = ("Ember Hollow", "Willow Bridge", "Amber Hill", "Thorn Valley", "Maple Lane", "Old Mill")
_NAMES = ("Lucy", "Oliver", "Nora", "Felix", "Clara", "Hugo")

# domain -> (patterns, fillers of {x}); {n} noun, {a} adjective
PATTERNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "children": (
        ("The {a} {n} of {x}", "The Little {n} of {x}", "Goodnight, {n} of {x}"),
        _PLACES,
    ),
    "comics_graphic": (
        ("{a} {n} Squad, Vol. {x}", "{n} Rising, Vol. {x}", "The {a} {n} Saga, Book {x}"),
        ("1", "2", "3", "4"),
    ),
    "mystery_thriller_crime": (
        ("{x} and the {a} {n} Murder", "The {n} Alibi of {x}", "{x} and the Missing {n}"),
        tuple(f"Inspector {name}" for name in ("Crane", "Doyle", "Ashby", "Quill", "Marsh")),
    ),
    "office_products": (
        ("{a} {n} Notebook, {x}", "{n} Pattern Desk Planner, {x}", "{a} {n} Sticky Notes, {x}"),
        ("Small", "Medium", "Large", "Pocket Size"),
    ),
    "video_games": (
        ("{a} {n} Quest for {x}", "Super {n} Racer for {x}", "Legend of the {n} for {x}"),
        ("Console", "Handheld", "Desktop", "Arcade", "Tablet"),
    ),
    "industrial_and_scientific": (
        ("{a} {n} Brass Fitting, {x}", "{n} Brand Safety Gloves, {x}", "{n} Steel Screws, {x}"),
        ("2 Pack", "5 Pack", "10 Pack", "25 Pack", "50 Pack"),
    ),
}


def titles(domain: str, theme: str, count: int, generator: np.random.Generator) -> list[str]:
    """`count` distinct titles of one theme in one domain, in random order.

    Raises ValueError if the vocabulary has fewer.
    """
    patterns, fillers = PATTERNS[domain]
    nouns, adjectives = THEMES[theme]
    combinations = sorted(
        {
            pattern.format(n=noun, a=adjective, x=filler)
            for pattern, noun, adjective, filler in itertools.product(
                patterns, nouns, adjectives, fillers
            )
        }
    )
    if count > len(combinations):
        raise ValueError(
            f"{count} items per theme: expected at most {len(combinations)} "
            f"({len(combinations) * len(THEMES)} items) in the planted domain {domain}"
        )
    return [combinations[k] for k in generator.permutation(len(combinations))[:count]]
