"""A hook of MkDocs: what the theme's pages lack, mended in the finished page."""

from __future__ import annotations

from typing import Any

_MENDED = {
    # a dialog has to say what it is for, or a screen reader says "dialog" alone
    'data-md-component="search" role="dialog"': (
        'data-md-component="search" role="dialog" aria-label="Search"'
    ),
}
"""What stands in the theme's templates -> what it has to be."""


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Mend a page (called by MkDocs for every page).

    Raises:
        ValueError: If the theme has changed, so that nothing is mended any more.
    """
    for old, new in _MENDED.items():
        if old not in output:
            raise ValueError(f"{page.file.src_uri}: the theme no longer writes {old}")
        output = output.replace(old, new)
    return output
