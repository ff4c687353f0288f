"""Item titles: from what a shop or a catalogue writes to one short readable line.

The full title says which item it is; the short one, without its series mark and cut, is for
prompts. Every step takes time linear in the title's length.
"""

import html
import re
import unicodedata

# A tag starts with a letter, so that "<3" and "a < b" stay.
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_MARK = re.compile(r"(?<![^\s,;(])#\s?\d")
_READABLE = re.compile(r"[^\W_]")
_INVISIBLE = re.compile("[\u200b-\u200f\u2028-\u202e\u2060\ufeff]")
# Pages of the 2018 crawl that stored the page's script in place of the title.
_SCRIPT = re.compile(r"\.getTime\(\)|^\s*var \w+ ?=")


def full_title(title: str) -> str:
    """One line of plain text; "" if nothing readable is left.

    In this order: HTML entities (also doubly escaped ones), markup, Unicode NFC, control and
    invisible characters, white space.
    """
    text = html.unescape(html.unescape(title))
    if _SCRIPT.search(text):
        return ""
    text = _TAG.sub(" ", _without_comments(text))
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    text = " ".join(text.split())
    return text if _is_readable(text) else ""


def short_title(text: str, length: int = 80, strip_series: bool = True) -> str:
    """A full title for the prompt: without its series suffix, at most `length` characters.

    A title that is too long is cut at a word boundary (a single word longer than `length` is cut
    inside). "" if what is left is not readable.
    """
    if strip_series:
        # A title that is nothing but its series mark stays as it is.
        text = _without_series(text) or text
    if len(text) > length:
        head = text[: length + 1]
        text = head[: head.rfind(" ")] if " " in head[1:] else text[:length]
        text = text.rstrip(" ,;:-–—(&/|")
    return text if _is_readable(text) else ""


def clean_title(title: str, length: int = 80, strip_series: bool = True) -> str:
    """The short title of what a file holds; "" if nothing readable is left."""
    return short_title(full_title(title), length, strip_series)


def _is_readable(text: str) -> bool:
    return _READABLE.search(text) is not None


def _without_comments(text: str) -> str:
    parts, start = [], 0
    while (begin := text.find("<!--", start)) >= 0 and (end := text.find("-->", begin + 4)) >= 0:
        parts += [text[start:begin], " "]
        start = end + 3
    return "".join([*parts, text[start:]]) if parts else text


def _without_series(text: str) -> str:
    """Without a last "(Harry Potter, #1)", "(Saga #1-3)", "(#2)", "(The Expanse (Novels), #1.5)".

    The suffix is the last pair of parentheses, which may hold pairs without pairs of their own,
    with a number sign at the start of a word outside these.
    """
    if not text.endswith(")"):
        return text
    depth, outside = 0, []
    for place in range(len(text) - 1, -1, -1):
        character = text[place]
        if character == ")":
            depth += 1
        elif character == "(":
            depth -= 1
        if depth > 2:
            return text
        if depth == 1 and character not in "()":
            outside.append(character)
        elif depth:
            outside.append("x")  # the place of a pair of its own
        else:
            mark = "".join(reversed(outside))
            return text[:place].rstrip() if _MARK.search(mark) else text
    return text
