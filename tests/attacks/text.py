"""Texts compared by their letters: unprintable characters have another form in what is shown."""

from __future__ import annotations

from collections.abc import Iterable


def letters_of(text: str | Iterable[str]) -> str:
    """Letters and digits, with unprintable characters in the form in which they are shown."""
    joined = text if isinstance(text, str) else " ".join(text)
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    return "".join(c for c in "".join(shown) if c.isalnum() and c.isascii())
