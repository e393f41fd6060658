"""Display of results: a few rows of text in a console, a table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LINES = 10
"""Most lines per result; `to_dict` has everything."""

_MAX_WIDTH = 100


class Displayed:
    """Base class of readable results; a subclass defines their contents in `display_rows`.

    A dataclass needs ``repr=False``, or it would generate its own `__repr__`.
    """

    def display_rows(self) -> Sequence[tuple[str, object]]:
        """Return names and values, the most important first."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Return the class's name and its rows, in at most `MAX_LINES` lines."""
        rows = _shortened(self.display_rows())
        width = max((len(name) for name, _ in rows), default=0)
        lines = (f"  {name:<{width}}  {value}".rstrip() for name, value in rows)
        return "\n".join([type(self).__name__, *lines])

    def _repr_html_(self) -> str:
        """Return the rows as a table, for Jupyter; their text is escaped."""
        import html  # only notebooks need it

        cells = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in _shortened(self.display_rows())
        )
        return f"<table><caption>{type(self).__name__}</caption>{cells}</table>"


def _shortened(rows: Sequence[tuple[str, object]]) -> list[tuple[str, str]]:
    """Return at most `MAX_LINES` - 1 rows, each of which is one line of text."""
    most = MAX_LINES - 1
    shown = [(_one_line(name), _one_line(value)) for name, value in rows[:most]]
    if len(rows) > most:
        shown[-1] = ("...", f"and {len(rows) - most + 1:,} more")
    return shown


def _one_line(value: object) -> str:
    """Return text without line breaks and control characters, which file names may contain."""
    items = value if isinstance(value, (list, tuple)) else [value]
    text = " ".join(", ".join(map(str, items)).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _MAX_WIDTH else f"{text[: _MAX_WIDTH - 1]}…"
