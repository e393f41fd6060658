"""Write the tutorial's pictures from the folder of `bitzoo quickstart`.

    bitzoo quickstart --folder DIR
    python tools/tutorial_pictures.py DIR

The charts are those of the run's report, with the report's own colours, light and dark.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
SCALE = 8
"""Screen pixels per pixel of a digit."""
GAP = 8
MISTAKES = 10
CHARTS = {"tutorial-loss.svg": "Loss over steps", "tutorial-confusion.svg": "Confusion matrix"}
FONT = 'system-ui, "Segoe UI", Roboto, Arial, sans-serif'


def write_pictures(quickstart: Path, folder: Path = FOLDER) -> list[Path]:
    """Write all pictures; return their paths.

    Args:
        quickstart: The folder that `bitzoo quickstart` wrote.
        folder: Where the pictures go; created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = (quickstart / "run" / "report.html").read_text(encoding="utf-8")
    one_each = [min((quickstart / "digits" / "val" / str(n)).iterdir()) for n in range(10)]
    strips: dict[str, list[Image.Image]] = {
        "tutorial-digits.png": [Image.open(path) for path in one_each],
        "tutorial-mistakes.png": worst_mistakes(report),
    }
    for name, images in strips.items():
        _strip(images).save(folder / name, optimize=True)
    for name, title in CHARTS.items():
        (folder / name).write_text(chart(report, title), encoding="utf-8", newline="\n")
    return [folder / name for name in (*strips, *CHARTS)]


def worst_mistakes(report: str) -> list[Image.Image]:
    """Return the first pictures in a report's section of that name."""
    section = report.partition("<h2>Worst mistakes</h2>")[2].partition("</section>")[0]
    encoded = re.findall(r'src="data:image/\w+;base64,([^"]+)"', section)[:MISTAKES]
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def chart(report: str, title: str) -> str:
    """Return one of a report's charts as a file of its own.

    Raises:
        ValueError: If the report has none of that title.
    """
    start = rf'<svg viewBox="0 0 (\d+) (\d+)"[^>]*aria-label="{title}"'
    match = re.search(start + ".*?</svg>", report, re.S)
    if match is None:
        raise ValueError(f"The report has no chart {title!r}.")
    width, height = int(match[1]), int(match[2])
    drawing = match[0].partition(">")[2].removesuffix("</svg>")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{title}">\n<style>\n{_style(report)}</style>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="var(--card)"/>\n{drawing}\n</svg>\n'
    )


def _style(report: str) -> str:
    """Return the report's colours and its rules for what is drawn in charts."""
    style = report.partition("<style>")[2].partition("</style>")[0]
    media = re.escape("@media (prefers-color-scheme: dark)")
    colours = re.search(r":root \{.*?\n\}", style, re.S)
    dark = re.search(media + r" \{.*?\n\}", style, re.S)
    assert colours
    assert dark
    rules = [line for line in style.splitlines() if line.startswith(("svg text", "svg ."))]
    font = f"svg {{ font: 11px {FONT}; }}"
    return "\n".join((colours[0], dark[0], font, *rules)) + "\n"


def _strip(images: list[Image.Image]) -> Image.Image:
    """Return 8x8 pictures side by side, enlarged without smoothing; the gaps are transparent."""
    edge = 8 * SCALE
    strip = Image.new("LA", (len(images) * (edge + GAP) - GAP, edge))
    for number, image in enumerate(images):
        large = image.convert("L").resize((8, 8), Image.Resampling.BOX)
        strip.paste(
            large.resize((edge, edge), Image.Resampling.NEAREST).convert("LA"),
            (number * (edge + GAP), 0),
        )
    return strip


if __name__ == "__main__":
    for path in write_pictures(Path(sys.argv[1])):
        print(path.name, path.stat().st_size)
