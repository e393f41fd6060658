"""Display: results as rows of text or a table, and text that is safe to show in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LINES = 10
"""Most lines per result; `to_dict` has everything."""

_MAX_WIDTH = 100
_KEPT = {ord("\n"), 0xA0, 0x1680, *range(0x2000, 0x200B), 0x200C, 0x200D, 0x202F, 0x205F, 0x3000}
"""Code points that Python does not call printable but that text needs: line breaks, the spaces of
all scripts, and the joiners (zero-width) of Persian, Indic scripts and emoji."""


class _Shown(dict[int, str]):
    """Code point -> what a terminal is given for it, for `str.translate`."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        plain = char.isprintable() or code in _KEPT
        self[code] = char if plain else char.encode("unicode_escape").decode()
        return self[code]


_SHOWN = _Shown()


def visible(text: str) -> str:
    r"""Return text with what could act on a terminal as visible escapes, such as ``\x1b``.

    Names and metadata come from files that anyone can write. Control characters and escape
    sequences would act on the terminal, bidirectional marks would show the text in another order,
    and lone surrogates (names that are not valid text) cannot be printed. Letters of all scripts
    and line breaks stay.
    """
    return text.translate(_SHOWN)


def shortened(text: str, limit: int) -> str:
    """Return text of at most `limit` characters (100 or more); says where it left some out."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    head = limit - tail - 40  # the room for what is said
    return f"{text[:head]} [... {len(text) - head - tail:,} characters ...] {text[-tail:]}"


def list_names(names: Sequence[str], most: int = 5) -> str:
    """Return names with commas between them, each and all of them shortened; empty for none."""
    shown = ", ".join(shortened(name, 100) for name in names[:most])
    more = len(names) - most
    return f"{shown} and {more:,} more" if more > 0 else shown


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
    text = visible(text)
    return text if len(text) <= _MAX_WIDTH else f"{text[: _MAX_WIDTH - 1]}…"


def in_percent(interval: tuple[float, float]) -> str:
    """Return an interval for people: ``79.94% to 80.64%``."""
    return f"{interval[0]:.2%} to {interval[1]:.2%}"
