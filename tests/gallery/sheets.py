"""A sheet of some of the images in a folder of class folders, one row a class."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

SIDE, COLUMNS = 112, 6


def write_sheet(folder: Path, classes: tuple[str, ...], path: Path) -> None:
    """Write a sheet of `COLUMNS` images a class, spread over its files."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, len(classes) * SIDE))
    for row, name in enumerate(classes):
        files = sorted((folder / name).iterdir())
        for column in range(COLUMNS):
            image = Image.open(files[(2 * column + 1) * len(files) // (2 * COLUMNS)])
            sheet.paste(image.resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
    sheet.save(path, quality=75)
