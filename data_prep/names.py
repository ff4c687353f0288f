"""Names of data sets and domains: they become folders, keys of files and cells of tables."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

RULE = (
    "letters, digits, '_', '-' and single spaces inside, at most 100 characters, "
    "the first a letter or digit"
)


def is_name(name: str) -> bool:
    """Whether a name keeps to RULE."""
    return (
        0 < len(name) <= 100
        and name[0].isalnum()
        and name == " ".join(name.split())
        and all(c.isalnum() or unicodedata.combining(c) or c in "_- " for c in name)
    )


def check_name(what: str, name: str) -> None:
    """Raises ValueError with the rule if a data set or domain cannot be called so."""
    if not is_name(name):
        raise ValueError(f"{what} {name!r}: expected {RULE}")


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError for no names, a name against the rule, and two that are one folder."""
    names = list(names)
    if not names:
        raise ValueError("domains: expected at least one name, the list is empty")
    for name in names:
        check_name("domain", name)
    counts = Counter(unicodedata.normalize("NFC", name).casefold() for name in names)
    for name in names:
        folded = unicodedata.normalize("NFC", name).casefold()
        if counts[folded] > 1:
            alike = [n for n in names if unicodedata.normalize("NFC", n).casefold() == folded]
            raise ValueError(
                f"domains {', '.join(map(repr, alike))}: expected names that differ by more than "
                "upper and lower case, as folders do"
            )
