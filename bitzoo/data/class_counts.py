"""Show a data set before it is trained on: its classes, and the images of each per split."""

from __future__ import annotations

from bitzoo.data.dataset import ImageSet
from bitzoo.data.examples import count_classes
from bitzoo.display import shortened

_SHOWN = 12
"""Most classes that are listed; of more, the first and the last."""
_ENDS = 5
_MAX_NAME = 100


def describe_classes(images: ImageSet) -> list[str]:
    """Return how many classes and images there are, and a table of images per class and split.

    Args:
        images: A data set, as read or as inspected.

    Returns:
        Lines: a sentence, which also says how val was chosen, the names of the columns, and a line
        per class; of more than twelve classes the first and the last five, and how many are
        between them.
    """
    splits = images.splits
    counts = [count_classes(split.examples, len(images.classes)) for split in splits]
    totals = ", ".join(f"{len(split):,} in {split.name}" for split in splits)
    number = len(images.classes)
    labels = list(range(number))
    middle = number - 2 * _ENDS if number > _SHOWN else 0
    shown = labels[:_ENDS] + labels[-_ENDS:] if middle else labels
    cells = [("class", *(split.name for split in splits))]
    cells += [
        (shortened(images.classes[label], _MAX_NAME), *(f"{count[label]:,}" for count in counts))
        for label in shown
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    if middle:
        lines.insert(_ENDS + 1, f"({middle:,} more classes)")
    source = f" ({images.held_out})" if images.held_out else ""
    what = "class" if number == 1 else "classes"
    return [f"{number:,} {what}; images: {totals}{source}.", *lines]
