"""Real images that a study can use without the network: scikit-learn's handwritten digits as files.

The source ``digits:0-4`` stands for 8x8 images of these digits, of which the first fifth of each
class is held out. They are written into the study's folder once, so that everybody can look at
them.
"""

from __future__ import annotations

import re
from pathlib import Path

from bitzoo.errors import MissingExtraError, UsageError
from bitzoo.files import workspace
from bitzoo.locks import file_lock

DIGITS = "digits:"
"""What such a source begins with."""

_CLASSES = re.compile(r"(\d)(?:-(\d))?")


def local_source(source: str, folder: Path) -> str:
    """Return a source that the data readers know.

    Args:
        source: ``digits:FIRST-LAST``, or any other source, which is returned as it is.
        folder: Where digits are written, if they are not there yet.

    Raises:
        UsageError: If the digits are none.
        MissingExtraError: If scikit-learn, which has the images, is not installed.
    """
    if not source.startswith(DIGITS):
        return source
    match = _CLASSES.fullmatch(source.removeprefix(DIGITS))
    first = int(match[1]) if match else 0
    last = int(match[2] or match[1]) if match else -1
    if first > last:
        raise UsageError(
            f"{source}: expected two digits, as digits:0-4, found {source.removeprefix(DIGITS)!r}."
        )
    place = folder / f"digits-{first}-{last}"
    with file_lock(place):
        if not place.is_dir():
            _write(place, range(first, last + 1))
    return str(place)


def _write(place: Path, classes: range) -> None:
    """Write the digits at once: what is killed leaves no part of them under this name."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "The digits are scikit-learn's, which is not installed. Install it with: pip install "
            "'bitzoo[quickstart]'"
        ) from error
    import numpy as np
    from PIL import Image

    data = load_digits()
    pixels = np.minimum(data.images * 16, 255).astype(np.uint8)  # 0 to 16 in the original
    with workspace(place.parent) as temporary:
        made = temporary / place.name
        for digit in classes:
            rows = np.flatnonzero(data.target == digit)
            held_out = len(rows) // 5
            for split, own in (("val", rows[:held_out]), ("train", rows[held_out:])):
                into = made / split / str(digit)
                into.mkdir(parents=True)
                for row in own:
                    Image.fromarray(pixels[row]).save(into / f"{row:04}.png")
        made.rename(place)
