"""Item titles: from what a shop or a catalogue writes to one short readable line."""

import html
import re
import unicodedata

# A tag starts with a letter, so that "<3" and "a < b" stay.
_MARKUP = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL)
# "(Harry Potter, #1)", "(Saga #1-3)", "(#2)", "(The Expanse (Novels), #1.5)"
_SERIES = re.compile(r"\s*\((?:[^()]|\([^()]*\))*?(?<![^\s,;(])#\s?\d(?:[^()]|\([^()]*\))*\)\s*$")
_INVISIBLE = re.compile("[\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
# Pages of the 2018 crawl that stored the page's script in place of the title.
_SCRIPT = re.compile(r"\.getTime\(\)|^\s*var \w+ ?=")


def clean_title(title: str, length: int = 80, strip_series: bool = True) -> str:
    """One line of plain text of at most `length` characters; "" if nothing readable is left.

    In this order: HTML entities (also doubly escaped ones), markup, Unicode NFC, control and
    invisible characters, series suffix, white space, length. A title that is too long is cut
    at a word boundary (a single word longer than `length` is cut inside).
    """
    text = html.unescape(html.unescape(title))
    if _SCRIPT.search(text):
        return ""
    text = _MARKUP.sub(" ", text)
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    text = " ".join(text.split())
    if strip_series:
        shorter = _SERIES.sub("", text)
        # A title that is nothing but its series mark stays as it is.
        text = shorter or text
    if len(text) > length:
        head = text[: length + 1]
        text = head[: head.rfind(" ")] if " " in head[1:] else text[:length]
        text = text.rstrip(" ,;:-–—(&/|")
    return text if any(c.isalnum() for c in text) else ""
