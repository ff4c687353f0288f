"""The settings of a preparation, validated once, written into every domain's meta.json."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """How raw files become domains. Unknown names and impossible values raise pydantic's error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(
        description="format of the source, one of FORMATS: published, plain or generated files"
    )
    domains: list[str] | None = Field(
        default=None, description="names of the domains to prepare; None: all in the source"
    )
    seed: int = Field(default=0, ge=0, description="seed of ties, candidates and max_users")
    user_core: int = Field(
        default=5, ge=3, description="fewest interactions per user (3: one per split)"
    )
    item_core: int = Field(default=5, ge=1, description="fewest interactions per item")
    negatives: int = Field(default=99, ge=1, description="unseen items per candidate list")
    title_length: int = Field(
        default=80, ge=8, description="most characters per title, cut at a word boundary"
    )
    strip_series: bool = Field(
        default=True, description='drop a trailing series mark such as "(Harry Potter, #1)"'
    )
    only_read: bool = Field(
        default=False, description="Goodreads: keep only books that the user marked as read"
    )
    max_users: int | None = Field(
        default=None,
        ge=1,
        description="most users per domain, drawn by a seeded hash of the user id among those "
        "that pass the core filter, which then runs again",
    )
    planted_users: int = Field(default=400, ge=10, description="planted: users per domain")
    planted_items: int = Field(default=320, ge=16, description="planted: items per domain")
    planted_history: int = Field(default=14, ge=6, description="planted: mean history length")
    memory: str = Field(
        default="2GB",
        pattern=r"^[1-9]\d*(MB|GB|TB)$",
        description="DuckDB's memory limit; beyond it, disk",
    )
    threads: int | None = Field(default=None, ge=1, description="DuckDB's threads; None: all")
    progress: bool = Field(default=True, description="show progress bars")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        """Refuse an unknown name with the nearest that is there."""
        for name in sorted(values.keys() - cls.model_fields) if isinstance(values, dict) else ():
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
            raise ValueError(f"unknown name {name!r}: {hint}")
        return values

    def recorded(self) -> dict:
        """The settings that can change the result (for meta.json): not memory, threads, bars."""
        return self.model_dump(exclude={"memory", "threads", "progress"})
