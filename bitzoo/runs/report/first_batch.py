"""The first batch of a run as images: cropped, mirrored and mixed as training saw them.

A batch is a pure function of (seed, step), so it can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitzoo.data.image_store import Pixels
from bitzoo.data.label_sets import LabelSets
from bitzoo.data.loader import Labels, materialize
from bitzoo.data.sampler import Batch
from bitzoo.runs.report.captions import first_batch_note
from bitzoo.runs.report.run_summary import Gallery, Tile
from bitzoo.training.batches import batch_plan
from bitzoo.training.recipe import Recipe

__all__ = ["show_first_batch"]

TITLE = "First training batch"
_MOST = 16


def show_first_batch(
    recipe: Recipe,
    pixels: Pixels,
    labels: Labels,
    classes: Sequence[str],
    *,
    seed: int,
    freeze: bool = False,
) -> Gallery:
    """Make the first images of the batch of the first step again.

    Args:
        recipe: The recipe.
        pixels: The training images, as the run opened them.
        labels: Class of each, or the classes of each.
        classes: Class names.
        seed: The run's seed.
        freeze: Whether only the head was trained, on features of whole images.
    """
    if not isinstance(labels, LabelSets):
        labels = LabelSets.of_single(labels)
    batch = batch_plan(recipe, len(labels), seed).batch(0)
    shown = min(_MOST, len(batch))
    if freeze:
        images = pixels.take(batch.indices[:shown])
    else:
        rows = slice(0, shown)
        made, _ = materialize(batch, rows, pixels, labels, len(classes), recipe.crop)
        scaled = ((made + 1) * 127.5).round().clamp(0, 255)
        images = scaled.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    tiles = [
        Tile(image, lines, f"First batch, image {number}: {', '.join(lines)}")
        for number, image in enumerate(images, start=1)
        for lines in [_names(batch, number - 1, labels, classes, mixed=not freeze)]
    ]
    return Gallery(TITLE, first_batch_note(recipe, shown, freeze=freeze), tiles)


def _names(
    batch: Batch, row: int, labels: LabelSets, classes: Sequence[str], *, mixed: bool
) -> list[str]:
    def named(image: int) -> str:
        return ", ".join(classes[label] for label in labels[image]) or "no label"

    own = named(batch.indices[row])
    if batch.mix is None or not mixed:
        return [own]
    partner = named(batch.indices[batch.mix[row]])
    shares = ((batch.lam, own), (1 - batch.lam, partner))
    return [f"{100 * share:.1f}\N{NO-BREAK SPACE}% {name}" for share, name in shares]
