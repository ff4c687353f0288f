"""Folders on disk: a data set is what its manifest says, written when all else is in place."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FILES = ("interactions.parquet", "items.parquet", "splits.parquet", "candidates.parquet")


def remove(folder: Path) -> None:
    """Delete a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest of the data set in `out`; None if there is none."""
    path = out / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_manifest(out: Path, domains: Iterable[str], **entries: Any) -> None:
    """Write out/manifest.json for these domains: the sha256 of each of their files, and entries."""
    held = {
        name: {
            file.name: digest(file)
            for file in sorted((out / name).iterdir())
            if file.name in (*FILES, "meta.json")
        }
        for name in domains
    }
    write_json(out / MANIFEST, entries | {"domains": held})


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file at once: a reader sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def install(out: Path, built: dict[str, Path]) -> None:
    """Rename the built folders to out/<domain>; remove what an earlier preparation left in `out`.

    That is: the domains of its manifest that are not among the built ones, and hidden folders of
    stopped preparations.
    """
    earlier = (read_manifest(out) or {}).get("domains", {})
    for domain, folder in built.items():
        target = out / domain
        old = out / f".{domain}.old"
        remove(old)
        if target.exists():
            target.rename(old)
        folder.rename(target)
    for domain in set(earlier) - set(built):
        remove(out / domain)
    for pattern in (".*.old", ".*.partial"):
        for folder in out.glob(pattern):
            if folder.is_dir():
                remove(folder)
