"""A command on a terminal as SVG: its last screen as a picture, and the whole of it as a film.

The letters are text, light on dark in every colour scheme, in the columns that the terminal had,
whatever font the reader has. Nothing moves in the picture; the film starts where one opens it, and
stands still for those who ask their system for less motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDE, HIGH, EDGE = 8, 17, 12
"""Of a column, of a line and around the screen, in pixels."""
INK, PAPER = "#e6edf3", "#0d1117"
FRAME_SECONDS, LAST_SECONDS = 0.6, 5.0
MOST_FRAMES = 24
_FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace"


def write_recording(folder: Path, name: str, command: str, screens: Sequence[str]) -> None:
    """Write `name.svg`, the last screen, and `name-film.svg`, all of them.

    Args:
        folder: Where to write.
        name: Name of the files.
        command: What was typed, shown as the first line.
        screens: What was on the screen, in order; some are left out if there are many.
    """
    step = max(1, -(-len(screens) // MOST_FRAMES))
    frames = [*screens[:-1][::step], screens[-1]]
    texts = [[f"$ {command}", *screen.splitlines()] for screen in frames]
    rows = max(map(len, texts))
    columns = max(len(line) for text in texts for line in text)
    title = f"{command}, on a terminal"
    picture = _svg(title, columns, rows, _lines(texts[-1]))
    (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
    shown = "".join(
        f'<g class="frame" style="animation-name:f{number}">{_lines(text)}</g>'
        for number, text in enumerate(texts)
    )
    film = _svg(title, columns, rows, _style(len(texts)) + shown)
    (folder / f"{name}-film.svg").write_text(film, encoding="utf-8")


def _svg(title: str, columns: int, rows: int, content: str) -> str:
    width, height = columns * WIDE + 2 * EDGE, rows * HIGH + 2 * EDGE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" font-family="{_FONT}" font-size="13" fill="{INK}">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="6" fill="{PAPER}"/>\n{content}</svg>\n'
    )


def _lines(text: Sequence[str]) -> str:
    """Lines of text; each word has the width of its columns."""
    found = []
    for number, line in enumerate(text):
        if line.strip():
            left = len(line) - len(line.lstrip())
            words = line.strip()
            x, y = EDGE + left * WIDE, EDGE + number * HIGH + 13
            found.append(
                f'<text x="{x}" y="{y}" textLength="{len(words) * WIDE}" '
                f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{escape(words)}</text>\n'
            )
    return "".join(found)


def _style(frames: int) -> str:
    """Show one frame after the other, and the last one for longer."""
    whole = FRAME_SECONDS * (frames - 1) + LAST_SECONDS
    rules = [
        f".frame{{visibility:hidden;animation:{whole:.1f}s step-end infinite}}",
        "@media (prefers-reduced-motion:reduce){.frame{animation:none}"
        ".frame:last-of-type{visibility:visible}}",
    ]
    for number in range(frames):
        start = 100 * number * FRAME_SECONDS / whole
        end = 100 * (number + 1) * FRAME_SECONDS / whole if number < frames - 1 else 100.0
        before = "" if number == 0 else "0%{visibility:hidden}"
        rules.append(
            f"@keyframes f{number}{{{before}{start:.2f}%{{visibility:visible}}"
            f"{end:.2f}%{{visibility:{'hidden' if number < frames - 1 else 'visible'}}}}}"
        )
    return "<style>\n" + "\n".join(rules) + "\n</style>\n"
