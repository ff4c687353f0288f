"""Amazon reviews as published in 2014, 2018 and 2023: JSON lines, .json or .jsonl, gz or plain.

2018 (Ni, Li & McAuley, EMNLP 2019): `<Category>_5.json.gz` or `<Category>.json.gz` with reviewerID,
asin, overall, unixReviewTime (seconds); `meta_<Category>.json.gz` with asin, title. 2014's
`reviews_<Category>_5.json.gz` has the same fields; its meta lines are Python dicts.
2023 (Hou et al., 2024): `<Category>.jsonl.gz` with user_id, parent_asin (else asin), rating,
timestamp (milliseconds); `meta_<Category>.jsonl.gz` with parent_asin, title.
The lines decide which of these a file is, not its name; the times' unit is that of the numbers.
"""

import re
from pathlib import Path

from .reading import FormatError
from .records import json_batches, sniff
from .settings import Settings
from .store import Files, Store

KIND = "amazon"
_NAME = re.compile(r"(meta_)?(?:reviews_)?([^.].*?)(?:_5)?\.jsonl?(\.gz)?")
# Files that are published beside the reviews, and the one of generated dumps.
_BESIDE = re.compile(r"(asin2category|planted)\.json(\.gz)?")
_REVIEWS: dict[str, list[tuple[str, ...]]] = {
    "amazon-2018": [("reviewerID",), ("asin",), ("unixReviewTime",)],
    "amazon-2023": [("user_id",), ("parent_asin", "asin"), ("timestamp",)],
}
_META: dict[str, list[tuple[str, ...]]] = {
    "amazon-2018": [("asin",), ("title",)],
    "amazon-2023": [("parent_asin",), ("title",)],
}
# Per format: user, item (the first that is present), rating, time.
_FIELDS: dict[str, tuple[str, list[str], str, str]] = {
    "amazon-2018": ("reviewerID", ["asin"], "overall", "unixReviewTime"),
    "amazon-2023": ("user_id", ["parent_asin", "asin"], "rating", "timestamp"),
}


def find(folder: Path, domains: list[str] | None = None) -> dict[str, Files]:
    """Category in lower case -> its files, sorted; with `domains`, these alone are looked at.

    Without `domains`, a file without its other half is let be beside a complete category; with
    them, or where none is complete, one whose lines are neither reviews nor products.
    Raises FileNotFoundError if there is no category or one lacks one of its two files, and
    FormatError if a category's reviews or meta are there twice.
    """
    categories = _categories(folder)
    pairs = {
        category: Files(roles["reviews"][0], roles["meta"][0])
        for category, roles in categories.items()
        if all(roles.values())
    }
    for category, roles in categories.items():
        asked = category in domains if domains is not None else category in pairs or not pairs
        if asked and (category in pairs or _is_of_amazon(roles)):
            _check(folder, category, roles)
    if not pairs:
        raise FileNotFoundError(
            f"{folder}: expected <Category>.json(l).gz and meta_<Category>.json(l).gz, found none"
        )
    return pairs


def half_pairs(folder: Path) -> dict[str, str]:
    """Name of each file of reviews or products that lacks its other half -> what is expected."""
    return {
        path.name: _lack(category, roles)
        for category, roles in _categories(folder).items()
        if not all(roles.values()) and _is_of_amazon(roles)
        for paths in roles.values()
        for path in paths
    }


def _categories(folder: Path) -> dict[str, dict[str, list[Path]]]:
    categories: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.glob("*.json*")):
        match = _NAME.fullmatch(path.name)
        if match and path.is_file() and not _BESIDE.fullmatch(path.name):
            roles = categories.setdefault(match[2].lower(), {"reviews": [], "meta": []})
            roles["meta" if match[1] else "reviews"].append(path)
    return dict(sorted(categories.items()))


def _is_of_amazon(roles: dict[str, list[Path]]) -> bool:
    for paths, formats in ((roles["reviews"], _REVIEWS), (roles["meta"], _META)):
        for path in paths:
            try:
                sniff(path, formats)
            except FormatError:
                continue
            return True
    return False


def _check(folder: Path, category: str, roles: dict[str, list[Path]]) -> None:
    for role, paths in roles.items():
        if len(paths) > 1:
            raise FormatError(
                f"{paths[1]}: {paths[0].name} holds the same category's {role}; keep one of them"
            )
    if not all(roles.values()):
        raise FileNotFoundError(f"{folder}: {_lack(category, roles)}")


def _lack(category: str, roles: dict[str, list[Path]]) -> str:
    if not roles["meta"]:
        name = roles["reviews"][0].name
        expected = "meta_" + name.removeprefix("reviews_").replace("_5.json", ".json")
        return f"expected {expected} beside {name}"
    name = roles["meta"][0].name
    return f"expected the reviews of {category} beside {name}, as {name.removeprefix('meta_')}"


def load(store: Store, files: Files, settings: Settings) -> None:
    """Fill the store from one category's files; raises FormatError for files of another form."""
    reviews, meta = files.interactions, files.items
    reviews_format, meta_format = sniff(reviews, _REVIEWS), sniff(meta, _META)
    store.source("interactions", reviews, reviews_format)
    store.source("items", meta, meta_format)
    user, items, rating, time = _FIELDS[reviews_format]
    columns = {"user_id": [user], "item_id": items, "rating": [rating], "time": [time]}
    fields = "SELECT *, NULL::DOUBLE AS moment, NULL::VARCHAR AS position FROM batch"
    names = {"user": user, "item": items[0], "time": time}
    batches = json_batches(
        store.connection, reviews, columns, settings.progress, store.oddities["interactions"]
    )
    store.add_interactions(batches, fields, names)
    item = "asin" if meta_format == "amazon-2018" else "parent_asin"
    batches = json_batches(
        store.connection,
        meta,
        {"item_id": [item], "title": ["title"]},
        settings.progress,
        store.oddities["items"],
    )
    store.add_items(batches, "SELECT * FROM batch", item)
