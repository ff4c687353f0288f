"""Amazon reviews as published in 2018 and 2023: JSON lines, .json or .jsonl, gz or plain.

2018 (Ni, Li & McAuley, EMNLP 2019): `<Category>_5.json.gz` or `<Category>.json.gz` with reviewerID,
asin, overall, unixReviewTime (seconds); `meta_<Category>.json.gz` with asin, title.
2023 (Hou et al., 2024): `<Category>.jsonl.gz` with user_id, parent_asin (else asin), rating,
timestamp (milliseconds); `meta_<Category>.jsonl.gz` with parent_asin, title.
The lines decide which of the two a file is, not its name.
"""

import re
from pathlib import Path

from .reading import FormatError, line_batches, sniff
from .settings import Settings
from .store import Files, Store, json_fields

KIND = "amazon"
_NAME = re.compile(r"(meta_)?(?:reviews_)?(.+?)(?:_5)?\.jsonl?(\.gz)?")
_REVIEWS: dict[str, list[tuple[str, ...]]] = {
    "amazon-2018": [("reviewerID",), ("asin",), ("unixReviewTime",)],
    "amazon-2023": [("user_id",), ("parent_asin", "asin"), ("timestamp",)],
}
_META: dict[str, list[tuple[str, ...]]] = {
    "amazon-2018": [("asin",), ("title",)],
    "amazon-2023": [("parent_asin",), ("title",)],
}
# Per format: user, item (the first that is present), rating, time, milliseconds per unit of time.
_FIELDS: dict[str, tuple[str, list[str], str, str, int]] = {
    "amazon-2018": ("reviewerID", ["asin"], "overall", "unixReviewTime", 1000),
    "amazon-2023": ("user_id", ["parent_asin", "asin"], "rating", "timestamp", 1),
}


def find(folder: Path) -> dict[str, Files]:
    """Category in lower case -> (reviews file, meta file), sorted by category.

    Raises FileNotFoundError if there is no category or one lacks one of its two files, and
    FormatError if a category's reviews or meta are there twice.
    """
    categories: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.json*")):
        match = _NAME.fullmatch(path.name)
        if not match or path.name == "planted.json":
            continue
        role = "meta" if match[1] else "reviews"
        files = categories.setdefault(match[2].lower(), {})
        if role in files:
            raise FormatError(
                f"{path}: {files[role].name} holds the same category's {role}; keep one of them"
            )
        files[role] = path
    for category, files in categories.items():
        if "meta" not in files:
            name = files["reviews"].name
            expected = "meta_" + name.replace("_5.json", ".json")
            raise FileNotFoundError(f"{folder}: expected {expected} beside {name}")
        if "reviews" not in files:
            raise FileNotFoundError(
                f"{folder}: expected the reviews of {category} beside {files['meta'].name}, "
                f"as {files['meta'].name.removeprefix('meta_')}"
            )
    if not categories:
        raise FileNotFoundError(
            f"{folder}: expected <Category>.json(l).gz and meta_<Category>.json(l).gz, found none"
        )
    return {
        name: (categories[name]["reviews"], categories[name]["meta"]) for name in sorted(categories)
    }


def load(store: Store, files: Files, settings: Settings) -> None:
    """Fill the store from one category's files; raises FormatError for files of another form."""
    reviews, meta = files
    reviews_format, meta_format = sniff(reviews, _REVIEWS), sniff(meta, _META)
    store.source("interactions", reviews, reviews_format)
    store.source("items", meta, meta_format)
    user, items, rating, time, scale = _FIELDS[reviews_format]
    raw = json_fields({"user_id": [user], "item_id": items, "rating": [rating], "time": [time]})
    fields = f"""SELECT line, broken, user_id, item_id, rating, time,
            try_cast(time AS DOUBLE) * {scale} AS moment,
            NULL::VARCHAR AS position, NULL::VARCHAR AS dropped FROM ({raw})"""
    names = {"user": user, "item": items[0], "time": time}
    store.add_interactions(line_batches(reviews, settings.progress), fields, names)
    item = "asin" if meta_format == "amazon-2018" else "parent_asin"
    titles = json_fields({"item_id": [item], "title": ["title"]})
    store.add_items(line_batches(meta, settings.progress), titles, item)
